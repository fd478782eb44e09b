"""What runs a backbone: a private copy of its module, prepared for one device and precision."""

import copy

import torch
from torch import nn


class PixelsToEmbedding(nn.Module):
    """Normalisation and network in one module.

    Takes uint8 pixels ``(n, height, width, 3)`` or an already normalised float input ``(n, 3, height, width)``.

    Parameters
    ----------
    network : nn.Module
        Maps normalised float batches to embeddings.

    mean, std : sequence of 3 float
        Of the channels, for pixels in [0, 1].
    """

    def __init__(self, network, mean, std):
        super().__init__()
        self.network = network
        std = torch.tensor(std, dtype=torch.float32)
        self.register_buffer("scale", 1.0 / (255.0 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean, dtype=torch.float32) / std, persistent=False)

    def forward(self, batch):
        if batch.dtype == torch.uint8:
            batch = torch.addcmul(self.shift, batch.to(torch.float32), self.scale).permute(0, 3, 1, 2)
        return self.network(batch)


class Runner:
    """Calls a prepared network on padded batches.

    Attributes
    ----------
    batch_limit : int or None
        The largest batch that fitted into memory, once a larger one did not.
    """

    def __init__(self, module, device, dtype):
        self.module = module
        self.device = device
        self.dtype = dtype
        self.batch_limit = None

    def __call__(self, batch):
        """Float32 embeddings on the device, for a batch on the CPU."""
        batch = batch.to(self.device, non_blocking=True)
        if batch.dtype == torch.uint8:
            batch = torch.addcmul(self.module.shift, batch.to(torch.float32), self.module.scale).permute(0, 3, 1, 2)
        return self.module.network(batch.to(self.dtype)).to(torch.float32)


def prepare(view, device, dtype, runtime):
    """A runner for `view`; its module is copied, never changed."""
    network = copy.deepcopy(view.module).eval().requires_grad_(False)
    network = network.to(device=device, dtype=dtype, memory_format=torch.channels_last)
    module = PixelsToEmbedding(network, view.data_config["mean"], view.data_config["std"]).to(device)
    return Runner(module, device, dtype)


def resolve_runtime(runtime, device):
    """Turn the ``runtime`` parameter into the runtime to use."""
    return "torch" if runtime == "auto" else runtime


def get_runner(view, device, dtype, runtime):
    """The runner for `view`, prepared on the first call."""
    return prepare(view, device, dtype, runtime)
