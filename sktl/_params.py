"""Parameters that an estimator did not have yet when it was stored."""

import inspect
from typing import Any


def with_defaults(cls: type, state: dict[str, Any]) -> dict[str, Any]:
    """Return a stored state in which parameters that are newer than it have their defaults.

    Parameters
    ----------
    cls : type
        Of the estimator.
    state : dict
        Attributes by name.
    """
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty} | state
