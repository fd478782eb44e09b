"""A model goes through a file without pickle and is the same afterwards, also in another process."""

import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from importlib.metadata import version

import numpy as np
import pytest
import saved_models
import torch
from saved_models import IMAGES, digits, make_classifier, make_embed
from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import RandomizedSearchCV, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from torch import nn

import sktl
from sktl import FineTuneClassifier, FineTuneRegressor
from sktl.backbones import Backbone
from sktl.embedding import default_store
from sktl.exceptions import DamagedFileError, UnsupportedObjectError, UntrustedTypeError, VersionWarning
from sktl.persistence import _files
from sktl.strategies import JointTraining

X, Y = digits()


@pytest.fixture(scope="module")
def models():
    return {name: make().fit(X, Y) for name, make in saved_models.MAKERS.items()}


def round_trip(model, tmp_path, **options):
    sktl.save(model, tmp_path / "model.sktl")
    default_store().clear()
    return sktl.load(tmp_path / "model.sktl", **options)


@pytest.mark.parametrize("name", saved_models.MAKERS)
def test_loaded_model_predicts_the_same(models, name, tmp_path):
    expected = models[name].predict_proba(X)
    restored = round_trip(models[name], tmp_path)
    np.testing.assert_array_equal(restored.predict_proba(X), expected)
    np.testing.assert_array_equal(restored.predict(X), models[name].predict(X))
    np.testing.assert_array_equal(restored.classes_, models[name].classes_)
    assert repr(restored) == repr(models[name])
    assert type(restored) is type(models[name])


def test_loaded_model_can_be_saved_and_fitted_again(models, tmp_path):
    restored = round_trip(round_trip(models["lp_ft"], tmp_path), tmp_path)
    expected = models["lp_ft"].predict_proba(X)
    np.testing.assert_array_equal(restored.predict_proba(X), expected)
    np.testing.assert_array_equal(restored.fit(X, Y).predict_proba(X), expected)


def test_another_process_predicts_the_same(models, tmp_path):
    for name, model in models.items():
        sktl.save(model, tmp_path / f"{name}.sktl")
    np.save(tmp_path / "X.npy", X)
    code = """
import pathlib, sys, numpy as np, sktl
folder = pathlib.Path(sys.argv[1])
for path in folder.glob("*.sktl"):
    np.save(path.with_suffix(".npy"), sktl.load(path).predict_proba(np.load(folder / "X.npy")))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], check=True)
    for name, model in models.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), model.predict_proba(X), err_msg=name)


@pytest.mark.parametrize(
    "model",
    [
        make_pipeline(make_embed(), StandardScaler(), SVC()),
        make_pipeline(make_embed(layer=[-1, -2]), KNeighborsClassifier(3)),
        make_pipeline(make_embed(layer=[-1, -1]), sktl.ScalarMix(2), KNeighborsClassifier(3)),
        make_pipeline(FunctionTransformer(np.sqrt), make_classifier(device=torch.device("cpu"))),
        make_pipeline(
            ColumnTransformer([("all", sktl.PretrainedFeatureTransformer(**IMAGES), slice(0, 64))]),
            KNeighborsClassifier(),
        ),
        RandomizedSearchCV(
            make_classifier(),
            {"strategy__C": [0.1, 1.0]},
            n_iter=1,
            scoring=["accuracy", "neg_log_loss"],
            refit="accuracy",
            cv=StratifiedShuffleSplit(1, test_size=0.3, random_state=0),
            random_state=np.random.RandomState(0),
        ),
    ],
    ids=["svc", "neighbours", "mix", "function", "columns", "search"],
)
def test_estimators_around_ours(model, tmp_path):
    model.fit(X, Y)
    np.testing.assert_array_equal(round_trip(model, tmp_path).predict(X), model.predict(X))


def test_regressor(tmp_path):
    model = FineTuneRegressor(strategy="partial", max_epochs=1, random_state=0, **IMAGES).fit(X, X[:, :2])
    np.testing.assert_array_equal(round_trip(model, tmp_path).predict(X), model.predict(X))
    assert sktl.inspect(tmp_path / "model.sktl").classes is None


TEXTS = ["What a film!", "DULL", "so, so"]
PUBLIC = {
    "FineTuneClassifier": lambda: make_classifier().fit(X, Y),
    "FineTuneRegressor": lambda: FineTuneRegressor(strategy="feature_extraction", **IMAGES).fit(X, X[:, 20]),
    "PretrainedFeatureTransformer": lambda: make_embed().fit(X),
    "ScalarMix": lambda: sktl.ScalarMix(2).fit(X, Y),
    "TextStatistics": lambda: sktl.TextStatistics(["n_words", "share_capitals"]).fit(TEXTS),
}


def test_every_public_estimator_is_in_the_test_below():
    public = [getattr(sktl, name) for name in sktl.__all__]
    assert sorted(PUBLIC) == sorted(
        each.__name__ for each in public if isinstance(each, type) and issubclass(each, BaseEstimator)
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_estimator_is_loaded_without_further_trust(name, tmp_path):
    model = PUBLIC[name]()
    rows = TEXTS if name == "TextStatistics" else X
    ask = "transform" if hasattr(model, "transform") else "predict"
    restored = round_trip(model, tmp_path)
    assert type(restored) is type(model)
    np.testing.assert_array_equal(getattr(restored, ask)(rows), getattr(model, ask)(rows))
    assert sktl.inspect(tmp_path / "model.sktl").untrusted == []


def test_file_holds_plain_uncompressed_members_and_no_pickle(models, tmp_path):
    sktl.save(models["search"], tmp_path / "model.sktl")
    with zipfile.ZipFile(tmp_path / "model.sktl") as archive:
        endings = {os.path.splitext(info.filename)[1] for info in archive.infolist()}
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        for name in archive.namelist():
            if name.endswith(".npy"):
                np.load(archive.open(name), allow_pickle=False)
        assert b"pickle" not in archive.read("estimator/schema.json")
    assert endings == {".json", ".npy", ".safetensors"}


def test_weights_are_stored_once_however_many_parts_share_them(tmp_path):
    embed = make_embed()
    both = ColumnTransformer([("first", embed, slice(0, 64)), ("second", embed, slice(0, 64))]).fit(X)
    sktl.save(both, tmp_path / "model.sktl")
    assert len([name for name in sktl.inspect(tmp_path / "model.sktl").members if name.startswith("weights")]) == 1
    restored = sktl.load(tmp_path / "model.sktl")
    np.testing.assert_array_equal(restored.transform(X[:3]), both.transform(X[:3]))


class Own(nn.Module):
    """A network of a user's own, with what makes networks hard to describe."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU())
        self.again = self.stem
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.register_buffer("fixed", torch.ones(8), persistent=False)
        self.power = 2

    def forward(self, images):
        features = self.again(images).mean(dim=(2, 3))
        return self.second(self.first(features)) * self.fixed**self.power


