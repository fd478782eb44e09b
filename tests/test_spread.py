"""What is constant, and what moves so little that its scale says nothing."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from small_models import make_model, make_regressor, three_digits
from torch import nn

from sktl._spread import mean_and_spread
from sktl.training import Targets, fit_linear_head, fit_multilabel_head, fit_ridge_head, make_head, train_head


def fit_mlp(head, embeddings, targets, C):
    criterion = nn.CrossEntropyLoss(reduction="none")
    return train_head(head, embeddings, targets, criterion, dropout=0.0, weight_decay=0.01, seed=0)


@pytest.mark.parametrize("n_rows", [3, 24, 1000])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6 / 3, 1e-20])
def test_constant_columns_have_no_spread(n_rows, constant):
    moving = np.random.default_rng(0).normal(1000, 1e-3, n_rows)
    weight = np.random.default_rng(1).uniform(0.5, 2, n_rows)
    mean, spread = mean_and_spread(np.c_[np.full(n_rows, constant), moving], weight)
    assert spread[0] == 0.0
    scaler = StandardScaler().fit(moving[:, None], sample_weight=weight)
    np.testing.assert_allclose([mean[1], spread[1]], [scaler.mean_[0], scaler.scale_[0]])


@pytest.mark.parametrize("rest", [np.full(48, 0.1), np.random.default_rng(2).normal(0, 1e-3, (40, 48))])
@pytest.mark.parametrize("fit", [fit_linear_head, fit_multilabel_head, fit_ridge_head, fit_mlp])
def test_columns_that_hardly_move_do_not_decide(fit, rest):
    """Constant but for rounding where they are the most, or moving a thousandth of what the others do."""
    rng, width = np.random.default_rng(0), 96 if rest.ndim == 2 else 16
    embeddings = np.c_[rng.normal(size=(40, width)), np.broadcast_to(rest, (40, 48))].astype(np.float32)
    has = (embeddings[:, 0] > 0).astype(int)
    values = {fit_multilabel_head: np.c_[has, 1 - has], fit_ridge_head: np.c_[has, -has] + 0.0}.get(fit, has)
    head = make_head("mlp" if fit is fit_mlp else "linear", embeddings.shape[1], 2, seed=0)
    fit(head, embeddings, Targets(values, rng.uniform(0.5, 2, 40)), 10.0)
    elsewhere = embeddings.copy()
    elsewhere[:, width:] += 0.01
    with torch.inference_mode():
        before, after = (head(torch.from_numpy(each).float()) for each in (embeddings, elsewhere))
    assert (before - after).abs().max() < 0.5 * before.std()


def test_targets_that_were_constant_at_first_are_learnt_later():
    X, y = three_digits()
    for constant in (0.1, 0.5):
        model = make_regressor(learning_rate=0.02, batch_size=8).partial_fit(X, np.full(45, constant))
        np.testing.assert_array_equal(model.target_scale_, 1.0)
        for _ in range(10):
            model.partial_fit(X, y)
        assert model.score(X, y) > 0.3


def test_tables_that_were_constant_at_first_keep_their_unit():
    X, y = three_digits()
    model = make_model(image_shape=None).partial_fit(np.full_like(X, 0.1, dtype=float), y, classes=[0, 1, 2])
    assert (model.offset_, model.scale_) == (pytest.approx(0.1), 1.0)
