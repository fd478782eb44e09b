"""The network of an estimator: how its net is made, what it gives."""

import copy
from abc import ABC
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sktl._base import EmbeddingMixin
from sktl._finetuning._original import OriginalTask
from sktl._finetuning._state import PlainState
from sktl.backbones import Backbone, example_input
from sktl.training import build_network, check_steps, check_trained, head_outputs, make_head, make_net, trained_backbone

# Brings learning rates to where they are usual for encoders like BERT (Devlin and others, NAACL 2019).
_SCALE_OF_TEXTS = 0.3


class FittedNetwork(EmbeddingMixin, OriginalTask, PlainState, ABC):
    """Make nets, and run the fitted one.

    Attributes
    ----------
    _criterion : type of module
        The loss of the training loop, with a ``reduction`` parameter.
    """

    _criterion: ClassVar[type[nn.Module]]

    def _criterion_params(self) -> dict[str, Any]:
        """Return the parameters of the loss, without its reduction."""
        return {}

    def _build_network(self, backbone: Backbone, seed: int, *, goes_on: bool):
        """Return a network prepared by the strategy, with a new head, or a copy of the fitted one where it goes on."""
        if goes_on:
            head = copy.deepcopy(self.net_.module_.head)
        else:
            head = make_head(self.head, backbone.width, self._n_outputs(), seed)
        settings = {"goes_on": goes_on, "dropout": self.dropout, "drop_path": self.drop_path}
        network = build_network(backbone, head, self.strategy_, seed, **settings)
        if self.strategy_.trains_backbone:
            check_trained(network, example_input(backbone.data_config))
        return network

    def _check_steps(self, network, backbone: Backbone, n_rows: int, in_loop: bool = True) -> None:
        """Refuse steps of one row, if what is trained needs several; a head alone is fitted out of the loop."""
        if self.strategy_.trains_backbone:
            trained, example = network, example_input(backbone.data_config)
        else:
            trained, example = network.head, torch.zeros(1, backbone.width)
        batch_size, n_parts = (self.batch_size, self.gradient_accumulation) if in_loop else (n_rows, 1)
        check_steps(trained, example, n_rows, batch_size, n_parts)

    def _make_net(self, network, device: torch.device):
        return make_net(network, self.strategy_, **self._net_settings(device))

    def _head_learning_rate(self) -> float:
        """Return the learning rate asked for, or the strategy's own; encoders of texts take smaller steps."""
        if self.learning_rate == "auto" and hasattr(self, "learning_rate_"):
            return self.learning_rate_
        if self.learning_rate not in (None, "auto"):
            return self.learning_rate
        return self.strategy_.learning_rate * (_SCALE_OF_TEXTS if self.input_kind_ == "texts" else 1.0)

    def _net_settings(self, device: torch.device) -> dict[str, Any]:
        return {
            "criterion": self._criterion,
            "criterion_params": self._criterion_params(),
            "learning_rate": self._head_learning_rate(),
            "weight_decay": self.weight_decay,
            "max_epochs": self.max_epochs,
            "batch_size": self.batch_size,
            "n_parts": self.gradient_accumulation,
            "mixup": self.mixup if self.strategy_.trains_backbone else 0.0,
            "cutmix": self.cutmix if self.strategy_.trains_backbone else 0.0,
            "ema_decay": self.ema_decay,
            "device": device,
            "verbose": int(self.verbose),
            "callbacks": self.callbacks or (),
            "net_params": self.net_params,
        }

    def _as_if_done(self, network, backbone: Backbone) -> dict[str, Any]:
        """Return the attributes of an estimator whose fit ends here, on a copy of its network."""
        if self.strategy_.trains_backbone:
            network = copy.deepcopy(network).cpu().eval()
            copy.deepcopy(self.strategy_).finish(network)
            backbone = trained_backbone(backbone, network)
        settings = {**self._net_settings(torch.device("cpu")), "callbacks": ()}  # those in training know one net only
        return {"net_": make_net(network, self.strategy_, **settings).initialize(), "backbone_": backbone}

    def transform(self, X) -> np.ndarray:
        """Compute the embeddings that the head works on.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        embeddings : ndarray of shape (n, width), float32
            From the fine-tuned backbone, where the strategy trains it.
        """
        check_is_fitted(self)
        return self._embeddings(X)

    def _embeddings(self, X) -> np.ndarray:
        """Compute embeddings; those of a trained backbone are not stored, since no other fit can use them."""
        X = self._check_input(X, reset=False)
        rows = self._open_rows(X, self.backbone_)
        return self._embed(rows, self.backbone_.view, stored=not self.strategy_.trains_backbone)

    def _outputs(self, X) -> np.ndarray:
        """Return the head's output of shape (n, n_outputs), float64."""
        return head_outputs(self.net_.module_.head, self._embeddings(X))
