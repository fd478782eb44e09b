"""scikit-learn's contract for estimators whose X is images, as checks that any package can run on its own.

scikit-learn's :func:`~sklearn.utils.estimator_checks.check_estimator` knows tables of numbers only. These checks ask
the same of lists of files, of PIL images and of arrays: that each row has its own result, whatever container, order or
company it comes in; that a file which cannot be read is named; that nothing but the estimator changes.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from sklearn.exceptions import EstimatorCheckFailedWarning

from sktl.testing._checks import Setting, checks_of
from sktl.testing._images import CONTAINERS

__all__ = ["check_image_estimator", "image_estimator_checks_generator", "parametrize_with_image_checks"]


def image_estimator_checks_generator(
    estimator,
    *,
    containers: Sequence[str] = CONTAINERS,
    rtol: float = 1e-3,
    expected_failed_checks: dict[str, str] | None = None,
    mark: Literal["xfail"] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Yield all checks for an estimator.

    Parameters
    ----------
    estimator : estimator
        Classifier, regressor or transformer; each check works on clones of it. Choose parameters that make it quick.
    containers : sequence of str, default=("paths", "pathlib", "pil", "arrays", "array")
        What it takes as X: lists of file names, of ``pathlib.Path``, of PIL images or of arrays of shape (height,
        width, 3), also of different sizes, or one array of shape (n, height, width, 3). Arrays are 8-bit.
    rtol : float, default=1e-3
        Tolerance for numbers that should be the same, relative to each of them and to the largest of them.
    expected_failed_checks : dict of str to str, default=None
        Names of checks that are known to fail, with the reason. A name without container stands for all containers.
    mark : "xfail" or None, default=None
        "xfail" marks expected failures for pytest.

    Yields
    ------
    estimator : estimator
        The one given.
    check : callable
        Takes the estimator, and raises where it breaks the contract; ``check.name`` is its name.
    """
    unknown = sorted(set(containers) - set(CONTAINERS))
    if unknown or not containers:
        raise ValueError(
            f"The 'containers' parameter must be some of {list(CONTAINERS)}, got {list(containers)!r} instead."
        )
    if isinstance(estimator, type):
        raise TypeError(f"Give an instance instead of the class: {estimator.__name__}().")
    setting = Setting(tuple(containers), rtol)
    for function, container in checks_of(estimator, setting):
        check = NamedCheck(function, setting, container)
        reason = _reason(check, expected_failed_checks)
        if mark == "xfail" and reason is not None:
            import pytest

            yield pytest.param(estimator, check, marks=pytest.mark.xfail(reason=reason))
        else:
            yield estimator, check


class NamedCheck:
    """A check of one estimator, with the container it is for.

    Parameters
    ----------
    function : callable
        The check.
    setting : Setting
        What holds for all checks of the estimator.
    container : str or None
        None where the check needs no particular one.
    """

    def __init__(self, function: Callable, setting: Setting, container: str | None):
        self.function = function
        self.setting = setting
        self.container = container

    @property
    def name(self) -> str:
        """Such as ``check_no_rows`` or ``check_order_of_rows[paths]``."""
        return self.function.__name__ + (f"[{self.container}]" if self.container else "")

    def __call__(self, estimator) -> None:
        call = partial(self.function, estimator, self.setting)
        call() if self.container is None else call(container=self.container)

    def __repr__(self) -> str:
        return self.name


def _reason(check: NamedCheck, expected: dict[str, str] | None) -> str | None:
    expected = expected or {}
    return expected.get(check.name, expected.get(check.function.__name__))


