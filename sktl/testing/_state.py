"""What all code in a process shares, and an estimator should leave as it is."""

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile
from threadpoolctl import threadpool_info


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Seed the generators that everybody shares, and put them back."""
    numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        torch.set_rng_state(torch_state)


@contextmanager
def telling_global_state() -> Iterator[None]:
    """Give global settings values that nobody else would choose, so that setting them anew shows; put them back.

    An estimator that has set something in an earlier fit would otherwise change nothing by doing it again.
    """
    limits = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = 80_000_001, False
    torch.set_num_threads(2 if threads == 1 else 1)
    torch.backends.cudnn.benchmark = False
    try:
        with global_seeds(271828):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = limits
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark


def global_state() -> dict[str, Any]:
    """Return what can be compared of it, by names that a message can use."""
    threads = {f"the number of threads of {each['filepath']}": each["num_threads"] for each in threadpool_info()}
    return {
        "numpy's random generator": np.random.get_state(legacy=True)[1:3],  # noqa: NPY002
        "Python's random generator": random.getstate(),
        "torch's random generator": torch.get_rng_state().tolist(),
        "numpy's handling of errors": np.geterr(),
        "Pillow's limit of pixels": Image.MAX_IMAGE_PIXELS,
        "Pillow's handling of truncated files": ImageFile.LOAD_TRUNCATED_IMAGES,
        "torch's number of threads": torch.get_num_threads(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's recording of gradients": torch.is_grad_enabled(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's precision of matrix products": torch.get_float32_matmul_precision(),
        "torch's cudnn.benchmark": torch.backends.cudnn.benchmark,
        "the working directory": os.getcwd(),
        "the limit of recursion": sys.getrecursionlimit(),
        **threads,
    }


def what_changed(before: dict[str, Any]) -> list[str]:
    """Name the settings that are no longer what they were; libraries that were loaded since do not count."""
    now = global_state()
    return [name for name, value in before.items() if name in now and not _equal(now[name], value)]


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, tuple) and any(isinstance(value, np.ndarray) for value in first):
        return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    return bool(first == second)
