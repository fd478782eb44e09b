"""A fitted model behind HTTP: predictions in shared passes, a page to try it, and what those who run it need."""

# ruff: noqa: E402 -- the extra is looked for first, for the sake of its message

from sktl._deps import import_extra

for _package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    import_extra(_package, extra="serve", caller="Serving a model")

from sktl.serving._app import make_app
from sktl.serving._gallery import Gallery
from sktl.serving._limits import Limits
from sktl.serving._model import ServedModel
from sktl.serving._server import bind, serve, url_of

__all__ = ["Gallery", "Limits", "ServedModel", "bind", "make_app", "serve", "url_of"]
