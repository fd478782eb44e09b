"""What clients may not do, and what they are told: 4xx for their faults, 503 for the server's, and never a 500."""

import http.client
import io
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from servers import as_files, running
from sklearn.dummy import DummyClassifier

from sktl.serving import Limits, make_app

FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def refusal(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["detail"]


@pytest.fixture(scope="module")
def narrow(model):
    """A client of a server with tight limits."""
    limits = Limits(max_bytes=20_000, max_images=3, max_pixels=5000, seconds_to_upload=0.5)
    with running(make_app(model, limits=limits)) as client:
        yield client


@pytest.mark.filterwarnings("ignore::sktl.exceptions.InputWarning")
def test_real_broken_files(client, model, shared_data):
    files = sorted(path for path in (shared_data / "broken").iterdir() if path.suffix != ".tsv")
    refused = 0
    for path in files:
        answer = client.post("/predict", files={"image": (path.name, path.read_bytes())})
        assert answer.status_code in (200, 422), (path, answer.text)
        if answer.status_code == 422:
            refused += 1
            (row,) = answer.json()["rows"]
            assert (row["index"], row["name"]) == (0, path.name)
            assert row["reason"] in answer.json()["detail"]
        else:
            (found,) = answer.json()["predictions"]
            np.testing.assert_array_equal([found["probabilities"]], model.predict_proba([str(path)]))
    assert 0 < refused < len(files)


def test_bad_images_are_all_named(client, contents):
    answer = client.post("/predict", files=as_files([b"", contents[0], b"\x89PNG not really", b"\x89PNG not really"]))
    assert refusal(answer, 422).startswith("3 of 4 images cannot be used")
    rows = answer.json()["rows"]
    assert [(row["index"], row["name"]) for row in rows] == [(0, "0.png"), (2, "2.png"), (3, "3.png")]
    assert rows[1]["reason"] == rows[2]["reason"]
    assert "PNG" in rows[1]["reason"]


def test_too_many_pixels(narrow):
    buffer = io.BytesIO()
    Image.new("L", (200, 200)).save(buffer, "PNG")
    answer = narrow.post("/predict", files={"image": buffer.getvalue()})
    assert "too large: 200 x 200 = 40,000 pixels" in refusal(answer, 422)


def test_too_many_images(narrow, contents):
    answer = narrow.post("/predict", files=as_files([b"GIF8"] * 4))
    assert refusal(answer, 413) == "A request may hold 3 images at most."


@pytest.mark.parametrize("as_chunks", [False, True])
def test_too_many_bytes(narrow, as_chunks):
    body = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n' + b"0" * 300_000 + b"\r\n--x--\r\n"
    answer = narrow.post("/predict", content=iter([body]) if as_chunks else body, headers=FORM)
    assert refusal(answer, 413) == "A request may have 20,000 bytes at most."


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "last boundary is missing"),
        (b"nonsense", "last boundary is missing"),
        (b"--x--\r\n", "holds no file"),
        (b"--x\r\nnonsense\r\n\r\n--x--\r\n", "has no headers"),
        (b"--x nonsense\r\n\r\nz\r\n--x--\r\n", "has no headers"),
        (b"--x\r\nz\r\n--x--\r\n", "has no headers"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\nz\r\n--x--\r\n", "field '' of the form holds no file"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nz\r\n--x--\r\n',
            "field 'a' of the form holds no file",
        ),
        (b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nGIF8', "last boundary is missing"),
    ],
)
def test_damaged_forms(client, body, message):
    answer = client.post("/predict", content=body, headers=FORM)
    assert answer.status_code in (400, 422)
    assert message in answer.json()["detail"]


@pytest.mark.parametrize("kind", [None, "application/json", "application/octet-stream"])
def test_bodies_that_are_neither_form_nor_image(client, contents, kind):
    answer = client.post("/predict", content=contents[0], headers={"Content-Type": kind} if kind else {})
    assert "multipart/form-data" in refusal(answer, 415)


def test_empty_images(client):
    answer = client.post("/predict", headers={"Content-Type": "image/jpeg"})
    assert "empty" in refusal(answer, 400)


def test_image_that_is_none(client):
    answer = client.post("/predict", content=b"no image", headers={"Content-Type": "image/jpeg"})
    assert "not an image file" in refusal(answer, 422)


def test_form_without_boundary(client):
    answer = client.post("/predict", content=b"z", headers={"Content-Type": "multipart/form-data"})
    assert "boundary" in refusal(answer, 415)


def test_form_that_comes_byte_by_byte(client, model, contents):
    body = b"preamble\r\n--x  \r\nContent-Type: image/png\r\n"
    body += b'content-disposition: form-data; name="a"; filename="\xc3\xa9.png"'
    body += b"\r\n\r\n" + contents[0] + b"\r\n--x--\r\nepilogue"
    pieces = (body[place : place + 1] for place in range(len(body)))
    answer = client.post("/predict", content=pieces, headers=FORM)
    (found,) = answer.json()["predictions"]
    assert found["name"] == "é.png"
    np.testing.assert_array_equal([found["probabilities"]], model.predict_proba([contents[0]]))


def test_slow_uploads(narrow):
    url = urlsplit(str(narrow.base_url))
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", FORM["Content-Type"])
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"--x\r\n")
    answer = connection.getresponse()
    assert answer.status == 408
    assert b"longer than 0.5 seconds" in answer.read()
    connection.close()


class Slow(DummyClassifier):
    """A model that takes its time."""

    def predict(self, X):
        time.sleep(0.3)
        return super().predict(X)


def test_overload_and_slow_answers(contents):
    limits = Limits(max_queued_images=1, seconds_to_answer=0.5)
    with running(make_app(Slow().fit([b"a", b"b"], [0, 1]), limits=limits)) as client:
        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(lambda _: client.post("/predict", files=as_files(contents[:1])), range(12)))
        assert {answer.status_code for answer in answers} == {200, 503}
        busy = next(answer for answer in answers if answer.status_code == 503)
        assert busy.headers["Retry-After"] == "1"
        assert client.post("/predict", files=as_files(contents[:1])).status_code == 200  # it recovers
    limits = Limits(seconds_to_answer=0.05)
    with running(make_app(Slow().fit([b"a", b"b"], [0, 1]), limits=limits)) as client:
        assert "No answer within 0.05 seconds" in refusal(client.post("/predict", files=as_files(contents[:1])), 503)


def test_memory_is_bounded(model, contents):
    limits = Limits(max_bytes_at_once=10)
    with running(make_app(model, limits=limits)) as client:
        assert "holds as many images" in refusal(client.post("/predict", files=as_files(contents[:1])), 503)
        assert "\nsktl_upload_bytes 0.0" in client.get("/metrics").text


def test_clients_that_go_away(client, contents):
    url = urlsplit(str(client.base_url))
    for _ in range(3):
        connection = http.client.HTTPConnection(url.hostname, url.port)
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Type", FORM["Content-Type"])
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"--x\r\n")
        connection.close()
    assert client.post("/predict", files=as_files(contents[:1])).status_code == 200
    assert "\nsktl_upload_bytes 0.0" in client.get("/metrics").text


@pytest.mark.parametrize("similar", ["1", "-1", "1000", "many"])
def test_similar_images_without_a_gallery(client, contents, similar):
    answer = client.post(f"/predict?similar={similar}", files=as_files(contents[:1]))
    assert answer.status_code == 422
