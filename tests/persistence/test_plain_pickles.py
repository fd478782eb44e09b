"""What a pickle holds: plain settings and weights, nothing of a device, a folder, an optimizer or a callback's run."""

import gc
import io
import os
import pickle
import pickletools
import subprocess
import sys

import cloudpickle
import joblib
import numpy as np
import pytest
import torch
from saved_models import IMAGES, MAKERS, digits, make_classifier, make_embed
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, LRScheduler
from torch import nn

import sktl
from sktl.backbones import load_backbone, pack_tensors, unpack_tensors
from sktl.embedding import default_store

X, Y = digits()
NETWORK_NAMES = ("torch.storage", "torch._utils", "torch.optim", "skorch.net", "sktl.training")


@pytest.fixture(scope="module")
def models():
    return {name: make().fit(X, Y) for name, make in MAKERS.items()}


def texts_in(data):
    """All strings and names of classes in a pickle."""
    return [argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)]


def assert_plain(data):
    texts = texts_in(data)
    assert not [text for text in texts if text.startswith(NETWORK_NAMES)]
    assert not [text for text in texts if "cuda" in text]
    assert not [text for text in texts if os.path.isabs(text)]


@pytest.mark.parametrize("name", MAKERS)
def test_pickle_names_no_device_path_or_optimizer(models, name, tmp_path):
    model = models[name]
    fitted = getattr(model, "best_estimator_", model)
    fitted = fitted[0] if name == "pipeline" else fitted
    fitted.set_params(memory=str(tmp_path))
    data = pickle.dumps(model)
    fitted.set_params(memory=None)
    assert_plain(data)


def test_folder_of_embeddings_stays_behind_only_once_fitted(tmp_path):
    model = make_classifier(memory=str(tmp_path))
    assert pickle.loads(pickle.dumps(model)).memory == str(tmp_path)  # workers of a search need it
    restored = pickle.loads(pickle.dumps(model.fit(X, Y)))
    assert restored.memory is None
    assert_plain(pickle.dumps(model))


class Notes(Callback):
    """A user's callback, which keeps what cannot be pickled."""

    def __init__(self, title="notes"):
        self.title = title

    def on_train_begin(self, net, **kwargs):
        self.net_, self.stream_ = net, (number for number in range(3))


def test_what_callbacks_gather_in_training_stays_behind():
    callbacks = [("notes", Notes("mine")), LRScheduler("StepLR", step_size=1)]
    model = make_classifier("partial", callbacks=callbacks).fit(X, Y)
    assert hasattr(callbacks[0][1], "stream_")
    data = pickle.dumps(model)
    assert_plain(data)
    restored = pickle.loads(data)
    assert restored.callbacks[0][1].title == "mine"
    np.testing.assert_array_equal(restored.predict(X), model.predict(X))
    assert hasattr(callbacks[0][1], "stream_")


def test_history_of_the_net_survives(models):
    model = models["lp_ft"]
    restored = pickle.loads(pickle.dumps(model))
    assert restored.net_.history[:, "train_loss"] == model.net_.history[:, "train_loss"]
    assert restored.net_.history[-1, "batches", :, "train_loss"] == model.net_.history[-1, "batches", :, "train_loss"]


def test_file_tells_no_folder_of_embeddings(tmp_path):
    search = GridSearchCV(make_classifier(memory=str(tmp_path / "store")), {"strategy__C": [1.0]}, cv=2).fit(X, Y)
    sktl.save(search, tmp_path / "model.sktl")
    assert str(tmp_path).encode() not in (tmp_path / "model.sktl").read_bytes()


@pytest.mark.parametrize("name", MAKERS)
def test_cloudpickle(models, name):
    expected = models[name].predict_proba(X)
    default_store().clear()
    np.testing.assert_array_equal(pickle.loads(cloudpickle.dumps(models[name])).predict_proba(X), expected)


