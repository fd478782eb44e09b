"""Every form of X, through PretrainedFeatureTransformer and through scikit-learn's own tools that take X apart."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler

from sktl import PretrainedFeatureTransformer
from sktl.embedding import default_store
from sktl.exceptions import InputError

SIZE = 32


@pytest.fixture(autouse=True)
def empty_store():
    """No form finds the embeddings of another."""
    default_store().clear()


@pytest.fixture
def embed():
    return PretrainedFeatureTransformer(image_size=SIZE, dtype="float32", device="cpu", runtime="torch")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Files of the same pictures, once all of one size and once of five sizes."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    sizes = {"equal": [(40, 48)] * 5, "different": [(40, 48), (33, 90), (128, 64), (31, 32), (32, 32)]}
    files = {kind: [str(folder / f"{kind}{number}.png") for number in range(5)] for kind in sizes}
    for kind, shapes in sizes.items():
        for path, (height, width) in zip(files[kind], shapes, strict=True):
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return files


class DatasetColumn:
    """What a column of Hugging Face's ``datasets`` looks like from outside."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def __getitem__(self, key):
        return [self.items[index] for index in key] if isinstance(key, list) else self.items[key]


def array_of(path):
    return np.asarray(Image.open(path))


def object_array(items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def object_array_of_arrays(items):
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array


def contents(paths):
    return [Path(path).read_bytes() for path in paths]


ANY_SIZE = {
    "list of str": list,
    "tuple of str": tuple,
    "list of Path": lambda paths: [Path(path) for path in paths],
    "object array of str": object_array,
    "object array of Path": lambda paths: object_array([Path(path) for path in paths]),
    "str array": np.array,
    "pandas Series": lambda paths: pd.Series(paths, index=[7, 7, 1, 0, 2]),
    "pandas Arrow Series": lambda paths: pd.Series(paths, dtype=pd.ArrowDtype(pa.string())),
    "pandas category": lambda paths: pd.Series(paths, dtype="category"),
    "pandas frame": lambda paths: pd.DataFrame({"path": paths}, index=[7, 7, 1, 0, 2]),
    "polars Series": pl.Series,
    "polars frame": lambda paths: pl.DataFrame({"path": paths}),
    "Arrow array": pa.array,
    "Arrow chunks": lambda paths: pa.chunked_array([paths[:2], paths[2:]]),
    "Arrow table": lambda paths: pa.table({"path": paths}),
    "list of bytes": contents,
    "object array of bytes": lambda paths: object_array(contents(paths)),
    "pandas Series of bytes": lambda paths: pd.Series(contents(paths)),
    "polars Series of bytes": lambda paths: pl.Series(contents(paths)),
    "Arrow array of bytes": lambda paths: pa.array(contents(paths)),
    "file objects": lambda paths: [io.BytesIO(data) for data in contents(paths)],
    "open files": lambda paths: [open(path, "rb") for path in paths],  # noqa: SIM115
    "Pillow": lambda paths: [Image.open(path) for path in paths],
    "object array of Pillow": lambda paths: object_array([Image.open(path) for path in paths]),
    "list of arrays": lambda paths: [array_of(path) for path in paths],
    "object array of arrays": lambda paths: object_array_of_arrays([array_of(path) for path in paths]),
    "list of tensors": lambda paths: [torch.tensor(array_of(path)).permute(2, 0, 1) for path in paths],
    "list of float arrays": lambda paths: [array_of(path) / 255 for path in paths],
    "datasets column of Pillow": lambda paths: DatasetColumn([Image.open(path) for path in paths]),
    "datasets column of dicts": lambda paths: DatasetColumn(
        [{"bytes": data, "path": None} for data in contents(paths)]
    ),
    "dicts of paths": lambda paths: [{"bytes": None, "path": path} for path in paths],
    "Arrow column of dicts": lambda paths: pa.array([{"bytes": data, "path": "x.png"} for data in contents(paths)]),
    "mixed": lambda paths: [paths[0], Path(paths[1]), contents(paths)[2], Image.open(paths[3]), array_of(paths[4])],
}
ONE_SIZE = {
    "NHWC": lambda paths: np.stack([array_of(path) for path in paths]),
    "NCHW": lambda paths: np.stack([array_of(path) for path in paths]).transpose(0, 3, 1, 2),
    "float NHWC": lambda paths: np.stack([array_of(path) for path in paths]).astype(np.float32) / 255,
    "16-bit NHWC": lambda paths: np.stack([array_of(path) for path in paths]).astype(np.uint16) * 257,
    "tensor NHWC": lambda paths: torch.tensor(np.stack([array_of(path) for path in paths])),
    "tensor NCHW": lambda paths: torch.tensor(np.stack([array_of(path) for path in paths])).permute(0, 3, 1, 2) / 255.0,
}
CASES = [(kind, form) for kind in ("equal", "different") for form in ANY_SIZE] + [("equal", form) for form in ONE_SIZE]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize(("kind", "form"), CASES)
def test_every_form_gives_the_same_embeddings(embed, paths, kind, form):
    expected = embed.fit_transform(paths[kind])
    default_store().clear()
    X = (ANY_SIZE | ONE_SIZE)[form](paths[kind])
    np.testing.assert_array_equal(embed.fit_transform(X), expected)
    np.testing.assert_array_equal(
        embed.fit(X).transform(paths[kind][:1] if form != "pandas frame" else X[:1]), expected[:1]
    )


@pytest.mark.gpu
def test_tensors_of_a_gpu(embed, paths):
    X = ONE_SIZE["tensor NHWC"](paths["equal"])
    np.testing.assert_array_equal(embed.fit_transform(X.cuda()), embed.fit_transform(X))


@pytest.mark.parametrize("form", sorted({*ANY_SIZE, *ONE_SIZE} - {"file objects", "open files"}))
def test_every_form_can_be_split(embed, paths, form):
    """Cross-validation takes rows out of X by scikit-learn's rules."""
    X = (ANY_SIZE | ONE_SIZE)[form](paths["equal"])
    taken, others, of_taken, _ = train_test_split(X, np.arange(5), test_size=2, random_state=0)
    expected = embed.fit_transform(paths["equal"])
    np.testing.assert_array_equal(embed.fit(taken).transform(taken), expected[of_taken])
    assert embed.transform(others).shape == (2, 256)


# Beside other columns -------------------------------------------------------------------------------------------------


@pytest.fixture
def table(image_paths):
    files, y = image_paths
    return pd.DataFrame(
        {"photo": files, "price": np.arange(len(files), dtype=float)}, index=range(5, 5 + len(files))
    ), y


@pytest.mark.parametrize("columns", ["photo", ["photo"], 0, [0], slice(0, 1), lambda X: ["photo"]])
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_column_of_a_frame(embed, table, columns, library):
    """ColumnTransformer hands "photo" on as a column, and ["photo"] as a frame of one."""
    frame = table[0] if library == "pandas" else pl.from_pandas(table[0])
    both = ColumnTransformer([("photo", embed, columns), ("number", StandardScaler(), ["price"])])
    found = both.fit_transform(frame)
    np.testing.assert_array_equal(found[:, :-1], embed.fit_transform(list(table[0]["photo"])))
    np.testing.assert_array_equal(both.transform(frame[:3]), found[:3])
    names = both.get_feature_names_out()
    assert (names[0], names[-1], len(names)) == ("photo__pretrainedfeaturetransformer0", "number__price", 257)


def test_columns_found_by_type(embed, table):
    both = ColumnTransformer(
        [
            ("photo", embed, make_column_selector(dtype_exclude="number")),
            ("number", "passthrough", make_column_selector(dtype_include="number")),
        ]
    ).set_output(transform="pandas")
    frame = both.fit_transform(table[0])
    assert frame.shape == (30, 257)
    assert list(frame.index) == list(table[0].index)
    assert list(frame["number__price"]) == list(table[0]["price"])


def test_two_columns_of_pictures(embed, paths):
    """One transformer cannot know what to do with two columns; one for each can."""
    frame = pd.DataFrame({"front": paths["equal"], "back": paths["different"]})
    for wide in (frame, pl.from_pandas(frame), frame.assign(price=1.0)):
        with pytest.raises(
            InputError, match=r"X has . columns, of which 'front', 'back' may hold images; .*X\['front'\]"
        ):
            embed.fit(wide)
    both = ColumnTransformer([("front", embed, "front"), ("back", embed, "back")]).fit_transform(frame)
    np.testing.assert_array_equal(both[:, :256], embed.fit_transform(paths["equal"]))
    np.testing.assert_array_equal(both[:, 256:], embed.fit_transform(paths["different"]))


def test_a_bad_file_in_a_frame_is_named(embed, table):
    frame = table[0].copy()
    frame.iloc[3, 0] = "gone.png"
    frame.iloc[5, 0] = None
    with pytest.raises(InputError, match=r"row 3 \('gone.png'\)") as caught:
        ColumnTransformer([("photo", embed, ["photo"])]).fit_transform(frame)
    assert [row.index for row in caught.value.rows] == [3, 5]


def test_two_embeddings_side_by_side(embed, paths):
    deep = FeatureUnion([("own", embed), ("mirror", PretrainedFeatureTransformer(image_size=SIZE, tta="hflip"))])
    assert deep.fit_transform(paths["different"]).shape == (5, 512)


@pytest.mark.parametrize("columns", ["photo", ["photo"]])
def test_search_over_a_frame(embed, table, columns):
    frame, y = table
    both = ColumnTransformer([("photo", embed, columns), ("number", StandardScaler(), ["price"])])
    model = make_pipeline(both, LogisticRegression(max_iter=1000))
    assert cross_val_score(model, frame, y, cv=2, error_score="raise").mean() > 0.5


@pytest.mark.parametrize("n", [1, 3, 4])
def test_any_number_of_grey_images_after_fit(n, rng):
    X = rng.integers(0, 256, (20, 8, 8), dtype=np.uint8)
    embed = PretrainedFeatureTransformer(image_size=32).fit(X)
    np.testing.assert_array_equal(embed.transform(X[:n]), embed.transform(X)[:n])


def test_a_single_colour_image_is_no_stack_of_grey_ones(rng):
    with pytest.raises(InputError, match="wrap a single image in a list"):
        PretrainedFeatureTransformer(image_size=32).fit(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))


