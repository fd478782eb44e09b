"""``sktl compare``: cross-validate ways of transfer, show the outcome, keep the winner."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from tqdm import tqdm

from sktl.backbones import list_backbones
from sktl.cli._candidates import Candidate, count_parameters, make_candidates
from sktl.cli._data import LabelledImages, load_images, without
from sktl.cli._output import make_writable
from sktl.cli._results import Result, make_table, say_next, write_results
from sktl.embedding import resolve_device
from sktl.strategies import resolve_strategy
from sktl.transformer import PretrainedFeatureTransformer

_MUCH_LARGER = 1.5  # than a class would be if all were of one size


def run_compare(arguments) -> int:
    """Compare ways of transfer.

    Parameters
    ----------
    arguments : argparse.Namespace
        What was written on the command line.

    Returns
    -------
    code : int
        0.
    """
    for strategy in arguments.strategies:
        resolve_strategy(strategy)
    images = load_images(
        arguments.data,
        test_size=arguments.test_size,
        n_splits=arguments.cv,
        max_images=arguments.max_images,
        random_state=arguments.random_state,
    )
    network = _network(arguments, images)
    _introduce(images, arguments)
    images = _embed_all(images, network, arguments.cv)
    folder = Path(arguments.out or Path("sktl-compare", images.name))
    make_writable(folder)  # better known now than after minutes of work
    candidates = make_candidates(
        arguments.strategies,
        network,
        _training(arguments, images),
        pixels_size=images.pixels_size,
    )
    folds = StratifiedKFold(arguments.cv, shuffle=True, random_state=arguments.random_state)
    jobs = arguments.jobs or _default_jobs(arguments.device, arguments.cv)
    results = _evaluate_all(candidates, images, folds, jobs)
    print(f"\n{make_table(results)}\n", flush=True)
    title = f"{images.name}: {len(images):,} images, {len(images.classes)} classes, backbone {arguments.backbone}"
    write_results(folder, results, images, title)
    say_next(folder, images)
    return 0


def _network(arguments, images: LabelledImages) -> dict[str, Any]:
    return {
        "backbone": arguments.backbone,
        "weights": arguments.weights,
        "image_size": arguments.image_size or images.image_size,
        "device": arguments.device,
        "memory": arguments.memory,
    }


def _training(arguments, images: LabelledImages) -> dict[str, Any]:
    return {
        "max_epochs": arguments.epochs,
        "learning_rate": arguments.learning_rate or images.learning_rate,
        "random_state": arguments.random_state,
    }


def _introduce(images: LabelledImages, arguments) -> None:
    what = "images" if isinstance(images.train.X, np.ndarray) else "image files"  # whether they open, nobody knows yet
    print(
        f"{images.name}: {len(images):,} {what} of {len(images.classes)} classes; {len(images.train):,} to learn from "
        f"({arguments.cv}-fold cross-validation), {len(images.test):,} set aside for the test"
    )
    for note in [*images.notes, *_notes_on_classes(images)]:
        print(f"  {note}")


def _notes_on_classes(images: LabelledImages) -> Iterator[str]:
    """Say what accuracy is that of the largest class alone, where it is well above chance."""
    labels, counts = np.unique(np.concatenate([images.train.y, images.test.y]), return_counts=True)
    share = counts.max() / counts.sum()
    if share * len(labels) > _MUCH_LARGER:
        label = labels[counts.argmax()].item()
        yield (
            f"{100 * share:.0f} % of the images are of class {label!r}: an accuracy near {share:.3f} says nothing yet"
        )


def _embed_all(images: LabelledImages, network: dict[str, Any], n_splits: int) -> LabelledImages:
    """Embed every image before the clock of any candidate runs; leave out what cannot be read, warn of what is shared.

    The embeddings stay in the store of the process. Without this, whichever candidate asks first would pay for all.
    """
    started = time.perf_counter()
    transformer = PretrainedFeatureTransformer(**network, on_error="nan", verbose=int(sys.stderr.isatty()))
    transformer.fit(images.train.X)
    side = "x".join(map(str, transformer.backbone_.data_config["input_size"][1:]))
    print(f"backbone {network['backbone']} at {side} pixels on {resolve_device(network['device'])}", flush=True)
    if network["backbone"] in list_backbones("sktl/*") and not isinstance(images.train.X, np.ndarray):
        print("  it never saw a photograph; for photographs, try --backbone mobilenetv2_100 or another", flush=True)
    parts = (images.train, images.test)
    told = [transformer._transform_with_stats(part.X)[1] for part in parts]
    print(f"embedded all images once, for all that follows: {time.perf_counter() - started:.1f} s\n", flush=True)
    for part, stats in zip(parts, told, strict=True):
        for row in stats.bad:
            print(f"sktl: warning: {part.X[row.index]} is left out: {row.reason}", file=sys.stderr)
    is_bad = [np.isin(np.arange(stats.rows), [row.index for row in stats.bad]) for stats in told]
    if any(part.any() for part in is_bad):
        images = without(images, *is_bad, n_splits)
    learnt, tested = (np.array(stats.digests, dtype=object)[~bad] for stats, bad in zip(told, is_bad, strict=True))
    _warn_of_shared(set(learnt), list(tested))
    if not isinstance(images.train.X, np.ndarray):
        labels = [*images.train.y, *images.test.y]
        _warn_of_contradictions([*images.train.X, *images.test.X], labels, [*learnt, *tested])
    return images


def _warn_of_shared(learnt: set[bytes], tested: list[bytes]) -> None:
    """Say how many images of the test can be learnt by heart."""
    n_shared = sum(digest in learnt for digest in tested)
    if n_shared:
        print(
            f"sktl: warning: {n_shared:,} of the {len(tested):,} images of the test are among those to learn from "
            "too; the accuracy in the test is too high",
            file=sys.stderr,
        )


def _warn_of_contradictions(paths: list[str], labels: list[str], digests: list[bytes]) -> None:
    """Say how many pictures have labels of which one at most is right."""
    places: dict[bytes, dict[str, str]] = {}
    for path, label, digest in zip(paths, labels, digests, strict=True):
        places.setdefault(digest, {}).setdefault(label, path)
    several = [list(found.values()) for found in places.values() if len(found) > 1]
    if several:
        print(
            f"sktl: warning: {len(several):,} {'picture is' if len(several) == 1 else 'pictures are'} in several "
            f"classes, such as {' and '.join(several[0][:2])}",
            file=sys.stderr,
        )


def _default_jobs(device: str, n_splits: int) -> int:
    """Return how many folds to train side by side: one core trains a small network as fast as several do."""
    return min(cpu_count(), n_splits) if resolve_device(device).type == "cpu" else 1


def _evaluate_all(
    candidates: list[Candidate], images: LabelledImages, folds: StratifiedKFold, jobs: int
) -> list[Result]:
    """Cross-validate, refit and test each candidate on the same folds; a line for each as soon as it is done."""
    if jobs > 1 and any(candidate.is_long for candidate in candidates):
        _start_workers(jobs)
    width = max(len(candidate.name) for candidate in candidates)
    results = []
    total = sum(candidate.effort for candidate in candidates) * (folds.n_splits + 1)
    bar_format = "{desc} |{bar:30}| {percentage:3.0f}%  {elapsed} gone, about {remaining} left"
    with tqdm(total=total, disable=not sys.stderr.isatty(), leave=False, bar_format=bar_format) as bar:
        for number, candidate in enumerate(candidates, start=1):
            bar.set_description_str(f"{candidate.name:{width}}")
            result = _evaluate(candidate, images, folds, jobs if candidate.is_long else 1, bar)
            results.append(result)
            spread = f"{result.cv_mean:.3f} ± {result.cv_std:.3f}"
            line = f"[{number}/{len(candidates)}] {candidate.name:{width}}  {spread}  {result.seconds:7.1f} s"
            bar.clear()
            print(line, flush=True)
    return results


def _start_workers(jobs: int) -> None:
    """Let the worker processes load what they need before the clock of any candidate runs."""
    Parallel(jobs)(delayed(list_backbones)("sktl/*") for _ in range(jobs))


def _evaluate(candidate: Candidate, images: LabelledImages, folds: StratifiedKFold, jobs: int, bar: tqdm) -> Result:
    def accuracy(model: BaseEstimator, X, y) -> float:
        score = model.score(X, y)
        bar.update(candidate.effort)
        return score

    search = GridSearchCV(
        candidate.model,
        candidate.param_grid,
        scoring=accuracy if jobs == 1 else "accuracy",  # other processes cannot move the bar
        cv=folds,
        n_jobs=jobs,
        error_score="raise",
    )
    started = time.perf_counter()
    search.fit(images.train.X, images.train.y)
    seconds = time.perf_counter() - started
    bar.update(candidate.effort * (1 if jobs == 1 else folds.n_splits + 1))
    return Result(
        way=candidate.name,
        cv_scores=[float(search.cv_results_[f"split{fold}_test_score"][0]) for fold in range(folds.n_splits)],
        test_accuracy=float(search.best_estimator_.score(images.test.X, images.test.y)),
        trained_parameters=count_parameters(search.best_estimator_),
        seconds=seconds,
        model=search.best_estimator_,
    )
