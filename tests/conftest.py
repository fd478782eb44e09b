"""Fixtures that several test modules share, and the ground rules of a test session.

Nothing here touches the network: the hub is told to stay offline, and its caches are empty temporary folders, so a test
behaves the same on a machine that has downloaded weights before.
"""

import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ("disc", "square", "stripes")


def pytest_addoption(parser):
    parser.addoption("--run-network", action="store_true", help="also run the tests that need the internet")


def pytest_configure(config):
    """Settle the environment before anything imports torch or the hub; workers and subprocesses inherit it."""
    workers = getattr(config.option, "numprocesses", None) or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait lose 10x on a busy machine
    os.environ.setdefault("MPLBACKEND", "Agg")
    hub = tempfile.TemporaryDirectory(prefix="sktl-hub-")
    config.add_cleanup(hub.cleanup)
    os.environ["HF_HOME"] = os.path.join(hub.name, "huggingface")
    os.environ["TORCH_HOME"] = os.path.join(hub.name, "torch")
    if not config.getoption("--run-network"):
        os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems(config, items):
    without_network = pytest.mark.skip(reason="needs the internet: give --run-network")
    without_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("network") and not config.getoption("--run-network"):
            item.add_marker(without_network)
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(without_gpu)


def _has_gpu():
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def rng():
    """A generator of random numbers that starts at the same place in every test."""
    return np.random.default_rng(0)


def draw_shape(kind, rng, height=48, width=64):
    """Draw a bright shape of one of ``SHAPES`` on dark noise, as a uint8 array (height, width, 3)."""
    pixels = rng.integers(0, 60, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    centre_y, centre_x = rng.uniform(0.35, 0.65, 2) * (height, width)
    radius = rng.uniform(0.2, 0.35) * min(height, width)
    if kind == "disc":
        mask = (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2
    elif kind == "square":
        mask = (abs(y - centre_y) < radius) & (abs(x - centre_x) < radius)
    else:
        mask = (y // max(2, int(radius / 2))) % 2 == 0
    pixels[mask] = rng.integers(150, 256, 3)
    return pixels.astype(np.uint8)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A folder with one sub-folder of ten PNG files per class: disc, square, stripes."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for kind in SHAPES:
        (folder / kind).mkdir()
        for number in range(10):
            Image.fromarray(draw_shape(kind, rng)).save(folder / kind / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def image_paths(image_folder):
    """The files of ``image_folder`` and their labels: a list of str and an array of str, classes interleaved."""
    paths = sorted(image_folder.glob("*/*.png"), key=lambda path: (int(path.stem), path.parent.name))
    return [str(path) for path in paths], np.array([path.parent.name for path in paths])


@pytest.fixture(scope="session")
def image_arrays():
    """Generated images as one uint8 array (30, 48, 64, 3), and their labels."""
    rng = np.random.default_rng(0)
    kinds = np.array(SHAPES * 10)
    return np.stack([draw_shape(kind, rng) for kind in kinds]), kinds


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real images and weights, which lies beside the checkout or where SKTL_SHARED_DATA says."""
    folder = Path(os.environ.get("SKTL_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set SKTL_SHARED_DATA to a folder that holds images/ and weights/")
    return folder


@pytest.fixture(scope="session")
def unpack_image_set(shared_data, tmp_path_factory):
    """A function that unpacks a real image set by name, once a session: ``unpack(name) / "train" / class / file``."""
    unpacked = {}

    def unpack(name):
        if name not in unpacked:
            archive = shared_data / "images" / f"{name}.tar"
            if not archive.is_file():
                pytest.skip(f"no image set at {archive}")
            folder = tmp_path_factory.mktemp("image_sets")
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            unpacked[name] = folder / name
        return unpacked[name]

    return unpack


@pytest.fixture
def torch_threads():
    """Set the number of torch's threads, as often as wanted; put back afterwards."""
    import torch

    n_threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def network():
    """A network as it is published: with a classifier."""
    import timm
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=7).eval()


@pytest.fixture(scope="module")
def old_task():
    """Digits 3, 4 and 5 with names."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    rows = np.flatnonzero((y[:200] > 2) & (y[:200] < 6))
    return X[rows], np.array([f"digit {label}" for label in y[rows]])


@pytest.fixture(scope="module")
def old_model(old_task):
    """A small network that has learnt the old task."""
    from small_models import make_model

    model = make_model("lp_ft", max_epochs=20, learning_rate=0.01).fit(*old_task)
    assert model.score(*old_task) > 0.9
    return model
