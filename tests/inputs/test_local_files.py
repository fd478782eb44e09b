"""Files: regular and local ones only, inside the root if there is one, and never a wait."""

import io
import os
import socket
import tempfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from sktl.inputs import RowError, open_rows

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX file types")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inside").mkdir()
    for name in ("outside.png", "inside/a.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    return tmp_path


def reason(item, **options):
    with pytest.raises(RowError) as error:
        open_rows([item], **options)[0]
    return str(error.value)


def test_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert reason(str(tmp_path / "no.jpg")) == "no such file"
    assert reason("no.jpg") == f"no such file: {str(tmp_path / 'no.jpg')!r}"
    assert reason("no.jpg", root=tmp_path) == f"no such file: {str(tmp_path / 'no.jpg')!r}"
    assert "'~' is not expanded" in reason("~/no.jpg")


def test_directory_and_empty_file(tmp_path):
    (tmp_path / "empty.jpg").touch()
    assert reason(tmp_path) == "a directory, not a regular file"
    assert reason(tmp_path / "empty.jpg") == "empty (0 bytes)"
    assert reason(b"") == "empty (0 bytes)"
    assert reason(io.BytesIO()) == "empty (0 bytes)"


@posix
@pytest.mark.timeout(60)
def test_special_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    assert reason(tmp_path / "pipe.jpg") == "a named pipe, not a regular file"
    assert reason(tmp_path / "link.jpg") == "a named pipe, not a regular file"
    assert reason("/dev/zero") == "a device, not a regular file"
    assert reason("/dev/null") == "a device, not a regular file"
    with socket.socket(socket.AF_UNIX) as server, tempfile.TemporaryDirectory() as short:
        server.bind(f"{short}/s")
        assert reason(f"{short}/s") == "a socket, not a regular file"


@posix
@pytest.mark.timeout(60)
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(folder, monkeypatch):
    """Between asking what a path is and opening it, it may become something else."""
    os.mkfifo(folder / "pipe.jpg")
    as_it_was = os.stat(folder / "outside.png")
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda path, **options: as_it_was)
        said = reason(folder / "pipe.jpg")
    assert said == "a named pipe, not a regular file"


@posix
@pytest.mark.timeout(60)
def test_kernel_files_are_refused(tmp_path):
    if not Path("/proc/self/environ").exists():
        pytest.skip("no /proc on this system")
    assert reason("/proc/self/environ") == "empty (0 bytes)"


@posix
def test_links(folder):
    (folder / "good.png").symlink_to(folder / "outside.png")
    (folder / "dangling.png").symlink_to(folder / "no.png")
    (folder / "one.png").symlink_to(folder / "two.png")
    (folder / "two.png").symlink_to(folder / "one.png")
    assert open_rows([folder / "good.png"])[0].pixels().shape == (4, 4, 3)
    assert reason(folder / "dangling.png") == f"a symbolic link to nothing ({str(folder / 'no.png')!r})"
    assert reason(folder / "one.png") == "cannot be read (too many levels of symbolic links)"


@posix
def test_permissions(folder):
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    (folder / "outside.png").chmod(0)
    assert reason(folder / "outside.png") == "cannot be read (permission denied)"


def test_what_is_no_path():
    assert reason("a\0b.jpg") == "not a valid path (embedded null byte)"
    assert "file name too long" in reason("x" * 5000)


@pytest.mark.parametrize(
    "url",
    [
        "http://x.org/a.jpg",
        "https://x.org/a.jpg",
        "ftp://x/a",
        "s3://b/k",
        "gs://b/k",
        "file:///a",
        "data:image/png;base64,x",
    ],
)
def test_urls_are_refused_by_name(url, folder):
    rows = open_rows([folder / "outside.png", url])
    with pytest.raises(RowError, match="is a URL, and nothing is fetched from the network; download it first"):
        rows[1]


@posix
def test_paths_that_only_look_like_urls(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "a:b").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a:b" / "c.png")
    assert open_rows(["a:b/c.png"])[0].pixels().shape == (4, 4, 3)


def test_root(folder):
    root = folder / "inside"
    for path in ("a.png", "../inside/a.png", "./a.png", str(root / "a.png"), root / "a.png", b"a.png".decode()):
        assert open_rows([path], root=root)[0].pixels().shape == (4, 4, 3)
    for path in ("../outside.png", str(folder / "outside.png"), "..", "a/../../outside.png"):
        assert reason(path, root=root) == f"leads outside of root={str(root)!r}"
    assert reason(".", root=root) == "a directory, not a regular file"
    with pytest.raises(ValueError, match="'root' parameter must be an existing folder"):
        open_rows(["a.png"], root=folder / "nowhere")


@posix
def test_links_do_not_lead_out_of_root(folder):
    root = folder / "inside"
    (root / "out.png").symlink_to(folder / "outside.png")
    (root / "up").symlink_to(folder)
    (root / "within.png").symlink_to(root / "a.png")
    (folder / "door").symlink_to(root)
    (folder / "inside-too.png").write_bytes(b"x")
    assert reason("out.png", root=root) == f"leads outside of root={str(root)!r}"
    assert reason("up/outside.png", root=root) == f"leads outside of root={str(root)!r}"
    assert "leads outside" in reason("../inside-too.png", root=root)
    assert open_rows(["within.png"], root=root)[0].pixels().shape == (4, 4, 3)
    assert open_rows(["a.png"], root=folder / "door")[0].pixels().shape == (4, 4, 3)


def test_file_objects_stay_open_where_they_were(folder):
    with open(folder / "outside.png", "rb") as stream:
        stream.seek(11)
        rows = open_rows([stream, stream])
        assert rows[0].pixels().shape == rows[1].pixels().shape == (4, 4, 3)
        assert stream.tell() == 11
        assert not stream.closed
        assert rows.label(0) == f"row 0 ({str(folder / 'outside.png')!r})"
    assert "closed file" in reason(stream)


def test_file_objects_of_many_kinds(folder):
    data = (folder / "outside.png").read_bytes()
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.png", data)
    with (
        zipfile.ZipFile(folder / "a.zip") as archive,
        archive.open("a.png") as member,
        tempfile.SpooledTemporaryFile() as spooled,
        open(folder / "outside.png", "rb", buffering=0) as raw,
    ):
        spooled.write(data)
        for stream in (member, spooled, raw):
            assert open_rows([stream])[0].pixels().shape == (4, 4, 3)


@posix
@pytest.mark.timeout(60)
def test_file_objects_that_cannot_serve(folder):
    with open(folder / "outside.png", encoding="latin-1") as text:
        assert "gives str, not bytes; open it in mode 'rb'" in reason(text)
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe, open(writer, "wb"):
        assert "cannot be read" in reason(pipe)
    with open("/dev/zero", "rb") as endless:
        assert reason(endless) == "empty (0 bytes)"


def test_files_longer_than_any_image_are_not_read(tmp_path):
    with open(tmp_path / "long.bmp", "wb") as file:
        file.truncate(2**40 if os.name == "posix" else 2**30)
    assert reason(tmp_path / "long.bmp", max_pixels=1000).startswith("too large: ")
    with open(tmp_path / "long.bmp", "rb") as file:
        assert reason(file, max_pixels=1000).startswith("too large: ")
