"""Hashes of files: asked for once per state of the file, and never those of another state."""

import os
import time

import numpy as np
import pytest
from PIL import Image

from sktl.inputs import RowError, open_rows
from sktl.inputs._files import LocalFile


@pytest.fixture
def settled_file(tmp_path):
    """A picture whose last change lies far enough back to be remembered; times of change cannot be set, so it waits."""
    path = tmp_path / "a.bmp"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    time.sleep(3.1)
    return path


@pytest.fixture
def reads(monkeypatch):
    found = []
    read = LocalFile.read
    monkeypatch.setattr(LocalFile, "read", lambda file: found.append(file) or read(file))
    return found


def test_a_settled_file_is_read_once_for_its_hash(settled_file, reads):
    digests = {open_rows([settled_file])[0].digest for _ in range(5)}
    assert len(digests) == len(reads) == 1
    assert open_rows([settled_file])[0].pixels().shape == (4, 4, 3)
    assert len(reads) == 2


def test_a_file_rewritten_in_place_is_another(settled_file):
    before = open_rows([settled_file])[0].digest
    status = os.stat(settled_file)
    Image.fromarray(np.full((4, 4, 3), 255, np.uint8)).save(settled_file)
    os.utime(settled_file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.path.getsize(settled_file) == status.st_size
    row = open_rows([settled_file])[0]
    assert row.digest != before
    assert row.pixels().min() == 255


def test_a_file_that_changes_between_hash_and_pixels_is_refused(settled_file):
    _ = open_rows([settled_file])[0].digest
    row = open_rows([settled_file])[0]
    Image.fromarray(np.full((4, 4, 3), 255, np.uint8)).save(settled_file)
    with pytest.raises(RowError, match="changed while it was read"):
        row.pixels()


def test_a_fresh_file_is_hashed_each_time(tmp_path, reads):
    path = tmp_path / "a.bmp"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    assert open_rows([path])[0].digest == open_rows([path])[0].digest
    assert len(reads) == 2


def test_a_file_is_settled_when_it_is_opened_not_when_it_is_hashed(tmp_path, reads, monkeypatch):
    path = tmp_path / "a.bmp"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    row = open_rows([path])[0]
    now = time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: now)
    _ = row.digest  # of what may have been rewritten meanwhile, within one tick of the file system's clock
    open_rows([path])[0]
    assert len(reads) == 2
