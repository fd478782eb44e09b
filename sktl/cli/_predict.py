"""``sktl predict``: classes of image files."""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sktl._deployment import innermost
from sktl.cli._folder import find_images
from sktl.cli._model import load_model
from sktl.exceptions import InputError


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
    model = load_model(Path(arguments.model), runtime=arguments.runtime)
    paths, bad = _expand(arguments.images)
    usable, unreadable = _predict(model, paths)
    bad += unreadable
    for path, reason in bad:
        print(f"sktl: error: {path}: {reason}", file=sys.stderr)
    if usable is not None:
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
    if not hasattr(model, "predict_proba"):
        return Predictions(paths, np.asarray(model.predict(paths)).tolist(), None, [])
    if getattr(innermost(model), "multilabel_", False):
        raise InputError(
            "`sktl predict` prints one label per image, and this model predicts several: use it in Python."
        )
    proba = model.predict_proba(paths)
    classes = np.asarray(model.classes_).tolist()
    return Predictions(paths, [classes[index] for index in proba.argmax(axis=1)], proba, classes)


def _print_lines(found: Predictions, with_proba: bool) -> None:
    path_width = max(map(len, found.paths))
    label_width = max(len(str(label)) for label in found.labels)
    for index, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)):
        words = [f"{path:{path_width}}", f"{label!s:{label_width}}"]
        if found.proba is not None:
            words.append(f"{found.proba[index].max():.3f}")
        if found.proba is not None and with_proba:
            order = np.argsort(-found.proba[index], kind="stable")
            words.append(", ".join(f"{found.classes[place]} {found.proba[index, place]:.3f}" for place in order))
        print("  ".join(words).rstrip())


def _print_csv(found: Predictions, with_proba: bool) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    has_proba = found.proba is not None
    columns = [f"probability of {name}" for name in found.classes] if with_proba else []
    writer.writerow(["path", "label", *(["probability"] if has_proba else []), *columns])
    for index, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)):
        numbers = [found.proba[index].max(), *(found.proba[index] if with_proba else [])] if has_proba else []
        writer.writerow([path, label, *(f"{number:.6f}" for number in numbers)])
