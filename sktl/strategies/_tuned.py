"""Strategies that train some or all weights of the backbone."""

from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.utils._param_validation import Interval

from sktl.exceptions import StrategyError
from sktl.strategies.base import Strategy, TrainableNetwork

_SCALE = {"backbone_lr_scale": [Interval(Real, 0, None, closed="neither")]}
_PROBE = {"C": [Interval(Real, 0, None, closed="neither")]}


class _SlowBackbone(Strategy):
    """Train the backbone slower than the head, or at the same pace."""

    def param_groups(self, network: TrainableNetwork, lr: float) -> list[dict[str, Any]]:
        backbone, head = super().param_groups(network, lr)
        return [{**backbone, "lr": lr * self.backbone_lr_scale}, head]


class FineTuning(_SlowBackbone):
    """Train every weight, from the pretrained ones, with a new head.

    Parameters
    ----------
    backbone_lr_scale : float, default=0.3
        The backbone's learning rate, as a fraction of the head's.

    See Also
    --------
    LinearProbeThenFineTuning : Fits the head before it touches the backbone.

    References
    ----------
    Yosinski, J., Clune, J., Bengio, Y., Lipson, H.: How transferable are features in deep neural networks? NeurIPS
    2014.

    Examples
    --------
    >>> from sktl.strategies import FineTuning
    >>> FineTuning(backbone_lr_scale=0.1)
    FineTuning(backbone_lr_scale=0.1)
    """

    _parameter_constraints: ClassVar[dict] = {**_SCALE}

    def __init__(self, backbone_lr_scale: float = 0.3):
        self.backbone_lr_scale = backbone_lr_scale


class LinearProbeThenFineTuning(_SlowBackbone):
    """Fit the head on the frozen backbone first, then train every weight.

    A head that fits already does not send large, random gradients into the backbone, which keeps more of what was
    pretrained.

    Parameters
    ----------
    C : float, default=10.0
        Inverse strength of the L2 penalty of the first phase, as in :class:`~sklearn.linear_model.LogisticRegression`.
    backbone_lr_scale : float, default=0.3
        The backbone's learning rate in the second phase, as a fraction of the head's.

    See Also
    --------
    FeatureExtraction : The first phase alone.
    FineTuning : The second phase alone, from a new head.

    References
    ----------
    Kumar, A., Raghunathan, A., Jones, R., Ma, T., Liang, P.: Fine-Tuning can Distort Pretrained Features and
    Underperform Out-of-Distribution. ICLR 2022.

    Examples
    --------
    >>> from sktl.strategies import LinearProbeThenFineTuning
    >>> LinearProbeThenFineTuning(C=1.0)
    LinearProbeThenFineTuning(C=1.0)
    """

    fits_head_first = True

    _parameter_constraints: ClassVar[dict] = {**_PROBE, **_SCALE}

    def __init__(self, C: float = 10.0, backbone_lr_scale: float = 0.3):
        self.C = C
        self.backbone_lr_scale = backbone_lr_scale


class PartialFineTuning(_SlowBackbone):
    """Fit the head first, then train it and the last layers of the backbone; the layers before them stay frozen.

    Parameters
    ----------
    n_groups : int, default=1
        How many of the backbone's layer groups are trained, counted from the output. A backbone with fewer groups is
        trained whole.
    C : float, default=10.0
        Inverse strength of the L2 penalty of the head's first fit.
    backbone_lr_scale : float, default=0.3
        Learning rate of the trained layers, as a fraction of the head's.

    References
    ----------
    Yosinski, J., Clune, J., Bengio, Y., Lipson, H.: How transferable are features in deep neural networks? NeurIPS
    2014.

    Examples
    --------
    >>> from sktl.strategies import PartialFineTuning
    >>> PartialFineTuning(n_groups=2)
    PartialFineTuning(n_groups=2)
    """

    fits_head_first = True

    _parameter_constraints: ClassVar[dict] = {
        "n_groups": [Interval(Integral, 1, None, closed="left")],
        **_PROBE,
        **_SCALE,
    }

    def __init__(self, n_groups: int = 1, C: float = 10.0, backbone_lr_scale: float = 0.3):
        self.n_groups = n_groups
        self.C = C
        self.backbone_lr_scale = backbone_lr_scale

    def prepare(self, network: TrainableNetwork) -> None:
        if not network.layer_groups:
            raise StrategyError("PartialFineTuning needs a backbone with parameters, and this one has none.")
        trained = {name for group in network.layer_groups[-self.n_groups :] for name in group}
        for name, parameter in network.backbone.named_parameters():
            parameter.requires_grad_(name in trained)


class FromScratch(Strategy):
    """Train every weight from a random start: the control that shows what the pretrained weights are worth.

    The backbone gives its architecture alone. Batch normalisation follows the data, since there are no statistics to
    keep.

    Examples
    --------
    >>> from sktl.strategies import FromScratch
    >>> FromScratch()
    FromScratch()
    """

    starts_pretrained = False
    updates_batch_norm = True
    learning_rate = 2e-3
