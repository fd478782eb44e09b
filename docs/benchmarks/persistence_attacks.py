"""Does a file that was damaged, or made to do harm, ever load or run anything?

A fitted model is saved, and then a thousand copies with one changed byte each, and some dozens of files that an
attacker could make, hashes and seal included, are given to ``sktl.load``::

    python docs/benchmarks/persistence_attacks.py --flips 1000

Every one must end in an error of sktl's own. Python's audit hooks watch for programs that are started and for pickles
that are read. The exit status is 1 if a file loaded, raised anything else, or had anything run.
"""

import argparse
import io
import json
import pickle
import random
import stat
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np

import sktl
from sktl.exceptions import PersistenceError
from sktl.persistence import _container

SEEN = []
MESSAGES = []
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "exec")


def watch(event, arguments):
    if SEEN and event in WATCHED and (event != "exec" or "<string>" in str(arguments)):
        SEEN.append(event)


def check_that_harm_is_seen():
    SEEN[:] = ["watching"]
    pickle.loads(pickle.dumps(Harm()))
    if not {"pickle.find_class", "exec"} <= set(SEEN):
        raise RuntimeError("The audit hook does not see a pickle that runs code.")
    SEEN.clear()


class Harm:
    """Unpickled, it leaves a trace."""

    def __reduce__(self):
        return exec, ("harm = 1",)


def make_model():
    """A small classifier on a network that trains in no time."""
    X = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    model = sktl.FineTuneClassifier("test_efficientnet", "feature_extraction", weights=None, image_size=32)
    return model.fit(X, np.arange(20) % 2), X


def members_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forge(members, *, manifest=None, seal=True):
    """Write a file as sktl.save does, with all hashes right, but with any members."""
    path = Path(tempfile.mkdtemp()) / "forged.sktl"
    head = {**json.loads(members["manifest.json"]), **(manifest or {})}
    _container.write_container(path, {name: data for name, data in members.items() if name != "manifest.json"}, head)
    return path.read_bytes()


