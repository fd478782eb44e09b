"""Notes that tell which rows an error is about, where ``fit`` is given several kinds."""

from collections.abc import Iterator
from contextlib import contextmanager

OF_VALIDATION = "X, y and sample_weight are X_val, y_val and sample_weight_val here: the rows of validation."
OF_OLD_TASK = "X and y are those of JointTraining here: the rows of the old task."


@contextmanager
def noted(note: str) -> Iterator[None]:
    """Add a note to an error that is raised inside.

    Parameters
    ----------
    note : str
        A sentence.
    """
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise
