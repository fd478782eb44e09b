"""``sktl serve`` in a process of its own: how it begins, and how it ends in good order."""

import contextlib
import http.client
import io
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from servers import as_files, httpx

import sktl
from sktl import FineTuneClassifier
from sktl.cli import main
from sktl.serving import bind


@pytest.fixture(scope="module")
def model(image_paths):
    """A model that another process can load."""
    return FineTuneClassifier(strategy="feature_extraction", image_size=32).fit(*image_paths)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """Its file."""
    path = tmp_path_factory.mktemp("shapes") / "model.sktl"
    sktl.save(model, path, metrics={"accuracy": 0.5})
    return path


@pytest.fixture
def process(saved, image_folder):
    """A running ``sktl serve`` with a gallery, and where it listens."""
    words = [sys.executable, "-m", "sktl", "serve", str(saved), "--port", "0", "--gallery", str(image_folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == f"gallery: 30 images of {image_folder}\n"
            line = server.stdout.readline()
            host, port = re.search(r"is served at http://([\d.]+):(\d+) ", line).groups()
            yield SimpleNamespace(server=server, host=host, port=int(port), name=saved.parent.name)
        finally:
            server.kill()


def form_of(content):
    head = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n'
    return head + content + b"\r\n--x--\r\n"


def test_request_under_way_is_finished(process, model, contents):
    """The signal comes while half of a request's body is on its way."""
    url = f"http://{process.host}:{process.port}"
    answer = httpx.post(f"{url}/predict?similar=2", files=as_files(contents[:1]), timeout=60, trust_env=False)
    assert len(answer.json()["predictions"][0]["similar"]) == 2
    card = httpx.get(f"{url}/model", timeout=60, trust_env=False).json()
    assert (card["name"], card["metrics"], card["training_data"]["n_rows"]) == (process.name, {"accuracy": 0.5}, 30)
    body = form_of(contents[3])
    connection = http.client.HTTPConnection(process.host, process.port, timeout=60)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:100])
    assert (
        httpx.get(f"{url}/health", timeout=60, trust_env=False).status_code == 200
    )  # by now the request above is under way
    process.server.send_signal(signal.SIGTERM)
    while True:
        try:
            httpx.get(f"{url}/health", trust_env=False, timeout=5)
        except httpx.TransportError:
            break  # no new requests
    connection.send(body[100:])
    answer = connection.getresponse()
    assert answer.status == 200
    assert np.array(re.findall(rb"\d\.[\de-]+", answer.read()), float).max() == model.predict_proba([contents[3]]).max()
    connection.close()
    assert process.server.wait(30) == 0
    assert process.server.stderr.read() == ""


def refusal(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["serve", *map(str, words)])
    assert (code, out.getvalue()) == (2, "")
    assert err.getvalue().startswith("sktl: error: ")
    assert len(err.getvalue().splitlines()) == 1
    return err.getvalue()


def test_port_in_use(saved):
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1: it is in use. Choose another" in refusal(saved, "--port", port)


def test_missing_extra(saved, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("sktl.serving", "sktl.cli._serve"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "Serving a model needs the package 'fastapi', which is not installed" in refusal(saved)


def test_missing_and_foreign_models(tmp_path):
    assert "There is no model" in refusal(tmp_path / "model.sktl", "--port", 0)
    (tmp_path / "model.sktl").write_bytes(b"PK not really")
    assert "cannot be loaded" in refusal(tmp_path / "model.sktl", "--port", 0)


def test_missing_gallery(saved, tmp_path):
    assert "There is no folder" in refusal(saved, "--port", 0, "--gallery", tmp_path / "nowhere")
    assert "no image in the folder" in refusal(saved, "--port", 0, "--gallery", tmp_path)


def test_no_thread_is_left():
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sktl-batch")]
