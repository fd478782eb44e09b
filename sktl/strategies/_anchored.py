"""Strategies that train every weight and hold it near the pretrained one."""

from collections.abc import Iterator
from numbers import Real
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from sktl.strategies._tuned import PROBE, SCALE, SlowBackbone
from sktl.strategies.base import Batch, Start, TrainableNetwork

_HALF_WAY = 20  # rows per class, by measurements on images that no fit had seen; see the user guide


class L2SP(SlowBackbone):
    """Train every weight, with a penalty on its distance from the pretrained one in place of weight decay.

    Weight decay pulls towards zero, which is not where a pretrained network should go; L2-SP ("starting point") adds
    ``alpha / 2 * ||w - w0||**2`` over the backbone's parameters and ``beta / 2 * ||w||**2`` over the new head's to the
    loss. The estimator's ``weight_decay`` is not used.

    The pretrained weights are those of the estimator's ``backbone``, also if training continues from an earlier call
    (``warm_start``, ``partial_fit``). Pickles and files hold the trained weights only: to continue training from one,
    the pretrained weights must be available as they were in the first call.

    Parameters
    ----------
    alpha : float, default=0.1
        Strength of the pull towards the pretrained weights.
    beta : float, default=0.01
        Strength of the pull of the head's weights towards zero.
    C : float, default=10.0
        Inverse strength of the L2 penalty of the head's first fit.
    backbone_lr_scale : float, default=0.3
        The backbone's learning rate, as a fraction of the head's.

    See Also
    --------
    WiseFT : Goes part of the way back after training.

    References
    ----------
    Li, X., Grandvalet, Y., Davoine, F.: Explicit Inductive Bias for Transfer Learning with Convolutional Networks.
    ICML 2018.

    Examples
    --------
    >>> from sktl.strategies import L2SP
    >>> L2SP(alpha=1.0)
    L2SP(alpha=1.0)
    """

    fits_head_first = True
    needs_pretrained_weights = True
    splits_penalty = True

    _parameter_constraints: ClassVar[dict] = {
        "alpha": [Interval(Real, 0, None, closed="left")],
        "beta": [Interval(Real, 0, None, closed="left")],
        **PROBE,
        **SCALE,
    }

    def __init__(self, alpha: float = 0.1, beta: float = 0.01, C: float = 10.0, backbone_lr_scale: float = 0.3):
        self.alpha = alpha
        self.beta = beta
        self.C = C
        self.backbone_lr_scale = backbone_lr_scale

    def param_groups(self, network: TrainableNetwork, lr: float) -> list[dict[str, Any]]:
        return [{**group, "weight_decay": 0.0} for group in super().param_groups(network, lr)]

    def on_train_begin(self, network: TrainableNetwork, start: Start) -> None:
        self._pretrained = start.pretrained_weights

    def penalty(self, network: TrainableNetwork, batch: Batch, output: torch.Tensor) -> torch.Tensor:
        device = output.device
        self._pretrained = {name: value.to(device) for name, value in self._pretrained.items()}  # in the first step
        distance = sum(
            (parameter - self._pretrained[name]).square().sum()
            for name, parameter in network.backbone.named_parameters()
        )
        size = sum(parameter.square().sum() for parameter in network.head.parameters())
        return self.alpha / 2 * distance + self.beta / 2 * size

    def finish(self, network: TrainableNetwork) -> None:
        del self._pretrained


class WiseFT(SlowBackbone):
    """Fit the head, fine-tune every weight, then take the weights between start and end.

    The weights of the result are ``(1 - alpha) * start + alpha * end``, where the start is the pretrained backbone with
    its fitted head (the linear probe), and the end what fine-tuning made of it. In the paper's measurements this keeps
    most of what fine-tuning gains on images like the training images, and improves on it for images unlike them.

    With few rows, much of what fine-tuning changes is noise; with many, little is. So ``alpha="auto"`` goes half of the
    way with up to 20 training rows per class, and ``r / (r + 20)`` of it with r rows per class. One half is the
    paper's; the rule is sktl's, from measurements on photographs. Equal rows count once, and rows that are held out do
    not count. In regression, and where a row may have several labels, r is the number of all rows, since each of them
    says something about every output.

    Validation losses and early stopping refer to the network before it goes back.

    Parameters
    ----------
    alpha : float or "auto", default="auto"
        How far to go from the start (0: feature extraction) to the end (1: ``"lp_ft"``). "auto" is 0.5 up to 20 rows
        per class, 0.75 at 60 and 0.91 at 200; and 1 if training continues from an earlier fit (``warm_start``) or call
        by call (``partial_fit``), so that nothing learnt before is taken back. ``partial_fit`` refuses numbers other
        than 1.
    C : float, default=10.0
        Inverse strength of the L2 penalty of the head's first fit.
    backbone_lr_scale : float, default=0.3
        The backbone's learning rate, as a fraction of the head's.

    Attributes
    ----------
    alpha_ : float
        The value used.

    See Also
    --------
    L2SP : Holds the weights near the start while they are trained.

    References
    ----------
    Wortsman, M., Ilharco, G., Kim, J. W., et al.: Robust Fine-Tuning of Zero-Shot Models. CVPR 2022.

    Examples
    --------
    >>> from sktl.strategies import WiseFT
    >>> WiseFT(alpha=0.8)
    WiseFT(alpha=0.8)
    """

    fits_head_first = True
    needs_initial_weights = True

    _parameter_constraints: ClassVar[dict] = {
        "alpha": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
        **PROBE,
        **SCALE,
    }

    def __init__(self, alpha: float | str = "auto", C: float = 10.0, backbone_lr_scale: float = 0.3):
        self.alpha = alpha
        self.C = C
        self.backbone_lr_scale = backbone_lr_scale

    @property
    def goes_back(self) -> bool:
        """Whether part of what was learnt is taken back in any case; "auto" does not do so if training continues."""
        return self.alpha not in ("auto", 1)

    def on_train_begin(self, network: TrainableNetwork, start: Start) -> None:
        self.alpha_ = _share_of_the_way(start.rows_per_class) if self.alpha == "auto" else float(self.alpha)
        self._initial = start.initial_weights
        self._initial_head = {name: value.clone() for name, value in _numbers_of(network.head)}

    def finish(self, network: TrainableNetwork) -> None:
        with torch.no_grad():
            for name, value in network.backbone.named_parameters():
                value.copy_(torch.lerp(self._initial[name], value, self.alpha_))
            for name, value in _numbers_of(network.head):
                value.copy_(torch.lerp(self._initial_head[name], value, self.alpha_))
        del self._initial, self._initial_head


def _numbers_of(head: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters and running statistics by name."""
    return ((name, value) for name, value in head.state_dict().items() if value.is_floating_point())


def _share_of_the_way(rows_per_class: float | None) -> float:
    return 1.0 if rows_per_class is None else max(0.5, rows_per_class / (rows_per_class + _HALF_WAY))