def make_own(**parameters):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return sktl.FineTuneClassifier(Own(), **{"max_epochs": 1, "random_state": 0, **IMAGES, **parameters}).fit(X, Y)


def test_network_of_ones_own_is_loaded_if_its_class_is_trusted(tmp_path):
    model = make_own(strategy="fine_tuning")
    with pytest.raises(UntrustedTypeError, match=r"torch\.nn\.modules\.linear\.Linear\. Such") as caught:
        round_trip(model, tmp_path)
    assert f"{__name__}.Own" in caught.value.names
    assert sktl.inspect(tmp_path / "model.sktl").untrusted == caught.value.names
    with pytest.raises(UntrustedTypeError, match="Own"):
        sktl.load(tmp_path / "model.sktl", trusted=["torch.nn.*"])
    restored = sktl.load(tmp_path / "model.sktl", trusted=[Own, "torch.nn.*"])
    np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))
    assert restored.backbone_.module.again is restored.backbone_.module.stem
    assert restored.backbone_.module.first.weight is restored.backbone_.module.second.weight
    assert restored.backbone_.fingerprint == model.backbone_.fingerprint
    np.testing.assert_array_equal(restored.fit(X, Y).predict_proba(X), model.predict_proba(X))


def test_trees_are_not_trusted_by_themselves(tmp_path):
    model = make_pipeline(make_embed(), RandomForestClassifier(3, random_state=0))
    model.fit(X, Y)
    with pytest.raises(UntrustedTypeError, match=r"sklearn\.tree\._tree\.Tree"):
        round_trip(model, tmp_path)
    restored = sktl.load(tmp_path / "model.sktl", trusted="sklearn.tree._tree.Tree")
    np.testing.assert_array_equal(restored.predict(X), model.predict(X))


def test_trusted_must_be_names_or_types(models, tmp_path):
    with pytest.raises(TypeError, match="'trusted' parameter"):
        round_trip(models["pipeline"], tmp_path, trusted=True)


def test_only_fitted_estimators_are_saved(tmp_path):
    with pytest.raises(NotFittedError):
        sktl.save(make_classifier(), tmp_path / "model.sktl")
    with pytest.raises(UnsupportedObjectError, match="got dict"):
        sktl.save({}, tmp_path / "model.sktl")
    assert os.listdir(tmp_path) == []


def test_what_has_no_plain_form_is_refused(models, tmp_path):
    model = make_pipeline(FunctionTransformer(), make_classifier()).fit(X, Y)
    model[0].note_ = (number for number in range(3))
    with pytest.raises(UnsupportedObjectError, match="no form without pickle"):
        sktl.save(model, tmp_path / "model.sktl")
    assert os.listdir(tmp_path) == []


