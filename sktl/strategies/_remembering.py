"""Strategies that train every weight on the new task and go on serving the old one."""

from numbers import Real
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import Interval
from torch.nn import functional

from sktl.backbones import current_shelf
from sktl.strategies._tuned import PROBE, SCALE, SlowBackbone
from sktl.strategies.base import Batch, Start, TrainableNetwork


class LearningWithoutForgetting(SlowBackbone):
    """Train every weight on the new task, and keep what the old head says about the new images.

    Before training, the scores that the pretrained network with its original classifier gives to the training images
    are recorded. The new head is fitted first, on the frozen backbone ("warm-up"); then backbone and both heads are
    trained, with a loss of two terms: the cross-entropy of the new labels, and the cross-entropy between the recorded
    and the present probabilities of the old head, both softened by a temperature. No image of the old task is needed.

    ``predict_original`` of the estimator then answers with the trained old head.

    Parameters
    ----------
    distillation_weight : float, default=1.0
        Weight of the second term, the paper's lambda: a larger one keeps more of the old task.
    temperature : float, default=2.0
        Scores are divided by it before they become probabilities, so that small ones count too.
    C : float, default=10.0
        Inverse strength of the L2 penalty of the new head's first fit.
    backbone_lr_scale : float, default=0.3
        Learning rate of backbone and old head, as a fraction of the new head's.

    See Also
    --------
    JointTraining : Has images of the old task.

    Notes
    -----
    Needs a backbone that brings a classifier: a published network, a file of weights with a classifier in it, or a
    fitted :class:`~sktl.FineTuneClassifier`. With ``augment=``, what was recorded for an image holds for all its
    variants.

    References
    ----------
    Li, Z., Hoiem, D.: Learning without Forgetting. ECCV 2016.

    Examples
    --------
    >>> from sktl.strategies import LearningWithoutForgetting
    >>> LearningWithoutForgetting(distillation_weight=2.0)
    LearningWithoutForgetting(distillation_weight=2.0)
    """

    fits_head_first = True
    needs_original_head = True
    splits_penalty = True

    _parameter_constraints: ClassVar[dict] = {
        "distillation_weight": [Interval(Real, 0, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        **PROBE,
        **SCALE,
    }

    def __init__(
        self,
        distillation_weight: float = 1.0,
        temperature: float = 2.0,
        C: float = 10.0,
        backbone_lr_scale: float = 0.3,
    ):
        self.distillation_weight = distillation_weight
        self.temperature = temperature
        self.C = C
        self.backbone_lr_scale = backbone_lr_scale

    def on_train_begin(self, network: TrainableNetwork, start: Start) -> None:
        with torch.no_grad():
            self._recorded = network.original_head(torch.from_numpy(start.embeddings))

    def penalty(self, network: TrainableNetwork, batch: Batch, output: torch.Tensor) -> torch.Tensor:
        recorded = self._recorded[batch.rows].to(output.device)
        losses = distillation_loss(network.original_head(batch.embeddings), recorded, self.temperature)
        return self.distillation_weight * (losses * batch.weight).mean()

    def finish(self, network: TrainableNetwork) -> None:
        del self._recorded


def distillation_loss(scores: torch.Tensor, recorded: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute the cross-entropy of each row between softened probabilities.

    Parameters
    ----------
    scores, recorded : tensor of shape (n, n_classes)
        Present and recorded scores.
    temperature : float
        Scores are divided by it.

    Returns
    -------
    losses : tensor of shape (n,)
        Smallest where the probabilities agree.
    """
    wanted = functional.softmax(recorded / temperature, dim=1)
    return -(wanted * functional.log_softmax(scores / temperature, dim=1)).sum(dim=1)


class JointTraining(SlowBackbone):
    """Train every weight and both heads on the new task and, in the same steps, on images of the old one.

    Each step takes as many old rows as new ones, drawn at random, so that neither task drowns the other. For those who
    still have its images, this is the upper bound for what can be kept of the old task.

    Parameters
    ----------
    X : sequence of images or array-like
        The old task's images, in the same form as those given to ``fit``.
    y : array-like of shape (n,)
        Their labels, for the old task is one of classes: those of the backbone's original classifier, where it brings
        one; else an old head is fitted to them first.
    original_weight : float, default=1.0
        Weight of the old task's loss.
    C : float, default=10.0
        Inverse strength of the L2 penalty of the heads' first fit.
    backbone_lr_scale : float, default=0.3
        Learning rate of backbone and old head, as a fraction of the new head's.

    See Also
    --------
    LearningWithoutForgetting : Does without images of the old task.

    Notes
    -----
    The old data is a parameter, so pickles of the estimator hold it; paths take less room there than pixels. Columns of
    pandas and polars come back as arrays; whole frames do so only from files without pickle. ``augment=`` and
    ``mixup=`` of the estimator vary only the new images.

    References
    ----------
    Caruana, R.: Multitask Learning. Machine Learning 28, 1997.

    Li, Z., Hoiem, D.: Learning without Forgetting. ECCV 2016. (The comparison.)

    Examples
    --------
    >>> from sktl.strategies import JointTraining
    >>> JointTraining(["cat.jpg", "dog.jpg"], ["cat", "dog"])
    JointTraining(X=['cat.jpg', 'dog.jpg'], y=['cat', 'dog'])
    """

    fits_head_first = True
    needs_original_head = True
    brings_original_data = True
    splits_penalty = True

    _parameter_constraints: ClassVar[dict] = {
        "y": ["array-like"],
        "original_weight": [Interval(Real, 0, None, closed="left")],
        **PROBE,
        **SCALE,
    }

    def __init__(self, X, y, original_weight: float = 1.0, C: float = 10.0, backbone_lr_scale: float = 0.3):
        self.X = X
        self.y = y
        self.original_weight = original_weight
        self.C = C
        self.backbone_lr_scale = backbone_lr_scale

    def __sklearn_clone__(self) -> "JointTraining":
        """Share the data instead of copying it for each candidate and fold."""
        return type(self)(**self.get_params(deep=False))

    def __deepcopy__(self, memo: dict[int, Any]) -> "JointTraining":
        copied = self.__sklearn_clone__()
        vars(copied).update(vars(self))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Hold columns of frames as arrays, and whole frames in files without pickle, which have no form of them."""
        state = super().__getstate__()
        return {**state, "X": _as_array(state["X"]), "y": _as_array(state["y"])}

    def on_train_begin(self, network: TrainableNetwork, start: Start) -> None:
        self._draw_original = start.draw_original

    def draw(self, n: int) -> tuple[torch.Tensor, ...]:
        return self._draw_original(n)

    def penalty(self, network: TrainableNetwork, batch: Batch, output: torch.Tensor) -> torch.Tensor:
        images, targets = batch.drawn
        embeddings = network.backbone(network.normalise(images.to(output.device)))
        loss = functional.cross_entropy(network.original_head(embeddings), targets.to(output.device))
        return self.original_weight * loss

    def finish(self, network: TrainableNetwork) -> None:
        del self._draw_original


def _as_array(values: Any) -> Any:
    n_axes = len(getattr(values, "shape", ())) if hasattr(values, "to_numpy") else 0
    for_a_file = current_shelf() is not None
    return values.to_numpy() if n_axes == 1 or (n_axes == 2 and for_a_file) else values
