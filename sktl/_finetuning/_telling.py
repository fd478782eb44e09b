"""Which rows an error is about, where ``fit`` is given several kinds and all are checked as X and y."""

from collections.abc import Iterator
from contextlib import contextmanager

OF_VALIDATION = ("X_val, y_val and sample_weight_val", "_val")
OF_OLD_TASK = ("JointTraining's X and y", "JointTraining")


@contextmanager
def told_of(rows: str, mark: str) -> Iterator[None]:
    """Let errors say which rows they are about.

    Parameters
    ----------
    rows : str
        What they are called outside.
    mark : str
        A message that holds it says so already.
    """
    try:
        yield
    except Exception as error:
        if error.args and isinstance(error.args[0], str) and mark not in error.args[0]:
            error.args = (f"In {rows}: {error.args[0]}", *error.args[1:])
        raise
