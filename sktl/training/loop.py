"""The training loop: schedule, clipping, precision and what is done once for all epochs."""

from collections.abc import Sequence

import torch
from skorch.callbacks import Callback, GradientNormClipping, LRScheduler
from skorch.helper import predefined_split

from sktl._random import private_torch_rng
from sktl.training.activations import prefix_once
from sktl.training.callbacks import NextViews, ValidScore, sets_rates, warmup_cosine
from sktl.training.checkpoint import Checkpoint
from sktl.training.data import TrainingData, batches
from sktl.training.net import TransferNet
from sktl.training.peers import current_peers


def train(
    net: TransferNet,
    data: TrainingData,
    valid: TrainingData | None,
    seed: int,
    callbacks: Sequence[tuple[str, Callback]] = (),
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train a net on a private stream of random numbers, with warm-up, cosine decay and clipped gradients.

    An ``LRScheduler`` among the net's own callbacks takes the place of warm-up and cosine decay.

    Parameters
    ----------
    net : TransferNet
        Trained in place.
    data : TrainingData
        Rows to learn from.
    valid : TrainingData or None
        Rows to measure on after each epoch.
    seed : int
        Decides shuffling, dropout and whatever else is random.
    callbacks : sequence of (str, skorch callback), default=()
        For this run alone.
    checkpoint : Checkpoint, default=None
        Keeps the state after each epoch, and goes on from there.
    """
    device = torch.device(net.device)
    generator = torch.Generator().manual_seed(seed)
    peers = current_peers()
    peers.check_rows(len(data))
    factor = warmup_cosine(len(batches(data, net.batch_size)) * net.max_epochs)
    schedule = LRScheduler("LambdaLR", lr_lambda=factor, step_every="batch", event_name=None)
    # First, so that the callbacks of a user see what they recorded.
    scores = [each for each in callbacks if isinstance(each[1], ValidScore)]
    net.set_params(
        iterator_train__generator=generator,
        iterator_train__part=(peers.rank, peers.size),
        train_split=predefined_split(valid) if valid is not None else None,
        callbacks=[
            *scores,
            *net.callbacks,
            *([] if net.averaging is None else [("averaging", net.averaging)]),
            *(each for each in callbacks if each not in scores),
            ("views", NextViews(data)),
            *prefix_once(net, net.max_epochs, data, valid),
            ("clip", GradientNormClipping(1.0)),
            *([] if any(map(sets_rates, net.callbacks)) else [("schedule", schedule)]),
            *([] if checkpoint is None else [("checkpoint", checkpoint)]),  # last: it restores what the others made
        ],
    )
    with private_torch_rng(seed + peers.rank, device):
        net.fit(data, None)
    _finish(net, data)


def _finish(net: TransferNet, data: TrainingData) -> None:
    """Bring a trained net to the CPU, without what only training needs; make sure that it gives numbers."""
    net.module_.cpu().eval()
    net.device = "cpu"
    net.optimizer_.state.clear()
    net.averaging = net.autocast = net.train_split = None
    images = data.inputs(torch.tensor([0]), 0)
    with torch.inference_mode():
        finite = torch.isfinite(net.module_(images)).all()
    if not finite:
        raise FloatingPointError("Training ended with a network that gives no numbers. Try a smaller learning_rate.")
