"""The checkpoint of a fit: what it must have in common with the fit that goes on from it."""

from numbers import Integral

from torch import nn

from sktl._finetuning._rows import FitData
from sktl.backbones import Backbone, fingerprint
from sktl.training import Checkpoint, describe, describe_fit, describe_parameters

# Parameters that say where and how a fit is computed, or that are judged by what they stand for.
_NO_PART_OF_THE_RESULT = {
    *("backbone", "weights", "data_config", "random_state", "root", "max_pixels", "device", "memory", "cache_bytes"),
    *("callbacks", "checkpoint", "gradient_accumulation", "verbose"),
}


def open_checkpoint(estimator, backbone: Backbone, data: FitData, seed: int) -> Checkpoint | None:
    """Return where the state of training is kept; refuse what another fit left there.

    Parameters
    ----------
    estimator : estimator
        In ``fit``.
    backbone : Backbone
        What training starts from.
    data : FitData
        All rows that it is given.
    seed : int
        Drawn from ``random_state``.
    """
    if estimator.checkpoint is None:
        return None
    if not isinstance(estimator.random_state, Integral):
        raise ValueError(
            "checkpoint= needs an integer as random_state: a fit that goes on later must draw the same random numbers. "
            f"Got random_state={estimator.random_state!r}."
        )
    facts = {"the backbone": backbone.fingerprint, "random_state": str(seed)}
    if isinstance(estimator.head, nn.Module):
        facts["head"] = f"{type(estimator.head).__name__} of {fingerprint(estimator.head)}"
    parts = {"the data": [(data.rows, data.targets), data.validation]}
    strategy = estimator.strategy_  # what a name stands for, too
    if data.original is not None:  # judged by what the rows hold, as the others are
        facts["strategy"] = f"{type(strategy).__name__} of {describe_parameters(strategy, {'X', 'y'})}"
        parts["the old task's data"] = [data.original]
    else:
        facts["strategy"] = describe(strategy)
    checkpoint = Checkpoint(estimator.checkpoint, describe_fit(estimator, _NO_PART_OF_THE_RESULT, facts, parts))
    checkpoint.check()
    return checkpoint
