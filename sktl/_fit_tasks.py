"""The tasks of a fit, as the callbacks of :mod:`sklearn.callback` see them."""

from collections.abc import Callable
from typing import Any

from sklearn.callback import CallbackSupportMixin


class FitTasks:
    """One fit and its steps in order, told to the callbacks that are set on the estimator.

    Make it at the very beginning of ``fit``, before :func:`~sktl._undo.as_before_on_failure`: scikit-learn stores on
    the estimator what it needs to end its callbacks, and a failed fit must not undo that.

    Parameters
    ----------
    estimator : estimator
        The one that is fitted.
    n_steps : int
        Largest number of steps; early stopping may leave some out.
    X, y : array-like
        As they were given to ``fit``.
    sample_weight : array-like, default=None
        As it was given to ``fit``.
    """

    def __init__(self, estimator: CallbackSupportMixin, n_steps: int, X, y, sample_weight=None):
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._given: dict[str, Any] = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self._fit = estimator._init_callback_context(max_subtasks=n_steps)
        self._fit.call_on_fit_task_begin(**self._given)

    def begin(self, name: str) -> None:
        """Begin a step."""
        self._step = self._fit.subcontext(task_name=name)
        self._step.call_on_fit_task_begin(**self._given)

    def end(self, fitted: Callable[[], dict[str, Any]]) -> bool:
        """End a step; return whether a callback wants the fit to stop here.

        Parameters
        ----------
        fitted : callable
            Returns the attributes that the estimator would have if it stopped here; called if a callback asks.
        """
        return self._step.call_on_fit_task_end(**self._given, reconstruction_attributes=fitted)

    def finish(self) -> None:
        """End the fit, and let go of its data."""
        self._fit.call_on_fit_task_end(**self._given, reconstruction_attributes={})
        self._given = {}