def test_joblib_maps_the_weights_into_memory(models, tmp_path):
    joblib.dump(models["lp_ft"], tmp_path / "model.joblib")
    restored = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    assert isinstance(restored.backbone_._weights, np.memmap)
    np.testing.assert_array_equal(restored.predict_proba(X), models["lp_ft"].predict_proba(X))


def test_weights_are_read_in_place_as_the_library_reads_them():
    tensors = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(7),
        "flags": torch.tensor([True, False, True]),
        "odd": torch.arange(3, dtype=torch.uint8),
        "complex": torch.zeros(1, dtype=torch.complex64),
    }
    for names in (list(tensors)[:-1], list(tensors)):
        packed = pack_tensors({name: tensors[name] for name in names}).copy()
        assert packed.flags.writeable
        unpacked = unpack_tensors(packed)
        assert unpacked.keys() == set(names)
        assert all(torch.equal(unpacked[name], tensors[name]) for name in names)
        assert all(unpacked[name].dtype == tensors[name].dtype for name in names)


@pytest.mark.parametrize("mode", ["c", "r"])
def test_weights_mapped_into_memory_can_be_fitted_on(mode, tmp_path):
    model = make_classifier().fit(X, Y)
    joblib.dump(model, tmp_path / "model.joblib")
    before = (tmp_path / "model.joblib").read_bytes()
    restored = joblib.load(tmp_path / "model.joblib", mmap_mode=mode)
    restored.set_params(strategy="fine_tuning").fit(X, Y)
    assert (tmp_path / "model.joblib").read_bytes() == before


def test_unpickled_networks_are_built_late_and_shared():
    gc.collect()  # a model of the same weights that nobody holds any more would be shared with
    model = make_classifier("partial", random_state=3).fit(X, Y)
    first, second = (pickle.loads(pickle.dumps(model)) for _ in range(2))
    assert "module" not in vars(first.backbone_)
    assert pickle.dumps(first) == pickle.dumps(second)
    assert "module" not in vars(first.backbone_)
    assert first.backbone_.module is second.backbone_.module is model.backbone_.module
    frozen = pickle.loads(pickle.dumps(make_embed().fit(X)))
    assert frozen.backbone_.module is load_backbone("sktl/tiny", image_size=32).module


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "test_efficientnet"]
)
def test_network_built_for_stored_weights_is_the_same_network(name):
    """Built without memory for its weights, or, where it computes something while it is built, in the ordinary way."""
    from sktl.backbones import fingerprint
    from sktl.backbones._backbone import _module_with_weights

    backbone = load_backbone(name, weights=None)
    module = _module_with_weights(backbone.recipe, dict(backbone.module.state_dict()))
    assert fingerprint(module, backbone.data_config) == backbone.fingerprint
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def test_network_and_state_dict_of_ones_own_are_pickled_off_their_device():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.Flatten())
    model = sktl.FineTuneClassifier(network, "feature_extraction", **IMAGES).fit(X, Y)
    data = pickle.dumps(model)
    assert not [text for text in texts_in(data) if text == "torch.storage"]
    restored = pickle.loads(data)
    for name, value in restored.backbone.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])
    state = load_backbone("test_efficientnet", weights=None).module.state_dict()
    embed = sktl.PretrainedFeatureTransformer("test_efficientnet", weights=state, **IMAGES).fit(X)
    data = pickle.dumps(embed)
    assert_plain(data)
    assert all(torch.equal(value, state[name]) for name, value in pickle.loads(data).weights.items())


@pytest.mark.gpu
def test_model_fitted_on_a_gpu_loads_where_there_is_none(tmp_path):
    model = make_classifier("lp_ft", device="auto").fit(X, Y)
    assert_plain(pickle.dumps(model))
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')).net_.module_"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "model.pickle")]
    subprocess.run(command, check=True, env=environment)


def test_pickle_to_a_file_object_and_back(models):
    buffer = io.BytesIO()
    joblib.dump(models["pipeline"], buffer, compress=3)
    buffer.seek(0)
    np.testing.assert_array_equal(joblib.load(buffer).predict(X), models["pipeline"].predict(X))
