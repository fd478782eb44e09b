"""Optional packages: imported late, with an error that says how to get them."""

import importlib
from types import ModuleType

from sktl.exceptions import MissingExtraError


def import_extra(package: str, *, extra: str, caller: str) -> ModuleType:
    """Import an optional package, or say which extra of sktl brings it.

    Parameters
    ----------
    package : str
        Name of the module to import, dots allowed.
    extra : str
        The extra of sktl that installs it.
    caller : str
        What needs it, as the user wrote it; opens the error message.

    Returns
    -------
    module : module
        The imported module.

    Raises
    ------
    MissingExtraError
        If the package cannot be found.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != package.split(".")[0]:
            raise  # the package is there, something that it needs is not
        missing = package.split(".")[0]
        raise MissingExtraError(
            f"{caller} needs the package {missing!r}, which is not installed. Run: pip install 'sktl[{extra}]'"
        ) from error