def rezip(members, change=lambda infos: infos):
    """Write a zip by hand, with the end of a file of sktl's; ``change`` may alter its list of (info, data)."""
    buffer = io.BytesIO()
    infos = [(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data) for name, data in members.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for info, data in change(infos):
                archive.writestr(info, data, compress_type=info.compress_type)
            archive.comment = b"sktl-sha256:" + b"0" * 64
    return buffer.getvalue()


def with_member(members, name, data=b"", **settings):
    """Add a member."""

    def change(infos):
        info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        for key, value in settings.items():
            setattr(info, key, value)
        return [*infos, (info, data)]

    return rezip(members, change)


def with_node(members, node):
    """Put a node of skops into the estimator's state."""
    schema = json.loads(members["estimator/schema.json"])
    schema["content"]["content"]["verbose"] = node
    return {**members, "estimator/schema.json": json.dumps(schema).encode()}


def plain(value):
    return {"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode", "content": json.dumps(value)}


def named(loader, full_name, **content):
    module, _, name = full_name.rpartition(".")
    return {"__class__": name, "__module__": module, "__loader__": loader, **content}


def arguments(*values):
    return named("TupleNode", "builtins.tuple", content=[plain(value) for value in values])


def edit_recipe(members, edit):
    """Change the recipe of the network, wherever skops put it."""
    schema = json.loads(members["estimator/schema.json"])
    edit(schema["content"]["content"]["backbone_"]["content"]["content"]["recipe"]["content"])
    return {**members, "estimator/schema.json": json.dumps(schema).encode()}


def setting(name, value):
    def edit(recipe):
        recipe["kwargs"]["content"][name] = plain(value)
        recipe["kwargs"]["key_types"]["content"].append(named("TypeNode", "builtins.str"))

    return edit


def structures(data, members):
    """Files whose form no file of sktl has."""
    yield "pickle as a member", with_member(members, "estimator/evil.pkl", pickle.dumps(Harm()))
    yield "member above the folder", with_member(members, "../evil.npy")
    yield "member at an absolute path", with_member(members, "/tmp/evil.npy")
    yield "member at a path of Windows", with_member(members, "C:\\evil.npy")
    yield "member with a zero byte in its name", with_member(members, "estimator/a\0.npy")
    yield "link as a member", with_member(members, "estimator/1.npy", b"/etc/passwd", external_attr=stat.S_IFLNK << 16)
    yield "two members of one name", with_member(members, "estimator/schema.json", b"{}")
    bomb = with_member(members, "estimator/1.npy", bytes(10**8), compress_type=zipfile.ZIP_DEFLATED)
    yield "zip bomb", bomb
    yield "manifest too large", rezip({**members, "manifest.json": b" " * (2**26 + 1)})
    yield "data before the zip", b"PK\x03\x04" + bytes(60) + data
    yield "data after the zip", data + bytes(100)
    yield "zip without members", rezip({})
    yield "cut off at the end", data[:-1]
    yield "cut in half", data[: len(data) // 2]
    yield "first bytes only", data[:10]
    yield "empty file", b""
    foreign = io.BytesIO()
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("word/document.xml", b"<document/>")
    yield "foreign zip", foreign.getvalue()
    yield "picture", b"\x89PNG\r\n\x1a\n" + bytes(500)
    yield "pickle", pickle.dumps(Harm())
    yield "wrong seal", data[:-1] + (b"0" if data[-1:] != b"0" else b"1")


def contents(members):
    """Files of the right form, all hashes right, with something else in them."""
    npy = next(name for name in members if name.endswith(".npy"))
    hashes = json.loads(members["manifest.json"])["members"]
    objects = io.BytesIO()
    np.save(objects, np.array([Harm()], dtype=object), allow_pickle=True)
    large = io.BytesIO()
    np.lib.format.write_array_header_1_0(large, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)})
    sparse = io.BytesIO()
    with zipfile.ZipFile(sparse, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", bytes(2**29))
    weights = members["weights/0.safetensors"]
    yield "newer version", newer(members)
    yield "wrong hash of a member", wrong_hash(members, hashes)
    yield "pickle in place of weights", forge({**members, "weights/0.safetensors": pickle.dumps(Harm())})
    yield "oversize header of weights", forge({**members, "weights/0.safetensors": b"\xff" * 7 + b"\x7f" + weights[8:]})
    yield "weights of another network", forge({**members, "weights/0.safetensors": other_weights()})
    yield "array of pickled objects", forge({**members, npy: objects.getvalue()})
    yield "array that claims to be huge", forge({**members, npy: large.getvalue()})
    yield "sparse matrix that unpacks to 512 MiB", forge({**members, "estimator/1.npz": sparse.getvalue()})
    yield "deep nesting", forge({**members, "estimator/schema.json": b"[" * 10**6})
    yield "no JSON", forge({**members, "estimator/schema.json": b"\x80\x04."})
    yield "missing member", forge({name: each for name, each in members.items() if name != npy})
    yield "checkpoint as a setting", forge(edit_recipe(members, setting("checkpoint_path", "/tmp/evil.pth")))
    overlay = setting("pretrained_cfg_overlay", {"file": "/tmp/evil.pth"})
    yield "overlay as a setting", forge(edit_recipe(members, overlay))
    from_hub = {"architecture": plain("hf-hub:evil/model")}
    yield "architecture from a hub", forge(edit_recipe(members, lambda recipe: recipe.update(from_hub)))


def newer(members):
    version, _container.FORMAT_VERSION = _container.FORMAT_VERSION, _container.FORMAT_VERSION + 1
    try:
        return forge(members, manifest={"format_version": version + 1})
    finally:
        _container.FORMAT_VERSION = version


def wrong_hash(members, hashes):
    name = "weights/0.safetensors"
    data = bytearray(forge(members))
    where = data.find(hashes[name]["sha256"].encode())
    data[where : where + 64] = b"0" * 64
    return reseal(bytes(data))


def reseal(data):
    """Put the right seal on a file that was changed."""
    file = io.BytesIO(data)
    extents, _ = _container._read_layout(file)
    return data[:-64] + _container._seal(file, extents).encode()


def other_weights():
    import safetensors.torch
    import torch

    return safetensors.torch.save({"weight": torch.zeros(3)})


def names(members):
    """Files that name classes and functions that could do harm."""
    for loader, name in (
        ("FunctionNode", "os.system"),
        ("TypeNode", "builtins.exec"),
        ("FunctionNode", "sklearn.datasets._base.load_files"),
        ("FunctionNode", "sktl.cli.main"),
        ("FunctionNode", "sktl.finetune.resolve_strategy"),
        ("FunctionNode", "sktl.__main__.main"),
        ("TypeNode", "no_such_module.Thing"),
    ):
        yield f"{loader} {name}", forge(with_node(members, named(loader, name)))
    for loader, name in (
        ("ConstructorFromReduceNode", "subprocess.Popen"),
        ("ConstructorFromReduceNode", "pathlib.Path"),
        ("ObjectNode", "sklearn.utils._mocking.MockDataFrame"),
        ("ObjectNode", "joblib.memory.Memory"),
    ):
        yield f"{loader} {name}", forge(with_node(members, named(loader, name, content=arguments("touch harm"))))
    call = {
        "func": named("FunctionNode", "os.system"),
        "args": arguments("touch harm"),
        "kwds": plain({}),
        "namespace": plain(None),
    }
    yield "partial", forge(with_node(members, named("PartialNode", "functools.partial", content=call)))
    caller = named("OperatorFuncNode", "operator.methodcaller", attrs=arguments("fit"))
    yield "operator", forge(with_node(members, caller))
    owner = named("ObjectNode", "sklearn.dummy.DummyClassifier", content=plain({}))
    method = named("MethodNode", "sklearn.dummy.DummyClassifier", content={"func": "fit", "obj": owner})
    yield "method", forge(with_node(members, method))


def try_file(path, data, X):
    """Load a file; return what came of it."""
    path.write_bytes(data)
    del SEEN[1:]
    SEEN[:] = ["watching"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sktl.load(path).predict(X[:2])
        outcome = "LOADED"
    except PersistenceError as error:
        outcome = type(error).__name__
        if MESSAGES:
            print(f"    {' '.join(str(error).split())[:300]}")
    except Exception as error:
        outcome = f"OTHER ERROR {type(error).__name__}: {error}"
    ran, SEEN[:] = SEEN[1:], []
    return f"RAN {', '.join(ran)}" if ran else outcome


def flips(data, n_flips, seed):
    generator = random.Random(seed)
    for _ in range(n_flips):
        place = generator.randrange(len(data))
        changed = bytearray(data)
        changed[place] ^= generator.randrange(1, 256)
        yield f"byte {place}", bytes(changed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000, help="files with one changed byte (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="start of the generator (default: 0)")
    parser.add_argument("--messages", action="store_true", help="print the errors' messages")
    options = parser.parse_args()
    MESSAGES[:] = ["wanted"] * options.messages
    sys.addaudithook(watch)
    check_that_harm_is_seen()
    model, X = make_model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.sktl")
        sktl.save(model, path)
        sktl.load(path).predict(X)  # so that all is imported
        data = path.read_bytes()
        members = members_of(data)
        attempts = [*structures(data, members), *contents(members), *names(members)]
        bad = 0
        for name, attack in attempts:
            outcome = try_file(path, attack, X)
            bad += not outcome.endswith("Error") or " " in outcome
            print(f"{name:50s} {outcome}")
        outcomes = [(name, try_file(path, changed, X)) for name, changed in flips(data, options.flips, options.seed)]
        wrong = [f"{name}: {outcome}" for name, outcome in outcomes if not outcome.endswith("Error") or " " in outcome]
        print(*wrong, sep="\n")
        print(f"{len(attempts)} attacks, {bad} of them not refused by an error of sktl")
        print(f"{options.flips} flipped bytes, {len(wrong)} of them not refused by an error of sktl")
        return int(bad + len(wrong) > 0)


if __name__ == "__main__":
    sys.exit(main())
