"""A pretrained network with a new head as a scikit-learn classifier."""

from numbers import Real
from typing import ClassVar

import torch
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import _check_partial_fit_first_call

from sktl._finetuning import TRAINING_CONSTRAINTS, ClassifierHeads
from sktl._undo import as_before_on_failure
from sktl.inputs import MAX_PIXELS


def _is_correct(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if target.ndim > 1:
        return ((logits > 0) == (target > 0.5)).all(dim=1).float()
    return (logits.argmax(dim=1) == target).float()


class FineTuneClassifier(ClassifierMixin, ClassifierHeads):
    """Classify images or texts with a pretrained network, reused in the way that ``strategy`` says.

    Parameters
    ----------
    backbone : str, nn.Module or fitted estimator, default="sktl/tiny"
        The pretrained network: the one that ships with sktl, which is small and has never seen a photograph; a timm
        model name (see :func:`sktl.list_backbones`); ``"hf-hub:org/name"``; ``"local-dir:/path"``; a network of your
        own, which is copied; or a fitted FineTuneClassifier or FineTuneRegressor, whose fine-tuned network is used; the
        head of a classifier then becomes the original head. For texts, a Hugging Face encoder as ``"text:org/name"`` or
        ``"text:/path"`` (needs ``sktl[text]``).
    strategy : str or Strategy, default="wise_ft"
        How the network is reused: ``"feature_extraction"``, ``"lp_ft"``, ``"partial"``, ``"gradual_unfreezing"``,
        ``"fine_tuning"``, ``"lora"``, ``"bitfit"``, ``"l2_sp"``, ``"wise_ft"``, ``"lwf"``, ``"from_scratch"``, or an
        object from :mod:`sktl.strategies`. Its parameters can be set and searched as ``strategy__<parameter>``.
    weights : "pretrained", path, state dict or None, default="pretrained"
        Where the weights of a named backbone come from: those published for it, a ``.safetensors`` or ``.pth`` file, a
        state dict, or a random start (None).
    data_config : dict, default=None
        Overrides of the backbone's data config (``input_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct``,
        ``crop_mode``).
    image_size : int or (int, int), default=None
        Height and width in pixels to which images are brought; None takes the backbone's own.
    image_shape : (int, int) or (int, int, int), default=None
        Shape of the images in the rows of a 2-D X, which are flattened: (height, width), (height, width, channels) or,
        with ``channels="first"``, (channels, height, width). If None, such a row is read as a strip of grey pixels.
    channels : {"first", "last"}, default=None
        Where the channels of image arrays are; needed only if their shape does not tell.
    root : path-like, default=None
        Folder that relative paths in X start from, and that no path may leave.
    max_pixels : int, default=89_478_485
        Larger images are refused before any pixel is decoded. The default is Pillow's own.
    max_epochs : int, default=10
        Number of passes over the training rows, for strategies that train the backbone.
    learning_rate : float or "auto", default=None
        Highest learning rate of the head while the backbone is trained, and its constant learning rate in
        ``partial_fit``. None takes the strategy's own, or three tenths of it for texts; "auto" finds one in a test of
        up to 60 training steps before the first epoch, on a copy of the network. The strategy derives the learning rate
        of the backbone from that of the head.
    batch_size : int, default=32
        Rows per training step while the backbone is trained, and in ``partial_fit``.
    weight_decay : float, default=0.01
        Decoupled weight decay (AdamW) of matrices and convolution kernels; biases and normalisation layers have none.
    head : {"linear", "mlp"}, nn.Module or classifier, default="linear"
        What turns embeddings into classes: a linear layer, which is solved for where a strategy fits the head first
        (for labels in columns, as one logistic regression per label); a small network with one hidden layer; a module
        of your own, which maps embeddings of shape (n, width) to (n, n_classes), is copied, and trained as a whole; or,
        with ``strategy="feature_extraction"``, any classifier of scikit-learn.
        If a small network or a module is fitted on its own, before the backbone is trained or instead of that, its
        training follows a fixed recipe (AdamW, 32 rows per step, a learning rate that falls from 0.001 to 0), whatever
        ``learning_rate``, ``batch_size`` and ``max_epochs`` say.
    dropout : float, default=0.0
        Share of the embedding's values that is hidden from the head in each training step. It has no effect on a head
        that is solved for.
    drop_path : float, default=0.0
        Stochastic depth: the probability that a training step skips the last block of the backbone for an image.
        Earlier blocks are skipped less often and frozen ones never, so it has no effect where no block is trained. For
        timm architectures that support it, and strategies that train the backbone.
    class_weight : dict, list of dict, "balanced" or None, default=None
        Weights of the classes, as scikit-learn's classifiers take them. If y has a column for each label, a list of one
        dict per label with keys 0 and 1; "balanced" then balances each label by itself. The weights also apply to the
        rows that early stopping holds out. To ``X_val`` they apply only if y has columns; else ``sample_weight_val``
        alone says how much its rows count.
    early_stopping : "auto" or bool, default="auto"
        Whether to hold out rows, stop when their loss no longer improves, and go back to the best weights. "auto" does
        so with 10,000 rows or more. If ``X_val`` is given, its rows are used for that unless ``early_stopping=False``,
        and none are held out. Strategies that keep the backbone have no epochs to stop: they use all rows.
    validation_fraction : float, default=0.1
        Share of the rows that early stopping holds out: stratified by class, or at random if y has a column for each
        label.
    n_iter_no_change : int, default=5
        Number of epochs without improvement after which early stopping ends training.
    tol : float, default=1e-4
        A decrease of the validation loss counts as an improvement only if it is larger than this.
    warm_start : bool, default=False
        If True, ``fit`` continues from the network and the head of the last call, for ``max_epochs`` more epochs,
        instead of starting from ``backbone``; y must then hold the same classes. After a fit with a classifier of
        scikit-learn as ``head``, which trains no network, it starts anew. Pickles also keep the optimizer's state
        between calls of ``partial_fit`` then.
    random_state : int, RandomState instance or None, default=None
        Controls which rows are held out, the order of the rows, and everything else that is random in training.
    device : str or torch.device, default="auto"
        Where the network runs; "auto" takes CUDA, then MPS, then the CPU.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Precision of embeddings and predictions; for that of training see ``amp``. "auto" takes bfloat16 where the
        hardware has it.
    memory : path-like, URL, joblib.Memory or store, default=None
        Where embeddings of the frozen backbone are kept for other processes and sessions: a folder, or a URL
        (``"s3://bucket/prefix"``) that many machines share. ``sktl.embedding.DiskStore(folder, max_bytes=...)`` is a
        folder of bounded size.
    cache_bytes : int, default=512 MiB
        Upper bound on the size of the embeddings kept in this process. All estimators share this store; each one
        shrinks it to its own bound when it embeds, least recently used embeddings first. 0 does without the store.
    augment : {"light", "randaug"}, str, callable or None, default=None
        Random variants of the training images. "light" crops and mirrors, "randaug" applies RandAugment on top; any
        other string is one of timm's (such as ``"rand-m9-mstd0.5-inc1"``, ``"3a"``, ``"augmix-m3-w3"``). A callable
        takes pixels (uint8, of shape (height, width, 3) and the network's input size) and a
        :class:`numpy.random.Generator`, and returns pixels of that shape.
    augment_copies : int, default=None
        Number of variants made of each image, which the epochs use in turn; None makes new ones in each epoch. With a
        number, frozen layers run only once per variant. Strategies that keep the backbone fit the head on the images
        and this number of variants of each, 4 if it is None.
    mixup, cutmix : float, default=0.0
        If above 0, each image is mixed with another one, blended (mixup) or with a patch of it (cutmix), in proportions
        drawn from a beta distribution with this parameter. Like all parameters from here to ``checkpoint``, for
        strategies that train the backbone.
    label_smoothing : float, default=0.0
        Share of each label that is spread over all classes in training; for labels in columns, over yes and no. The
        validation loss is that of the labels as they are.
    ema_decay : float, default=None
        If given, the result is an exponential moving average of the weights, of which each step keeps this share:
        usually 0.99 to 0.9999.
    amp : bool or "auto", default="auto"
        Whether training computes in bfloat16, with weights in float32. "auto" does so where the hardware multiplies
        bfloat16 natively and the network gains by it, unless ``dtype="float32"``; ``history_`` records the choice
        (``"precision"``). ``partial_fit`` computes in float32.
    gradient_accumulation : int, default=1
        Number of parts into which the rows of a training step are split; their gradients are added up. That saves
        memory and gives the same step, except for rounding, the random numbers of dropout, and batch normalisation that
        follows the data, which sees the parts one by one. If memory runs out, the number is doubled automatically.
    checkpoint : path-like, default=None
        A folder in which the state of training is kept after each epoch. A fit that was interrupted continues from
        there when it is called again with the same data and parameters, and ends with the same weights as an
        uninterrupted one. Needs an integer as ``random_state``.
    callbacks : list of skorch callbacks, default=None
        Run in the training loop. In ``fit``, an ``LRScheduler`` takes the place of the usual schedule (the learning
        rate rises in the first tenth of the steps, then falls along half a cosine). In ``on_epoch_end``, losses and
        score of the epoch are in ``net.history``. In ``on_train_end``, ``net.module_`` has the weights that training
        gives, averaged or best ones included; the strategy may still change them, as ``"wise_ft"`` does.
    net_params : dict, default=None
        Parameters for the skorch net, such as ``{"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9}``. What the
        estimator has a parameter for, such as the learning rate, is refused there.
    persist : {"embed", "embed_all", "reference"}, default="embed"
        What a pickle or a file of the fitted estimator holds of the network. "embed": all weights that ``predict``
        needs. "embed_all": also the classifier that the network was published with, for ``predict_original``.
        "reference": the name and the SHA-256 of the public weights that it started from, and what training changed of
        them. What is not stored has to be found or downloaded where the estimator is loaded and asked for it. An
        original classifier that was trained along, or whose network has no name, is always stored.
    verbose : int, default=0
        If 1 or more, training prints a line per epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels seen in ``fit``, or the numbers of the columns of y.
    multilabel_ : bool
        Whether y had a column for each label.
    original_classes_ : ndarray of shape (n_original_classes,)
        Labels of the task that the backbone was trained on, for ``predict_original``: those of a fitted classifier,
        ImageNet's names if there are as many of them, else column numbers. Only there if the backbone brought a
        classifier.
    head_ : estimator
        The fitted head, if it is a classifier of scikit-learn; it works on class indices, not labels.
    strategy_ : Strategy
        The strategy object that was used.
    backbone_ : Backbone
        The backbone as it is after ``fit``.
    net_ : skorch.NeuralNet
        The net; ``net_.module_`` is the network of backbone and head.
    history_ : list of dict
        One entry per phase or epoch: losses, validation accuracy, the head's learning rate at its beginning, seconds.
    learning_rate_ : float
        The learning rate that ``learning_rate="auto"`` found.
    lr_curve_ : dict of str to list of float
        The test that found it: "learning_rate", "loss" and "smoothed_loss" of each step.
    trainable_parameters_ : int
        How many numbers were trained, those of layers that came into training late included.
    fit_seconds_ : float
        Wall-clock time of ``fit``.
    images_per_second_ : float
        Training rows, times the passes over them (the head's phase and each epoch count as one), per second of ``fit``.
        Epochs that were found in a checkpoint do not count.
    peak_memory_ : float
        Bytes that ``fit`` took at its peak beyond what was taken before: on a CUDA device those that torch allocated
        there, else resident memory of the process; NaN where the system does not tell.
    training_data_ : dict
        What ``fit`` was given: ``n_rows``, the number of distinct rows with a weight, and ``sha256`` of their contents,
        targets and weights, whatever their order. Not set by ``partial_fit``.
    validation_indices_ : ndarray of int or None
        Rows of X that early stopping held out.
    input_kind_ : {"images", "texts", "numbers"}
        What X held in ``fit``.
    n_features_in_ : int
        Number of columns of X, if it had columns.
    feature_names_in_ : ndarray of str
        Names of the columns of X, if it was a frame.

    See Also
    --------
    FineTuneRegressor : The same for numbers instead of labels.
    PretrainedFeatureTransformer : Embeddings for any scikit-learn model.
    sktl.strategies : The ways of transfer and their parameters.

    Notes
    -----
    Rows of the same content and label are merged, and their weights added. The order of the rows in X has no influence.

    Where several labels may hold for a row, y is an indicator matrix of shape (n, n_labels), dense or sparse, with 1
    where the row has the label. Each label has a sigmoid of its own then, and the binary cross-entropy as loss;
    ``predict`` gives such a matrix, a NumPy array in any case, and ``score`` is the share of the rows that are right in
    all labels.

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
        **TRAINING_CONSTRAINTS,
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
    }
    _valid_score = ("valid_acc", _is_correct)

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
        class_weight=None,
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
        label_smoothing=0.0,
        ema_decay=None,
        amp="auto",
        gradient_accumulation=1,
        checkpoint=None,
        callbacks=None,
        net_params=None,
        persist="embed",
        verbose=0,
    ):
        super().__init__(
            backbone,
            strategy,
            weights=weights,
            data_config=data_config,
            image_size=image_size,
            image_shape=image_shape,
            channels=channels,
            root=root,
            max_pixels=max_pixels,
            max_epochs=max_epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            weight_decay=weight_decay,
            head=head,
            dropout=dropout,
            drop_path=drop_path,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            warm_start=warm_start,
            random_state=random_state,
            device=device,
            dtype=dtype,
            memory=memory,
            cache_bytes=cache_bytes,
            augment=augment,
            augment_copies=augment_copies,
            mixup=mixup,
            cutmix=cutmix,
            ema_decay=ema_decay,
            amp=amp,
            gradient_accumulation=gradient_accumulation,
            checkpoint=checkpoint,
            callbacks=callbacks,
            net_params=net_params,
            persist=persist,
            verbose=verbose,
        )
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Train on each of the given rows once, from where the last call of ``partial_fit`` or ``fit`` ended.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            Rows in the form of the first call; the scale of numbers is learnt in that call.
        y : array-like of shape (n,) or (n, n_labels)
            Labels; not all classes need be among them.
        classes : array-like of shape (n_classes,), default=None
            All labels that will ever come, at least 2; ``range(n_labels)`` for labels in columns. Required in the first
            call, unless the estimator is fitted.
        sample_weight : array-like of shape (n,), default=None
            How much each row counts beside the others of the call; rows of weight 0 are left out. The weights of
            ``class_weight`` count as they are, since a call may bring one class alone.

        Returns
        -------
        self : FineTuneClassifier
            Trained by one pass.

        Raises
        ------
        StrategyError
            If the strategy cannot be trained in parts, or the head is a model of scikit-learn.
        ValueError
            If a parameter that says what the network is has changed since an earlier call.

        Notes
        -----
        The learning rate is constant, and the optimizer's state is kept between calls. A new head is never solved for,
        but trained by steps too; if the strategy keeps the backbone, they are taken on embeddings from the store.

        A call that fails leaves the estimator as it was, but for the optimizer's state: the next one begins without.
        """
        with as_before_on_failure(self):
            _check_partial_fit_first_call(self, classes)
            self._partial_fit(X, y, sample_weight)
        return self

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
