"""Errors about single rows, and how they become one error about X."""

from collections.abc import Sequence
from typing import NoReturn

from sktl.exceptions import BadRow, InputError

_N_LISTED = 20


class RowError(InputError):
    """One row cannot be used; the message is the reason alone, for whoever holds the row knows its place.

    Parameters
    ----------
    message : str
        Why the row cannot be used.
    rows : sequence of BadRow, default=()
        Kept for the signature of :class:`~sktl.exceptions.InputError`; empty.
    """


def raise_bad_rows(bad: Sequence[BadRow], n_rows: int | None = None) -> NoReturn:
    """Raise one error that names all rows which cannot be used.

    Parameters
    ----------
    bad : sequence of BadRow
        The rows, as ``(index, label, reason)``.
    n_rows : int, default=None
        How many rows were looked at; makes "2 of 500 rows".

    Raises
    ------
    InputError
        Always; its ``rows`` holds all of ``bad``, sorted by index, its message the first 20.
    """
    bad = sorted(bad)
    total = "" if n_rows is None else f" of {n_rows:,}"
    lines = [f"{len(bad):,}{total} row{'' if (n_rows or len(bad)) == 1 else 's'} of X cannot be used:"]
    lines += [f"  {row.label}: {row.reason}" for row in map(BadRow._make, bad[:_N_LISTED])]
    if len(bad) > _N_LISTED:
        lines.append(f"  ... and {len(bad) - _N_LISTED:,} more; the error's attribute 'rows' lists all of them")
    raise InputError("\n".join(lines), rows=bad)
