"""What counts as a container of images, and what its rows are."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from PIL import Image

from sktl.exceptions import InputError
from sktl.inputs import holds_images, open_rows

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)


def encode(pixels, name="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, name)
    return stream.getvalue()


DATA = [encode(pixels) for pixels in PIXELS]


class Column:
    """What ``datasets.Dataset["image"]`` looks like from outside."""

    def __init__(self, items):
        self.items = items
        self.n_reads = 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if not isinstance(index, int):
            raise TypeError("integers only")
        self.n_reads += 1
        return self.items[index]


def object_array(items):
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array


COLUMNS = {
    "list": lambda items: items,
    "tuple": tuple,
    "object array": object_array,
    "array of one column": lambda items: object_array(items)[:, None],
    "pandas Series": lambda items: pd.Series(items, dtype=object, index=[7, 7, 9]),
    "pandas frame": lambda items: pd.DataFrame({"image": pd.Series(items, dtype=object)}),
    "datasets column": Column,
}
FORMS = {
    "bytes": lambda data: data,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "file object": io.BytesIO,
    "Pillow": lambda data: Image.open(io.BytesIO(data)),
    "loaded Pillow": lambda data: Image.open(io.BytesIO(data)).convert("RGB"),
    "array": lambda data: np.array(Image.open(io.BytesIO(data))),
    "array, channels first": lambda data: np.array(Image.open(io.BytesIO(data))).transpose(2, 0, 1),
    "tensor": lambda data: torch.from_numpy(np.array(Image.open(io.BytesIO(data)))),
    "float tensor": lambda data: torch.from_numpy(np.array(Image.open(io.BytesIO(data))) / 255.0).requires_grad_(),
    "dict of bytes": lambda data: {"bytes": data, "path": "a.png"},
}


def assert_same_pixels(rows):
    assert len(rows) == len(PIXELS)
    for row, pixels in zip(rows, PIXELS, strict=True):
        np.testing.assert_array_equal(row.pixels(), pixels)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("container", COLUMNS)
def test_any_form_in_any_column_gives_the_same_pixels(container, form):
    X = COLUMNS[container]([FORMS[form](data) for data in DATA])
    assert holds_images(X)
    assert_same_pixels(open_rows(X))


@pytest.fixture
def paths(tmp_path):
    for number, data in enumerate(DATA):
        (tmp_path / f"{number}.png").write_bytes(data)
    return [str(tmp_path / f"{number}.png") for number in range(len(DATA))]


TABLES = {
    **COLUMNS,
    "str array": np.array,
    "str array of one column": lambda items: np.array(items)[:, None],
    "pandas str": lambda items: pd.Series(items, dtype="str"),
    "pandas str array": lambda items: pd.Series(items, dtype="str").array,
    "pandas index": pd.Index,
    "pandas category": lambda items: pd.Series(items, dtype="category"),
    "pandas Arrow": lambda items: pd.Series(items, dtype=pd.ArrowDtype(pa.string())),
    "polars Series": pl.Series,
    "polars frame": lambda items: pl.DataFrame({"path": items}),
    "Arrow array": pa.array,
    "Arrow chunks": lambda items: pa.chunked_array([items[:1], items[1:]]),
    "Arrow table": lambda items: pa.table({"path": items}),
}


@pytest.mark.parametrize("container", TABLES)
def test_columns_of_paths(container, paths):
    X = TABLES[container](paths)
    assert holds_images(X)
    rows = open_rows(X)
    assert_same_pixels(rows)
    assert rows.label(2) == f"row 2 ({paths[2]!r})"


def test_lists_of_path_objects(paths):
    assert_same_pixels(open_rows([Path(path) for path in paths]))


@pytest.mark.parametrize("container", ["polars Series", "polars frame", "Arrow array", "Arrow chunks", "Arrow table"])
def test_columns_of_bytes(container):
    X = TABLES[container](DATA)
    assert holds_images(X)
    assert_same_pixels(open_rows(X))


@pytest.mark.parametrize("make", [pa.array, pl.Series, pd.Series, Column, list])
def test_hugging_face_rows(make, paths):
    """``datasets`` stores images as content, as a place, or as both."""
    X = make(
        [
            {"bytes": DATA[0], "path": "was/here.png"},
            {"bytes": None, "path": paths[1]},
            {"bytes": DATA[2], "path": None},
        ]
    )
    assert holds_images(X)
    rows = open_rows(X)
    assert_same_pixels(rows)
    assert rows.label(0) == "row 0 ('was/here.png')"
    assert rows.label(2) == "row 2"


def test_a_foreign_column_is_asked_once_per_row():
    X = Column([Image.fromarray(pixels) for pixels in PIXELS])
    rows = open_rows(X)
    X.n_reads = 0
    rows[1].pixels()
    assert X.n_reads == 1


ARRAYS = {
    "NHWC": PIXELS,
    "NCHW": PIXELS.transpose(0, 3, 1, 2),
    "float": PIXELS / 255,
    "float32 NCHW": np.float32(PIXELS.transpose(0, 3, 1, 2)) / 255,
    "uint16": PIXELS * np.uint16(257),
    "int64": PIXELS.astype(np.int64),
    "big-endian": PIXELS.astype(">i4"),
    "Fortran order": np.asfortranarray(PIXELS),
    "reversed twice": PIXELS[::-1][::-1],
    "RGBA": np.concatenate([PIXELS, np.full_like(PIXELS[..., :1], 255)], axis=3),
    "tensor": torch.from_numpy(PIXELS),
    "NCHW tensor": torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
    "float64 tensor": torch.from_numpy(PIXELS / 255),
    "tensor with gradient": torch.from_numpy(np.float32(PIXELS) / 255).requires_grad_(),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name):
    assert holds_images(ARRAYS[name])
    assert_same_pixels(open_rows(ARRAYS[name]))


@pytest.mark.gpu
def test_tensor_on_a_gpu():
    assert_same_pixels(open_rows(torch.from_numpy(PIXELS).cuda()))
    assert_same_pixels(open_rows(list(torch.from_numpy(PIXELS).cuda())))


@pytest.mark.parametrize("X", [PIXELS[:2, ..., 0], PIXELS[:2, ..., :1], PIXELS[:2, np.newaxis, :, :, 0]])
def test_grey_arrays(X):
    assert holds_images(X)
    for row, pixels in zip(open_rows(X), PIXELS[:2], strict=True):
        np.testing.assert_array_equal(row.pixels(), np.repeat(pixels[..., :1], 3, axis=2))


def test_images_of_different_sizes():
    images = [PIXELS[0, :5], PIXELS[1, :, :7].transpose(2, 0, 1), PIXELS[2, ..., 0]]
    assert [row.pixels().shape for row in open_rows(images)] == [(5, 12, 3), (8, 7, 3), (8, 12, 3)]


def test_rows_may_be_missing_before_the_first_image():
    for nothing in (None, np.nan, pd.NA, float("nan"), pd.NaT):
        assert holds_images([nothing, "a.jpg"])
        assert not holds_images([nothing, 1.0])
        assert not holds_images([nothing])


NO_IMAGES = {
    "2-D": np.zeros((4, 5)),
    "1-D": np.zeros(4),
    "0-D": np.zeros(()),
    "5-D": np.zeros((1, 2, 3, 4, 5)),
    "complex": np.zeros((2, 8, 8, 3), dtype=complex),
    "2-D tensor": torch.zeros(4, 5),
    "2-D object": np.array([["a.jpg", "b.jpg"]], dtype=object),
    "list of numbers": [1.0, 2.0],
    "list of lists": [[1.0, 2.0], [3.0, 4.0]],
    "list of 1-D arrays": [np.zeros(3), np.zeros(3)],
    "list of lists of str": [["a.jpg"]],
    "sparse": scipy.sparse.eye(4, format="csr"),
    "sparse array": scipy.sparse.coo_array(np.eye(4)),
    "frame": pd.DataFrame({"a": ["x.jpg"], "b": ["y.jpg"]}),
    "frame of numbers": pd.DataFrame({"a": [1.0]}),
    "Series of numbers": pd.Series([1.0]),
    "polars frame": pl.DataFrame({"a": ["x.jpg"], "b": ["y.jpg"]}),
    "polars numbers": pl.Series([1.0]),
    "Arrow numbers": pa.array([1.0]),
    "Arrow table": pa.table({"a": ["x"], "b": ["y"]}),
    "empty list": [],
    "empty frame": pd.DataFrame({"a": []}),
    "None": None,
    "number": 3,
    "dict": {"a": "x.jpg"},
    "set": {"x.jpg"},
    "range": range(3),
    "type": list,
    "generator": (path for path in ["x.jpg"]),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_scikit_learn_must_judge(name):
    assert not holds_images(NO_IMAGES[name])
    with pytest.raises(InputError, match="X"):
        open_rows(NO_IMAGES[name])


class Hostile:
    """Fails whatever it is asked."""

    def __len__(self):
        raise RuntimeError("no")

    def __getitem__(self, index):
        raise RuntimeError("no")

    def __getattr__(self, name):
        raise RuntimeError("no")


class Failing(Column):
    def __getitem__(self, index):
        raise OSError("decoder failed")


def test_asking_never_raises():
    assert not holds_images(Hostile())
    assert not holds_images(Failing([1] * 1000))


def test_single_images_are_images_but_no_rows(paths):
    for X in (paths[0], Path(paths[0]), DATA[0], Image.fromarray(PIXELS[0]), io.BytesIO(DATA[0])):
        assert holds_images(X)
        with pytest.raises(InputError, match=r"a single image .* wrap it in a list: \[X\]"):
            open_rows(X)


@pytest.mark.parametrize("shape", [(40, 50, 3), (40, 50, 4), (40, 50, 1), (3, 40, 50)])
def test_a_single_colour_array_is_refused(shape):
    with pytest.raises(InputError, match=r"wrap a single image in a list: \[X\]; if it is .* X\[..., None\]"):
        open_rows(np.zeros(shape, dtype=np.uint8))
    assert len(open_rows([np.zeros(shape, dtype=np.uint8)])) == 1
    assert len(open_rows(np.zeros(shape, dtype=np.uint8)[..., np.newaxis])) == shape[0]


@pytest.mark.parametrize("shape", [(2, 3, 9, 3), (2, 4, 9, 3), (2, 1, 9, 1), (2, 3, 3, 3), (5, 1, 9, 3)])
def test_ambiguous_layout(shape):
    X = np.zeros(shape, dtype=np.uint8)
    with pytest.raises(InputError, match=r"pass channels='first' or 'last'"):
        open_rows(X)
    with pytest.raises(InputError, match=r"pass channels='first' or 'last'"):
        open_rows(list(X))[0]
    assert open_rows(X, channels="first")[0].pixels().shape == (*shape[2:], 3)
    assert open_rows(X, channels="last")[0].pixels().shape == (*shape[1:3], 3)
    assert open_rows(list(X), channels="first")[0].pixels().shape == (*shape[2:], 3)


def test_layout_that_cannot_be():
    with pytest.raises(InputError, match=r"no axis of 1, 3 or 4 channels last"):
        open_rows(np.zeros((2, 3, 8, 9), dtype=np.uint8), channels="last")
    with pytest.raises(InputError, match=r"X of shape \(2, 5, 8, 9\): .* no axis of 1, 3 or 4 channels first or last"):
        open_rows(np.zeros((2, 5, 8, 9), dtype=np.uint8))
    with pytest.raises(InputError, match="'channels' parameter must be 'first', 'last' or None, got 'middle'"):
        open_rows(PIXELS, channels="middle")


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([], "X holds no rows"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), "X holds no rows"),
        (np.zeros((2, 0, 8, 3), dtype=np.uint8), "without pixels"),
        (np.zeros((2, 8, 8, 3), dtype=complex), "got dtype complex128"),
        (np.zeros((2, 8)), "image_shape="),
        ([1, 2], "Rows of X must be paths, .* row 0 is int"),
        ([np.zeros(3)], r"row 0 is ndarray of shape \(3,\)"),
        ((path for path in ["x.jpg"]), r"got generator instead, which can be read once only; pass list\(X\)"),
        (iter(["x.jpg"]), r"got list_iterator instead, which can be read once only; pass list\(X\)"),
        ({"x.jpg"}, r"got set instead, whose rows have no numbers; pass list\(X\)"),
        (dict.fromkeys(["x.jpg"]).values(), r"got dict_values instead, .*; pass list\(X\)"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), "Choose the one column"),
        (["https://example.org/a.jpg"], "row 0 .* is a URL, .* download it first"),
    ],
)
def test_errors_about_all_of_x(X, message):
    with pytest.raises(InputError, match=message):
        open_rows(X)
