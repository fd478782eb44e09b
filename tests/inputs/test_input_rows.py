"""Rows as a sequence: labels, digests, selection, pickles, threads, and the error about many of them."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from sktl.exceptions import BadRow, InputError, SktlError
from sktl.inputs import RowError, open_rows, raise_bad_rows

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 16, 20, 3), dtype=np.uint8)


def encode(pixels, name="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, name, **options)
    return stream.getvalue()


@pytest.fixture
def paths(tmp_path):
    for number, pixels in enumerate(PIXELS):
        (tmp_path / f"{number}.png").write_bytes(encode(pixels))
    return [str(tmp_path / f"{number}.png") for number in range(len(PIXELS))]


def test_a_sequence(paths):
    rows = open_rows(paths)
    assert len(rows) == len(list(rows)) == 5
    np.testing.assert_array_equal(rows[-1].pixels(), PIXELS[4])
    with pytest.raises(IndexError):
        rows[5]


def test_labels(paths):
    with Image.open(paths[1]) as image, open(paths[0], "rb") as stream:
        rows = open_rows([paths[0], image, PIXELS[2], b"x", None, stream, "a\nb.jpg", "x" * 400])
        assert rows.label(0) == f"row 0 ({paths[0]!r})"
        assert rows.label(1) == f"row 1 ({paths[1]!r})"
        assert [rows.label(index) for index in (2, 3, 4)] == ["row 2", "row 3", "row 4"]
        assert rows.label(5) == f"row 5 ({paths[0]!r})"
        assert rows.label(6) == r"row 6 ('a\nb.jpg')"
        assert len(rows.label(7)) < 200


def test_take_keeps_labels(paths):
    rows = open_rows(paths).take([3, 1, 1])
    assert len(rows) == 3
    assert [rows.label(index) for index in range(3)] == [f"row {k} ({paths[k]!r})" for k in (3, 1, 1)]
    np.testing.assert_array_equal(rows[0].pixels(), PIXELS[3])
    assert rows.take([2]).label(0) == f"row 1 ({paths[1]!r})"
    assert len(rows.take([])) == 0
    assert len(rows.take(np.array([True, False, True]))) == 2
    assert open_rows(PIXELS).take([4])[0].digest == open_rows(PIXELS)[4].digest


def test_digest_of_files(paths):
    data = encode(PIXELS[0])
    with open(paths[0], "rb") as stream:
        same = [paths[0], data, bytearray(data), io.BytesIO(data), stream, {"path": paths[0]}]
        assert len({row.digest for row in open_rows(same)}) == 1
    others = open_rows([data, encode(PIXELS[1]), encode(PIXELS[0], "BMP"), data + b"\0"])
    assert len({row.digest for row in others}) == 4
    assert all(len(row.digest) == 32 for row in others)


def test_digest_of_pixels():
    first = PIXELS[0]
    image = Image.fromarray(first)
    same = [
        first,
        first.transpose(2, 0, 1),
        first / 255,
        torch.from_numpy(first),
        image,
        first[::-1][::-1],
        first.copy(order="F"),
    ]
    assert len({row.digest for row in open_rows(same)}) == 1
    different = [first, first[:, ::-1], first[:8], first.reshape(20, 16, 3), first[..., ::-1], PIXELS[1], encode(first)]
    assert len({row.digest for row in open_rows(different)}) == len(different)


def test_digest_sees_orientation_and_layout():
    image = Image.fromarray(PIXELS[0])
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    square = np.random.default_rng(0).integers(0, 256, (3, 7, 3), dtype=np.uint8)
    digests = {row.digest for row in open_rows([image, turned])}
    digests |= {open_rows([square], channels=layout)[0].digest for layout in ("first", "last")}
    assert len(digests) == 4


def test_digest_comes_without_decoding():
    broken = encode(PIXELS[0])[:100]
    row = open_rows([broken])[0]
    assert len(row.digest) == 32
    with pytest.raises(RowError, match="PNG"):
        row.pixels()


def test_a_file_is_read_once(paths, tmp_path):
    row = open_rows(paths)[0]
    (tmp_path / "0.png").unlink()
    np.testing.assert_array_equal(row.pixels(), PIXELS[0])
    np.testing.assert_array_equal(row.pixels(), PIXELS[0])
    assert len(row.digest) == 32


@pytest.mark.parametrize(
    "make", [list, np.array, lambda paths: [Image.open(path) for path in paths], lambda paths: PIXELS]
)
def test_pickle(make, paths):
    rows = open_rows(make(paths)).take([4, 0])
    for again in (pickle.loads(pickle.dumps(rows)), copy.deepcopy(rows)):
        assert [row.digest for row in again] == [row.digest for row in rows]
        assert [again.label(index) for index in range(2)] == [rows.label(index) for index in range(2)]


def test_threads():
    """Many threads decode at once, also one image that stands in every row and was not loaded yet."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lazy = Image.open(io.BytesIO(encode(PIXELS[0], "PNG", exif=exif)))
    stream = io.BytesIO(encode(PIXELS[1]))
    data = encode(PIXELS[2], "WEBP", lossless=True)
    rows = open_rows([lazy, stream, data] * 40)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: rows[index].pixels(), range(len(rows))))
    expected = [np.rot90(PIXELS[0], -1), PIXELS[1], PIXELS[2]]
    for index, pixels in enumerate(found):
        np.testing.assert_array_equal(pixels, expected[index % 3])


