"""Strategies that train some or all weights of the backbone."""

import difflib
from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.utils._param_validation import Interval
from torch import nn

from sktl.exceptions import StrategyError
from sktl.strategies.base import Strategy, TrainableNetwork, layerwise_groups

SCALE = {"backbone_lr_scale": [Interval(Real, 0, None, closed="neither")]}
PROBE = {"C": [Interval(Real, 0, None, closed="neither")]}
DECAY = {"layer_decay": [Interval(Real, 0, 1, closed="right"), None]}


class SlowBackbone(Strategy):
    """Train the backbone more slowly than the head or at the same rate, and lower layers more slowly on request."""

    layer_decay: float | None = None
    backbone_lr_scale: float

    def param_groups(self, network: TrainableNetwork, lr: float) -> list[dict[str, Any]]:
        return layerwise_groups(network, lr, self.backbone_lr_scale, self.layer_decay)


class FineTuning(SlowBackbone):
    """Train every weight, from the pretrained ones, with a new head.

    Parameters
    ----------
    backbone_lr_scale : float, default=0.3
        The backbone's learning rate, as a fraction of the head's.
    layer_decay : float, default=None
        Factor of the learning rate from each layer group of the backbone to the next one below: 0.7, say, lets the
        general first layers move less than the specific last ones. None gives all of them the same rate.

    See Also
    --------
    LinearProbeThenFineTuning : Fits the head before it touches the backbone.
    GradualUnfreezing : Lets the layers wait, too.

    References
    ----------
    Yosinski, J., Clune, J., Bengio, Y., Lipson, H.: How transferable are features in deep neural networks? NeurIPS
    2014.

    Clark, K., Luong, M.-T., Le, Q. V., Manning, C. D.: ELECTRA: Pre-training Text Encoders as Discriminators Rather
    Than Generators. ICLR 2020. (Layer-wise decay of the learning rate.)

    Examples
    --------
    >>> from sktl.strategies import FineTuning
    >>> FineTuning(backbone_lr_scale=0.1)
    FineTuning(backbone_lr_scale=0.1)
    """

    _parameter_constraints: ClassVar[dict] = {**SCALE, **DECAY}

    def __init__(self, backbone_lr_scale: float = 0.3, layer_decay: float | None = None):
        self.backbone_lr_scale = backbone_lr_scale
        self.layer_decay = layer_decay


class LinearProbeThenFineTuning(SlowBackbone):
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

    _parameter_constraints: ClassVar[dict] = {**PROBE, **SCALE}

    def __init__(self, C: float = 10.0, backbone_lr_scale: float = 0.3):
        self.C = C
        self.backbone_lr_scale = backbone_lr_scale


