"""Fitting a linear head on embeddings, to convergence or in closed form."""

import copy
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from sktl._spread import scale_of_embeddings
from sktl.backbones import pack_module, unpack_module
from sktl.training.data import Targets
from sktl.training.new_heads import MLPHead


def fit_linear_head(head: nn.Linear, embeddings: np.ndarray, targets: Targets, C: float) -> float:
    """Fit a multinomial logistic regression on scaled embeddings, and write it into a linear layer.

    The scaling is folded into the layer's weights, so that the layer takes plain embeddings.

    Parameters
    ----------
    head : nn.Linear
        Maps ``width`` values to one output per class; changed in place.
    embeddings : ndarray of shape (n, width)
        One row per image.
    targets : Targets
        Class indices, of which every one occurs. The scaling heeds how often a row counts, not the weight of its class.
    C : float
        Inverse strength of the L2 penalty, as in :class:`~sklearn.linear_model.LogisticRegression`; it acts on
        embeddings that are standardised and divided by the square root of their width.

    Returns
    -------
    loss : float
        Weighted mean cross-entropy on the data.
    """
    scaled, mean, scale = _standardised(embeddings, targets.weight)
    model = LogisticRegression(C=C, tol=1e-5, max_iter=1000)
    model.fit(scaled, targets.values, sample_weight=targets.loss_weight)
    coef, intercept = _one_row_per_class(model)
    _write(head, coef / scale, intercept, mean)
    log_proba = log_softmax(scaled @ coef.T + intercept, axis=1)  # never the logarithm of 0
    losses = -log_proba[np.arange(len(targets)), targets.values]
    return float(np.average(losses, weights=targets.loss_weight))


def fit_multilabel_head(
    head: nn.Linear, embeddings: np.ndarray, targets: Targets, C: float, label_weight: np.ndarray | None = None
) -> float:
    """Fit a logistic regression for each label on scaled embeddings, and write them into a linear layer.

    A label that all rows have, or none, is predicted with the same probability for every image: Jeffreys' estimate of
    it, ``(having + 1/2) / (rows + 1)``.

    Parameters
    ----------
    head : nn.Linear
        Maps ``width`` values to one output per label; changed in place.
    embeddings : ndarray of shape (n, width)
        One row per image.
    targets : Targets
        0 and 1, of shape (n, n_labels).
    C : float
        As in :func:`fit_linear_head`.
    label_weight : ndarray of shape (n_labels, 2), default=None
        How much a row counts that has not the label, and one that has it.

    Returns
    -------
    loss : float
        Weighted mean of the binary cross-entropies on the data.
    """
    scaled, mean, scale = _standardised(embeddings, targets.weight)
    has = targets.values.astype(int)
    weight = np.tile(targets.weight[:, None], has.shape[1])
    if label_weight is not None:
        weight = weight * np.where(has, label_weight[:, 1], label_weight[:, 0])
    labels = [_fit_label(scaled, *columns, C) for columns in zip(has.T, weight.T, strict=True)]
    coef, intercept = np.stack([label[0] for label in labels]), np.array([label[1] for label in labels])
    _write(head, coef / scale, intercept, mean)
    scores = scaled @ coef.T + intercept
    losses = np.logaddexp(0, np.where(has, -scores, scores))  # of the sigmoid, and never the logarithm of 0
    return float((losses * weight).mean(axis=1).sum() / targets.weight.sum())


def _fit_label(scaled: np.ndarray, has: np.ndarray, weight: np.ndarray, C: float) -> tuple[np.ndarray, float]:
    having, without = weight[has == 1].sum(), weight[has == 0].sum()
    if not having or not without:
        return np.zeros(scaled.shape[1]), float(np.log((having + 0.5) / (without + 0.5)))
    model = LogisticRegression(C=C, tol=1e-5, max_iter=1000).fit(scaled, has, sample_weight=weight)
    return model.coef_[0], float(model.intercept_[0])


