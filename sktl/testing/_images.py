"""Small pictures that a check can hold in any container, and what an estimator makes of them."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.base import clone, is_classifier, is_regressor

CONTAINERS = ("paths", "pathlib", "pil", "arrays", "array")
CLASSES = ("amber", "brick", "cyan")
COLOURS = ((250, 190, 20), (160, 40, 30), (20, 200, 210))
SCORES = ("decision_function", "predict_proba", "transform")


class Pictures:
    """Pictures of three colours, as pixels and as files.

    Parameters
    ----------
    folder : Path
        Where the files are written.
    ragged : bool, default=False
        Whether the pictures are of different sizes.
    n_per_class : int, default=6
        Pictures of each colour; the colours take turns.
    """

    def __init__(self, folder: Path, ragged: bool = False, n_per_class: int = 6):
        rng = np.random.default_rng(0)
        labels = np.arange(len(CLASSES) * n_per_class) % len(CLASSES)
        self.folder = folder
        self.pixels = [_draw(COLOURS[label], rng, 40 + 4 * ragged * i, 48) for i, label in enumerate(labels)]
        self.labels = np.array(CLASSES)[labels]
        self.brightness = np.array([pixels.mean() / 255 for pixels in self.pixels])

    def __len__(self) -> int:
        return len(self.pixels)

    def y(self, estimator) -> np.ndarray:
        """Return targets that suit an estimator: words, or numbers for a regressor."""
        return self.brightness.copy() if is_regressor(estimator) else self.labels.copy()

    def X(self, container: str, rows: Sequence[int] | None = None) -> Any:  # noqa: N802 -- scikit-learn's name
        """Put pictures into a container, made anew at each call.

        Parameters
        ----------
        container : str
            One of ``CONTAINERS``.
        rows : sequence of int, default=None
            Which pictures, in this order; all by default.
        """
        rows = range(len(self)) if rows is None else rows
        return as_container([self._held(row, container) for row in rows], container)

    def _held(self, row: int, container: str) -> Any:
        if container in ("arrays", "array"):
            return self.pixels[row].copy()
        picture = Image.fromarray(self.pixels[row])
        if container == "pil":
            return picture
        path = self.folder / f"picture_{row}.png"
        if not path.exists():
            picture.save(path)
        return path if container == "pathlib" else str(path)


def as_container(pictures: list, container: str) -> Any:
    """Stack the pictures of the one container that is no list."""
    return np.stack(pictures) if container == "array" else pictures


def _draw(colour, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    top, left, n_rows, n_columns = *rng.integers(4, 12, 2), *rng.integers(12, 28, 2)
    pixels[top : top + n_rows, left : left + n_columns] = colour
    return pixels


@contextmanager
def pictures_in_folder(**options: Any) -> Iterator[Pictures]:
    """Give pictures whose files last as long as the block."""
    with tempfile.TemporaryDirectory(prefix="image-checks-") as folder:
        yield Pictures(Path(folder), **options)


def fresh(estimator):
    """Return an unfitted copy whose randomness is settled, where it has any."""
    copied = clone(estimator)
    if "random_state" in copied.get_params(deep=False):
        copied.set_params(random_state=0)
    return copied


def fit_copy(estimator, X, y, **fit_params: Any):
    """Return a copy of an estimator, fitted."""
    model = fresh(estimator)
    model.fit(X, y, **fit_params)  # what it returns is the matter of one check
    return model


def fitted(estimator, pictures: Pictures, container: str):
    """Return a copy of an estimator, fitted on pictures in a container."""
    return fit_copy(estimator, pictures.X(container), pictures.y(estimator))


def outputs(estimator, X) -> dict[str, np.ndarray]:
    """Return what each method of an estimator gives; labels only where no method gives numbers."""
    methods = [method for method in SCORES if hasattr(estimator, method)]
    if (not methods or not is_classifier(estimator)) and hasattr(estimator, "predict"):
        methods.append("predict")
    return {method: np.asarray(getattr(estimator, method)(X)) for method in methods}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], rtol: float, message: str) -> None:
    """Compare the outputs of all methods, numbers within a tolerance."""
    for method, values in expected.items():
        if values.dtype.kind in "biufc":
            atol = rtol * float(np.abs(values).max(initial=0.0))
            np.testing.assert_allclose(found[method], values, rtol=rtol, atol=atol, err_msg=f"{method}: {message}")
        else:
            np.testing.assert_array_equal(found[method], values, err_msg=f"{method}: {message}")
