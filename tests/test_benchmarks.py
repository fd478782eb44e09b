"""Benchmark scripts whose outcome is a promise, run small."""

import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


def run(script, *arguments):
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_killed_and_crowded_transforms_leave_no_wrong_row():
    printed = run("cache_faults.py", "--kills", "5", "--images", "400")
    assert "5 kills: 0 wrong rows, 0 errors afterwards" in printed
    assert "8 processes on one store: 0 wrong rows, 0 errors" in printed


@pytest.mark.slow
def test_killed_writers_of_a_shared_store_leave_no_wrong_row():
    printed = run("shared_cache_faults.py", "--kills", "8", "--rows", "2000")
    assert "8 writers, 8 kills" in printed
    assert printed.count(" 0 wrong rows") == 2


def test_plan_for_many_images_follows_its_assumptions():
    printed = run("billion_images.py", "--images", "1e6", "--image-kb", "100", "--cores", "4", "--decode-rate", "100")
    assert "read: 0.1 TB of images" in printed
    plan = [line.split() for line in printed.splitlines() if line.startswith("resnet50 ") and "GPU" in line]
    assert plan[0][5:7] == ["400", "decoding"]


@pytest.fixture
def stripes(tmp_path):
    """A set of images in train and test, and a file of weights."""
    from PIL import Image
    from safetensors.torch import save_file

    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.safetensors")
    for part, label, number in itertools.product(["train", "test"], range(2), range(3)):
        file = tmp_path / "stripes" / part / str(label) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((40, 48, 3), np.uint8)
        pixels[:: 2 + number, :, label] = 255
        Image.fromarray(pixels).save(file)
    return tmp_path / "stripes", ["--backbone", "test_resnet", "--weights", tmp_path / "weights.safetensors"]


@pytest.mark.slow
def test_recipes_are_compared_once(stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import transfer_recipes

    def printed(*options):
        monkeypatch.setattr("sys.argv", ["transfer_recipes.py", *map(str, options)])
        transfer_recipes.main()
        return capsys.readouterr().out

    folder, options = stripes
    options += ["--image-size", "32", "--epochs", "1", "--seeds", "1", "--per-class", "3"]
    options += ["--results", tmp_path / "results.jsonl", "--recipes", "comes", "C searched", "SGD", "--jobs", "1"]
    assert "3/3 stripes, 3 per class, seed 0" in printed(folder, *options)
    assert printed(folder, *options) == ""  # all of it is there
    table = printed("--results", tmp_path / "results.jsonl", "--table")
    assert "stripes, 3 images per class, batches of 32, 1 epochs, 32 px" in table
    assert table.count("(1 seeds)") == 3


@pytest.mark.slow
def test_ways_that_share_their_training_are_those_that_are_trained_alone(stripes, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import strategy_search

    from sktl.strategies import WiseFT

    folder, (_, backbone, _, weights) = stripes
    settings = {"image_size": 32, "epochs": 2, "batch_size": 4, "seed": 0}
    trial = SimpleNamespace(backbone=backbone, weights=str(weights), **settings)
    files, labels = strategy_search.read(folder / "train", None, 0)
    objects = {"WiseFT(alpha=0.5)": WiseFT(alpha=0.5)}
    outputs = []
    for way in strategy_search.WAYS:
        shared = strategy_search.TrainedOnce(trial, way).fit(files, labels)
        labels_given = shared.predict(files)
        alone = strategy_search.estimator(trial, strategy=objects.get(way, way)).fit(files, labels)
        outputs.append(alone.decision_function(files))
        np.testing.assert_array_equal(labels_given, alone.predict(files))
        np.testing.assert_array_equal(shared.model_.decision_function(files), outputs[-1])
    assert not any(itertools.starmap(np.array_equal, itertools.combinations(outputs[:3], 2)))
    assert len(strategy_search.TrainedOnce.trained) == 2


@pytest.mark.slow
def test_ways_beyond_one_process_are_compared(tmp_path):
    for package in ("distributed", "pyarrow"):
        pytest.importorskip(package)
    few = ["--files", "24", "--folder", str(tmp_path), "--repeats", "1", "--backbone", "test_resnet"]
    printed = run("scaling.py", "overhead", *few, "--ways", "transform_batches", "embed_to_parquet", "dask")
    table = [line.split() for line in printed.splitlines() if line.endswith(" of transform")]
    assert len(table) == 4
    assert "1.000" in table[0]
    assert len(list(tmp_path.glob("*.jpg"))) == 24