class PartialFineTuning(SlowBackbone):
    """Fit the head first, then train it and the last layers of the backbone; the layers before them stay frozen.

    Parameters
    ----------
    n_groups : int, default=1
        How many of the backbone's layer groups are trained, counted from the output: stages or blocks, which
        ``backbone_.layer_groups`` of a fitted estimator names. A backbone with fewer groups is trained whole.
    C : float, default=10.0
        Inverse strength of the L2 penalty of the head's first fit.
    backbone_lr_scale : float, default=0.3
        Learning rate of the trained layers, as a fraction of the head's.
    from_stage : str, default=None
        Name of the first module that is trained, such as ``"layer4"`` or ``"blocks.10"``; everything between it and the
        output is trained too, and ``n_groups`` is ignored.

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
        **PROBE,
        **SCALE,
        "from_stage": [str, None],
    }

    def __init__(
        self,
        n_groups: int = 1,
        C: float = 10.0,
        backbone_lr_scale: float = 0.3,
        from_stage: str | None = None,
    ):
        self.n_groups = n_groups
        self.C = C
        self.backbone_lr_scale = backbone_lr_scale
        self.from_stage = from_stage

    def prepare(self, network: TrainableNetwork) -> None:
        if not network.layer_groups:
            raise StrategyError("PartialFineTuning needs a backbone with parameters, and this one has none.")
        trained = set(self._trained_names(network))
        for name, parameter in network.backbone.named_parameters():
            parameter.requires_grad_(name in trained)

    def _trained_names(self, network: TrainableNetwork) -> list[str]:
        if self.from_stage is None:
            return [name for group in network.layer_groups[-self.n_groups :] for name in group]
        ordered = [name for group in network.layer_groups for name in group]
        of_stage = [place for place, name in enumerate(ordered) if name.startswith(f"{self.from_stage}.")]
        if not of_stage:
            stages = _modules_with_parameters(network.backbone)
            guesses = difflib.get_close_matches(self.from_stage, stages, n=3, cutoff=0.5)
            top = [name for name in stages if "." not in name]
            hint = f"Did you mean {' or '.join(map(repr, guesses))}?" if guesses else f"It has {top}."
            raise StrategyError(
                f"The backbone has no module {self.from_stage!r} with parameters, which from_stage= names. {hint}"
            )
        return ordered[of_stage[0] :]


def _modules_with_parameters(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if name and next(part.parameters(), None) is not None]


class GradualUnfreezing(SlowBackbone):
    """Fit the head, then let the backbone's layer groups into training one after the other, from the top down.

    Group ``k`` from the top is frozen until epoch ``k * epochs_per_group`` (counted from 0), so that the general first
    layers move last, and least: their learning rates are smaller too ("discriminative fine-tuning"). The paper trains
    the head alone for some epochs first; here it is fitted to convergence on the embeddings, which costs less. Groups
    whose turn does not come within ``max_epochs`` stay frozen.

    Parameters
    ----------
    epochs_per_group : int, default=1
        Epochs from one group to the next below.
    layer_decay : float, default=1 / 2.6
        Factor of the learning rate from each layer group to the next one below; the default is the paper's. It does not
        apply to the group next to the head.
    C : float, default=10.0
        Inverse strength of the L2 penalty of the head's first fit.
    backbone_lr_scale : float, default=0.3
        Learning rate of the last layer group, as a fraction of the head's.

    See Also
    --------
    PartialFineTuning : Stops after a number of groups.

    References
    ----------
    Howard, J., Ruder, S.: Universal Language Model Fine-tuning for Text Classification. ACL 2018.

    Examples
    --------
    >>> from sktl.strategies import GradualUnfreezing
    >>> GradualUnfreezing(epochs_per_group=2)
    GradualUnfreezing(epochs_per_group=2)
    """

    fits_head_first = True

    _parameter_constraints: ClassVar[dict] = {
        "epochs_per_group": [Interval(Integral, 1, None, closed="left")],
        **DECAY,
        **PROBE,
        **SCALE,
    }

    def __init__(
        self,
        epochs_per_group: int = 1,
        layer_decay: float | None = 1 / 2.6,
        C: float = 10.0,
        backbone_lr_scale: float = 0.3,
    ):
        self.epochs_per_group = epochs_per_group
        self.layer_decay = layer_decay
        self.C = C
        self.backbone_lr_scale = backbone_lr_scale

    def param_groups(self, network: TrainableNetwork, lr: float) -> list[dict[str, Any]]:
        # The last group has no decay here, so that backbone_lr_scale is its rate.
        scale = self.backbone_lr_scale / (1.0 if self.layer_decay is None else self.layer_decay)
        return layerwise_groups(network, lr, scale, self.layer_decay)

    def prepare(self, network: TrainableNetwork) -> None:
        self.on_epoch_begin(network, 0)

    def on_epoch_begin(self, network: TrainableNetwork, epoch: int) -> None:
        groups = network.layer_groups[-(1 + epoch // self.epochs_per_group) :]
        trained = {name for group in groups for name in group}
        for name, parameter in network.backbone.named_parameters():
            parameter.requires_grad_(name in trained)


class FromScratch(Strategy):
    """Train every weight from a random start: the control that shows what the pretrained weights are worth.

    Only the architecture of the backbone is used. Batch normalisation follows the data, since there are no statistics
    to keep.

    Examples
    --------
    >>> from sktl.strategies import FromScratch
    >>> FromScratch()
    FromScratch()
    """

    starts_pretrained = False
    updates_batch_norm = True
    learning_rate = 2e-3
