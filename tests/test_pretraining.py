"""The recipe of the bundled backbone, run small from the first picture to a file that sktl can load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]


def run(script, *arguments):
    command = [sys.executable, "-m", f"examples.pretraining.{script}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_recipe_goes_from_pictures_to_weights_and_a_run_can_be_cut_in_two(tmp_path):
    images, start = tmp_path / "images", ROOT / "sktl/backbones/bundled/tiny-1.safetensors"
    run("generate", "--output", images, "--n-images", 60, "--shard-size", 60)
    train = ["train", "--images", images, "--start", start, "--batch-size", 8, "--n-images", 60, "--log-every", 1]
    at_once = run(*train, "--output", tmp_path / "whole.pt", "--steps", 4)
    run(*train, "--output", tmp_path / "cut.pt", "--steps", 4, "--stop-after", 2)
    rest = run(*train, "--output", tmp_path / "cut.pt", "--steps", 4)
    losses = [line.split("min")[1] for line in (at_once + rest).splitlines() if "step      4" in line]
    assert len(losses) == 2
    assert losses[0] == losses[1]

    run("export", "--checkpoint", tmp_path / "cut.pt", "--version", 9, "--output", tmp_path)
    about = json.loads((tmp_path / "tiny-9.json").read_text())
    assert about["version"] == 9
    new, old = load_file(tmp_path / "tiny-9.safetensors"), load_file(start)
    assert new.keys() == old.keys()
    assert any(not new[name].equal(old[name]) for name in new)
