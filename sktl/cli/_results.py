"""What `sktl compare` shows and writes: a table, a picture, the winner, and the next command."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sktl.cli._data import LabelledImages
from sktl.cli._output import command_line, write_whole
from sktl.exceptions import MissingExtraError
from sktl.persistence import save
from sktl.plots import StrategyComparisonDisplay


@dataclass
class Result:
    """How one way of transfer did."""

    way: str
    cv_scores: list[float]
    test_accuracy: float
    trained_parameters: int
    seconds: float
    model: Any = field(repr=False)

    @property
    def cv_mean(self) -> float:
        """Mean accuracy over the folds."""
        return float(np.mean(self.cv_scores))

    @property
    def cv_std(self) -> float:
        """Standard deviation over the folds."""
        return float(np.std(self.cv_scores))

    def as_row(self) -> dict[str, Any]:
        """Return what the files say about it."""
        return {
            "way": self.way,
            "cv_accuracy": self.cv_mean,
            "cv_std": self.cv_std,
            "test_accuracy": self.test_accuracy,
            "trained_parameters": self.trained_parameters,
            "seconds": round(self.seconds, 2),
            **{f"cv_fold_{number}": score for number, score in enumerate(self.cv_scores, start=1)},
        }


def best_first(results: Sequence[Result]) -> list[Result]:
    """Sort by cross-validated accuracy; of equals, the one that was tried first, and is cheaper, comes first.

    Parameters
    ----------
    results : sequence of Result
        In the order in which they were tried.

    Returns
    -------
    results : list of Result
        The winner first.
    """
    return sorted(results, key=lambda result: -result.cv_mean)


def make_table(results: Sequence[Result]) -> str:
    """Return the results as aligned text.

    Parameters
    ----------
    results : sequence of Result
        In the order in which they were tried.

    Returns
    -------
    table : str
        Best first; the winner has a star.
    """
    ranked = best_first(results)
    header = ["", "way", "cross-validation", "test", "trained parameters", "seconds"]
    rows = [
        [
            "*" if result is ranked[0] else "",
            result.way,
            f"{result.cv_mean:.3f} ± {result.cv_std:.3f}",
            f"{result.test_accuracy:.3f}",
            f"{result.trained_parameters:,}",
            f"{result.seconds:.1f}",
        ]
        for result in ranked
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(_align(row, widths)).rstrip() for row in (header, *rows)]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, "", "* best cross-validated accuracy (mean ± standard deviation over the folds)"])


def _align(row: list[str], widths: list[int]) -> list[str]:
    return [
        cell.ljust(width) if place < 2 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def write_results(folder: Path, results: Sequence[Result], images: LabelledImages, title: str) -> None:
    """Write the table, its picture and the winner; each file whole or not at all.

    Parameters
    ----------
    folder : Path
        Made if need be; files of an earlier comparison are replaced.
    results : sequence of Result
        In the order in which they were tried.
    images : LabelledImages
        What they were tried on.
    title : str
        Of the picture.
    """
    ranked = best_first(results)
    winner = ranked[0]
    metrics = {"cross-validated accuracy": winner.cv_mean, "test accuracy": winner.test_accuracy}
    save(winner.model, folder / "model.sktl", metrics=metrics)
    print(f"winner    {folder / 'model.sktl'}  ({winner.way})")
    write_whole(folder / "comparison.txt", lambda path: path.write_text(f"{make_table(results)}\n", encoding="utf-8"))
    write_whole(folder / "comparison.csv", lambda path: _write_csv(path, ranked))
    print(f"table     {folder / 'comparison.csv'}")
    display = StrategyComparisonDisplay.from_results([result.as_row() for result in ranked], title=title)
    try:
        write_whole(folder / "comparison.png", display.save)
        print(f"picture   {folder / 'comparison.png'}")
    except MissingExtraError:
        print('picture   not drawn: that needs matplotlib. Run: pip install "sktl[plots]"')
    samples = _samples(folder, images)
    for path, pixels in samples.items():
        write_whole(path, Image.fromarray(pixels[..., 0]).save)
    if samples:
        print(f"samples   {folder / 'samples'}  (test images, named by what they are)")


def say_next(folder: Path, images: LabelledImages) -> None:
    """Print the command that uses the winner, with images that are there.

    Parameters
    ----------
    folder : Path
        Where the winner is.
    images : LabelledImages
        Images of the test part are named.
    """
    shown = [folder / "samples"] if _samples(folder, images) else images.test.X[:2]
    print(f"\nnext:\n  {command_line('predict', folder / 'model.sktl', *shown)}", flush=True)


def _samples(folder: Path, images: LabelledImages) -> dict[Path, np.ndarray]:
    """Return the first test image of each class by the file to write it to, where images are not files already."""
    if not isinstance(images.test.X, np.ndarray):
        return {}
    labels, first = np.unique(images.test.y, return_index=True)
    return {
        folder / "samples" / f"{label}.png": images.test.X[index] for label, index in zip(labels, first, strict=True)
    }


def _write_csv(path: Path, results: Sequence[Result]) -> None:
    rows = [result.as_row() for result in results]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
