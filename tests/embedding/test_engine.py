"""embed: the right numbers, whatever rows stand beside a row and however it was computed."""

import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from sktl.embedding import MemoryStore, embed, embed_with_stats
from sktl.exceptions import InputError

FLOAT32 = {"device": "cpu", "dtype": "float32", "runtime": "torch"}
CPU = {"device": "cpu", "runtime": "torch"}


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_equals_plain_loop(make_rows, view, images, expected):
    result = embed(make_rows(images), view, **FLOAT32)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_lower_precision_is_close(make_rows, view, images, expected, dtype):
    assert cosine(embed(make_rows(images), view, dtype=dtype, **CPU), expected).min() > 0.999


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_neighbours_change_nothing(make_rows, view, images, dtype):
    crowd = embed(make_rows(images), view, dtype=dtype, **CPU)
    order = np.random.default_rng(1).permutation(len(images))
    np.testing.assert_array_equal(embed(make_rows(images[order]), view, dtype=dtype, **CPU), crowd[order])
    np.testing.assert_array_equal(embed(make_rows(images[7:8]), view, dtype=dtype, **CPU), crowd[7:8])
    np.testing.assert_array_equal(embed(make_rows(images), view, dtype=dtype, n_threads=3, **CPU), crowd)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batch_size_changes_nothing_that_matters(make_rows, view, images, batch_size):
    usual = embed(make_rows(images), view, **FLOAT32)
    other = embed(make_rows(images), view, batch_size=batch_size, **FLOAT32)
    assert abs(other - usual).max() <= 1e-5 * abs(usual).max()


def test_duplicates_are_computed_once(make_rows, view, images):
    twice = np.concatenate([images[:20], images[:20][::-1]])
    result, stats = embed_with_stats(make_rows(twice), view, **CPU)
    assert stats.computed == 20
    np.testing.assert_array_equal(result[:20], result[20:][::-1])


def test_no_rows(make_rows, view, images):
    assert embed(make_rows(images[:0]), view, **CPU).shape == (0, 24)


def test_rows_that_are_resized(make_rows, view):
    large = np.full((3, 100, 80, 3), 100, dtype=np.uint8)
    small = np.full((3, 32, 32, 3), 100, dtype=np.uint8)
    np.testing.assert_array_equal(embed(make_rows(large), view, **CPU), embed(make_rows(small), view, **CPU))


class PreparedRow:
    def __init__(self, values):
        self.digest = values.tobytes()
        self._values = values

    def model_input(self):
        return self._values


class PreparedRows:
    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def label(self, i):
        return f"row {i}"

    def __getitem__(self, i):
        return PreparedRow(self.values[i])


def test_prepared_inputs_are_taken_as_they_are(view, network):
    values = np.random.default_rng(0).normal(size=(11, 3, 20, 24)).astype(np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(embed(PreparedRows(values), view, **FLOAT32), expected, rtol=1e-4, atol=1e-5)
    assert cosine(embed(PreparedRows(values), view, stores=[MemoryStore()], **CPU), expected).min() > 0.999


# Bad rows -------------------------------------------------------------------------------------------------------------


def test_bad_rows_are_all_named(make_rows, view, images):
    rows = make_rows(np.concatenate([images, images[30:31]]), undecodable=[3, 30, 49, 50], unreadable=[17])
    with pytest.raises(InputError, match="row 49: truncated") as raised:
        embed(rows, view, **CPU)
    assert [row.index for row in raised.value.rows] == [3, 17, 30, 49, 50]
    assert raised.value.rows[1].reason == "no such file"
    assert len(rows.calls) == 46  # the good rows were looked at too


def test_bad_rows_become_nan(make_rows, view, images):
    rows = make_rows(images, undecodable=[3, 49], unreadable=[17])
    store = MemoryStore()
    result, stats = embed_with_stats(rows, view, on_error="nan", stores=[store], **CPU)
    bad = np.isnan(result).all(axis=1)
    assert np.flatnonzero(bad).tolist() == [3, 17, 49]
    assert stats.computed == len(store) == 47
    np.testing.assert_array_equal(result[~bad], embed(make_rows(images), view, **CPU)[~bad])


def test_nothing_is_computed_once_a_bad_row_is_known(make_rows, make_view, images):
    module = Counting()
    with pytest.raises(InputError):
        embed(make_rows(images, unreadable=[0]), make_view(module, width=3), **FLOAT32)
    assert module.calls == []


class Counting(nn.Module):
    """Remembers the sizes of its batches; a copy remembers them in the same place."""

    calls = ()

    def __init__(self, largest=None, error=None):
        super().__init__()
        self.calls, self.largest, self.error = [], largest, error

    def __deepcopy__(self, memo):
        copied = Counting(self.largest, self.error)
        copied.calls = self.calls
        return copied

    def forward(self, x):
        if self.largest is not None and len(x) > self.largest:
            raise self.error
        self.calls.append(len(x))
        return x.mean((2, 3))


def test_what_overflows_is_computed_again_in_float32(make_rows, make_view):
    pixels = np.full((9, 32, 32, 3), 90, dtype=np.uint8)
    pixels[:, 0, 0, 0] = range(9)
    pixels[4] = 255
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Steep())
    exact = embed(make_rows(pixels), make_view(module, width=3), **FLOAT32)
    result = embed(make_rows(pixels), make_view(module, width=3), dtype="float16", **CPU)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result[4], exact[4], rtol=1e-6)


