"""Files that were damaged or made to do harm are refused, each by an error that says why, and nothing in them runs."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

import sktl
from sktl.exceptions import DamagedFileError, FormatVersionError, PersistenceError, UnsafeFileError, UntrustedTypeError

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "persistence_attacks.py"

REASONS = {
    "pickle as a member": (UnsafeFileError, "'estimator/evil.pkl', which no file of sktl has"),
    "member above the folder": (UnsafeFileError, "../evil.npy"),
    "member at an absolute path": (UnsafeFileError, "/tmp/evil.npy"),
    "link as a member": (UnsafeFileError, "is no plain file"),
    "two members of one name": (UnsafeFileError, "two members of the name 'estimator/schema.json'"),
    "zip bomb": (UnsafeFileError, "is compressed"),
    "manifest too large": (UnsafeFileError, "its manifest has 67,108,865 bytes"),
    "data before the zip": (UnsafeFileError, "not where it should be"),
    "data after the zip": (DamagedFileError, "its end is missing"),
    "cut off at the end": (DamagedFileError, "its end is missing"),
    "foreign zip": (DamagedFileError, "another program wrote it"),
    "picture": (DamagedFileError, "none of the files that sktl.save writes"),
    "wrong seal": (DamagedFileError, "SHA-256 does not match"),
    "newer version": (FormatVersionError, "Install a newer sktl"),
    "wrong hash of a member": (DamagedFileError, "member 'weights/0.safetensors' is not the one"),
    "pickle in place of weights": (DamagedFileError, "weights '0' cannot be read"),
    "oversize header of weights": (DamagedFileError, "header too large"),
    "weights of another network": (DamagedFileError, "Missing key"),
    "array of pickled objects": (DamagedFileError, "Object arrays cannot be loaded"),
    "array that claims to be huge": (DamagedFileError, "MemoryError"),
    "sparse matrix that unpacks to 512 MiB": (UnsafeFileError, "would unpack to 536,870,912 bytes"),
    "deep nesting": (DamagedFileError, "is no JSON"),
    "missing member": (DamagedFileError, "no item named"),
    "checkpoint as a setting": (UnsafeFileError, "checkpoint_path"),
    "overlay as a setting": (UnsafeFileError, "pretrained_cfg_overlay"),
    "architecture from a hub": (UnsafeFileError, "architecture"),
}


@pytest.fixture(scope="module")
def attacks():
    spec = importlib.util.spec_from_file_location("persistence_attacks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def saved(attacks, tmp_path_factory):
    """Bytes of a saved model, and what it was fitted on."""
    model, X = attacks.make_model()
    path = tmp_path_factory.mktemp("saved") / "model.sktl"
    sktl.save(model, path)
    return path.read_bytes(), X


def refusal(path, read=sktl.load):
    """Return the error that a file is refused with."""
    with pytest.raises(PersistenceError) as caught:
        read(path)
    return caught.value


def test_file_of_wrong_form_or_content_is_refused_and_says_why(attacks, saved, tmp_path):
    members = attacks.members_of(saved[0])
    path = tmp_path / "model.sktl"
    refused = {}
    for name, data in [*attacks.structures(saved[0], members), *attacks.contents(members)]:
        path.write_bytes(data)
        refused[name] = refusal(path)
        assert str(refused[name]).startswith(f"The file {str(path)!r} cannot be loaded: "), name
    for name, (error, reason) in REASONS.items():
        assert type(refused[name]) is error, name
        assert reason in str(refused[name]), name


def test_names_that_could_do_harm_are_refused_and_not_looked_up(attacks, saved, tmp_path, monkeypatch):
    path = tmp_path / "model.sktl"
    monkeypatch.delitem(sys.modules, "sktl.cli", raising=False)
    for name, data in attacks.names(attacks.members_of(saved[0])):
        path.write_bytes(data)
        error = refusal(path)
        assert type(error) is UntrustedTypeError, name
        assert error.names == sktl.inspect(path).untrusted
        assert all(part in str(error) for part in error.names)
    assert "sktl.cli" not in sys.modules


def test_file_with_a_changed_byte_is_refused(attacks, saved, tmp_path):
    path = tmp_path / "model.sktl"
    size = len(saved[0])
    for _, data in attacks.flips(saved[0], 40, seed=1):
        path.write_bytes(data)
        refusal(path)
    overhead = [index for index in range(size) if index < 60 or index > size - 400]
    for index in overhead[::7]:  # the zip's own fields, of which Python reads only some
        data = bytearray(saved[0])
        data[index] ^= 1
        path.write_bytes(data)
        refusal(path)


def test_inspect_refuses_what_load_refuses(attacks, saved, tmp_path):
    path = tmp_path / "model.sktl"
    for name, data in attacks.structures(saved[0], attacks.members_of(saved[0])):
        path.write_bytes(data)
        assert type(refusal(path, sktl.inspect)) is type(refusal(path)), name


def test_forgers_tools_alone_do_not_spoil_a_file(attacks, saved, tmp_path):
    (tmp_path / "model.sktl").write_bytes(attacks.forge(attacks.members_of(saved[0])))
    assert sktl.load(tmp_path / "model.sktl").predict(saved[1]).shape == (20,)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "model.sktl")
    assert "not a file" in str(refusal(tmp_path / "model.sktl"))
