"""A socket, uvicorn around it, and an end in good order."""

import errno
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from sktl.exceptions import InputError, InputWarning

_MAX_CONNECTIONS = 1024
_SECONDS_TO_STOP = 60
_ENDINGS = (signal.SIGINT, signal.SIGTERM)


def bind(host: str, port: int) -> socket.socket:
    """Take a port, before the time for loading a model is spent.

    Parameters
    ----------
    host : str
        Address to listen on; "127.0.0.1" is reached from this machine alone.
    port : int
        0 takes a free one.

    Returns
    -------
    listener : socket
        Listening.

    Raises
    ------
    InputError
        If the port is in use, not allowed, or the address not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_MAX_CONNECTIONS)
    except OSError as error:
        reason = {
            errno.EADDRINUSE: "it is in use. Choose another one with --port, or let --port 0 find a free one",
            errno.EACCES: "that takes more rights. Choose one above 1023 with --port",
            errno.EADDRNOTAVAIL: "this machine has no such address. Choose another one with --host",
        }.get(error.errno, str(error))
        raise InputError(f"Cannot listen on port {port} of {host}: {reason}.") from error


def url_of(listener: socket.socket) -> str:
    """Return where a browser finds a server.

    Parameters
    ----------
    listener : socket
        Of :func:`bind`.
    """
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: Any, listener: socket.socket) -> None:
    """Answer requests until the process is told to end; then finish those that have begun.

    Parameters
    ----------
    app : ASGI application
        Of :func:`make_app`.
    listener : socket
        Of :func:`bind`; closed in the end.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_SECONDS_TO_STOP,
        server_header=False,
    )
    with _ending_quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # that the first frame of an animation is used, is documented
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _ending_quietly() -> Iterator[None]:
    """Take the signal for answered that uvicorn raises again when it has ended in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda number, frame: None) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
