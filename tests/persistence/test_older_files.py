"""Files of every version of the form are loaded for ever.

``tests/data/format-<version>.sktl`` was written by the first sktl with that version, as ``write`` shows; it is never
written again.
"""

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from saved_models import digits, make_classifier
from sklearn.exceptions import InconsistentVersionWarning

import sktl
from sktl.exceptions import VersionWarning
from sktl.persistence import _container

DATA = Path(__file__).resolve().parents[1] / "data"
X, Y = digits()


def write(version):
    model = make_classifier(persist="reference").fit(X, Y)
    sktl.save(model, DATA / f"format-{version}.sktl", metrics={"accuracy": 1.0})
    expected = {"predict_proba": probabilities(model).tolist(), "classes": model.classes_.tolist()}
    (DATA / f"format-{version}.json").write_text(json.dumps(expected))


def probabilities(model):
    return model.set_params(dtype="float32").predict_proba(X[:5])  # "auto" is another precision on other hardware


@pytest.mark.parametrize("version", range(1, _container.FORMAT_VERSION + 1))
def test_file_of_each_version_is_loaded(version):
    expected = json.loads((DATA / f"format-{version}.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionWarning)
        warnings.simplefilter("ignore", InconsistentVersionWarning)
        model = sktl.load(DATA / f"format-{version}.sktl")
    assert model.classes_.tolist() == expected["classes"]
    np.testing.assert_allclose(probabilities(model), expected["predict_proba"], atol=1e-4)
    model.fit(X, Y)
    info = sktl.inspect(DATA / f"format-{version}.sktl")
    assert info.format_version == version
    assert info.networks[0]["backbone"] == "sktl/tiny"
    assert info.training_data == model.training_data_


def test_parameters_that_are_newer_than_a_pickle_have_their_defaults():
    model = make_classifier("partial")
    model.strategy = sktl.strategies.PartialFineTuning(n_groups=2)
    del model.persist, model.strategy.C  # as if they had not been thought of yet
    restored = pickle.loads(pickle.dumps(model))
    assert restored.persist == "embed"
    assert repr(restored.strategy) == "PartialFineTuning(n_groups=2)"
