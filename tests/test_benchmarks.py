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
