"""The parts of the training loop: the network, its data, the linear head, the schedule."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from torch import nn

from sktl.backbones import load_backbone
from sktl.exceptions import InputError
from sktl.inputs import ImagePreprocessor, open_rows
from sktl.strategies import FineTuning, FromScratch, PartialFineTuning
from sktl.training import (
    Targets,
    TrainingData,
    build_network,
    describe_rows,
    fit_linear_head,
    fit_ridge_head,
    merge_duplicates,
    zero_linear,
)
from sktl.training.callbacks import warmup_cosine
from sktl.training.data import EvenBatches, batches


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("test_resnet", weights=None, image_size=32)


@pytest.fixture
def rows(rng):
    return open_rows(rng.integers(0, 256, (7, 40, 40, 3), dtype=np.uint8))


def targets(n, weight=None):
    return Targets(np.arange(n) % 3, np.ones(n) if weight is None else np.asarray(weight, dtype=float))


# The network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [PartialFineTuning(), FineTuning(), FromScratch()])
def test_frozen_modules_stay_in_eval_mode(backbone, strategy):
    network = build_network(backbone, zero_linear(backbone.width, 3), strategy, seed=0).train()
    for module in network.backbone.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            assert not module.training
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == strategy.updates_batch_norm
    assert network.head.training
    network.eval()
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("n_groups", "active"),
    [(1, [False, False, True, True]), (2, [False, True, True, True]), (4, [True, True, True, True])],
)
def test_dropout_between_frozen_layers_is_off(n_groups, active):
    """What is dropped on the way into a layer that is trained, or out of it, is dropped."""
    layers = [layer for width in (3, 8, 8, 8) for layer in (nn.Conv2d(width, 8, 3), nn.Dropout(0.5))]
    backbone = load_backbone(nn.Sequential(*layers, nn.Flatten()), image_size=16)
    network = build_network(backbone, zero_linear(backbone.width, 3), PartialFineTuning(n_groups), seed=0).train()
    assert [part.training for part in network.backbone.modules() if isinstance(part, nn.Dropout)] == active


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("strategy", [PartialFineTuning(), FineTuning()])
def test_running_statistics_stay(norm, strategy):
    norms = [norm(8, affine=affine, track_running_stats=True) for affine in (True, False)]
    own = nn.Sequential(nn.Conv2d(3, 8, 3), *norms, nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = load_backbone(own, image_size=16)
    network = build_network(backbone, zero_linear(backbone.width, 3), strategy, seed=0).train()
    network(torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8))
    before = dict(backbone.module.named_buffers())
    assert all(torch.equal(value, before[name]) for name, value in network.backbone.named_buffers())


def test_network_normalises_8_bit_images_as_the_engine_does(backbone, rows):
    from sktl.embedding import embed

    network = build_network(backbone, zero_linear(backbone.width, 3), FineTuning(), seed=0)
    preprocess = ImagePreprocessor(backbone.data_config)
    images = torch.from_numpy(np.stack([preprocess(rows[i].pixels()) for i in range(7)]))
    with torch.inference_mode():
        embeddings = network.backbone(network.normalise(images)).numpy()
    expected = embed(rows, backbone.view, dtype="float32", device="cpu")
    np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-4 * abs(expected).max())


def test_new_head_starts_at_zero_and_state_is_copied(backbone):
    network = build_network(backbone, zero_linear(backbone.width, 3), FineTuning(), seed=0)
    assert not network.head.weight.any()
    for name, value in backbone.module.state_dict().items():
        copied = network.backbone.state_dict()[name]
        assert torch.equal(copied, value)
        assert copied.data_ptr() != value.data_ptr()


# The head -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 4])
def test_head_is_scikit_learns_logistic_regression(n_classes):
    X, y = make_classification(200, 12, n_informative=6, n_classes=n_classes, random_state=0)
    X = X * np.logspace(-1.5, 2, 12) + 5
    weight = np.random.default_rng(0).uniform(0.5, 2, 200)
    head = nn.Linear(12, n_classes)
    loss = fit_linear_head(head, X.astype(np.float32), Targets(y, weight), C=10.0)
    with torch.inference_mode():
        proba = torch.softmax(head(torch.from_numpy(X.astype(np.float32))), dim=1).numpy()
    mean = np.average(X, axis=0, weights=weight)
    scale = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weight)) * np.sqrt(12)
    model = LogisticRegression(C=10.0, tol=1e-8, max_iter=5000).fit((X - mean) / scale, y, sample_weight=weight)
    np.testing.assert_allclose(proba, model.predict_proba((X - mean) / scale), atol=2e-3)
    assert loss == pytest.approx(-np.average(np.log(proba[np.arange(200), y]), weights=weight), rel=1e-3)


def test_feature_that_hardly_moves_in_training_does_not_decide_elsewhere():
    X = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    X[:, 4] = 0
    X[3, 4] = 1e-4
    targets = Targets(X[:, :1].astype(float), np.ones(30))
    head = nn.Linear(5, 1)
    fit_ridge_head(head, X, targets, C=10.0)
    with torch.inference_mode():
        moved = head(torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])) - head(torch.zeros(1, 5))
    assert abs(moved.item()) < 2 * X[:, 0].std()  # by its own spread it would be the thousandfold


def test_head_of_constant_features_is_finite():
    X = np.hstack([np.random.default_rng(0).normal(size=(30, 2)), np.full((30, 1), 1e6), np.zeros((30, 1))])
    head = nn.Linear(4, 3)
    fit_linear_head(head, X.astype(np.float32), Targets(np.arange(30) % 3, np.ones(30)), C=1.0)
    assert head.weight.isfinite().all()
    assert head.bias.isfinite().all()


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (33, 32), (5, 8), (1, 1), (64, 32)])
def test_batches_hold_each_row_once_and_differ_by_one(n, batch_size):
    found = list(EvenBatches(n, batch_size, torch.Generator().manual_seed(0)))
    sizes = [len(batch) for batch in found]
    assert sorted(row for batch in found for row in batch) == list(range(n))
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(found) == len(EvenBatches(n, batch_size))


def test_batches_are_shuffled_by_their_own_generator():
    before = torch.get_rng_state()
    sampler = EvenBatches(50, 50, torch.Generator().manual_seed(0))
    first, second = next(iter(sampler)), next(iter(sampler))
    assert first != second
    assert first == next(iter(EvenBatches(50, 50, torch.Generator().manual_seed(0))))
    assert next(iter(EvenBatches(50, 50))) == list(range(50))
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_in_memory_and_from_their_source_are_the_same(rows, monkeypatch):
    preprocess = ImagePreprocessor(load_backbone("test_resnet", weights=None, image_size=32).data_config)
    kept = TrainingData(rows, targets(7), preprocess)
    monkeypatch.setattr("sktl.training.data.RAM_BUDGET", 0)
    read = TrainingData(rows, targets(7), preprocess)
    assert kept._images is not None
    assert read._images is None
    for (first, known), (second, same) in zip(batches(kept, 3), batches(read, 3), strict=True):
        assert first.dtype == torch.uint8
        assert torch.equal(first, second)
        assert torch.equal(known["target"], same["target"])


def test_rows_that_cannot_be_read_are_all_named(image_paths, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    rows = open_rows([image_paths[0][0], str(tmp_path / "text.png"), "gone.png"])
    with pytest.raises(InputError) as caught:
        merge_duplicates(rows, targets(3))
    assert "gone.png" in str(caught.value)
    readable = open_rows([image_paths[0][0], str(tmp_path / "text.png"), str(tmp_path / "text.png")])
    with pytest.raises(InputError, match=r"row 1 .*text\.png") as caught:
        TrainingData(readable, targets(3), ImagePreprocessor(load_backbone("sktl/tiny").data_config))
    assert "row 2" in str(caught.value)


def test_equal_rows_are_merged_if_their_targets_are_equal(rng):
    images = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    rows = open_rows(images[[0, 1, 0, 0, 3]])
    targets = Targets(np.array([5, 5, 5, 6, 5]), np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    merged, result, group = merge_duplicates(rows, targets)
    assert len(merged) == len(result) == 4
    found = {(merged[i].digest, int(result.values[i])): result.weight[i] for i in range(4)}
    assert found[rows[0].digest, 5] == 4.0
    assert found[rows[0].digest, 6] == 4.0
    assert found[rows[1].digest, 5] == 2.0
    assert [merged[index].digest for index in group] == [rows[index].digest for index in range(5)]


@pytest.mark.parametrize("form", ["bmp", "png", "webp"])
def test_order_by_pixels_is_that_of_the_arrays(rng, tmp_path, form):
    images = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    paths = [tmp_path / f"{number}.{form}" for number in range(6)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path, **({"lossless": True} if form == "webp" else {}))
    _, _, of_arrays = merge_duplicates(open_rows(images), targets(6), by_pixels=True)
    for _ in range(2):  # the second time from the memory of hashes
        _, _, of_files = merge_duplicates(open_rows(paths), targets(6), by_pixels=True)
        np.testing.assert_array_equal(of_files, of_arrays)


def test_file_that_stands_for_others_of_the_same_pixels_does_not_hang_on_the_order(rng, tmp_path):
    paths = [tmp_path / name for name in ("a.png", "a.bmp", "b.png")]
    for path, image in zip(paths, rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)[[0, 0, 1]], strict=True):
        Image.fromarray(image).save(path)
    chosen = []
    for order in ([0, 1, 2], [2, 1, 0]):
        known = Targets(np.zeros(3), np.array([1.0, 2.0, 4.0])[order])
        rows, merged, group = merge_duplicates(open_rows([paths[index] for index in order]), known, by_pixels=True)
        chosen.append(([row.digest for row in rows], merged.weight.tolist(), group[order].tolist()))
    assert chosen[0] == chosen[1]
    assert sorted(chosen[0][1]) == [3.0, 4.0]


def test_fingerprint_of_the_training_data_does_not_hang_on_the_order(rng):
    rows = open_rows(rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    known = Targets(np.array([0, 1, 0, 1]), np.ones(4))
    order = np.array([2, 0, 3, 1])
    assert describe_rows(rows.take(order), known.take(order)) == describe_rows(rows, known)
    assert describe_rows(rows, Targets(known.values[order], known.weight)) != describe_rows(rows, known)


# The schedule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [1, 2, 10, 1000])
def test_learning_rate_rises_and_falls(n_steps):
    factors = [warmup_cosine(n_steps)(step) for step in range(n_steps)]
    peak = int(np.argmax(factors))
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert warmup_cosine(n_steps)(10 * n_steps) == pytest.approx(0.01)
    if n_steps >= 10:
        assert factors[peak] > 0.9
        assert factors[-1] < 0.05