class Steep(nn.Module):
    """More than float16 holds, for bright inputs only."""

    def forward(self, x):
        return torch.where(x > 2, 60000 * x, x)


class NoNumber(nn.Module):
    """No number at all, for bright inputs only."""

    def forward(self, x):
        means = x.mean((2, 3))
        return torch.where(means > 1.9, torch.nan, means)


def test_a_row_without_numbers_is_a_bad_row(make_rows, make_view):
    pixels = np.full((9, 32, 32, 3), 90, dtype=np.uint8)
    pixels[:, 0, 0, 0] = range(9)
    pixels[4] = 255
    view = make_view(NoNumber(), width=3)
    with pytest.raises(InputError, match="row 4: the backbone gives NaN or infinity"):
        embed(make_rows(pixels), view, **CPU)
    result = embed(make_rows(pixels), view, on_error="nan", **CPU)
    assert np.flatnonzero(np.isnan(result).any(axis=1)).tolist() == [4]


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "windows", "python"],
)
def test_too_large_batches_are_halved(make_rows, make_view, images, error):
    module = Counting(largest=5, error=error)
    view = make_view(module, width=3)
    result, stats = embed_with_stats(make_rows(images), view, batch_size=16, n_threads=1, **FLOAT32)
    assert stats.halvings == 2
    assert set(module.calls) == {4}
    _, stats = embed_with_stats(make_rows(images), view, batch_size=16, **FLOAT32)
    assert stats.halvings == 0  # the size that worked is remembered
    module.largest = None
    np.testing.assert_allclose(
        result, embed(make_rows(images), make_view(Counting(), "other", 3), **FLOAT32), rtol=1e-5
    )


def test_too_large_a_row(make_rows, make_view, images):
    view = make_view(Counting(largest=0, error=RuntimeError("MPS backend out of memory")), width=3)
    with pytest.raises(MemoryError, match=r"Not even one row of \(32, 32, 3\) fits into the memory of cpu"):
        embed(make_rows(images), view, **FLOAT32)


