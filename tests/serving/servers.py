"""Servers to ask: in a thread of this process, on a free port."""

import contextlib
import threading
import time

import pytest

REASON = 'needs the extra: pip install "sktl[serve]" httpx'
httpx = pytest.importorskip("httpx", reason=REASON)
uvicorn = pytest.importorskip("uvicorn", reason=REASON)
for package in ("fastapi", "python_multipart", "prometheus_client"):
    pytest.importorskip(package, reason=REASON)


@contextlib.contextmanager
def running(app):
    """Run an application; yields a client of it."""
    from sktl.serving import bind, url_of

    listener = bind("127.0.0.1", 0)
    url = url_of(listener)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def as_files(images):
    """Images as httpx takes them for a form."""
    return [("images", (f"{number}.png", content)) for number, content in enumerate(images)]
