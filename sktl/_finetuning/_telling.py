"""Which rows an error is about, where ``fit`` is given several kinds and all are checked as X and y."""

from collections.abc import Iterator
from contextlib import contextmanager

from sktl.exceptions import InputError
from sktl.inputs import raise_bad_rows
from sktl.training import map_rows

OF_VALIDATION = ("X_val, y_val and sample_weight_val", "_val")
OF_OLD_TASK = ("JointTraining's X and y", "JointTraining")


@contextmanager
def told_of(rows: str, mark: str) -> Iterator[None]:
    """Let errors say which rows they are about.

    Parameters
    ----------
    rows : str
        What the user calls them.
    mark : str
        A message that contains it names them already, and is left as it is.
    """
    try:
        yield
    except Exception as error:
        if error.args and isinstance(error.args[0], str) and mark not in error.args[0]:
            error.args = (f"In {rows}: {error.args[0]}", *error.args[1:])
        raise


@contextmanager
def all_bad_rows_named(rows) -> Iterator[None]:
    """Let an error about some rows of X name all that cannot be used.

    Rows are hashed before they are decoded, and of those with the same content only one is: each step knows its own
    bad rows. So after an error all rows are decoded before it is raised.

    Parameters
    ----------
    rows : sequence of rows
        Of X.
    """
    try:
        yield
        return
    except InputError as error:
        if not error.rows:
            raise
        known = {row.index: row for row in error.rows}
    try:
        map_rows(lambda index: _decode(rows[index]), rows, range(len(rows)))
    except InputError as error:
        known.update({row.index: row for row in error.rows})
    raise_bad_rows(list(known.values()), len(rows))


def _decode(row) -> None:
    if hasattr(row, "pixels"):
        row.pixels()
