"""From what a user writes as ``strategy=`` to a strategy object."""

import difflib

from sklearn.base import clone

from sktl.exceptions import StrategyError
from sktl.strategies._adapters import BitFit, LoRA
from sktl.strategies._anchored import L2SP, WiseFT
from sktl.strategies._frozen import FeatureExtraction
from sktl.strategies._remembering import LearningWithoutForgetting
from sktl.strategies._tuned import (
    FineTuning,
    FromScratch,
    GradualUnfreezing,
    LinearProbeThenFineTuning,
    PartialFineTuning,
)
from sktl.strategies.base import Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    "feature_extraction": FeatureExtraction,
    "lp_ft": LinearProbeThenFineTuning,
    "partial": PartialFineTuning,
    "gradual_unfreezing": GradualUnfreezing,
    "fine_tuning": FineTuning,
    "lora": LoRA,
    "bitfit": BitFit,
    "l2_sp": L2SP,
    "wise_ft": WiseFT,
    "lwf": LearningWithoutForgetting,
    "from_scratch": FromScratch,
}


def resolve_strategy(strategy: str | Strategy) -> Strategy:
    """Return a strategy object of one's own, with valid parameters.

    Parameters
    ----------
    strategy : str or Strategy
        A name, or an object, which is copied.

    Returns
    -------
    strategy : Strategy
        A copy.

    Raises
    ------
    StrategyError
        If no strategy has that name, or it trains nothing.
    InvalidParameterError
        If one of its parameters is out of range.

    Examples
    --------
    >>> from sktl.strategies import resolve_strategy
    >>> resolve_strategy("partial")
    PartialFineTuning()
    """
    if isinstance(strategy, str):
        strategy = _named(strategy)()
    elif not isinstance(strategy, Strategy):
        raise StrategyError(
            f"The 'strategy' parameter must be one of {sorted(STRATEGIES)} or an object from sktl.strategies, got "
            f"{strategy!r} instead."
        )
    own = clone(strategy)
    if hasattr(own, "_parameter_constraints"):
        own._validate_params()
    if not own.trains_backbone and not own.fits_head_first:
        raise StrategyError(
            f"The strategy {type(own).__name__} trains nothing: set trains_backbone or fits_head_first to True."
        )
    return own


def _named(name: str) -> type[Strategy]:
    if name in ("joint", "joint_training"):
        raise StrategyError(
            f"strategy={name!r} needs the data of the old task, and so an object in Python: "
            "strategy=JointTraining(X=..., y=...)."
        )
    if name not in STRATEGIES:
        matches = difflib.get_close_matches(name.lower(), STRATEGIES, n=1, cutoff=0.5)
        guess = f" Did you mean {matches[0]!r}?" if matches else ""
        raise StrategyError(
            f"The 'strategy' parameter must be one of {sorted(STRATEGIES)}, got {name!r} instead.{guess}"
        )
    return STRATEGIES[name]
