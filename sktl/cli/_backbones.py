"""``sktl backbones``: what can be named as ``--backbone``."""

import difflib

from sktl.backbones import list_backbones
from sktl.exceptions import UnknownBackboneError


def run_backbones(arguments) -> int:
    """Print the names of backbones.

    Parameters
    ----------
    arguments : argparse.Namespace
        What was written on the command line.

    Returns
    -------
    code : int
        0.
    """
    wanted = arguments.filter
    pattern = wanted if not wanted or set(wanted) & set("*?[") else f"*{wanted}*"
    names = list_backbones(pattern, pretrained=not arguments.all)
    if not names:
        matches = difflib.get_close_matches(wanted, list_backbones(pretrained=False), n=3, cutoff=0.5)
        guess = f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""
        raise UnknownBackboneError(f"No backbone has a name like {wanted!r}.{guess}")
    print(*names, sep="\n", flush=True)
    return 0