def test_other_errors_of_the_network_come_out(make_rows, make_view, images):
    view = make_view(Counting(largest=0, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied")), width=3)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        embed(make_rows(images), view, **FLOAT32)


def test_rows_are_read_as_they_are_needed(make_rows, make_view, images):
    """Memory does not grow with the number of rows: only so many are ahead of the network."""
    many = np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)
    rows = make_rows(many)
    ahead = []

    class Watching(Counting):
        def __deepcopy__(self, memo):
            return self

        def forward(self, x):
            ahead.append(len(rows.calls) - len(x) * len(ahead))
            time.sleep(0.002)
            return super().forward(x)

    embed(rows, make_view(Watching(), width=3), n_threads=2, **FLOAT32)
    assert max(ahead) <= 160


# Stores ---------------------------------------------------------------------------------------------------------------


def test_second_call_computes_nothing(make_rows, view, images):
    store = MemoryStore()
    first, stats = embed_with_stats(make_rows(images), view, stores=[store], **CPU)
    assert (stats.computed, stats.from_stores) == (50, 0)
    rows = make_rows(images)
    second, stats = embed_with_stats(rows, view, stores=[store], **CPU)
    assert (stats.computed, stats.from_stores) == (0, 50)
    assert rows.calls == []
    np.testing.assert_array_equal(first, second)


def test_only_new_rows_are_computed(make_rows, view, images):
    store = MemoryStore()
    embed(make_rows(images[:30]), view, stores=[store], **CPU)
    result, stats = embed_with_stats(make_rows(images), view, stores=[store], **CPU)
    assert (stats.computed, stats.from_stores) == (20, 30)
    np.testing.assert_array_equal(result, embed(make_rows(images), view, **CPU))


def test_fast_store_is_filled_from_slow_store(make_rows, view, images):
    slow, fast = MemoryStore(), MemoryStore()
    embed(make_rows(images), view, stores=[slow], **CPU)
    embed(make_rows(images), view, stores=[fast, slow], **CPU)
    assert len(fast) == 50


@pytest.mark.parametrize("change", ["key", "dtype", "data_config"])
def test_other_ways_of_computing_are_other_rows(make_rows, make_view, network, images, change):
    store = MemoryStore()
    embed(make_rows(images), make_view(network), stores=[store], **FLOAT32)
    view, policy = make_view(network), dict(FLOAT32)
    if change == "key":
        view.key = "bb"
    elif change == "dtype":
        policy["dtype"] = "bfloat16"
    else:
        view.data_config["crop_pct"] = 0.9
    assert embed_with_stats(make_rows(images), view, stores=[store], **policy)[1].computed == 50


def test_changing_the_result_does_not_change_the_store(make_rows, view, images):
    store = MemoryStore()
    first = embed(make_rows(images), view, stores=[store], **CPU)
    kept = first.copy()
    first[:] = 0
    second = embed(make_rows(images), view, stores=[store], **CPU)
    second[:] = 0
    np.testing.assert_array_equal(embed(make_rows(images), view, stores=[store], **CPU), kept)


# Nothing else is touched ----------------------------------------------------------------------------------------------


def test_global_state_is_left_alone(make_rows, view, network, images):
    def state():
        return (
            torch.get_num_threads(),
            torch.get_num_interop_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.backends.cudnn.benchmark,
            torch.random.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global generator is what is watched
            threading.active_count(),
            network.training,
            next(network.parameters()).dtype,
        )

    weights = {name: value.clone() for name, value in network.state_dict().items()}
    before = state()
    embed(make_rows(images), view, device="cpu", runtime="torch")  # OpenVINO keeps threads of its own
    assert state() == before
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_threads_started_later_have_their_share(make_rows, view, images):
    embed(make_rows(images), view, **CPU)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [torch.get_num_threads()]


def test_interrupt_stops_all_threads(make_rows, make_view, images):
    class Interrupted(Counting):
        def __deepcopy__(self, memo):
            return self

        def forward(self, x):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().forward(x)

    many = np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)
    rows = make_rows(many)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        embed(rows, make_view(Interrupted(), width=3), **FLOAT32)
    assert threading.active_count() == before
    assert len(rows.calls) < 200


def test_error_in_a_thread_comes_out(make_rows, view, images):
    class Broken(make_rows):
        def __getitem__(self, i):
            if i == 40:
                raise ZeroDivisionError
            return super().__getitem__(i)

    with pytest.raises(ZeroDivisionError):
        embed(Broken(images), view, **CPU)


def test_progress_bar_counts_rows_that_cannot_be_read(make_rows, view, images, capsys):
    embed(make_rows(images, undecodable=[3], unreadable=[0, 40]), view, verbose=1, on_error="nan", **CPU)
    assert "50/50" in capsys.readouterr().err


def test_progress_bar(make_rows, view, images, capsys):
    embed(make_rows(images), view, verbose=1, **CPU)
    assert "50/50" in capsys.readouterr().err
    embed(make_rows(images), view, **CPU)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batch_size": 0}, r"The 'batch_size' parameter must be an int in the range \[1, inf\), got 0"),
        ({"batch_size": True}, "The 'batch_size' parameter"),
        ({"n_threads": 1.5}, "The 'n_threads' parameter"),
        ({"on_error": "ignore"}, "The 'on_error' parameter must be 'raise' or 'nan', got 'ignore'"),
        ({"runtime": "tensorrt"}, "The 'runtime' parameter must be 'auto', 'torch', 'compile' or 'openvino', got 't"),
    ],
)
def test_wrong_parameters(make_rows, view, images, parameters, message):
    with pytest.raises(ValueError, match=message):
        embed(make_rows(images), view, **parameters)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "auto", "float16"])
def test_on_cuda(make_rows, view, images, expected, dtype):
    result = embed(make_rows(images), view, device="cuda", dtype=dtype, runtime="torch")
    assert cosine(result, expected).min() > 0.999
    order = np.random.default_rng(1).permutation(len(images))
    again = embed(make_rows(images[order]), view, device="cuda", dtype=dtype, runtime="torch")
    np.testing.assert_array_equal(again, result[order])
