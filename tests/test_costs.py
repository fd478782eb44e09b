"""What a fit costs: taken down by the estimator, and put beside the scores of a search."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from small_models import make_model, make_regressor, three_digits

from sktl import FineTuneClassifier, PretrainedFeatureTransformer, search_costs
from sktl._costs import PeakMemory

CPU = torch.device("cpu")


@pytest.mark.parametrize("strategy", ["feature_extraction", "lp_ft"])
@pytest.mark.parametrize("make", [make_model, make_regressor])
def test_costs_of_a_fit(make, strategy):
    model = make(strategy, max_epochs=3).fit(*three_digits())
    n_passes = 1 if strategy == "feature_extraction" else 4
    assert model.images_per_second_ == pytest.approx(45 * n_passes / model.fit_seconds_)
    assert model.peak_memory_ >= 0
    assert isinstance(model.peak_memory_, float)
    assert search_costs()["trainable_parameters"](model) == model.trainable_parameters_


def test_peak_is_what_a_block_takes_at_its_height():
    with PeakMemory(CPU) as memory:
        block = np.ones(2**24)  # 128 MiB
        for _ in range(20):
            block += 1  # long enough to be looked at
        del block
    assert 0.9 * 2**27 < memory.bytes < 1.5 * 2**27


def test_watching_ends_with_the_block():
    watch = PeakMemory(CPU)
    with pytest.raises(KeyError), watch:
        raise KeyError
    assert not watch._watcher.is_alive()


def test_peak_on_a_gpu_is_torchs_own(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(device))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350)
    with PeakMemory(torch.device("cuda", 1)) as memory:
        pass
    assert memory.bytes == 250.0
    assert calls == [torch.device("cuda", 1)]


def test_costs_stand_beside_scores_of_any_process():
    X, y = three_digits()
    model = FineTuneClassifier("sktl/tiny", image_shape=(8, 8), image_size=32, max_epochs=1, random_state=0)
    scoring = {"accuracy": "accuracy", **search_costs()}
    grid = {"strategy": ["feature_extraction", "bitfit"]}
    search = GridSearchCV(model, grid, scoring=scoring, refit="accuracy", cv=2, n_jobs=2, error_score="raise")
    results = search.fit(X, y).cv_results_
    head = 3 * 256 + 3
    np.testing.assert_array_equal(results["mean_test_trainable_parameters"], [head, head + 1916])
    for name in ("fit_seconds", "images_per_second", "peak_memory"):
        assert np.isfinite(results[f"mean_test_{name}"]).all()
        assert np.isfinite(results[f"split1_test_{name}"]).all()
    assert (results["mean_test_fit_seconds"] <= results["mean_fit_time"]).all()


def test_costs_of_pipelines():
    X, y = three_digits()
    classic = make_pipeline(PretrainedFeatureTransformer(image_shape=(8, 8), image_size=32), LogisticRegression())
    found = cross_validate(classic, X, y, cv=2, scoring=search_costs())
    assert np.isnan(found["test_trainable_parameters"]).all()
    tuned = make_pipeline("passthrough", make_model("feature_extraction"))
    found = cross_validate(tuned, X, y, cv=2, scoring=search_costs())
    assert (found["test_trainable_parameters"] == 16 * 3 + 3).all()
