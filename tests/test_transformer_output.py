"""PretrainedFeatureTransformer(output="torch"): tensors for estimators that compute where the network does."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sktl import PretrainedFeatureTransformer

SIZE = 32


@pytest.fixture
def embed():
    return PretrainedFeatureTransformer(image_size=SIZE, dtype="float32", device="cpu", output="torch")


@pytest.fixture
def pictures(image_arrays):
    return image_arrays[0][:6]


def test_tensor_holds_the_same_numbers(embed, pictures):
    tensor = embed.fit_transform(pictures)
    expected = clone(embed).set_params(output="numpy").fit_transform(pictures)
    assert isinstance(tensor, torch.Tensor)
    assert (tensor.dtype, tensor.device, tensor.shape) == (torch.float32, torch.device("cpu"), (6, 256))
    assert not tensor.requires_grad
    np.testing.assert_array_equal(tensor.numpy(), expected)
    tensor.zero_()  # the caller's own
    np.testing.assert_array_equal(embed.transform(pictures).numpy(), expected)


def test_bad_rows_may_become_nan(embed, image_paths):
    tensor = embed.set_params(on_error="nan").fit_transform([*image_paths[0][:2], "gone.png"])
    assert tensor.isnan().all(dim=1).tolist() == [False, False, True]


@pytest.mark.gpu
def test_tensor_is_where_the_network_is(embed, pictures):
    tensor = embed.set_params(device="cuda").fit_transform(pictures)
    assert tensor.device.type == "cuda"
    np.testing.assert_allclose(
        tensor.cpu().numpy(), clone(embed).set_params(output="numpy").fit_transform(pictures), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("container", "kind"), [("pandas", pd.DataFrame), ("polars", pl.DataFrame)])
def test_container_of_set_output_goes_first(embed, pictures, container, kind):
    frame = embed.set_output(transform=container).fit_transform(pictures)
    assert isinstance(frame, kind)
    assert list(frame.columns) == list(embed.get_feature_names_out())
    assert isinstance(embed.set_output(transform="default").transform(pictures), torch.Tensor)


def test_tensors_also_serve_estimators_that_know_only_numpy(embed, image_arrays):
    model = make_pipeline(embed, LogisticRegression(max_iter=1000)).fit(*image_arrays)
    assert model.score(*image_arrays) > 0.9


def test_beside_other_columns(embed, image_paths):
    frame = pd.DataFrame({"photo": image_paths[0][:6], "price": np.arange(6.0)})
    columns = ColumnTransformer([("embed", embed, "photo"), ("rest", "passthrough", ["price"])])
    both = columns.fit_transform(frame)
    assert both.shape == (6, 257)
    np.testing.assert_array_equal(both[:, -1], frame["price"])
    assert columns.set_output(transform="pandas").fit_transform(frame).shape == (6, 257)


def test_other_values_are_refused(pictures):
    with pytest.raises(ValueError, match="'output' parameter of PretrainedFeatureTransformer must be"):
        PretrainedFeatureTransformer(output="tensor").fit(pictures)


DISPATCH = """
import numpy as np, sklearn, torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sktl import PretrainedFeatureTransformer

X, y = (values[:80] for values in load_digits(return_X_y=True))

def embed(output):
    return PretrainedFeatureTransformer(
        image_shape=(8, 8), image_size=32, device="cpu", dtype="float32", runtime="torch", output=output
    )

def result(steps, output, X, y):
    model = make_pipeline(embed(output), *steps).fit(X, y)
    return model.predict(X) if hasattr(model, "predict") else model.transform(X)

for steps in (
    [StandardScaler()],
    [StandardScaler(), PCA(5, svd_solver="full")],
    [Ridge(solver="svd")],
    [StandardScaler(), LinearDiscriminantAnalysis()],
    [LogisticRegression(max_iter=1000)],
):
    expected = result(steps, "numpy", X, y)
    with sklearn.config_context(array_api_dispatch=True):
        found = result(steps, "torch", X, torch.from_numpy(y))
        of_tensor = result(steps, "torch", torch.from_numpy(X), torch.from_numpy(y))
    assert isinstance(found, torch.Tensor), steps
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-3, err_msg=str(steps))
    np.testing.assert_array_equal(of_tensor.numpy(), found.numpy(), err_msg=str(steps))
"""


@pytest.mark.slow
def test_array_api_dispatch():
    """In a process of its own: SciPy looks at the variable when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", DISPATCH],
        env={**os.environ, "SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
