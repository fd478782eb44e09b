"""A file is written whole or not at all: whatever goes wrong, what was there before stays."""

import os
import stat
from functools import partial

import pytest
from saved_models import digits

import sktl
from sktl.exceptions import UnsupportedObjectError
from sktl.persistence import _container


@pytest.fixture(scope="module")
def model():
    return sktl.PretrainedFeatureTransformer("test_efficientnet", weights=None, image_size=32).fit(["any.png"])


@pytest.fixture
def old(tmp_path):
    """A file that must not be lost."""
    path = tmp_path / "model.sktl"
    path.write_bytes(b"old")
    return path


def assert_untouched(path):
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_full_disk(model, old, monkeypatch):
    def fail(file, members):
        file.write(b"PK half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_container, "_write_members", fail)
    with pytest.raises(OSError, match="No space left"):
        sktl.save(model, old)
    assert_untouched(old)


def test_file_that_may_not_grow(model, old):
    """As on a full disk, the system itself refuses to write on."""
    resource = pytest.importorskip("resource", reason="limits of file sizes are POSIX'")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            sktl.save(model, old)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_untouched(old)


def test_interrupt(model, old, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sktl.save(model, old)
    assert_untouched(old)


def test_folder_that_is_not_there(model, tmp_path):
    with pytest.raises(FileNotFoundError):
        sktl.save(model, tmp_path / "nowhere" / "model.sktl")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written_to(model, old):
    old.parent.chmod(0o500)
    with pytest.raises(PermissionError):
        sktl.save(model, old)
    old.parent.chmod(0o700)
    assert_untouched(old)


def test_folder_in_place_of_the_file(model, tmp_path):
    (tmp_path / "model.sktl").mkdir()
    with pytest.raises(OSError, match="directory"):
        sktl.save(model, tmp_path / "model.sktl")
    assert os.listdir(tmp_path) == ["model.sktl"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX'")
def test_file_is_replaced_with_its_permissions_and_through_links(model, old, tmp_path):
    old.chmod(0o640)
    (tmp_path / "link.sktl").symlink_to(old)
    sktl.save(model, tmp_path / "link.sktl")
    assert (tmp_path / "link.sktl").is_symlink()
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert sktl.inspect(old).networks[0]["backbone"] == "test_efficientnet"
    assert sorted(os.listdir(tmp_path)) == ["link.sktl", "model.sktl"]


def make_augmentation():
    def leave(pixels, rng):
        return pixels

    return leave


@pytest.mark.parametrize("hidden", [lambda pixels, rng: pixels, make_augmentation(), partial(make_augmentation())])
def test_functions_that_nobody_could_look_up_are_refused(old, hidden):
    model = sktl.FineTuneClassifier(strategy="feature_extraction", augment=hidden, image_shape=(8, 8), image_size=32)
    with pytest.raises(UnsupportedObjectError, match=r"'augment' holds '.*', which is defined inside a function"):
        sktl.save(model.fit(*digits()), old)
    assert_untouched(old)


def keep(pixels, rng):
    return pixels


def test_functions_of_a_module_are_found_again(tmp_path):
    model = sktl.FineTuneClassifier(strategy="feature_extraction", augment=keep, image_shape=(8, 8), image_size=32)
    sktl.save(model.fit(*digits()), tmp_path / "model.sktl")
    assert sktl.load(tmp_path / "model.sktl", trusted=[keep]).augment is keep
