"""The parameters of all estimators that train a network."""

import os
from numbers import Integral, Real

from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from sktl._base import SHARED_CONSTRAINTS, ImageEstimator
from sktl.inputs import MAX_PIXELS
from sktl.strategies import Strategy, resolve_strategy

TRAINING_CONSTRAINTS: dict[str, list] = {
    **SHARED_CONSTRAINTS,
    "strategy": [str, Strategy],
    "max_epochs": [Interval(Integral, 1, None, closed="left")],
    "learning_rate": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"}), None],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "head": [StrOptions({"linear", "mlp"}), nn.Module, BaseEstimator],
    "dropout": [Interval(Real, 0, 1, closed="left")],
    "drop_path": [Interval(Real, 0, 1, closed="left")],
    "early_stopping": ["boolean", StrOptions({"auto"})],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
    "tol": [Interval(Real, 0, None, closed="left")],
    "warm_start": ["boolean"],
    "random_state": ["random_state"],
    "augment": [str, callable, None],
    "augment_copies": [Interval(Integral, 1, None, closed="left"), None],
    "mixup": [Interval(Real, 0, None, closed="left")],
    "cutmix": [Interval(Real, 0, None, closed="left")],
    "ema_decay": [Interval(Real, 0, 1, closed="neither"), None],
    "amp": ["boolean", StrOptions({"auto"})],
    "persist": [StrOptions({"embed", "embed_all", "reference"})],
    "gradient_accumulation": [Interval(Integral, 1, None, closed="left")],
    "checkpoint": [str, os.PathLike, None],
    "callbacks": [list, None],
    "net_params": [dict, None],
}


class TrainingParameters(ImageEstimator):
    """Store the parameters; an estimator with more of its own has a constructor that hands these on.

    They are documented where the user meets them, at each public estimator.
    """

    def __init__(
        self,
        backbone="sktl/tiny",
        strategy="wise_ft",
        *,
        weights="pretrained",
        data_config=None,
        image_size=None,
        image_shape=None,
        channels=None,
        root=None,
        max_pixels=MAX_PIXELS,
        max_epochs=10,
        learning_rate=None,
        batch_size=32,
        weight_decay=0.01,
        head="linear",
        dropout=0.0,
        drop_path=0.0,
        early_stopping="auto",
        validation_fraction=0.1,
        n_iter_no_change=5,
        tol=1e-4,
        warm_start=False,
        random_state=None,
        device="auto",
        dtype="auto",
        memory=None,
        cache_bytes=512 * 2**20,
        augment=None,
        augment_copies=None,
        mixup=0.0,
        cutmix=0.0,
        ema_decay=None,
        amp="auto",
        gradient_accumulation=1,
        checkpoint=None,
        callbacks=None,
        net_params=None,
        persist="embed",
        verbose=0,
    ):
        self.backbone = backbone
        self.strategy = strategy
        self.weights = weights
        self.data_config = data_config
        self.image_size = image_size
        self.image_shape = image_shape
        self.channels = channels
        self.root = root
        self.max_pixels = max_pixels
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.head = head
        self.dropout = dropout
        self.drop_path = drop_path
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.memory = memory
        self.cache_bytes = cache_bytes
        self.augment = augment
        self.augment_copies = augment_copies
        self.mixup = mixup
        self.cutmix = cutmix
        self.ema_decay = ema_decay
        self.amp = amp
        self.gradient_accumulation = gradient_accumulation
        self.checkpoint = checkpoint
        self.callbacks = callbacks
        self.net_params = net_params
        self.persist = persist
        self.verbose = verbose

    def set_params(self, **params):
        """Set parameters; a strategy given by name becomes an object where one of its own parameters is set.

        Parameters
        ----------
        **params : dict
            Among them ``strategy__<parameter>``.

        Returns
        -------
        self : estimator
            The same object.
        """
        strategy = params.get("strategy", self.strategy)
        if isinstance(strategy, str) and any(key.startswith("strategy__") for key in params):
            params["strategy"] = resolve_strategy(strategy)
        return super().set_params(**params)
