"""Folders with one sub-folder per class."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sktl.exceptions import InputError, InputWarning

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pfm", ".pgm", ".png",
    ".pnm", ".ppm", ".tif", ".tiff", ".webp",
))
# fmt: on
_NO_SUFFIX = "no suffix"
_N_SUFFIXES = 6  # so many are named
_LAYOUT = "Expected is one sub-folder of images per class, or train/ and test/ with one sub-folder per class each."
_SERVES_AS = {  # folders that are parts of a data set, and the part that each may be renamed to
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "test",
    "valid": "test",
    "validation": "test",
    "dev": "test",
}


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
        Holds one sub-folder per class, or ``train/`` and ``test/``, in upper or lower case.

    Returns
    -------
    images : ImageFolder
        Sorted by class and name.

    Raises
    ------
    InputError
        If the folder is not made like that, or if it cannot be told whether its sub-folders are parts or classes.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(f"The folder {str(folder)!r} {what}. Give a folder, or 'digits'. {_LAYOUT}")
    subfolders = {path.name: path for path in _visible(folder) if path.is_dir()}
    if not subfolders:
        raise InputError(f"The folder {str(folder)!r} holds no sub-folders. {_LAYOUT}")
    skipped: Counter[str] = Counter()
    split = _find_split(folder, subfolders)
    if split is None:
        return ImageFolder(_read_classes(folder, skipped), None, _notes(skipped))
    train, test = (_read_classes(subfolders[name], skipped) for name in split)
    unused = [name for name in subfolders if name not in split]
    return ImageFolder(train, test, _notes(skipped) + _note_unused(split, unused))


def find_images(folder: Path, skipped: Counter[str] | None = None) -> Iterator[Path]:
    """Yield the image files in a folder and the folders below it, sorted by name.

    Parameters
    ----------
    folder : Path
        Where to look; links to folders are not followed.
    skipped : Counter, default=None
        Counts what is passed over: by suffix, hidden files, and links to folders.

    Yields
    ------
    path : Path
        A file that is an image by its suffix and is not hidden.

    Warns
    -----
    InputWarning
        If a folder cannot be opened.
    """
    skipped = Counter() if skipped is None else skipped
    for place, folders, files in os.walk(folder, onerror=_warn_of_folder):
        skipped["linked"] += sum(os.path.islink(os.path.join(place, name)) for name in folders)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                skipped["hidden"] += 1
            elif suffix not in IMAGE_SUFFIXES:
                skipped[suffix or _NO_SUFFIX] += 1
            else:
                yield Path(place, name)


def _warn_of_folder(error: OSError) -> None:
    warnings.warn(f"The folder {error.filename!r} is left out: {error.strerror}.", InputWarning, stacklevel=3)


def _find_split(folder: Path, subfolders: dict[str, Path]) -> tuple[str, str] | None:
    """Return the names of the folders to learn from and to test on, or None if all sub-folders are classes."""
    parts = [name for name in subfolders if name.casefold() in _SERVES_AS]
    nested = [name for name in parts if _has_subfolders(subfolders[name])]
    is_class = len(parts) == 1 and not nested and len(subfolders) > 1  # pictures of trains, among others
    if not parts or is_class:
        return None
    train, test = ([name for name in parts if name.casefold() == part] for part in ("train", "test"))
    if len(train) == len(test) == 1 and {*train, *test} <= set(nested):
        return train[0], test[0]
    raise InputError(
        f"The folder {str(folder)!r} holds {_join(parts, 'and')}, as a data set that is split does, but "
        f"{_say_problem(train, test, nested)}. {_say_remedy(folder, train, test, nested)} "
        "If a class is called like a part, give its folder another name."
    )


def _say_problem(train: list[str], test: list[str], nested: list[str]) -> str:
    missing = [part for part, found in (("train", train), ("test", test)) if not found]
    if missing:
        return f"there is no {_join(missing, 'and no')}"
    if len(train) > 1 or len(test) > 1:
        return f"{_join(train if len(train) > 1 else test, 'and')} are the same but for upper and lower case"
    flat = [name for name in (*train, *test) if name not in nested]
    return f"there are no sub-folders in {_join(flat, 'or')}"


def _say_remedy(folder: Path, train: list[str], test: list[str], nested: list[str]) -> str:
    remedy = "Needed are 'train' and 'test', with one sub-folder of images per class each"
    renames = []
    for part, found in (("train", train), ("test", test)):
        spare = [name for name in nested if _SERVES_AS[name.casefold()] == part]
        if spare and not found:
            renames.append(f"{_join(spare, 'or')} to {part!r}")
    if renames:
        remedy += f": rename {' and '.join(renames)}"
    if len(train) == 1 and train[0] in nested:
        remedy += f", or give {str(folder / train[0])!r}, of which a part is then set aside for the test"
    return f"{remedy}."


def _join(names: list[str], word: str) -> str:
    quoted = [repr(name) for name in names]
    return f" {word} ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _read_classes(folder: Path, skipped: Counter[str]) -> Files:
    files = Files()
    for path in _visible(folder):
        if not path.is_dir():
            skipped["outside"] += 1
            continue
        if not _is_utf8(path.name):
            raise InputError(f"The name of the folder {str(path)!r} is not UTF-8, and so no class: rename it.")
        before = len(files.paths)
        files.paths += map(str, find_images(path, skipped))
        files.labels += [path.name] * (len(files.paths) - before)
        skipped["empty"] += len(files.paths) == before
    if not files.paths:
        others = _count_others(skipped)
        raise InputError(
            f"The sub-folders of {str(folder)!r} hold no image files{f', but {others}' if others else ''}. Read are "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return files


def _is_utf8(name: str) -> bool:
    """Return whether a name is text that can be written into a model; names of files are bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _has_subfolders(folder: Path) -> bool:
    return any(path.is_dir() for path in _visible(folder))


def _notes(skipped: Counter[str]) -> list[str]:
    names = {
        "hidden": ("hidden file", "hidden files"),
        "linked": ("link to a folder", "links to folders"),
        "outside": ("file outside of the class folders", "files outside of the class folders"),
        "empty": ("class folder without images", "class folders without images"),
    }
    counts = [f"{skipped[kind]:,} {names[kind][skipped[kind] > 1]}" for kind in names if skipped[kind]]
    others = _count_others(skipped)
    if others:
        counts.insert(bool(skipped["hidden"]), others)
    return [f"skipped: {', '.join(counts)}"] if counts else []


def _count_others(skipped: Counter[str]) -> str:
    """Say how many files are no images by their suffix, and what suffixes those are: photos may be among them."""
    suffixes = sorted(kind for kind in skipped if kind.startswith(".") or kind == _NO_SUFFIX)
    n_files = sum(skipped[suffix] for suffix in suffixes)
    if n_files == 0:
        return ""
    shown = ", ".join([*suffixes[:_N_SUFFIXES], *(["..."] if len(suffixes) > _N_SUFFIXES else [])])
    what = "file that is not read as an image" if n_files == 1 else "files that are not read as images"
    return f"{n_files:,} {what} ({shown})"


def _note_unused(split: tuple[str, str], unused: list[str]) -> list[str]:
    if not unused:
        return []
    note = f"beside {split[0]}/ and {split[1]}/, not used: {', '.join(f'{name}/' for name in unused)}"
    if any(name.casefold() in _SERVES_AS for name in unused):
        note += f" (cross-validation takes its folds from {split[0]}/)"
    return [note]
