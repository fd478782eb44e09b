"""In which precision the training steps of a network are computed: a rule, so that the clock has no say in results."""

import torch
from torch import nn

from sktl.embedding import resolve_dtype

# Multiplications per number that a layer writes. Below it bfloat16 loses on a CPU, because casting and moving numbers
# costs more than multiplying them: depthwise convolutions have about 10, networks made of them 40 to 60, residual
# networks and transformers more than 250.
MIN_INTENSITY = 200.0


def autocast_dtype(amp: bool | str, network: nn.Module, images: torch.Tensor, device: torch.device, dtype: str):
    """Choose the precision of training.

    Parameters
    ----------
    amp : bool or "auto"
        Whether to compute in bfloat16 with weights in float32. "auto" does so where the hardware multiplies bfloat16
        natively and, on a CPU, the network multiplies enough.
    network : module
        Run once on ``images``.
    images : tensor of shape (n, ...)
        A few images, as the network takes them.
    device : torch.device
        Where training runs.
    dtype : str
        The precision of embeddings that was asked for: "float32" holds for training too.

    Returns
    -------
    dtype : torch.dtype or None
        None for float32 throughout.
    """
    if not isinstance(amp, str):
        return torch.bfloat16 if amp else None
    if dtype == "float32" or resolve_dtype("auto", device) != torch.bfloat16:
        return None
    gains = device.type != "cpu" or arithmetic_intensity(network, images) >= MIN_INTENSITY
    return torch.bfloat16 if gains else None


def arithmetic_intensity(network: nn.Module, images: torch.Tensor) -> float:
    """Count multiplications per number that the convolutions and linear layers of a network write.

    Parameters
    ----------
    network : module
        On the CPU; left as it is.
    images : tensor of shape (n, ...)
        A few images, as the network takes them.
    """
    n_multiplied = n_written = 0

    def count(module, inputs, output):
        nonlocal n_multiplied, n_written
        n_written += output.numel()
        n_multiplied += output.numel() * module.weight[0].numel()  # of one output: its channels, or features

    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.inference_mode():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return n_multiplied / max(1, n_written)