def test_bad_rows_do_not_hide_good_ones(paths):
    rows = open_rows([paths[0], "nowhere.jpg", None, float("nan"), b"", 7, paths[1]])
    reasons = {}
    for index in range(len(rows)):
        try:
            rows[index].pixels()
        except RowError as error:
            reasons[index] = str(error)
    assert set(reasons) == {1, 2, 3, 4, 5}
    assert reasons[2] == reasons[3] == "missing value"
    assert reasons[5] == "expected paths, bytes, binary file objects, Pillow images or arrays, got int"


class Failing:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise OSError("cannot decode")
        return PIXELS[index]


def test_a_container_that_fails_at_one_row():
    rows = open_rows(Failing())
    with pytest.raises(RowError, match=r"Failing cannot give this row: OSError\('cannot decode'\)"):
        rows[1]
    assert rows.label(1) == "row 1"
    assert rows[2].pixels().shape == (16, 20, 3)


def test_row_errors_are_value_errors_and_pickle():
    error = RowError("truncated")
    assert isinstance(error, InputError)
    assert isinstance(error, ValueError)
    assert isinstance(error, SktlError)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is RowError
    assert str(again) == "truncated"


def test_one_error_names_all_bad_rows():
    bad = [BadRow(17, "row 17 ('a/b.jpg')", "no such file"), (40, "row 40", "missing value")]
    with pytest.raises(InputError) as error:
        raise_bad_rows(bad, 500)
    assert str(error.value) == (
        "2 of 500 rows of X cannot be used:\n  row 17 ('a/b.jpg'): no such file\n  row 40: missing value"
    )
    assert error.value.rows == [BadRow(*row) for row in bad]
    with pytest.raises(InputError, match=r"^1 of 3 rows of X cannot"):
        raise_bad_rows([BadRow(40, "row 40", "missing value")], 3)
    with pytest.raises(InputError, match=r"^1 row of X cannot be used:\n  row 40: missing value$"):
        raise_bad_rows(bad[1:])


def test_a_long_error_ends():
    bad = [BadRow(index, f"row {index}", "missing value") for index in range(1234)]
    with pytest.raises(InputError) as error:
        raise_bad_rows(bad, 2000)
    lines = str(error.value).splitlines()
    assert lines[0] == "1,234 of 2,000 rows of X cannot be used:"
    assert len(lines) == 22
    assert lines[-1] == "  ... and 1,214 more; the error's attribute 'rows' lists all of them"
    assert len(error.value.rows) == 1234
