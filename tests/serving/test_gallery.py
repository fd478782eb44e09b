"""Images beside the predictions: the most similar ones, and nothing else of the disk."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from servers import running
from small_models import make_network

from sktl import FineTuneClassifier
from sktl.exceptions import InputError
from sktl.serving import Gallery, ServedModel, make_app


@pytest.fixture(scope="module")
def folder(image_folder, tmp_path_factory):
    """A few images, one of them broken."""
    folder = tmp_path_factory.mktemp("gallery")
    for kind in ("disc", "stripes"):
        (folder / kind).mkdir()
        for number in range(4):
            (folder / kind / f"{number}.png").write_bytes((image_folder / kind / f"{number}.png").read_bytes())
    (folder / "disc" / "broken.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture(scope="module")
def gallery(folder, model):
    return Gallery(sorted(folder.glob("*/*")), folder, ServedModel(model, 10**6))


@pytest.fixture(scope="module")
def client(gallery, model):
    with running(make_app(model, gallery=gallery)) as client:
        yield client


def test_leaves_out_what_cannot_be_read(gallery):
    assert len(gallery) == 8
    ((name, reason),) = gallery.bad
    assert name == "disc/broken.png"
    assert "PNG" in reason


def test_finds_the_image_itself_first(client, gallery, folder):
    for index, name in enumerate(gallery.names):
        answer = client.post("/predict?similar=3", files={"image": (folder / name).read_bytes()}).json()
        found = answer["predictions"][0]["similar"]
        assert (found[0]["index"], found[0]["name"]) == (index, name)
        assert found[0]["similarity"] == pytest.approx(1, abs=1e-5)
        assert [each["similarity"] for each in found] == sorted((e["similarity"] for e in found), reverse=True)
        assert len(found) == 3


def test_thumbnails(client, folder, gallery):
    answer = client.get("/gallery/5.jpg")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/jpeg")

    with Image.open(io.BytesIO(answer.content)) as small, Image.open(folder / gallery.names[5]) as whole:
        assert small.size == whole.size
        assert np.abs(np.asarray(small).astype(int) - np.asarray(whole.convert("RGB"))).mean() < 20


@pytest.mark.parametrize("path", ["8.jpg", "-1.jpg", "../disc/0.png", "x.jpg", "%2e%2e%2fdisc%2f0.png"])
def test_other_files_are_not_served(client, path):
    assert client.get(f"/gallery/{path}").status_code in (404, 422)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux")
def test_names_that_are_not_valid_utf8(image_paths, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(Path(image_paths[0][0]).read_bytes())
    labels = np.where(image_paths[1] == "disc", "caf\udce9", "tea")
    options = {"image_size": 16, "cache_bytes": 0}
    model = FineTuneClassifier(make_network(), "feature_extraction", **options).fit(image_paths[0], labels)
    with running(make_app(model, gallery=Gallery([path], tmp_path, ServedModel(model, 10**6)))) as client:
        answer = client.post("/predict?similar=1", files={"image": path.read_bytes()}).json()
        assert client.get("/model").json()["classes"] == ["caf\udce9", "tea"]
    assert answer["predictions"][0]["label"] == model.predict([str(path)])[0]
    assert answer["predictions"][0]["similar"][0]["name"] == path.name


def test_file_that_is_gone(model, folder, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes((folder / "disc" / "0.png").read_bytes())
    gallery = Gallery([path], tmp_path, ServedModel(model, 10**6))
    path.unlink()
    with running(make_app(model, gallery=gallery)) as client:
        assert client.get("/gallery/0.jpg").status_code == 404


def test_refusals(model, folder, tmp_path):
    with pytest.raises(InputError, match="no image in the folder"):
        Gallery([], tmp_path, ServedModel(model, 10**6))
    with pytest.raises(InputError, match="can be read; the first: "):
        Gallery([folder / "disc" / "broken.png"], folder, ServedModel(model, 10**6))
