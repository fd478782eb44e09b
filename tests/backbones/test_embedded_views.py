"""Views on their way into embeddings: keys of stores, the engine, and the transformer."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_views import FLOAT32, SIZE, load

from sktl import PretrainedFeatureTransformer
from sktl.backbones import load_backbone
from sktl.embedding import default_store, embed
from sktl.exceptions import BackboneError
from sktl.inputs import open_rows

# Keys -----------------------------------------------------------------------------------------------------------------

CHOICES = [
    {},
    {"pooling": "max"},
    {"pooling": "none"},
    {"layer": -1},
    {"layer": 0},
    {"layer": "layer1"},
    {"layer": [0, 1]},
    {"layer": [1, 0]},
    {"layer": 0, "pooling": "max"},
    {"normalize": True},
    {"tta": "hflip"},
    {"tta": "hflip", "normalize": True},
]


def test_every_choice_has_a_key_of_its_own():
    backbone = load("test_resnet")
    keys = [backbone.feature_view(**choice).key for choice in CHOICES]
    assert len(set(keys)) == len(CHOICES)
    again = load("test_resnet")
    assert [again.feature_view(**choice).key for choice in CHOICES] == keys
    assert backbone.feature_view(layer=0).key == backbone.feature_view(layer=np.int64(0)).key
    assert backbone.feature_view(layer=[0, 1]).key == backbone.feature_view(layer=(0, 1)).key
    assert load_backbone("test_resnet", None, None, 96).feature_view(layer=0).key not in keys


def test_stores_never_mix_views(pictures, tmp_path):
    for _ in range(2):  # filled, then read
        for choice in CHOICES:
            model = PretrainedFeatureTransformer(
                "test_resnet", weights=None, image_size=SIZE, memory=tmp_path, **FLOAT32, **choice
            )
            alone = model.set_params(memory=None, cache_bytes=0).fit_transform(pictures)
            stored = model.set_params(memory=tmp_path, cache_bytes=2**20).fit_transform(pictures)
            np.testing.assert_array_equal(stored, alone, err_msg=str(choice))
        default_store().clear()


# Through the engine ---------------------------------------------------------------------------------------------------

ENGINE_CHOICES = [
    ("test_resnet", {"layer": "conv1.0"}),  # a convolution that BatchNorm follows
    ("test_resnet", {"layer": "conv1.1"}),  # that BatchNorm, into which an activation writes
    ("test_resnet", {"layer": ["layer1", -1], "pooling": "avgmax"}),
    ("test_resnet", {"normalize": True, "tta": "hflip"}),
    ("test_vit", {"layer": [0, 2, "norm"], "pooling": "avg"}),
    ("test_vit", {"layer": -1, "pooling": "cls", "normalize": True}),
    ("test_convnext", {"layer": [-2, -1], "pooling": "max", "tta": "hflip"}),
]


@pytest.mark.parametrize(("name", "choice"), ENGINE_CHOICES)
def test_engine_computes_what_the_view_says(name, choice, pictures):
    """Whatever it fuses, in whatever precision, and with several passes at once."""
    backbone = load(name)
    view = backbone.feature_view(**choice)
    mean, std = (torch.tensor(backbone.data_config[key]) for key in ("mean", "std"))
    inputs = ((torch.from_numpy(pictures) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = view.module(inputs).numpy()
    rows = open_rows(pictures)
    exact = embed(rows, view, batch_size=2, **FLOAT32)
    np.testing.assert_allclose(exact, expected, rtol=1e-3, atol=1e-4 * abs(expected).max())
    several = embed(rows, view, batch_size=2, n_threads=4, **FLOAT32)
    np.testing.assert_array_equal(several, embed(rows, view, batch_size=2, n_threads=1, **FLOAT32))
    low = embed(rows, view, device="cpu", dtype="bfloat16", runtime="torch")
    cosine = (low * expected).sum(1) / np.linalg.norm(low, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.999
    if choice.get("normalize"):
        np.testing.assert_allclose(np.linalg.norm(low, axis=1), 1, atol=1e-6)


# Through the transformer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "width"),
    [
        ({}, 96),
        ({"layer": 0}, 32),
        ({"layer": ["layer2", -1]}, 48 + 96),
        ({"layer": 0, "pooling": "none"}, 32 * (SIZE // 2) ** 2),
        ({"layer": (2,), "normalize": True, "tta": "hflip"}, 48),
    ],
)
def test_names_and_width_are_right(choice, width, pictures):
    model = PretrainedFeatureTransformer("test_resnet", weights=None, image_size=SIZE, **FLOAT32, **choice)
    frame = model.set_output(transform="pandas").fit_transform(pictures[:2])
    assert isinstance(frame, pd.DataFrame)
    assert frame.shape == (2, width)
    assert list(frame.columns) == list(model.get_feature_names_out())
    assert frame.columns[-1] == f"pretrainedfeaturetransformer{width - 1}"


@pytest.mark.parametrize("choice", [{"layer": "no such"}, {"layer": 99}, {"layer": []}, {"pooling": "cls"}])
def test_what_does_not_fit_is_said_by_fit(choice, pictures):
    model = PretrainedFeatureTransformer("test_resnet", weights=None, image_size=SIZE, **choice)
    with pytest.raises(BackboneError):
        model.fit(pictures)
