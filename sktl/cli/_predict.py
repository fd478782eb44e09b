"""``sktl predict``: classes of image files."""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sktl._deployment import check_takes_images, innermost, labels_and_proba, take_apart
from sktl.cli._folder import find_images
from sktl.cli._model import load_model
from sktl.exceptions import InputError

_SEVERAL_LABELS = "`sktl predict` prints one label per image, and this model predicts several: use it in Python."


@dataclass
class Predictions:
    """Classes of the images that could be read.

    Attributes
    ----------
    paths : list of str
        The images.
    labels : list
        Their classes.
    proba : ndarray of shape (n, n_classes) or None
        None if the model gives no probabilities.
    classes : list
        What the columns of ``proba`` stand for.
    """

    paths: list[str]
    labels: list
    proba: np.ndarray | None
    classes: list

    def proba_of_labels(self) -> list[float]:
        """Return the probability of each label, which is not the highest where the model decides otherwise."""
        places = {name: place for place, name in enumerate(self.classes)}
        return [float(row[places[label]]) for row, label in zip(self.proba, self.labels, strict=True)]


def run_predict(arguments) -> int:
    """Predict the classes of image files.

    Parameters
    ----------
    arguments : argparse.Namespace
        What was written on the command line.

    Returns
    -------
    code : int
        1 if some of the images cannot be used, else 0.
    """
    model = load_model(Path(arguments.model), weights=arguments.weights, runtime=arguments.runtime)
    check_takes_images(model, "`sktl predict`")
    paths, bad = _expand(arguments.images)
    usable, unreadable = _predict(model, paths)
    bad += unreadable
    for path, reason in bad:
        print(f"sktl: error: {path}: {reason}", file=sys.stderr)
    if usable is not None:
        if arguments.proba and usable.proba is None:
            print("sktl: warning: --proba has no effect: this model gives no probabilities", file=sys.stderr)
        (_print_csv if arguments.csv else _print_lines)(usable, arguments.proba)
    return 1 if bad else 0


def _expand(names: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return files, those in folders included, and the folders that hold none."""
    paths, bad = [], []
    for name in names:
        found = [str(path) for path in find_images(Path(name))] if Path(name).is_dir() else [name]
        paths += found
        if not found:
            bad.append((name, "a folder without images"))
    return paths, bad


def _predict(model, paths: list[str]) -> tuple[Predictions | None, list[tuple[str, str]]]:
    """Predict what can be read, and say why the rest cannot."""
    bad: list[tuple[str, str]] = []
    while paths:
        try:
            return _ask(model, paths), bad
        except InputError as error:
            if not error.rows:
                raise
            bad += [(paths[row.index], row.reason) for row in error.rows]
            lost = {row.index for row in error.rows}
            paths = [path for index, path in enumerate(paths) if index not in lost]
    return None, bad


def _ask(model, paths: list[str]) -> Predictions:
    if getattr(innermost(model), "multilabel_", False):
        raise InputError(_SEVERAL_LABELS)
    parts = take_apart(model)
    predictor, X = (parts.predictor, parts.embed(paths)) if parts else (model, paths)  # the network runs once
    labels, proba = labels_and_proba(predictor, X)
    labels = np.asarray(labels)
    if proba is None:
        return Predictions(paths, labels.tolist(), None, [])
    if labels.ndim > 1:
        raise InputError(_SEVERAL_LABELS)
    return Predictions(paths, labels.tolist(), proba, np.asarray(model.classes_).tolist())


def _print_lines(found: Predictions, with_proba: bool) -> None:
    path_width = max(map(len, found.paths))
    label_width = max(len(str(label)) for label in found.labels)
    certainty = None if found.proba is None else found.proba_of_labels()
    for index, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)):
        words = [f"{path:{path_width}}", f"{label!s:{label_width}}"]
        if certainty is not None:
            words.append(f"{certainty[index]:.3f}")
        if found.proba is not None and with_proba:
            order = np.argsort(-found.proba[index], kind="stable")
            words.append(", ".join(f"{found.classes[place]} {found.proba[index, place]:.3f}" for place in order))
        print("  ".join(words).rstrip())


def _print_csv(found: Predictions, with_proba: bool) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    certainty = None if found.proba is None else found.proba_of_labels()
    columns = [f"probability of {name}" for name in found.classes] if with_proba else []
    writer.writerow(["path", "label", *(["probability"] if certainty else []), *columns])
    for index, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)):
        numbers = [certainty[index], *(found.proba[index] if with_proba else [])] if certainty else []
        writer.writerow([path, label, *(f"{number:.6f}" for number in numbers)])
