"""Constructors of estimators: whose they are, and parameters that a stored one did not have yet."""

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


def named(function: _F, name: str) -> _F:
    """Return a copy of a function under another name, which is what its errors call it.

    Parameters
    ----------
    function : function
        A constructor of a class that users do not see, say.
    name : str
        Such as ``"FineTuneRegressor.__init__"``.
    """
    parts = (function.__name__, function.__defaults__, function.__closure__)
    copied = FunctionType(function.__code__, function.__globals__, *parts)
    copied.__kwdefaults__, copied.__annotations__ = function.__kwdefaults__, function.__annotations__
    copied.__doc__, copied.__qualname__ = function.__doc__, name
    return copied


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