def test_what_could_not_be_read_again_is_refused(models, tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "MAX_JSON", 1000)
    with pytest.raises(UnsupportedObjectError, match="bytes of JSON, and at most 1,000 can be read"):
        sktl.save(models["feature_extraction"], tmp_path / "model.sktl")
    assert os.listdir(tmp_path) == []


def test_labels_that_are_no_text_come_back(tmp_path):
    """As folders have them whose names are bytes of another encoding."""
    model = make_classifier().fit(X, np.where(Y == "class 1", "caf\udce9", "tea"))
    sktl.save(model, tmp_path / "model.sktl")
    np.testing.assert_array_equal(sktl.load(tmp_path / "model.sktl").classes_, model.classes_)


def test_other_versions_are_named_in_a_warning(models, tmp_path, monkeypatch):
    from sktl.persistence import _files

    here = _files.versions_here()
    with monkeypatch.context() as patch:
        patch.setattr(_files, "versions_here", lambda: {**here, "torch": "1.13.0"})
        sktl.save(models["feature_extraction"], tmp_path / "model.sktl")
    with pytest.warns(VersionWarning, match=r"written by torch 1\.13\.0; here are torch"):
        sktl.load(tmp_path / "model.sktl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(VersionWarning):
            sktl.load(tmp_path / "model.sktl")


def test_inspect_tells_without_loading(models, tmp_path, monkeypatch):
    sktl.save(models["lp_ft"], tmp_path / "model.sktl", metrics={"accuracy": 0.875})
    monkeypatch.setattr(Backbone, "__setstate__", None)  # nothing of the kind may be built
    info = sktl.inspect(tmp_path / "model.sktl")
    assert info.classes == models["lp_ft"].classes_.tolist()
    assert info.networks[0]["fingerprint"] == models["lp_ft"].backbone_.fingerprint
    assert info.size == os.path.getsize(tmp_path / "model.sktl")
    assert info.versions["torch"] == version("torch")
    assert info.metrics == {"accuracy": 0.875}
    assert info.training_data == models["lp_ft"].training_data_
    assert info.untrusted == []
    for text in ("sktl/tiny", "LinearProbeThenFineTuning()", "class 3", "0.875", "images of 32x32 pixels"):
        assert text in str(info)


def test_training_data_are_told_apart_by_content_and_label_not_by_order():
    def told(X, y, **options):
        return make_classifier().fit(X, y, **options).training_data_

    expected = told(X, Y)
    assert expected["n_rows"] == 60
    assert told(X[::-1], Y[::-1]) == expected
    assert told(np.repeat(X, 2, axis=0), np.repeat(Y, 2), sample_weight=np.full(120, 0.5)) == expected
    assert told(X[:-1], Y[:-1]) != expected
    assert told(X, np.roll(Y, 1)) != expected


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        sktl.load(tmp_path / "nothing.sktl")
    with pytest.raises(DamagedFileError, match="it is a folder or device"):
        sktl.load(tmp_path)


@pytest.mark.parametrize("kind", ["columns", "frames"])
def test_frames_of_old_images_come_back_as_arrays(image_paths, tmp_path, kind):
    pandas = pytest.importorskip("pandas")
    old = pandas.DataFrame({"path": image_paths[0][15:], "label": image_paths[1][15:]})
    given = (old["path"], old["label"]) if kind == "columns" else (old[["path"]], old["label"])
    model = FineTuneClassifier(strategy=JointTraining(*given), image_size=32, max_epochs=1)
    new = image_paths[0][:15] if kind == "columns" else pandas.DataFrame({"path": image_paths[0][:15]})
    model.set_params(random_state=0).fit(new, image_paths[1][:15])
    restored = round_trip(model, tmp_path)
    assert type(restored.strategy.X) is np.ndarray
    expected = model.predict_proba_original(old["path"])
    np.testing.assert_array_equal(restored.predict_proba_original(old["path"]), expected)
    again = clone(restored).fit(new, image_paths[1][:15])
    np.testing.assert_array_equal(again.predict_proba_original(old["path"]), expected)


def test_frames_of_old_numbers_keep_the_names_of_their_columns_in_pickles():
    pandas = pytest.importorskip("pandas")
    numbers = pandas.DataFrame(X.reshape(len(X), -1)[:20]).add_prefix("pixel")
    model = FineTuneClassifier(strategy=JointTraining(numbers[:10], Y[:10]), image_size=32, max_epochs=1)
    pickle.loads(pickle.dumps(model)).fit(numbers[10:], Y[10:20])  # without a warning that names are missing
