"""The command line: compare ways of transfer, use the winner, list backbones."""

import os
import sys
import warnings
from collections.abc import Sequence

# OpenMP reads the first when torch is loaded, OpenBLAS the second with numpy. Their threads spin while they wait for
# each other; on a machine that does anything else at the same time, that makes training tens of times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # spins for 2 ** 4 cycles, where 2 ** 26 is OpenBLAS's default

from sktl.cli._parser import make_parser
from sktl.exceptions import SktlError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, default=None
        The arguments after the program's name; None takes those of the process.

    Returns
    -------
    code : int
        0 if all went well, 1 if some images could not be used, 2 if nothing could be done.
    """
    arguments = make_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files are bytes, and need not be text
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = arguments.run(arguments)
            sys.stdout.flush()  # while a failure can still be reported
            return code
        except (SktlError, ValueError, ArithmeticError, OSError) as error:
            return _say_error(error, arguments.traceback)
        except KeyboardInterrupt:
            print("sktl: interrupted", file=sys.stderr)
            return 130


def _say_error(error: Exception, with_traceback: bool) -> int:
    try:
        sys.stdout.flush()
    except OSError:  # nothing takes the output, and Python would try again when it ends
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # whoever read the output has had enough, as in `sktl backbones | head`
        return 0
    if with_traceback:
        raise error
    print(f"sktl: error: {error}", file=sys.stderr)
    return 2


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"sktl: warning: {message}", file=sys.stderr)
