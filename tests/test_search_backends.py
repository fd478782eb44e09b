"""A search gives the same wherever it runs: in this thread, in threads, in processes."""

import hashlib
import os
from typing import ClassVar

import joblib
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from small_models import difference, make_model, make_network, three_digits, weights_of
from torch import nn

from sktl import PretrainedFeatureTransformer
from sktl.embedding import default_store

SMALL = {"image_shape": (8, 8), "image_size": 16, "dtype": "float32", "device": "cpu", "runtime": "torch"}


def fingerprint_of_weights(model, X, y):
    """A score that is the same number only if all weights are the same to the last bit."""
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights_of(model).values()))
    return float(int.from_bytes(digest.digest()[:6], "big"))


class Counting(nn.Module):
    """Counts the pictures that its copies see; blank ones only ask for the width."""

    seen: ClassVar[list] = []  # threads may append to it side by side

    def forward(self, images):
        Counting.seen.append(int(images.flatten(1).std(dim=1).gt(0).sum()))
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def search(model, grid, backend, **options):
    default_store().clear()
    with joblib.parallel_backend(backend, n_jobs=1 if backend == "sequential" else 2):
        return GridSearchCV(model, grid, cv=2, error_score="raise", **options).fit(*three_digits())


@pytest.mark.parametrize("backend", ["threading", "loky"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_same_weights_in_every_candidate_and_fold(backend, n_threads, torch_threads):
    """Dropout and batch normalisation too. Workers have less threads than 2; and torch has one generator for all."""
    torch_threads(n_threads)
    model = make_model(max_epochs=2)
    grid = {"strategy": ["feature_extraction", "fine_tuning", "from_scratch"], "learning_rate": [0.01, 0.003]}
    alone = search(model, grid, "sequential", scoring=fingerprint_of_weights)
    together = search(model, grid, backend, scoring=fingerprint_of_weights)
    for fold in ("split0_test_score", "split1_test_score"):
        np.testing.assert_array_equal(together.cv_results_[fold], alone.cv_results_[fold])
    assert len(set(alone.cv_results_["split0_test_score"])) == 5  # a head alone has no learning rate
    assert difference(alone.best_estimator_, together.best_estimator_) == 0.0
    X = three_digits()[0]
    np.testing.assert_array_equal(alone.predict_proba(X), together.predict_proba(X))


@pytest.mark.parametrize("backend", ["sequential", "threading"])
def test_nothing_frozen_is_computed_twice(backend):
    embed = PretrainedFeatureTransformer(Counting(), batch_size=1, **SMALL)
    model = make_pipeline(embed, LogisticRegression(max_iter=1000))
    Counting.seen.clear()
    search(model, {"logisticregression__C": [0.1, 1.0, 10.0]}, backend)
    n_distinct = len(np.unique(three_digits()[0], axis=0))
    assert n_distinct <= sum(Counting.seen) <= n_distinct + 5  # the runtime tries itself on a few


def test_global_generators_stay_when_threads_train():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    search(make_model(), {"learning_rate": [0.01, 0.003]}, "threading")
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


class Threads(nn.Module):
    """Writes down how many threads a pass may use, in whatever process it runs."""

    def __init__(self, log):
        super().__init__()
        self.log = str(log)
        self.net = make_network()

    def forward(self, images):
        with open(self.log, "a") as log:
            log.write(f"{os.getpid()} {torch.get_num_threads()}\n")
        return self.net(images)


def test_workers_share_the_cores(tmp_path, monkeypatch):
    """joblib bounds the threads of its workers, and nothing of ours unbinds them."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    model = make_model("fine_tuning").set_params(backbone=Threads(tmp_path / "log"))
    with joblib.parallel_config("loky", n_jobs=3):  # a number that no other test has: workers are started anew
        GridSearchCV(model, {"learning_rate": [0.01, 0.003]}, cv=2, error_score="raise", refit=False).fit(
            *three_digits()
        )
    entries = {tuple(map(int, line.split())) for line in (tmp_path / "log").read_text().splitlines()}
    workers = {pid: n_threads for pid, n_threads in entries if pid != os.getpid()}
    assert workers
    assert max(workers.values()) <= max(1, joblib.cpu_count() // 3)
