"""The checkpoint of a fit: what it must have in common with the fit that goes on from it."""

from numbers import Integral

from sktl.backbones import Backbone
from sktl.training import Checkpoint, describe_fit

# Parameters that say where and how a fit is computed, or that are judged by what they stand for.
_NO_PART_OF_THE_RESULT = {
    *("backbone", "weights", "data_config", "random_state", "root", "max_pixels", "device", "memory", "cache_bytes"),
    *("callbacks", "checkpoint", "gradient_accumulation", "verbose"),
}


def open_checkpoint(estimator, backbone: Backbone, data, seed: int) -> Checkpoint | None:
    """Return where the state of training is kept; refuse what another fit left there.

    Parameters
    ----------
    estimator : estimator
        In ``fit``.
    backbone : Backbone
        What training starts from.
    data : sequence of (rows, Targets) or None
        Training rows, and validation rows if there are any.
    seed : int
        What ``random_state`` became.
    """
    if estimator.checkpoint is None:
        return None
    if not isinstance(estimator.random_state, Integral):
        raise ValueError(
            "checkpoint= needs an integer as random_state: a fit that goes on later must draw the same random numbers. "
            f"Got random_state={estimator.random_state!r}."
        )
    facts = {"the backbone": backbone.fingerprint, "random_state": str(seed)}
    checkpoint = Checkpoint(estimator.checkpoint, describe_fit(estimator, _NO_PART_OF_THE_RESULT, facts, data))
    checkpoint.check()
    return checkpoint
