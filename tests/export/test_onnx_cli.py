"""``sktl export`` and ``sktl predict --runtime onnx``: the same answers by another way."""

import contextlib
import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest
from small_models import make_network

from sktl import FineTuneClassifier, PretrainedFeatureTransformer, export_onnx, save
from sktl.cli import main

for package in ("onnx", "onnxruntime", "onnxscript", "skl2onnx"):
    pytest.importorskip(package, reason='needs the extra: pip install "sktl[onnx]"')

from sktl.export import OnnxModel  # noqa: E402


def run(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


@pytest.fixture(scope="module")
def model(image_paths, tmp_path_factory):
    """File of a fitted model."""
    path = tmp_path_factory.mktemp("models") / "model.sktl"
    save(FineTuneClassifier("test_resnet", "feature_extraction", weights=None, image_size=32).fit(*image_paths), path)
    return path


@pytest.fixture(scope="module")
def exported(model):
    """What ``sktl export`` made of it."""
    path = model.with_suffix(".onnx")
    done = run("export", model, path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{path}  (")
    return path


def test_graph_and_estimator_predict_the_same(model, exported, image_folder):
    plain = run("predict", model, image_folder, "--proba", "--csv")
    for words in ([exported], [exported, "--runtime", "onnx"], [model, "--runtime", "onnx"]):
        done = run("predict", *words, image_folder, "--proba", "--csv")
        assert (done.code, done.err) == (0, "")
        for found, expected in zip(
            csv.reader(done.out.splitlines()[1:]), csv.reader(plain.out.splitlines()[1:]), strict=True
        ):
            assert found[:2] == expected[:2]
            assert [float(value) for value in found[2:]] == pytest.approx(list(map(float, expected[2:])), abs=0.01)


def test_graph_runs_once_per_file(exported, image_paths, monkeypatch):
    read, runs = OnnxModel._batches, []
    monkeypatch.setattr(OnnxModel, "_batches", lambda model, X: runs.append(len(X)) or read(model, X))
    done = run("predict", exported, *image_paths[0][:3], "--csv")
    assert (done.code, runs) == (0, [3])
    labels, proba = OnnxModel(exported).predict_with_proba(image_paths[0][:3])
    assert [row["label"] for row in csv.DictReader(done.out.splitlines())] == labels.tolist()
    np.testing.assert_array_equal(labels, OnnxModel(exported).predict(image_paths[0][:3]))
    np.testing.assert_array_equal(proba, OnnxModel(exported).predict_proba(image_paths[0][:3]))


def test_bad_files_are_reported_and_the_others_predicted(exported, image_paths, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not really")
    done = run("predict", exported, tmp_path / "broken.jpg", image_paths[0][0])
    assert done.code == 1
    assert done.out.startswith(image_paths[0][0])
    assert f"{tmp_path / 'broken.jpg'}: broken JPEG file" in done.err


@pytest.mark.filterwarnings("ignore::sktl.exceptions.InputWarning")
def test_real_broken_files_are_treated_alike(model, exported, shared_data):
    files = sorted(path for path in (shared_data / "broken").iterdir() if path.suffix != ".tsv")
    plain, graph = (run("predict", path, *files, "--csv") for path in (model, exported))
    assert graph.code == plain.code == 1
    assert [row[0] for row in csv.reader(graph.out.splitlines())] == [
        row[0] for row in csv.reader(plain.out.splitlines())
    ]
    assert sorted(graph.err.splitlines()) == sorted(plain.err.splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "{model}", "model.pb"], "must end in .onnx"),
        (["export", "{exported}", "{folder}/again.onnx"], "got OnnxModel instead"),
        (["export", "{model}", "{folder}/nowhere/model.onnx"], "No such file or directory"),
        (["predict", "nowhere.onnx", "a.png"], "There is no model 'nowhere.onnx'"),
    ],
)
def test_refusals(words, message, model, exported, tmp_path):
    done = run(*(word.format(model=model, exported=exported, folder=tmp_path) for word in words))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("sktl: error: ")
    assert message in done.err


def test_graph_that_predicts_nothing(image_paths, tmp_path):
    embed = PretrainedFeatureTransformer(make_network(), image_size=16).fit(image_paths[0])
    path = export_onnx(embed, tmp_path / "embed.onnx")
    done = run("predict", path, image_paths[0][0])
    assert done.code == 2
    assert "holds no classifier" in done.err
