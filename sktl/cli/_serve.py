"""``sktl serve``: a saved model behind HTTP."""

import sys
from pathlib import Path
from typing import Any

from sktl.cli._folder import find_images
from sktl.cli._model import describes_itself, load_model
from sktl.exceptions import InputError
from sktl.persistence import inspect
from sktl.serving import Gallery, Limits, ServedModel, bind, make_app, serve, url_of


def run_serve(arguments) -> int:
    """Answer requests for predictions until the process is told to end.

    Parameters
    ----------
    arguments : argparse.Namespace
        What was written on the command line.

    Returns
    -------
    code : int
        0.
    """
    path = Path(arguments.model)
    limits = Limits(
        max_bytes=arguments.max_upload * 2**20,
        max_images=arguments.max_images,
        max_pixels=arguments.max_pixels,
        seconds_to_answer=arguments.timeout,
    )
    with bind(arguments.host, arguments.port) as listener:  # better known now than after the model is loaded
        model = ServedModel(load_model(path, weights=arguments.weights), limits.max_pixels)
        gallery = _open_gallery(arguments.gallery, model)
        name = arguments.name or _name_of(path)
        app = make_app(model, name=name, limits=limits, gallery=gallery, facts=_facts_of(path))
        print(f"{path} is served at {url_of(listener)} (Ctrl+C ends it)", flush=True)
        serve(app, listener)
    return 0


def _open_gallery(folder: str | None, model: ServedModel) -> Gallery | None:
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise InputError(f"There is no folder {folder!r} for the gallery.")
    gallery = Gallery(list(find_images(Path(folder))), folder, model)
    for name, reason in gallery.bad:
        print(f"sktl: warning: {name} is left out of the gallery: {reason}", file=sys.stderr)
    print(f"gallery: {len(gallery):,} images of {folder}", flush=True)
    return gallery


def _facts_of(path: Path) -> dict[str, Any]:
    """Return what the file itself says of the model in it, where it is of the form that says something."""
    if not describes_itself(path):
        return {}
    info = inspect(path)
    return {"created": info.created, "training_data": info.training_data, "metrics": info.metrics}


def _name_of(path: Path) -> str:
    """``sktl-compare/birds/model.sktl`` -> ``birds``; other files by their own name."""
    return path.parent.name if path.stem == "model" and path.parent.name else path.stem
