"""Folders with one sub-folder per class."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sktl.exceptions import InputError

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pfm", ".pgm", ".png",
    ".pnm", ".ppm", ".tif", ".tiff", ".webp",
))
# fmt: on
_LAYOUT = "Expected is one sub-folder of images per class, or train/ and test/ with one sub-folder per class each."


@dataclass
class Files:
    """Image files and their classes, in one order."""

    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


@dataclass
class ImageFolder:
    """What a folder holds.

    Attributes
    ----------
    train : Files
        All files, or those of ``train/``.
    test : Files or None
        The files of ``test/``.
    notes : list of str
        What was left out, one sentence each.
    """

    train: Files
    test: Files | None
    notes: list[str]


def read_folder(folder: Path) -> ImageFolder:
    """List the images of a folder by class; none is opened.

    Parameters
    ----------
    folder : Path
        Holds one sub-folder per class, or ``train/`` and ``test/``.

    Returns
    -------
    images : ImageFolder
        Sorted by class and name.

    Raises
    ------
    InputError
        If the folder is not made like that.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(f"The folder {str(folder)!r} {what}. Give a folder, or 'digits'. {_LAYOUT}")
    subfolders = {path.name: path for path in _visible(folder) if path.is_dir()}
    if not subfolders:
        raise InputError(f"The folder {str(folder)!r} holds no sub-folders. {_LAYOUT}")
    skipped: Counter[str] = Counter()
    if is_split := {"train", "test"} <= set(subfolders) and _has_subfolders(subfolders["train"]):
        train, test = (_read_classes(subfolders.pop(part), skipped) for part in ("train", "test"))
    else:
        train, test = _read_classes(folder, skipped), None
    notes = _notes(skipped)
    if is_split and subfolders:
        notes.append(f"beside train/ and test/, not used: {', '.join(f'{name}/' for name in subfolders)}")
    return ImageFolder(train, test, notes)


def find_images(folder: Path, skipped: Counter[str] | None = None) -> Iterator[Path]:
    """Yield the image files in a folder and the folders below it, sorted by name.

    Parameters
    ----------
    folder : Path
        Where to look; links to folders are not followed.
    skipped : Counter, default=None
        Counts what is passed over, by kind.

    Yields
    ------
    path : Path
        A file that is an image by its suffix and is not hidden.
    """
    skipped = Counter() if skipped is None else skipped
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                skipped["hidden"] += 1
            elif os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                skipped["other"] += 1
            else:
                yield Path(place, name)


def _read_classes(folder: Path, skipped: Counter[str]) -> Files:
    files = Files()
    for path in _visible(folder):
        if not path.is_dir():
            skipped["outside"] += 1
            continue
        before = len(files.paths)
        files.paths += map(str, find_images(path, skipped))
        files.labels += [path.name] * (len(files.paths) - before)
        skipped["empty"] += len(files.paths) == before
    if not files.paths:
        raise InputError(
            f"The sub-folders of {str(folder)!r} hold no image files ({', '.join(sorted(IMAGE_SUFFIXES))})."
        )
    return files


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _has_subfolders(folder: Path) -> bool:
    return any(path.is_dir() for path in _visible(folder))


def _notes(skipped: Counter[str]) -> list[str]:
    names = {
        "hidden": ("hidden file", "hidden files"),
        "other": ("file without an image's suffix", "files without an image's suffix"),
        "outside": ("file outside of the class folders", "files outside of the class folders"),
        "empty": ("class folder without images", "class folders without images"),
    }
    counts = [f"{skipped[kind]:,} {names[kind][skipped[kind] > 1]}" for kind in names if skipped[kind]]
    return [f"skipped: {', '.join(counts)}"] if counts else []
