"""Models, graphs and tables are written by one rule: whole or not at all, through links, and errors name the file."""

import os
import stat
from pathlib import Path

import pytest
from small_models import make_network

import sktl
from sktl.cli._output import write_whole
from sktl.export import _export


def save_model(path):
    sktl.save(sktl.PretrainedFeatureTransformer(make_network(), image_size=16).fit(["any.png"]), path)


def save_graph(path):
    sktl.export_onnx(None, path)


def save_table(path):
    write_whole(Path(path), lambda place: place.write_text("new"))


WRITERS = pytest.mark.parametrize("write", [save_model, save_graph, save_table])


@pytest.fixture(autouse=True)
def graph(monkeypatch):
    """What is exported does not matter here, and would need the extra."""
    monkeypatch.setattr(_export, "to_onnx", lambda estimator: b"new")


@pytest.mark.skipif(os.name != "posix", reason="links and permissions are POSIX'")
@WRITERS
def test_links_and_permissions_stay(write, tmp_path):
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real.file", tmp_path / "link.file"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    write(link)
    assert link.is_symlink()
    assert real.read_bytes() != b"old"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert os.listdir(tmp_path / "far") == ["real.file"]
    assert sorted(os.listdir(tmp_path)) == ["far", "link.file"]


@pytest.mark.parametrize("write", [save_model, save_graph])
@pytest.mark.parametrize("folder", ["nowhere", "a-file"])
def test_missing_folder_is_told_by_the_name_that_was_given(write, folder, tmp_path):
    (tmp_path / "a-file").write_text("in the way")
    path = tmp_path / folder / "model.file"
    with pytest.raises(OSError, match=r"directory: ") as caught:
        write(path)
    assert isinstance(caught.value, FileNotFoundError if folder == "nowhere" else NotADirectoryError)
    assert caught.value.filename == str(path)


@WRITERS
def test_folder_in_place_of_the_file_is_told_by_its_name(write, tmp_path):
    (tmp_path / "model.file").mkdir()
    with pytest.raises(OSError, match="directory") as caught:
        write(tmp_path / "model.file")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "model.file"), None)
    assert os.listdir(tmp_path) == ["model.file"]


@WRITERS
def test_interrupt_leaves_nothing(write, tmp_path, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    (tmp_path / "model.file").write_bytes(b"old")
    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model.file")
    assert os.listdir(tmp_path) == ["model.file"]
    assert (tmp_path / "model.file").read_bytes() == b"old"
