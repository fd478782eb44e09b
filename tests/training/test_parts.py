"""Batches in parts: what memory has no room for at once, and the random numbers of a second attempt."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from small_models import Net, difference, make_model, three_digits

from sktl.training.parts import Parts, random_state, set_random_state


class Small(Net):
    """Has memory for so many images at a time."""

    def __init__(self, room):
        super().__init__()
        self.room = room
        self.largest = []
        self.drop = torch.nn.Identity()  # its random numbers would depend on the parts

    def forward(self, images):
        if len(images) > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return super().forward(images)


def small(room):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small(room)


def test_step_that_does_not_fit_into_memory_is_split():
    options = {"max_epochs": 3, "batch_size": 15, "learning_rate": 0.02, "early_stopping": True}
    roomy = make_model(backbone=small(100), **options).fit(*three_digits())
    tight = make_model(backbone=small(4), **options).fit(*three_digits())
    assert tight.net_.parts_.n == 4
    assert difference(roomy, tight) < 1e-5
    assert tight.history_[-1]["valid_loss"] == pytest.approx(roomy.history_[-1]["valid_loss"], rel=1e-4)


def test_too_little_memory_for_one_row_is_an_error():
    sizes = []

    def attempt(parts):
        sizes.append(len(parts))
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        Parts(1, torch.device("cpu")).run(6, attempt)
    assert sizes == [1, 2, 4, 6]


@pytest.mark.parametrize("n_parts", [3, 4, 100])
def test_gradients_of_parts_add_up_to_those_of_the_batch(n_parts):
    X, y = three_digits()
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y))
    options = {"backbone": small(100), "max_epochs": 2, "batch_size": 9, "learning_rate": 0.02}
    whole = make_model(**options).fit(X, y, sample_weight=weight)
    parts = make_model(**options, gradient_accumulation=n_parts).fit(X, y, sample_weight=weight)
    assert 0.0 < difference(whole, parts) < 1e-5


def test_a_second_attempt_draws_the_same_random_numbers():
    drawn = []

    def attempt(parts):
        drawn.append(torch.rand(1).item())
        if len(parts) < 4:
            raise torch.cuda.OutOfMemoryError("no room")
        return parts

    with torch.random.fork_rng():
        parts = Parts(1, torch.device("cpu")).run(10, attempt)
    assert len(drawn) == 3
    assert len(set(drawn)) == 1
    assert [row for part in parts for row in range(10)[part]] == list(range(10))


def test_a_cuda_device_that_comes_later_is_seeded_by_the_state_of_the_cpu(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    with torch.random.fork_rng():
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            state = random_state(torch.device("cpu"))
            torch.rand(3)
            set_random_state(state, torch.device("cuda", 0))
            assert torch.equal(torch.random.get_rng_state(), state[0])
    assert seeds[0] == seeds[1] != seeds[2]


def test_other_errors_are_no_lack_of_memory():
    class Broken(Net):
        def forward(self, images):
            if self.training:
                raise RuntimeError("shapes do not fit")
            return super().forward(images)

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        make_model(backbone=Broken()).fit(*three_digits())
