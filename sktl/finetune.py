"""A pretrained network with a new head as a scikit-learn classifier."""

import time
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, compute_class_weight
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, _check_y, check_consistent_length, check_is_fitted

from sktl._base import SHARED_CONSTRAINTS, EmbeddingMixin, ImageEstimator
from sktl.embedding import resolve_device
from sktl.inputs import ImagePreprocessor
from sktl.strategies import Strategy, resolve_strategy
from sktl.training import (
    StopEarly,
    Targets,
    TrainingData,
    ValidScore,
    build_network,
    fit_linear_head,
    make_net,
    merge_duplicates,
    restore_network,
    train,
    trained_backbone,
)

EARLY_STOPPING_FROM = 10_000


class FineTuneClassifier(EmbeddingMixin, ClassifierMixin, ImageEstimator):
    """Classify images with a pretrained network, reused in the way that ``strategy`` says.

    Parameters
    ----------
    backbone : str or nn.Module, default="sktl/tiny"
        The pretrained network: the one that ships with sktl, a timm model name (see :func:`sktl.list_backbones`),
        ``"hf-hub:org/name"``, ``"local-dir:/path"``, or a network of your own, which is copied.
    strategy : str or Strategy, default="lp_ft"
        The way of transfer: ``"feature_extraction"``, ``"lp_ft"``, ``"partial"``, ``"fine_tuning"``,
        ``"from_scratch"``, or an object from :mod:`sktl.strategies`. Its parameters can be set and searched as
        ``strategy__<parameter>``.
    weights : "pretrained", path, state dict or None, default="pretrained"
        Where the weights of a named backbone come from: its published weights, a ``.safetensors`` or ``.pth`` file,
        or a random start.
    data_config : dict, default=None
        Overrides of the backbone's data config (``input_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct``,
        ``crop_mode``).
    image_size : int or (int, int), default=None
        Height and width in pixels to which images are brought; None takes the backbone's own.
    image_shape : (int, int) or (int, int, int), default=None
        Shape (height, width) or (height, width, channels) of the images that the rows of a 2-D X hold, flattened.
        Without it such a row is read as a strip of grey.
    channels : {"first", "last"}, default=None
        Layout of arrays, where their shape does not tell.
    root : path-like, default=None
        Folder that relative paths in X start from, and that no path may leave.
    max_epochs : int, default=10
        Passes over the training rows, for strategies that train the backbone.
    learning_rate : float, default=None
        Highest learning rate of the head; None takes the strategy's own. The strategy derives the backbone's from it.
    batch_size : int, default=32
        Rows per training step.
    weight_decay : float, default=0.01
        Decoupled weight decay of matrices and kernels (AdamW); biases and normalisation layers have none.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, as scikit-learn's classifiers take them.
    early_stopping : "auto" or bool, default="auto"
        Whether to hold out rows, to stop when their loss no longer improves, and to go back to the best weights;
        "auto" does so from 10,000 rows on. Given ``X_val``, nothing is held out.
    validation_fraction : float, default=0.1
        Share of the rows that early stopping holds out, stratified by class.
    n_iter_no_change : int, default=5
        Epochs without improvement after which early stopping ends training.
    tol : float, default=1e-4
        An improvement of the validation loss that is smaller counts as none.
    random_state : int, RandomState instance or None, default=None
        Decides what is held out, the order of rows, and all that is random in training.
    device : str or torch.device, default="auto"
        Where the network runs; "auto" takes CUDA, then MPS, then the CPU.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Precision of embeddings and predictions; training is in float32. "auto" takes bfloat16 where the hardware has
        it.
    memory : path-like or joblib.Memory, default=None
        A folder in which embeddings of the frozen backbone are kept, shared by processes and sessions.
    callbacks : list of skorch callbacks, default=None
        Run in the training loop after sktl's own.
    net_params : dict, default=None
        Parameters handed to the skorch net, such as ``{"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9}``.
    verbose : int, default=0
        From 1 on, training prints a line per epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels seen in ``fit``.
    strategy_ : Strategy
        The strategy object that was used.
    backbone_ : Backbone
        The backbone as it is after ``fit``.
    net_ : skorch.NeuralNetClassifier
        The net; ``net_.module_`` is the network of backbone and head.
    history_ : list of dict
        One entry per phase or epoch: losses, validation accuracy, learning rate, seconds.
    trainable_parameters_ : int
        How many numbers were trained.
    fit_seconds_ : float
        Wall-clock time of ``fit``.
    validation_indices_ : ndarray of int or None
        Rows of X that early stopping held out.
    input_kind_ : {"images", "numbers"}
        What X held in ``fit``.
    n_features_in_ : int
        Number of columns of X, where it had columns.
    feature_names_in_ : ndarray of str
        Names of the columns of X, where it was a frame.

    Notes
    -----
    Rows of the same content and label are merged, and their weights added; the order of the rows in X has no
    influence, but on what early stopping holds out.

    See Also
    --------
    PretrainedFeatureTransformer : Embeddings for any scikit-learn model.
    sktl.strategies : The ways of transfer and their parameters.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktl import FineTuneClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> model = FineTuneClassifier(strategy="feature_extraction", image_shape=(8, 8), image_size=32, random_state=0)
    >>> model.fit(X[:200], y[:200]).predict(X[200:203]).shape
    (3,)
    """

    _parameter_constraints: ClassVar[dict] = {
        **SHARED_CONSTRAINTS,
        "strategy": [str, Strategy],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "early_stopping": ["boolean", StrOptions({"auto"})],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "callbacks": [list, None],
        "net_params": [dict, None],
    }

    def __init__(
        self,
        backbone="sktl/tiny",
        strategy="lp_ft",
        *,
        weights="pretrained",
        data_config=None,
        image_size=None,
        image_shape=None,
        channels=None,
        root=None,
        max_epochs=10,
        learning_rate=None,
        batch_size=32,
        weight_decay=0.01,
        class_weight=None,
        early_stopping="auto",
        validation_fraction=0.1,
        n_iter_no_change=5,
        tol=1e-4,
        random_state=None,
        device="auto",
        dtype="auto",
        memory=None,
        callbacks=None,
        net_params=None,
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
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.memory = memory
        self.callbacks = callbacks
        self.net_params = net_params
        self.verbose = verbose

    def set_params(self, **params):
        """Set parameters; a strategy given by name becomes an object where one of its own parameters is set.

        Parameters
        ----------
        **params : dict
            Among them ``strategy__<parameter>``.

        Returns
        -------
        self : FineTuneClassifier
            The same object.
        """
        strategy = params.get("strategy", self.strategy)
        if isinstance(strategy, str) and any(key.startswith("strategy__") for key in params):
            params["strategy"] = resolve_strategy(strategy)
        return super().set_params(**params)

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None):
        """Fit the head, and train what the strategy trains.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            Paths, bytes, PIL images or arrays; one row per image.
        y : array-like of shape (n,)
            Labels of any type.
        sample_weight : array-like of shape (n,), default=None
            How much each row counts; rows of weight 0 are left out, and a weight of 2 is the same as having the row
            twice.
        X_val, y_val, sample_weight_val : default=None
            Rows to measure on after each epoch, and to stop early by; nothing is held out of X then.

        Returns
        -------
        self : FineTuneClassifier
            Fitted.
        """
        started = time.perf_counter()
        self.strategy_ = resolve_strategy(self.strategy)
        backbone = self._load_backbone()
        rows, targets = self._check_training_rows(X, y, sample_weight, backbone)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        validation = self._check_validation_rows(X_val, y_val, sample_weight_val, backbone)
        if validation is None:
            rows, targets, validation = self._hold_out(rows, targets, seed)
        rows, targets = merge_duplicates(rows, targets)
        network = build_network(backbone, len(self.classes_), self.strategy_, seed)
        self.trainable_parameters_ = sum(p.numel() for p in network.parameters() if p.requires_grad)
        self.history_: list[dict[str, Any]] = []
        if self.strategy_.fits_head_first:
            self._fit_head(network, rows, targets, backbone)
        self.net_ = self._make_net(network)
        if self.strategy_.trains_backbone:
            self._train(rows, targets, validation, backbone, seed)
            backbone = trained_backbone(backbone, network)
        else:
            self.net_.initialize()
        self.strategy_.finish(network)
        self.backbone_ = backbone
        self._n_features_out = backbone.width
        self.fit_seconds_ = time.perf_counter() - started
        return self

    def _check_training_rows(self, X, y, sample_weight, backbone):
        """Return the rows that count, with class indices and weights."""
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        X = self._check_input(X, reset=True)
        y = self._check_labels(X, y)
        sample_weight = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
        counts = np.flatnonzero(sample_weight > 0)
        if len(counts) == 0:
            raise ValueError("The 'sample_weight' parameter gives weight to no row.")
        self.classes_, target = np.unique(y[counts], return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes in y, got 1 class instead: {self.classes_[0]!r}."
            )
        self._learn_scaling(X, sample_weight)
        class_weight = compute_class_weight(
            self.class_weight, classes=self.classes_, y=y[counts], sample_weight=sample_weight[counts]
        )
        rows = self._open_rows(X, backbone)
        if len(counts) < len(y):
            rows = rows.take(counts)
        return rows, Targets(target, sample_weight[counts] * class_weight[target])

    def _check_labels(self, X, y) -> np.ndarray:
        y = _check_y(y, multi_output=False, y_numeric=False, estimator=self)
        check_consistent_length(X, y)
        check_classification_targets(y)
        return y

    def _check_validation_rows(self, X, y, sample_weight, backbone):
        if X is None:
            return None
        X = self._check_input(X, reset=False)
        y = self._check_labels(X, y)
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"y_val holds labels that y does not: {unknown[:5].tolist()}.")
        weight = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
        return self._open_rows(X, backbone), Targets(np.searchsorted(self.classes_, y), weight)

    def _hold_out(self, rows, targets: Targets, seed: int):
        """Split off validation rows, if early stopping wants them."""
        self.validation_indices_ = None
        wanted = len(targets) >= EARLY_STOPPING_FROM if self.early_stopping == "auto" else self.early_stopping
        if not wanted or not self.strategy_.trains_backbone:
            return rows, targets, None
        rarest = np.bincount(targets.values).min()
        n_valid = int(np.ceil(self.validation_fraction * len(targets)))
        if rarest < 2 or n_valid < len(self.classes_):
            raise ValueError(
                f"early_stopping holds out {n_valid} of {len(targets)} rows, stratified over {len(self.classes_)} "
                "classes, of which the "
                f"rarest has {rarest} rows. Give more rows, a larger validation_fraction, X_val and y_val, or "
                "early_stopping=False."
            )
        kept, held_out = train_test_split(
            np.arange(len(targets)), test_size=n_valid, stratify=targets.values, random_state=seed
        )
        self.validation_indices_ = np.sort(held_out)
        kept = np.sort(kept)
        validation = rows.take(self.validation_indices_), targets.take(self.validation_indices_)
        return rows.take(kept), targets.take(kept), validation

    def _fit_head(self, network, rows, targets: Targets, backbone) -> None:
        started = time.perf_counter()
        embeddings = self._embed(rows, backbone)
        loss = fit_linear_head(network.head, embeddings, targets.values, targets.weight, self.strategy_.C)
        self.history_.append({"phase": "head", "train_loss": loss, "dur": time.perf_counter() - started})

    def _make_net(self, network):
        return make_net(
            network,
            self.strategy_,
            learning_rate=self.strategy_.learning_rate if self.learning_rate is None else self.learning_rate,
            weight_decay=self.weight_decay,
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
            device=resolve_device(self.device),
            verbose=int(self.verbose),
            callbacks=self.callbacks or (),
            net_params=self.net_params,
        )

    def _train(self, rows, targets: Targets, validation, backbone, seed: int) -> None:
        preprocess = ImagePreprocessor(backbone.data_config)
        data = TrainingData(rows, targets, preprocess)
        valid = None if validation is None else TrainingData(*validation, preprocess)
        extra = []
        if valid is not None:
            extra = [("valid_acc", ValidScore("valid_acc", _is_correct))]
        if valid is not None and self.early_stopping:
            extra.append(("early_stopping", StopEarly(self.n_iter_no_change, self.tol)))
        train(self.net_, data, valid, seed, extra)
        self.history_ += [
            {"phase": "network", **{key: value for key, value in epoch.items() if key != "batches"}}
            for epoch in self.net_.history
        ]

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
        X = self._check_input(X, reset=False)
        return self._embed(self._open_rows(X, self.backbone_), self.backbone_)

    def _logits(self, X) -> np.ndarray:
        head = self.net_.module_.head
        with torch.inference_mode():
            return head(torch.from_numpy(self.transform(X))).numpy()

    def decision_function(self, X) -> np.ndarray:
        """Compute the head's output.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        scores : ndarray of shape (n,) or (n, n_classes), float32
            One column per class; with two classes, how much the second is favoured.
        """
        check_is_fitted(self)
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X) -> np.ndarray:
        """Compute class probabilities.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        proba : ndarray of shape (n, n_classes), float32
            Rows sum to 1; columns in the order of ``classes_``.
        """
        check_is_fitted(self)
        return torch.softmax(torch.from_numpy(self._logits(X)), dim=1).numpy()

    def predict(self, X) -> np.ndarray:
        """Predict labels.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        labels : ndarray of shape (n,)
            Of the type of ``classes_``.
        """
        check_is_fitted(self)
        return self.classes_[self._logits(X).argmax(axis=1)]

    def __getstate__(self):
        state = dict(super().__getstate__())
        if "net_" in state:
            network = state.pop("net_").module_
            state["_head"] = {name: value.numpy() for name, value in network.head.state_dict().items()}
        return state

    def __setstate__(self, state):
        state = dict(state)
        head = state.pop("_head", None)
        super().__setstate__(state)
        if head is not None:
            self.net_ = self._make_net(restore_network(self.backbone_, self.strategy_, head)).initialize()


def _is_correct(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (logits.argmax(dim=1) == target).float()
