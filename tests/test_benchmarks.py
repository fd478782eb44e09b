"""Benchmark scripts whose outcome is a promise, run small."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


def run(script, *arguments):
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
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