def test_a_grey_stack_has_no_layout(embed, rng):
    X = rng.integers(0, 256, (10, 28, 20), dtype=np.uint8)
    expected = embed.fit(X).transform(X)
    np.testing.assert_array_equal(embed.set_params(channels="first").fit(X).transform(X[:3]), expected[:3])


class Rows:
    """An array that can be asked for rows only, as data sets in HDF5 files."""

    def __init__(self, array):
        self._array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim

    def __len__(self):
        return len(self._array)

    def __getitem__(self, index):
        if not isinstance(index, int | np.integer):
            raise TypeError("only rows can be asked for")
        return self._array[index]


def test_a_grey_stack_is_asked_for_rows_only(embed, rng):
    X = rng.integers(0, 256, (10, 28, 20), dtype=np.uint8)
    expected = embed.fit(X).transform(X)
    np.testing.assert_array_equal(embed.fit(Rows(X)).transform(Rows(X[:3])), expected[:3])


def test_flat_images_of_channels_first(embed, rng):
    X = rng.integers(0, 256, (4, 8, 6, 3), dtype=np.uint8)
    expected = embed.fit_transform(X)
    flat = X.transpose(0, 3, 1, 2).reshape(4, -1)
    embed.set_params(image_shape=(3, 8, 6), channels="first")
    np.testing.assert_array_equal(embed.fit_transform(flat), expected)


@pytest.mark.parametrize(
    ("image_shape", "channels", "match"),
    [
        ((3, 8, 6), None, r"has 6 channels, if they come last"),
        ((8, 6, 3), "first", r"has 8 channels, if they come first"),
        ((-8, -6, 3), None, r"must be \(height, width\)"),
        ((8.0, 6, 3), None, r"must be \(height, width\)"),
    ],
)
def test_shapes_that_no_image_has_are_refused(embed, rng, image_shape, channels, match):
    with pytest.raises(InputError, match=f"'image_shape' parameter .*{match}"):
        embed.set_params(image_shape=image_shape, channels=channels).fit(rng.random((4, 144)))


def test_a_failed_fit_leaves_the_transformer_as_it_was(embed, rng):
    X = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    expected = embed.fit_transform(X)
    with pytest.raises(InputError, match="image_shape"):
        embed.set_params(image_shape=(5, 5)).fit(rng.random((4, 9)))
    np.testing.assert_array_equal(embed.set_params(image_shape=None).transform(X), expected)
