"""A frozen pretrained network as a scikit-learn transformer."""

from collections.abc import Iterator
from copy import copy
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils._set_output import _get_output_config, _wrap_data_with_container
from sklearn.utils.validation import check_is_fitted

from sktl._base import SHARED_CONSTRAINTS, EmbeddingMixin, ImageEstimator
from sktl._fit_tasks import FitTasks
from sktl._undo import as_before_on_failure
from sktl.backbones import POOLINGS, FeatureView
from sktl.embedding import EmbeddingStats, resolve_devices
from sktl.exceptions import InputError
from sktl.inputs import MAX_PIXELS


class PretrainedFeatureTransformer(EmbeddingMixin, ImageEstimator):
    """Turn images or texts into embeddings with a pretrained network that is never trained.

    Each row goes through the backbone once. Its embedding is kept in a bounded in-process store, under a hash of the
    row's content, where the folds and candidates of a grid search find it again.

    Parameters
    ----------
    backbone : str, nn.Module or fitted estimator, default="sktl/tiny"
        The pretrained network: the one that ships with sktl, which is small and never saw a photograph; a timm model
        name (see :func:`sktl.list_backbones`); ``"hf-hub:org/name"``; ``"local-dir:/path"``; a network of your own,
        which is copied; or a fitted FineTuneClassifier or FineTuneRegressor, whose fine-tuned network is taken. For
        texts, an encoder of Hugging Face's as ``"text:org/name"`` or ``"text:/path"`` (needs ``sktl[text]``).
    weights : "pretrained", path, state dict or None, default="pretrained"
        Where the weights of a named backbone come from: its published weights, a ``.safetensors`` or ``.pth`` file,
        or a random start.
    data_config : dict, default=None
        Overrides of the backbone's data config (``input_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct``,
        ``crop_mode``; for texts ``max_length``, the number of tokens after which they are cut off).
    layer : int, str, list of them or None, default=None
        Where the embedding is taken from. None is the backbone's own embedding; an integer selects one of its stages
        (negative integers count from the last), a string the submodule of that name. The outputs of several layers are
        concatenated.
    pooling : {"auto", "avg", "max", "avgmax", "cls", "none"}, default="auto"
        How feature maps or tokens become one vector: "auto" is the backbone's own way, "avg" their mean, "max" their
        maximum, "avgmax" the mean of both, "cls" the class token, and "none" (images only) all values, flattened.
    normalize : bool, default=False
        Scale each embedding to Euclidean length 1.
    tta : {"hflip"} or None, default=None
        "hflip" averages the embeddings of an image and of its mirror image, at twice the cost.
    image_size : int or (int, int), default=None
        Height and width in pixels to which images are resized; None takes the backbone's own.
    image_shape : (int, int) or (int, int, int), default=None
        Shape (height, width) or (height, width, channels) of the images that the rows of a 2-D X hold, flattened; with
        ``channels="first"`` (channels, height, width). Without it such a row is read as a strip of grey.
    channels : {"first", "last"}, default=None
        Whether arrays have their channels first or last; needed only where their shape does not tell.
    root : path-like, default=None
        Folder that relative paths in X start from, and that no path may leave.
    max_pixels : int, default=89_478_485
        Images with more pixels are refused before they are decoded. One whose embedding is already stored is not
        decoded, and so not refused either. The default is Pillow's own.
    batch_size : int or "auto", default="auto"
        Rows per forward pass. It has no influence on the embeddings.
    device : str, torch.device or list of them, default="auto"
        Where the network runs; "auto" takes CUDA, then MPS, then the CPU. Several devices share the rows:
        ``["cuda:0", "cuda:1"]``.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Precision inside the network; "auto" takes bfloat16 where the hardware has it, else float32. Embeddings are
        float32.
    runtime : {"auto", "torch", "compile", "openvino"}, default="auto"
        What runs the network; "auto" takes OpenVINO on a CPU where the extra ``sktl[openvino]`` is installed, else
        torch.
    memory : path-like, URL, joblib.Memory or store, default=None
        A folder in which embeddings are kept, shared by processes and sessions; with a bound on its size as
        ``sktl.embedding.DiskStore(folder, max_bytes=...)``. A URL (``"s3://bucket/prefix"``) is a store that many
        machines share.
    cache_bytes : int, default=512 MiB
        Bound on the embeddings kept in memory. All estimators of a process share one store, and the one that embedded
        last decides on its bound; the least recently used embeddings are dropped first. 0 bypasses the store.
    on_error : {"raise", "nan"}, default="raise"
        Whether images or texts that cannot be read raise one error that names them all, or become rows of NaN.
    output : {"numpy", "torch"}, default="numpy"
        What ``transform`` returns. "torch" gives a tensor on the device that the network runs on, for estimators that
        compute there when scikit-learn's ``array_api_dispatch`` is on. A container chosen by ``set_output`` takes
        precedence.
    persist : {"embed", "reference"}, default="embed"
        What a pickle or a file of the fitted estimator holds of the network. "embed" stores all its weights.
        "reference" stores the name and the SHA-256 of the public weights that it started from, together with whatever
        training changed; the public weights must then be present, or can be downloaded, where it is loaded.
    verbose : int, default=0
        From 1 on, a progress bar is shown.

    Attributes
    ----------
    backbone_ : Backbone
        The loaded network, shared inside the process.
    input_kind_ : {"images", "texts", "numbers"}
        What X held in ``fit``.
    n_features_in_ : int
        Number of columns of X, where it had columns.
    feature_names_in_ : ndarray of str
        Names of the columns of X, where it was a frame.

    See Also
    --------
    FineTuneClassifier : Trains a head, or the network itself.

    Notes
    -----
    ``fit`` loads the backbone and, for rows of numbers, learns how they become pixels; it computes no embedding. What
    the embedding is (``backbone``, ``weights``, ``data_config``, ``image_size``, ``layer``, ``pooling``, ``normalize``,
    ``tta``) changes with the next ``fit`` only.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sktl import PretrainedFeatureTransformer
    >>> X, y = load_digits(return_X_y=True)
    >>> embed = PretrainedFeatureTransformer(image_shape=(8, 8), image_size=32)
    >>> model = make_pipeline(embed, LogisticRegression(max_iter=1000)).fit(X[:200], y[:200])
    >>> model.predict(X[200:203]).shape
    (3,)
    """

    _parameter_constraints: ClassVar[dict] = {
        **SHARED_CONSTRAINTS,
        "device": [str, torch.device, list, tuple],
        "layer": [Integral, str, list, tuple, None],
        "pooling": [StrOptions(set(POOLINGS))],
        "normalize": ["boolean"],
        "tta": [StrOptions({"hflip"}), None],
        "runtime": [StrOptions({"auto", "torch", "compile", "openvino"})],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "on_error": [StrOptions({"raise", "nan"})],
        "output": [StrOptions({"numpy", "torch"})],
    }

    def __init__(
        self,
        backbone="sktl/tiny",
        *,
        weights="pretrained",
        data_config=None,
        layer=None,
        pooling="auto",
        normalize=False,
        tta=None,
        image_size=None,
        image_shape=None,
        channels=None,
        root=None,
        max_pixels=MAX_PIXELS,
        batch_size="auto",
        device="auto",
        dtype="auto",
        runtime="auto",
        memory=None,
        cache_bytes=512 * 2**20,
        on_error="raise",
        output="numpy",
        persist="embed",
        verbose=0,
    ):
        self.backbone = backbone
        self.weights = weights
        self.data_config = data_config
        self.layer = layer
        self.pooling = pooling
        self.normalize = normalize
        self.tta = tta
        self.image_size = image_size
        self.image_shape = image_shape
        self.channels = channels
        self.root = root
        self.max_pixels = max_pixels
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.runtime = runtime
        self.memory = memory
        self.cache_bytes = cache_bytes
        self.on_error = on_error
        self.output = output
        self.persist = persist
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Load the backbone.

        Parameters
        ----------
        X : sequence of images or texts, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            Paths, bytes, PIL images or arrays, one row per image; texts for a text backbone.
        y : ignored
            Present for the sake of Pipelines.

        Returns
        -------
        self : PretrainedFeatureTransformer
            Fitted.
        """
        tasks = FitTasks(self, 0, X, y)
        with as_before_on_failure(self):
            X = self._check_input(X, reset=True)
            self.backbone_ = self._load_backbone()
            self._choice = self._chosen()
            self._n_features_out = self._view.width
            self._learn_scaling(X)
            tasks.finish()
        return self

    def transform(self, X) -> np.ndarray | torch.Tensor:
        """Compute embeddings.

        Parameters
        ----------
        X : sequence of images or texts, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        embeddings : ndarray or tensor of shape (n, width), float32
            One row per row of X.

        Raises
        ------
        InputError
            If rows cannot be read and ``on_error="raise"``.
        """
        return self._as_output(self._transform_with_stats(X)[0])

    def _as_output(self, embeddings: np.ndarray) -> np.ndarray | torch.Tensor:
        """Make a tensor of embeddings where ``output`` asks for it, and ``set_output`` for nothing else."""
        if self.output == "torch" and _get_output_config("transform", self)["dense"] == "default":
            return torch.from_numpy(embeddings).to(resolve_devices(self.device)[0])
        return embeddings

    def _transform_with_stats(self, X) -> tuple[np.ndarray, EmbeddingStats]:
        """Compute embeddings, and say what it took."""
        check_is_fitted(self)
        X = self._check_input(X, reset=False)
        rows = self._open_rows(X, self.backbone_)
        options = {"batch_size": self.batch_size, "runtime": self.runtime, "on_error": self.on_error}
        return self._embed_with_stats(rows, self._view, **options)

    def transform_batches(self, batches) -> Iterator:
        """Compute the embeddings of more rows than fit into memory.

        Parameters
        ----------
        batches : iterable
            Each batch is anything that ``transform`` takes, ideally of some hundreds to thousands of rows; it may also
            be empty. A batch is asked for only when the one before it is done.

        Returns
        -------
        embeddings : generator
            What ``transform`` returns for each batch, in their order.

        Raises
        ------
        InputError
            If rows cannot be read and ``on_error="raise"``; a note on it says in which batch.

        Notes
        -----
        The in-memory store is bypassed: rows that pass only once would drive out those that will be needed again. A
        folder given as ``memory`` is used.

        Examples
        --------
        >>> import numpy as np
        >>> from sktl import PretrainedFeatureTransformer
        >>> def stream():
        ...     for seed in range(3):
        ...         yield np.random.default_rng(seed).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        >>> transformer = PretrainedFeatureTransformer(image_size=32).fit(next(stream()))
        >>> [embeddings.shape for embeddings in transformer.transform_batches(stream())]
        [(20, 256), (20, 256), (20, 256)]
        """
        check_is_fitted(self)
        return copy(self).set_params(cache_bytes=0)._each_transformed(batches)

    def _each_transformed(self, batches) -> Iterator:
        for number, batch in enumerate(batches):
            try:
                yield self.transform(batch) if _has_rows(batch) else self._transform_nothing(batch)
            except InputError as error:
                error.add_note(f"in batch {number} of those given to transform_batches")
                raise

    def _transform_nothing(self, batch):
        """Return what ``transform`` would for a batch of no rows."""
        nothing = self._as_output(np.empty((0, self._view.width), dtype=np.float32))
        return _wrap_data_with_container("transform", nothing, batch, self)

    def _chosen(self) -> dict[str, Any]:
        layer = list(self.layer) if isinstance(self.layer, (list, tuple)) else self.layer
        return {"layer": layer, "pooling": self.pooling, "normalize": bool(self.normalize), "tta": self.tta}

    @property
    def _view(self) -> FeatureView:
        """The view chosen in ``fit``, even if parameters have changed since; files of older versions do not tell it."""
        return self.backbone_.feature_view(**getattr(self, "_choice", None) or self._chosen())


def _has_rows(X) -> bool:
    return not hasattr(X, "__len__") or len(X) > 0
