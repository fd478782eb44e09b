"""PretrainedFeatureTransformer: the same picture gives the same embedding, whatever surrounds it."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import nn

from sktl import PretrainedFeatureTransformer
from sktl.backbones import _load
from sktl.embedding import default_store
from sktl.exceptions import InputError

SIZE = 32


@pytest.fixture(autouse=True)
def empty_store():
    """No test finds the embeddings of another."""
    default_store().clear()


@pytest.fixture
def embed():
    return PretrainedFeatureTransformer(image_size=SIZE, dtype="float32")


@pytest.fixture
def paths(image_paths):
    return image_paths[0][:6]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:120], y[:120]


class Counting(nn.Module):
    """The mean colour of each image; counts the images that its copies see, and notes if one is in train mode."""

    seen = 0
    was_training = False

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        Counting.seen += len(images)
        Counting.was_training |= self.training
        return self.layer(images).mean(dim=(2, 3))


# Forms of input -------------------------------------------------------------------------------------------------------


def test_the_same_picture_gives_the_same_embedding_in_every_form(embed, paths):
    expected = embed.fit_transform(paths)
    arrays = [np.asarray(Image.open(path)) for path in paths]
    forms = {
        "paths": np.array(paths, dtype=object),
        "series": pd.Series(paths, index=range(10, 16)),
        "polars": pl.Series(paths),
        "frame": pd.DataFrame({"file": paths}),
        "bytes": [Path(path).read_bytes() for path in paths],
        "pillow": [Image.open(path) for path in paths],
        "arrays": arrays,
        "NHWC": np.stack(arrays),
        "NCHW": np.stack(arrays).transpose(0, 3, 1, 2),
        "float": np.stack(arrays).astype(np.float32) / 255,
        "tensor": torch.from_numpy(np.stack(arrays)),
    }
    for name, X in forms.items():
        default_store().clear()
        np.testing.assert_array_equal(clone(embed).fit(X).transform(X), expected, err_msg=name)


def test_images_of_different_sizes(embed, rng):
    X = [rng.integers(0, 256, (height, 40, 3), dtype=np.uint8) for height in (30, 50, 70)]
    assert embed.fit_transform(X).shape == (3, 256)


def test_layout_that_is_ambiguous_names_the_parameter(embed, rng):
    X = rng.integers(0, 256, (2, 3, 20, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="channels="):
        embed.fit(X).transform(X)
    first = embed.set_params(channels="first").fit(X).transform(X)
    last = embed.set_params(channels="last").fit(X).transform(X)
    assert not np.array_equal(first, last)


def test_flattened_digits_are_images(embed, digits):
    X, y = digits
    embed.set_params(image_shape=(8, 8))
    embeddings = embed.fit(X).transform(X)
    images = np.rint(X / 16 * 255).astype(np.uint8).reshape(-1, 8, 8)
    np.testing.assert_array_equal(clone(embed).fit(images).transform(images), embeddings)
    model = LogisticRegression(max_iter=1000).fit(embeddings[:80], y[:80])
    assert model.score(embeddings[80:], y[80:]) > 0.5


def test_flattened_colour_images_of_8_bits_are_taken_as_they_are(embed, rng):
    images = rng.integers(50, 100, (4, 10, 12, 3), dtype=np.uint8)
    flat = images.reshape(4, -1)
    expected = embed.fit_transform(images)
    embed.set_params(image_shape=(10, 12, 3)).fit(flat)
    np.testing.assert_array_equal(embed.transform(flat), expected)


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_the_type_of_the_numbers_does_not_change_the_picture(embed, rng, dtype):
    """Fitted on 8-bit numbers, the same numbers may come as others: from a list, a frame, a JSON document."""
    flat = rng.integers(0, 256, (4, 64), dtype=np.uint8)
    embed.set_params(image_shape=(8, 8)).fit(flat)
    np.testing.assert_array_equal(embed.transform(flat.astype(dtype)), embed.transform(flat))


@pytest.mark.parametrize("image_shape", [(8, 9), (8,), (2, 2, 4, 4), (64,)])
def test_image_shape_that_does_not_fit_is_explained(embed, digits, image_shape):
    with pytest.raises(InputError, match=r"'image_shape' parameter must be .* 64"):
        embed.set_params(image_shape=image_shape).fit(digits[0])


def test_rows_of_numbers_are_strips(embed, rng):
    X = rng.normal(size=(20, 5))
    embeddings = embed.fit_transform(X)
    assert embeddings.shape == (20, 256)
    assert len(np.unique(embeddings, axis=0)) == 20


def test_input_of_one_column_frame_names_the_row(embed, paths):
    X = pd.DataFrame({"file": [*paths, "missing.png"]})
    with pytest.raises(InputError, match=r"row 6 \('missing\.png'\)"):
        embed.fit(X).transform(X)
    assert embed.n_features_in_ == 1
    assert list(embed.feature_names_in_) == ["file"]
    with pytest.raises(ValueError, match="feature names"):
        embed.transform(pd.DataFrame({"other": paths}))


# No row depends on its neighbours -------------------------------------------------------------------------------------


def test_order_company_and_batch_size_have_no_influence(embed, image_arrays):
    X = image_arrays[0][:11]
    expected = embed.fit(X).transform(X)
    default_store().clear()
    np.testing.assert_array_equal(embed.transform(X[::-1])[::-1], expected)
    default_store().clear()
    np.testing.assert_array_equal(np.vstack([embed.transform(row[None]) for row in X]), expected)
    for batch_size in (1, 3, 64):
        default_store().clear()
        other = clone(embed).set_params(batch_size=batch_size).fit(X).transform(X)
        np.testing.assert_allclose(other, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


def test_a_store_on_disk_gives_the_same(embed, image_arrays, tmp_path):
    X = image_arrays[0][:5]
    expected = embed.fit_transform(X)
    for _ in range(2):  # filled, then read
        default_store().clear()
        stored = clone(embed).set_params(memory=tmp_path / "store").fit(X).transform(X)
        np.testing.assert_array_equal(stored, expected)


def test_read_only_input_survives(embed, image_arrays, digits):
    for X in (image_arrays[0][:3].copy(), digits[0][:3].copy()):
        before = X.copy()
        X.flags.writeable = False
        clone(embed).fit(X).transform(X)
        np.testing.assert_array_equal(X, before)


# The network ----------------------------------------------------------------------------------------------------------


def test_fit_computes_no_embedding_and_transform_each_once(image_arrays):
    Counting.seen = 0
    policy = {"dtype": "float32", "device": "cpu", "runtime": "torch"}
    embed = PretrainedFeatureTransformer(Counting(), image_size=SIZE, batch_size=1, **policy)
    X = np.concatenate([image_arrays[0][:4], image_arrays[0][:2]])
    embed.fit(X)
    once = Counting.seen
    assert once <= 2, "fit may try the network on one blank image, and no more"
    embed.transform(X)
    first = Counting.seen
    assert 4 <= first - once <= 4 + 2  # four images and what the runtime checks itself with
    embed.transform(X)
    assert Counting.seen == first


def test_network_runs_in_eval_mode_whatever_its_owner_does(image_arrays):
    Counting.was_training = False
    network = Counting().train()
    embed = PretrainedFeatureTransformer(network, image_size=SIZE).fit(image_arrays[0][:3])
    embed.transform(image_arrays[0][:3])
    assert not Counting.was_training
    assert network.training


def test_embeddings_carry_no_gradients_and_no_torch(embed, image_arrays):
    embeddings = embed.fit_transform(image_arrays[0][:3])
    assert type(embeddings) is np.ndarray
    assert embeddings.dtype == np.float32
    assert np.isfinite(embeddings).all()
    embeddings[0] = 0  # the caller's own copy
    assert embed.transform(image_arrays[0][:3])[0].any()


def test_global_state_is_left_alone(embed, image_arrays):
    def state():
        numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
        return torch.get_rng_state().numpy(), numpy_state, torch.get_num_threads(), str(torch.get_default_dtype())

    before = state()
    embed.fit_transform(image_arrays[0][:3])
    for old, new in zip(before, state(), strict=True):
        np.testing.assert_array_equal(new, old)
    assert torch.is_grad_enabled()


def test_default_dtype_of_torch_does_not_matter(embed, image_arrays, monkeypatch):
    expected = embed.fit_transform(image_arrays[0][:3])
    monkeypatch.setattr(_load, "_shared", _load._SharedBackbones(capacity=4))
    default_store().clear()
    torch.set_default_dtype(torch.float64)
    try:
        result = clone(embed).fit_transform(image_arrays[0][:3])
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(result, expected)


# scikit-learn's conventions -------------------------------------------------------------------------------------------


def test_columns_have_names(embed, paths):
    embed.fit(paths)
    names = embed.get_feature_names_out()
    assert names[0] == "pretrainedfeaturetransformer0"
    assert len(names) == 256


@pytest.mark.parametrize(("container", "kind"), [("pandas", pd.DataFrame), ("polars", pl.DataFrame)])
def test_output_container(embed, paths, container, kind):
    frame = embed.set_output(transform=container).fit_transform(paths)
    assert isinstance(frame, kind)
    assert list(frame.columns) == list(embed.get_feature_names_out())
    assert frame.shape == (6, 256)


def test_output_container_of_a_pipeline_with_a_classifier(embed, image_paths):
    X, y = image_paths
    with sklearn.config_context(transform_output="pandas"):
        model = make_pipeline(embed, LogisticRegression(max_iter=1000)).fit(X, y)
        assert model.score(X, y) > 0.9


OTHER_EMBEDDINGS = [{"layer": 0}, {"layer": ["act1", -1]}, {"pooling": "none"}, {"pooling": "max"}, {"normalize": True}]


@pytest.mark.parametrize("changed", [*OTHER_EMBEDDINGS, {"tta": "hflip"}, {"layer": "gone"}, {"backbone": "text:gone"}])
def test_what_the_embedding_is_holds_until_the_next_fit(embed, paths, changed):
    expected = embed.fit(paths).transform(paths)
    embed.set_params(**changed)
    for fitted in (embed, pickle.loads(pickle.dumps(embed))):
        np.testing.assert_array_equal(fitted.transform(paths), expected)
        assert len(fitted.get_feature_names_out()) == expected.shape[1]


@pytest.mark.parametrize("changed", OTHER_EMBEDDINGS)
def test_a_changed_embedding_begins_with_the_next_fit(embed, paths, changed):
    before = embed.fit(paths).transform(paths)
    after = embed.set_params(**changed).fit(paths).transform(paths)
    assert not np.array_equal(after, before)
    assert embed.get_feature_names_out().shape == (after.shape[1],)


def test_unfitted_is_said(embed, paths):
    with pytest.raises(NotFittedError):
        embed.transform(paths)


def test_constructor_does_nothing():
    embed = PretrainedFeatureTransformer("no such backbone", weights="no such file", batch_size=-1)
    assert embed.backbone == "no such backbone"
    with pytest.raises(ValueError, match="'batch_size' parameter of PretrainedFeatureTransformer"):
        embed.fit([])


@pytest.mark.parametrize("name", ["int", "int64", "pair"])
def test_image_size_may_be_any_whole_number(embed, paths, name):
    size = {"int": SIZE, "int64": np.int64(SIZE), "pair": (SIZE, SIZE)}[name]
    embed.set_params(image_size=size).fit(paths)
    assert embed.backbone_.data_config["input_size"] == [3, SIZE, SIZE]


# Bad input ------------------------------------------------------------------------------------------------------------


def test_all_bad_rows_are_named_at_once(embed, paths, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    X = [paths[0], str(tmp_path / "text.png"), paths[1], str(tmp_path / "gone.jpg")]
    with pytest.raises(InputError, match=r"row 1 .*text\.png") as caught:
        embed.fit(X).transform(X)
    assert "row 3" in str(caught.value)
    assert "gone.jpg" in str(caught.value)
    assert [row.index for row in caught.value.rows] == [1, 3]


def test_bad_rows_may_become_nan(embed, paths):
    X = [paths[0], "gone.png", paths[1]]
    embeddings = embed.set_params(on_error="nan").fit(X).transform(X)
    assert np.isnan(embeddings[1]).all()
    assert np.isfinite(embeddings[[0, 2]]).all()


@pytest.mark.parametrize("empty", [[], (), np.empty((0, 8, 8, 3), np.uint8), pd.Series([], dtype=object)])
def test_empty_input_is_refused(embed, paths, empty):
    with pytest.raises(ValueError, match=r"(?i)empty|no rows|0 sample|at least one"):
        embed.fit(empty)
    with pytest.raises(ValueError, match=r"(?i)empty|no rows|0 sample|at least one"):
        embed.fit(paths).transform(empty)


def test_other_kind_of_input_than_in_fit_is_refused(embed, paths, digits):
    with pytest.raises(InputError, match="X holds numbers, but PretrainedFeatureTransformer was fitted on images"):
        embed.fit(paths).transform(digits[0])
    with pytest.raises(InputError, match="X holds images, but PretrainedFeatureTransformer was fitted on numbers"):
        embed.fit(digits[0]).transform(paths)


def test_refit_on_another_kind_of_input(embed, paths, digits):
    embed.fit(pd.DataFrame({"file": paths})).fit(digits[0])
    assert embed.n_features_in_ == 64
    assert not hasattr(embed, "feature_names_in_")
    embed.fit(paths)
    assert not hasattr(embed, "n_features_in_")
    assert embed.transform(paths).shape == (6, 256)


def test_url_is_refused(embed):
    with pytest.raises(InputError, match="URL"):
        embed.fit(["https://example.org/cat.jpg"]).transform(["https://example.org/cat.jpg"])
