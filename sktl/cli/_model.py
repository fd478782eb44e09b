"""Reading the model that a command is given."""

import sys
from pathlib import Path
from typing import Any

import joblib

from sktl.cli._candidates import SmallPixels
from sktl.exceptions import InputError
from sktl.persistence import load

_PICKLES = (".joblib", ".pkl", ".pickle")
_GRAPH = ".onnx"


def load_model(path: Path, *, weights: str | None = None, runtime: str = "auto") -> Any:
    """Read a model from its file.

    Parameters
    ----------
    path : Path
        A file that :func:`sktl.save` wrote, a pickle written by joblib, or an ONNX file that ``sktl export`` wrote.
    weights : path-like, default=None
        The file of public weights that a file of :func:`sktl.save` refers to.
    runtime : {"auto", "onnx"}, default="auto"
        "onnx" turns a saved model into an ONNX graph in memory and lets onnxruntime run that; an ONNX file is run by
        it in any case.

    Returns
    -------
    model : estimator or OnnxModel
        With ``predict``.

    Raises
    ------
    InputError
        If there is no such file, or it holds no model, or refers to no weights.
    """
    if not path.is_file():
        raise InputError(f"There is no model {str(path)!r}. `sktl compare` writes one as model.sktl.")
    is_graph = path.suffix.lower() == _GRAPH
    if describes_itself(path):
        model = load(path, trusted=[SmallPixels], weights=weights)  # the baseline of `sktl compare` may have won
    elif weights is not None:
        raise InputError(f"--weights goes with files that sktl.save wrote; {str(path)!r} brings its own weights.")
    else:
        model = _open_graph(path) if is_graph else _unpickle(path)
    if not hasattr(model, "predict"):
        raise InputError(f"The file {str(path)!r} holds no classifier, but an object of type {type(model).__name__!r}.")
    return _as_graph(model) if runtime == "onnx" and not is_graph else model


def describes_itself(path: Path) -> bool:
    """Tell whether a file is taken for one of :func:`sktl.save`, which :func:`sktl.inspect` reads.

    Parameters
    ----------
    path : Path
        The file.
    """
    return path.suffix.lower() not in (*_PICKLES, _GRAPH)


def _unpickle(path: Path) -> Any:
    print(
        f"sktl: note: {path} is a pickle, and reading it runs what is inside; .sktl files run nothing", file=sys.stderr
    )
    try:
        return joblib.load(path)
    except Exception as error:  # a file that is no pickle, or one of another version, can raise anything
        raise InputError(
            f"The file {str(path)!r} is no model that can be read here: {type(error).__name__}: {error}"
        ) from error


def _open_graph(path: Path) -> Any:
    from sktl.export import OnnxModel

    return OnnxModel(path)


def _as_graph(model: Any) -> Any:
    from sktl.export import OnnxModel, to_onnx

    return OnnxModel(to_onnx(model))
