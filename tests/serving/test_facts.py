"""Health, card, metrics, pages and the port."""

import re

import pytest
from servers import as_files

from sktl.exceptions import InputError
from sktl.serving import bind

PAGES = ["/", "/docs", "/page.css", "/page.js", "/icon.svg"]


def test_health(client):
    assert client.get("/health").json() == {"status": "ok"}


def test_card(client):
    card = client.get("/model").json()
    assert card["name"] == "shapes"
    assert card["classes"] == ["disc", "square", "stripes"]
    assert card["strategy"] == "FeatureExtraction()"
    assert card["input_size"] == [3, 16, 16]
    assert card["limits"]["max_images"] == 64
    assert set(card["versions"]) == {"sktl", "torch", "timm", "scikit-learn"}


def test_metrics_count(client, contents):
    def value(name):
        return float(re.search(rf"^{re.escape(name)} (.*)$", client.get("/metrics").text, re.MULTILINE)[1])

    client.post("/predict", files=as_files(contents[:1]))
    client.post("/predict", files=as_files([b""]))
    before = value("sktl_images_total"), value("sktl_bad_images_total")
    client.post("/predict", files=as_files(contents[:3]))
    client.post("/predict", files=as_files([contents[0], b"", b"GIF8"]))
    client.get("/no/such/place/1")
    assert (value("sktl_images_total"), value("sktl_bad_images_total")) == (before[0] + 3, before[1] + 2)
    assert value('sktl_requests_total{method="POST",path="/predict",status="422"}') >= 2
    assert value('sktl_requests_total{method="GET",path="other",status="404"}') >= 1
    assert value("sktl_queued_images") == 0


@pytest.mark.parametrize("path", PAGES)
def test_pages_load_nothing_from_elsewhere(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    loaded = re.findall(r"(?:src|href)=\"([^\"]*)\"|url\(([^)]*)\)|fetch\([`\"]([^`\"]*)", answer.text)
    assert not [url for urls in loaded for url in urls if "//" in url]


def test_docs_describe_every_address(client):
    page = client.get("/docs").text
    assert f"images=@two.jpg {client.base_url}/predict" in page
    for path in client.get("/openapi.json").json()["paths"]:
        assert f" {path}</code>" in page
    assert "/predict" in page


def test_port_in_use():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=f"Cannot listen on port {port} of 127.0.0.1: it is in use"):
            bind("127.0.0.1", port)


def test_address_of_another_machine():
    with pytest.raises(InputError, match="no such address"):
        bind("192.0.2.1", 0)
