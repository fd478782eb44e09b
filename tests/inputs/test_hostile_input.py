"""Damaged files: the short version of ``docs/benchmarks/hostile_input.py``, in this process."""

import collections
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from sktl.inputs import open_rows

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "hostile_input.py"
N_FILES = 500


@pytest.fixture(scope="module")
def script():
    if not SCRIPT.is_file():
        pytest.skip(f"no {SCRIPT.name} beside these tests")
    spec = importlib.util.spec_from_file_location("hostile_input", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::sktl.exceptions.InputWarning")
def test_what_is_damaged_starts_whole(script):
    for name, data in script.build_seeds().items():
        assert open_rows([data])[0].pixels().size > 0, name


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_decode_or_raise_the_documented_error(script):
    seeds = script.build_seeds()
    outcomes = collections.Counter(script.judge(script.make_file(number, 1, seeds)[1]) for number in range(N_FILES))
    assert set(outcomes) == set(script.EXPECTED), outcomes


@pytest.mark.slow
def test_the_script_itself(script):
    done = subprocess.run([sys.executable, SCRIPT, "--files", "40"], capture_output=True, text=True, check=True)
    assert "slowest file" in done.stdout
