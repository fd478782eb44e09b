"""Several fits beside each other: on one GPU they say so, and none stays in memory when it is done."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from sklearn.model_selection import GridSearchCV
from small_models import make_model, three_digits

from sktl._finetuning import _company
from sktl.exceptions import DeviceWarning
from sktl.training import Network

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    """Locks in a folder of the test, and nothing told yet."""
    monkeypatch.setattr(_company.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(_company, "_told", False)
    pytest.importorskip("fcntl", reason="needs locks on files, as Linux and macOS have them")


def test_company_on_a_gpu_is_told_once():
    with _company.warned_of_company(CUDA):
        with (
            pytest.warns(DeviceWarning, match=r"training on cuda:0 .*n_jobs=1.*CUDA_VISIBLE_DEVICES"),
            _company.warned_of_company(CUDA),
        ):
            pass
        with _company.warned_of_company(CUDA):
            pass


def test_no_company_is_no_warning():
    with _company.warned_of_company(CUDA):
        pass
    with _company.warned_of_company(CUDA), _company.warned_of_company(torch.device("cuda", 1)):
        pass
    with _company.warned_of_company(torch.device("cpu")), _company.warned_of_company(torch.device("cpu")):
        pass


def test_another_process_is_company(tmp_path):
    code = """
import sys, tempfile, torch
tempfile.gettempdir = lambda: sys.argv[1]
from sktl._finetuning._company import warned_of_company
with warned_of_company(torch.device("cuda", 0)):
    print("training", flush=True)
    sys.stdin.readline()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes) as other:
        assert other.stdout.readline() == "training\n"
        with pytest.warns(DeviceWarning), _company.warned_of_company(CUDA):
            pass
        other.kill()  # a lock does not outlive its process
        other.wait()
    with _company.warned_of_company(CUDA):
        pass


def test_a_fit_heeds_company(monkeypatch):
    monkeypatch.setattr(_company, "_is_shared", lambda device: True)
    with pytest.warns(DeviceWarning), _company.warned_of_company(torch.device("cpu")):
        make_model("fine_tuning").fit(*three_digits())
    _company._told = False
    with _company.warned_of_company(torch.device("cpu")):
        make_model("feature_extraction").fit(*three_digits())  # trains nothing there


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning", "partial"])
def test_candidates_of_a_search_do_not_stay_in_memory(monkeypatch, strategy):
    alive = weakref.WeakSet()
    start = Network.__init__

    def noted(network, *args, **kwargs):
        start(network, *args, **kwargs)
        alive.add(network)

    monkeypatch.setattr(Network, "__init__", noted)
    grid = {"weight_decay": [0.01 * step for step in range(12)]}
    search = GridSearchCV(make_model(strategy), grid, cv=2, error_score="raise").fit(*three_digits())
    gc.collect()
    assert list(alive) == [search.best_estimator_.net_.module_]