def fit_ridge_head(head: nn.Linear, embeddings: np.ndarray, targets: Targets, C: float) -> float:
    """Fit a ridge regression on scaled embeddings, in closed form, and write it into a linear layer.

    Parameters
    ----------
    head : nn.Linear
        Maps ``width`` values to one output per target; changed in place.
    embeddings : ndarray of shape (n, width)
        One row per image.
    targets : Targets
        Numbers of shape (n, n_targets), standardised.
    C : float
        Inverse strength of the L2 penalty, on the same embeddings and of the same weight against the loss as in
        :func:`fit_linear_head`: half the squared error bends four times as much as the logistic loss where that
        bends most, so the ``alpha`` of :class:`~sklearn.linear_model.Ridge` is ``4 / C``.

    Returns
    -------
    loss : float
        Weighted mean squared error on the data.
    """
    scaled, mean, scale = _standardised(embeddings, targets.weight)
    model = Ridge(alpha=4 / C)
    model.fit(scaled, targets.values, sample_weight=targets.loss_weight)
    coef, intercept = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    _write(head, coef / scale, intercept, mean)
    losses = ((scaled @ coef.T + intercept - targets.values) ** 2).mean(axis=1)
    return float(np.average(losses, weights=targets.loss_weight))


def head_outputs(head: nn.Module, embeddings: np.ndarray) -> np.ndarray:
    """Run a head on embeddings, in float64: in float32 the result would depend on how many rows are given.

    Parameters
    ----------
    head : nn.Module
        Left as it is.
    embeddings : ndarray of shape (n, width)
        One row per image.

    Returns
    -------
    outputs : ndarray of shape (n, n_outputs), float64
    """
    head = copy.deepcopy(head).double()
    with torch.inference_mode():
        return head(torch.from_numpy(embeddings).double()).numpy()


def pack_head(head: nn.Module) -> dict[str, Any]:
    """Return a head as plain data, on no device.

    Parameters
    ----------
    head : nn.Module
        Left as it is.
    """
    state = {name: value.detach().cpu().numpy() for name, value in head.state_dict().items()}
    if type(head) is nn.Linear:
        return state
    if type(head) is MLPHead:
        return {"kind": "mlp", **state}
    return {"kind": "module", "module": pack_module(head)}


def unpack_head(packed: dict[str, Any]) -> nn.Module:
    """Build the head that :func:`pack_head` packed.

    Parameters
    ----------
    packed : dict
        Left as it is.
    """
    kind = packed.get("kind", "linear")
    if kind == "module":
        return unpack_module(packed["module"]).eval()
    state = {name: torch.tensor(value) for name, value in packed.items() if name != "kind"}
    if kind == "mlp":
        (n_hidden, width), n_outputs = state["0.weight"].shape, len(state["2.bias"])
        with torch.device("meta"):  # draws no random numbers
            head = MLPHead(width, n_outputs, n_hidden)
        head.to_empty(device="cpu")
    else:
        head = nn.utils.skip_init(nn.Linear, *reversed(state["weight"].shape), bias="bias" in state)
    head.load_state_dict(state)
    return head.eval()


def _standardised(embeddings: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return standardised embeddings over the square root of their width, and the mean and scale that made them so."""
    mean, scale = scale_of_embeddings(embeddings, weight)
    scale = scale * np.sqrt(embeddings.shape[1])
    return (embeddings - mean) / scale, mean, scale


def _write(head: nn.Linear, coef: np.ndarray, intercept: np.ndarray, mean: np.ndarray) -> None:
    """Write a linear model of embeddings less their mean into a layer that takes plain embeddings."""
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(coef))
        head.bias.copy_(torch.from_numpy(intercept - coef @ mean))


def _one_row_per_class(model: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    if len(model.classes_) > 2:
        return model.coef_, model.intercept_
    return np.vstack([-model.coef_, model.coef_]) / 2, np.concatenate([-model.intercept_, model.intercept_]) / 2
