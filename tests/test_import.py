"""``import sktl`` stays light: heavy libraries are loaded when something needs them."""

import json
import subprocess
import sys

import pytest

HEAVY = [
    "timm",
    "transformers",
    "torchvision",
    "matplotlib",
    "polars",
    "peft",
    "openvino",
    "ray",
    "dask",
    "fastapi",
    "onnx",
    "onnxruntime",
    "skl2onnx",
    "uvicorn",
    "prometheus_client",
]


@pytest.fixture(scope="module")
def modules_after_import():
    """Names of all modules that a fresh interpreter holds once every public name of sktl is loaded."""
    code = "import json, sys; from sktl import *; print(json.dumps(sorted(sys.modules)))"
    return set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))


@pytest.mark.parametrize("name", HEAVY)
def test_import_does_not_load(name, modules_after_import):
    assert name not in modules_after_import


def test_package_alone_loads_no_torch():
    """The command line sets up its process before torch starts its threads."""
    code = "import sys, sktl, sktl.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_import_warns_of_nothing_and_prints_nothing():
    done = subprocess.run([sys.executable, "-W", "error", "-c", "from sktl import *"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_threads_of_the_command_line_sleep_while_they_wait_unless_told_otherwise(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    code = (
        "import os; import sktl.__main__; "
        "print([os.environ.get(name) for name in ('OMP_WAIT_POLICY', 'OPENBLAS_THREAD_TIMEOUT')])"
    )

    def settings():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert settings() == "['PASSIVE', '4']\n"
    monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", "20")
    assert settings() == "['PASSIVE', '20']\n"
