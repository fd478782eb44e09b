"""From ``digits`` or a folder to labelled images, some of them set aside for the test."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from sktl.cli._folder import Files, read_folder
from sktl.exceptions import InputError


@dataclass
class Part:
    """Images and their labels: ``X`` is an array of shape (n, height, width, channels) or a list of paths."""

    X: Any
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices) -> "Part":
        """Return some of the images, in the order of ``indices``."""
        X = self.X[indices] if isinstance(self.X, np.ndarray) else [self.X[index] for index in indices]
        return Part(X, self.y[indices])


@dataclass
class LabelledImages:
    """What ways of transfer are compared on.

    Attributes
    ----------
    name : str
        For titles and file names.
    train, test : Part
        What to learn from, and what to judge the outcome by.
    pixels_size : int
        Side of the images as the baseline on raw pixels sees them; of this size a linear model is trained in seconds.
    image_size : int or None
        Side as the network sees them; None for the backbone's own.
    learning_rate : float or None
        Of the head; None for the strategy's own.
    notes : list of str
        What was left out, one sentence each.
    """

    name: str
    train: Part
    test: Part
    pixels_size: int = 32
    image_size: int | None = None
    learning_rate: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> np.ndarray:
        """The labels, each once."""
        return np.unique(self.train.y)

    def __len__(self) -> int:
        return len(self.train) + len(self.test)


def load_images(
    data: str, *, test_size: float, n_splits: int, max_images: int | None, random_state: int
) -> LabelledImages:
    """Load labelled images, and make sure that every class can be cross-validated.

    Parameters
    ----------
    data : str
        ``"digits"``, or a folder.
    test_size : float
        Share to set aside, where the data does not come split.
    n_splits : int
        Folds of the cross-validation.
    max_images : int or None
        How many images to keep, of all classes alike.
    random_state : int
        Decides what is set aside, and what is kept.

    Returns
    -------
    images : LabelledImages
        Split in two.

    Raises
    ------
    InputError
        If the folder is not made as it should be, or a class has too few images.
    """
    if data == "digits":
        whole = _read_digits()
        train, test = _split(_sample(whole, max_images, random_state), test_size, n_splits, random_state)
        return LabelledImages("digits", train, test, pixels_size=8, image_size=32, learning_rate=3e-3)
    folder = Path(data)
    found = read_folder(folder)
    if found.test is None:
        whole = _sample(_as_part(found.train), max_images, random_state)
        train, test = _split(whole, test_size, n_splits, random_state)
    else:
        train, test = _as_part(found.train), _as_part(found.test)
        share = 1.0 if max_images is None else max_images / (len(train) + len(test))
        train, test = (_sample(part, round(share * len(part)), random_state) for part in (train, test))
        check_parts(train, test, n_splits)
    return LabelledImages(folder.resolve().name or "images", train, test, notes=found.notes)


def without(images: LabelledImages, bad_train, bad_test, n_splits: int) -> LabelledImages:
    """Leave out images, and make sure that the others still suffice.

    Parameters
    ----------
    images : LabelledImages
        Not changed.
    bad_train, bad_test : ndarray of bool
        Which images of each part to leave out.
    n_splits : int
        Folds of the cross-validation.

    Returns
    -------
    images : LabelledImages
        The others.
    """
    train, test = images.train.take(np.flatnonzero(~bad_train)), images.test.take(np.flatnonzero(~bad_test))
    check_parts(train, test, n_splits)
    return replace(images, train=train, test=test)


def check_parts(train: Part, test: Part, n_splits: int) -> None:
    """Refuse data that cannot be cross-validated, or judged on the test part.

    Parameters
    ----------
    train, test : Part
        The data.
    n_splits : int
        Folds of the cross-validation.
    """
    _check_counts(train.y, n_splits, f"to learn from, and --cv {n_splits} needs {n_splits} of each")
    if len(test) == 0:
        raise InputError("There are no images to test on.")
    unknown = np.setdiff1d(test.y, train.y)
    if len(unknown):
        raise InputError(
            f"The test images have classes that the training images do not: {', '.join(map(str, unknown[:5]))}."
        )


def _check_counts(y: np.ndarray, least: int, purpose: str) -> None:
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2:
        raise InputError(f"At least 2 classes are needed, and there is only {str(classes[0])!r}.")
    few = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < least]
    if few:
        more = f", and {len(few) - 5} more" if len(few) > 5 else ""
        raise InputError(f"Classes with too few images {purpose}: {', '.join(few[:5])}{more}.")


def _read_digits() -> Part:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / digits.images.max())).astype(np.uint8)
    return Part(pixels[..., np.newaxis], digits.target)


def _as_part(files: Files) -> Part:
    return Part(files.paths, np.array(files.labels))


def _sample(part: Part, n: int | None, random_state: int) -> Part:
    if n is None or n >= len(part):
        return part
    n_classes = len(np.unique(part.y))
    if n < 2 * n_classes:
        raise InputError(f"--max-images leaves {n} of {len(part):,} images, too few for {n_classes} classes.")
    kept, _ = train_test_split(np.arange(len(part)), train_size=n, stratify=part.y, random_state=random_state)
    return part.take(np.sort(kept))


def _split(whole: Part, test_size: float, n_splits: int, random_state: int) -> tuple[Part, Part]:
    _check_counts(whole.y, n_splits + 1, f"for a test part and --cv {n_splits}, which need {n_splits + 1} of each")
    n_test = max(round(test_size * len(whole)), len(np.unique(whole.y)))
    learn, judge = train_test_split(
        np.arange(len(whole)), test_size=n_test, stratify=whole.y, random_state=random_state
    )
    train, test = whole.take(np.sort(learn)), whole.take(np.sort(judge))
    check_parts(train, test, n_splits)
    return train, test
