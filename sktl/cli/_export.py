"""``sktl export``: a saved model as an ONNX graph."""

from pathlib import Path

from sktl.cli._model import load_model
from sktl.exceptions import InputError
from sktl.export import export_onnx


def run_export(arguments) -> int:
    """Write a saved model as an ONNX graph.

    Parameters
    ----------
    arguments : argparse.Namespace
        What was written on the command line.

    Returns
    -------
    code : int
        0.
    """
    if Path(arguments.output).suffix.lower() != ".onnx":
        raise InputError(f"The name of the file to write must end in .onnx, got {arguments.output!r} instead.")
    model = load_model(Path(arguments.model), weights=arguments.weights)
    path = export_onnx(model, arguments.output)
    print(f"{path}  ({path.stat().st_size:,} bytes)")
    return 0
