"""A fitted estimator goes through pickle and joblib and predicts the same to the last bit, also in another process."""

import copy
import io
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from small_models import WAYS

from sktl import FineTuneClassifier, PretrainedFeatureTransformer
from sktl.backbones import pack_tensors
from sktl.embedding import default_store
from sktl.strategies import PartialFineTuning

IMAGES = {"image_shape": (8, 8), "image_size": 32}


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:100], np.array(["class " + str(label) for label in y[:100]])


def make_pipe():
    return make_pipeline(PretrainedFeatureTransformer(**IMAGES), LogisticRegression(max_iter=1000))


def make_search():
    model = FineTuneClassifier(max_epochs=1, random_state=0, **IMAGES)
    return GridSearchCV(model, {"strategy": ["feature_extraction", PartialFineTuning()]}, cv=2, error_score="raise")


@pytest.fixture(scope="module")
def models(digits):
    """Fitted models by name: one per strategy, a pipeline, a search."""
    X, y = digits
    made = {
        name: FineTuneClassifier(strategy=name, max_epochs=1, random_state=0, batch_size=64, **IMAGES) for name in WAYS
    }
    return {name: model.fit(X, y) for name, model in {**made, "pipeline": make_pipe(), "search": make_search()}.items()}


NAMES = [*WAYS, "pipeline", "search"]


def joblib_round_trip(model):
    buffer = io.BytesIO()
    joblib.dump(model, buffer, compress=1)
    buffer.seek(0)
    return joblib.load(buffer)


@pytest.mark.parametrize("copied", [lambda model: pickle.loads(pickle.dumps(model)), joblib_round_trip, copy.deepcopy])
@pytest.mark.parametrize("name", NAMES)
def test_copy_predicts_the_same(models, digits, name, copied):
    model = models[name]
    expected = model.predict_proba(digits[0])
    default_store().clear()
    restored = copied(model)
    np.testing.assert_array_equal(restored.predict_proba(digits[0]), expected)
    np.testing.assert_array_equal(restored.predict(digits[0]), model.predict(digits[0]))
    np.testing.assert_array_equal(restored.classes_, model.classes_)


def test_another_process_predicts_the_same(models, digits, tmp_path):
    for name, model in models.items():
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(model))
    np.save(tmp_path / "X.npy", digits[0])
    code = """
import pickle, sys, pathlib, numpy as np
folder = pathlib.Path(sys.argv[1])
for path in folder.glob("*.pickle"):
    np.save(path.with_suffix(".npy"), pickle.loads(path.read_bytes()).predict_proba(np.load(folder / "X.npy")))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    for name, model in models.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), model.predict_proba(digits[0]), err_msg=name)


@pytest.mark.parametrize("name", WAYS)
def test_pickle_holds_the_weights_and_little_else(models, name):
    model = models[name]
    n_bytes = pack_tensors(model.net_.module_.state_dict()).nbytes
    assert len(pickle.dumps(model)) <= 1.05 * n_bytes


@pytest.mark.parametrize("name", WAYS)
def test_restored_model_is_whole(models, digits, name):
    restored = pickle.loads(pickle.dumps(models[name]))
    assert restored.history_ == models[name].history_
    assert restored.get_params().keys() == models[name].get_params().keys()
    assert not restored.net_.module_.training
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(restored)).predict(digits[0]), restored.predict(digits[0]))
    restored.fit(*digits)
    np.testing.assert_array_equal(restored.predict_proba(digits[0]), models[name].predict_proba(digits[0]))


@pytest.mark.parametrize("name", WAYS)
def test_copying_leaves_global_generators_alone(models, name):
    before = torch.get_rng_state()
    pickle.loads(pickle.dumps(models[name]))
    copy.deepcopy(models[name])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_deep_copy_keeps_the_folder_and_a_pickle_does_not(digits, tmp_path):
    model = PretrainedFeatureTransformer(image_shape=(8, 8), image_size=32, memory=tmp_path).fit(digits[0])
    assert copy.deepcopy(model).memory == tmp_path
    assert pickle.loads(pickle.dumps(model)).memory is None


@pytest.mark.parametrize(
    "model", [FineTuneClassifier(strategy=PartialFineTuning(n_groups=2)), PretrainedFeatureTransformer(), make_pipe()]
)
def test_unfitted_estimators_pickle(model):
    assert len(pickle.dumps(model)) < 5000
    assert repr(pickle.loads(pickle.dumps(model))) == repr(model)
    assert repr(clone(model)) == repr(model)