def check_image_estimator(
    estimator,
    *,
    containers: Sequence[str] = CONTAINERS,
    rtol: float = 1e-3,
    expected_failed_checks: dict[str, str] | None = None,
    on_fail: Literal["raise", "warn"] | None = "raise",
) -> list[dict[str, Any]]:
    """Check whether an estimator of images keeps scikit-learn's contract.

    Parameters
    ----------
    estimator : estimator
        Classifier, regressor or transformer; each check works on clones of it. Choose parameters that make it quick.
    containers : sequence of str, default=("paths", "pathlib", "pil", "arrays", "array")
        What it takes as X: lists of file names, of ``pathlib.Path``, of PIL images or of arrays of shape (height,
        width, 3), also of different sizes, or one array of shape (n, height, width, 3). Arrays are 8-bit.
    rtol : float, default=1e-3
        Tolerance for numbers that should be the same, relative to each of them and to the largest of them.
    expected_failed_checks : dict of str to str, default=None
        Names of checks that are known to fail, with the reason. A name without container stands for all containers.
    on_fail : {"raise", "warn"} or None, default="raise"
        What an unexpected failure does: raise its exception, give a warning, or only appear in the result.

    Returns
    -------
    results : list of dict
        One per check, with scikit-learn's keys: ``estimator``, ``check_name``, ``exception``, ``status`` ("passed",
        "failed" or "xfail"), ``expected_to_fail`` and ``expected_to_fail_reason``.

    See Also
    --------
    parametrize_with_image_checks : The same as tests for pytest.
    sklearn.utils.estimator_checks.check_estimator : For tables of numbers; an estimator can pass both.

    Examples
    --------
    >>> from sktl import PretrainedFeatureTransformer
    >>> from sktl.testing import check_image_estimator
    >>> results = check_image_estimator(PretrainedFeatureTransformer(image_size=32), containers=["pil"])
    >>> {result["status"] for result in results}
    {'passed'}
    """
    results = []
    for _, check in image_estimator_checks_generator(estimator, containers=containers, rtol=rtol):
        reason = _reason(check, expected_failed_checks)
        result = {"estimator": estimator, "check_name": check.name, "exception": None, "status": "passed"}
        result |= {"expected_to_fail": reason is not None, "expected_to_fail_reason": reason}
        try:
            check(estimator)
        except Exception as error:
            if reason is None and on_fail == "raise":
                error.add_note(f"This is {check.name} of sktl.testing, on {type(estimator).__name__}.")
                raise
            result |= {"exception": error, "status": "failed" if reason is None else "xfail"}
            if reason is None and on_fail == "warn":
                warnings.warn(EstimatorCheckFailedWarning(**result), stacklevel=2)
        results.append(result)
    return results


def parametrize_with_image_checks(
    estimators: Sequence,
    *,
    containers: Sequence[str] = CONTAINERS,
    rtol: float = 1e-3,
    expected_failed_checks: Callable[[Any], dict[str, str]] | None = None,
):
    """Make a pytest decorator that runs each check on each estimator as a test of its own.

    Parameters
    ----------
    estimators : sequence of estimators
        Each check works on clones of them.
    containers : sequence of str, default=("paths", "pathlib", "pil", "arrays", "array")
        What all of them take as X; see :func:`check_image_estimator`.
    rtol : float, default=1e-3
        Tolerance for numbers that should be the same.
    expected_failed_checks : callable, default=None
        Takes an estimator, returns the names of checks that are known to fail with the reason.

    Returns
    -------
    decorator : pytest.MarkDecorator
        For a test function of the parameters ``estimator`` and ``check``.

    Examples
    --------
    >>> from sktl import PretrainedFeatureTransformer
    >>> from sktl.testing import parametrize_with_image_checks
    >>> @parametrize_with_image_checks([PretrainedFeatureTransformer(image_size=32)])
    ... def test_image_checks(estimator, check):
    ...     check(estimator)
    """
    import pytest

    cases = []
    for estimator in estimators:
        expected = expected_failed_checks(estimator) if expected_failed_checks else None
        options = {"containers": containers, "rtol": rtol, "expected_failed_checks": expected, "mark": "xfail"}
        cases.extend(image_estimator_checks_generator(estimator, **options))
    return pytest.mark.parametrize(("estimator", "check"), cases, ids=_id)


def _id(value: Any) -> str:
    return value.name if isinstance(value, NamedCheck) else type(value).__name__
