"""Pretrain a small network on the pictures of `generate`.

Every step draws two random views of some pictures and adds three losses:

- cross-entropy over the classes of formulas (formula-driven supervised learning),
- the contrastive loss of SimCLR between the two views of a picture, and
- the error of a linear prediction, from the embedding, of the colours and edges of the view itself (see `glance`).

The weights kept are an exponential moving average. The learning rate warms up, stays, and falls to zero over the last
third of the steps, so a run can be made longer or shorter from any checkpoint taken before the fall. A backbone that
`export` wrote can be the start of a run.

Usage::

    python -m examples.pretraining.train --images /tmp/pretrain/images --output /tmp/pretrain/tiny.pt
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional

from .augment import random_views
from .canvas import N_CLASSES
from .generate import class_names
from .glance import N_NUMBERS, glance_loss

ARCHITECTURE = "resnet18"
ARCHITECTURE_KWARGS = {
    "layers": [2, 2, 2, 1],
    "channels": [32, 64, 128, 256],
    "stem_type": "deep_tiered",
    "stem_width": 16,
    "avg_down": True,
    "output_stride": 16,
}
VIEW_SIZES, VIEW_SHARES = (32, 48, 64), (0.5, 0.3, 0.2)
"""Sides of the views in pixels, one drawn for each step, and how often."""


class PretrainingNetwork(nn.Module):
    """Backbone, a classifier of formulas, a projector for the contrastive loss and a linear view of colours and edges.

    Parameters
    ----------
    architecture : str
        Name of a timm model.
    architecture_kwargs : dict
        Further arguments of `timm.create_model`.
    n_classes : int
        Number of formulas.
    projection : int, default=128
        Width of the space in which views are compared.
    """

    def __init__(self, architecture, architecture_kwargs, n_classes, projection=128):
        super().__init__()
        self.backbone = timm.create_model(architecture, pretrained=False, num_classes=0, **architecture_kwargs)
        with torch.no_grad():
            width = self.backbone.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
        self.classifier = nn.Linear(width, n_classes)
        self.projector = nn.Sequential(
            nn.Linear(width, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, projection)
        )
        self.describer = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, sum(N_NUMBERS)))

    def forward(self, views):
        """Return the class scores, the unit-length projections and the predicted colours and edges of views."""
        embedding = self.backbone(views)
        projections = functional.normalize(self.projector(embedding).float(), dim=1)
        return self.classifier(embedding), projections, self.describer(embedding).float()


def contrastive_loss(projections, temperature=0.2):
    """SimCLR's loss: each view must find the other view of its picture among all views.

    Parameters
    ----------
    projections : Tensor of shape (2 * n, width)
        Unit vectors; rows ``i`` and ``n + i`` show the same picture.
    temperature : float, default=0.2
        Scale of the similarities.

    Returns
    -------
    Tensor of shape ()
    """
    n = len(projections) // 2
    similarity = projections @ projections.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    partner = torch.arange(2 * n).roll(n)
    return functional.cross_entropy(similarity, partner)


def load_images(folder, n_images):
    """Read shards into memory.

    Parameters
    ----------
    folder : str
        Where `generate` wrote its shards.
    n_images : int
        How many pictures to use.

    Returns
    -------
    pixels : Tensor of shape (n_images, H, W, 3), uint8
    labels : Tensor of shape (n_images,), int64
    """
    pixels, labels, count = None, torch.empty(n_images, dtype=torch.int64), 0
    for path in sorted(Path(folder).glob("shard-*.npz")):
        with np.load(path) as shard:
            part = shard["pixels"][: n_images - count]
            if pixels is None:
                pixels = torch.empty((n_images, *part.shape[1:]), dtype=torch.uint8)
            pixels[count : count + len(part)] = torch.from_numpy(part)
            labels[count : count + len(part)] = torch.from_numpy(shard["labels"][: len(part)].astype(np.int64))
        count += len(part)
        if count == n_images:
            return pixels, labels
    raise SystemExit(f"{folder} holds {count} pictures, {n_images} are wanted; run generate first")


def learning_rate(step, n_steps, peak, warmup=100, fall=0.33):
    """Warm up, stay, then fall linearly to zero over the last part of the steps."""
    return peak * min(1.0, (step + 1) / warmup, (n_steps - step) / (fall * n_steps))


class Trainer:
    """State of a run, saved and resumed as one file.

    Parameters
    ----------
    arguments : argparse.Namespace
        See `build_parser`.
    """

    def __init__(self, arguments):
        self.arguments = arguments
        torch.manual_seed(arguments.seed)
        network = PretrainingNetwork(arguments.architecture, arguments.architecture_kwargs, len(class_names()))
        if arguments.start:
            network.backbone.load_state_dict(load_file(arguments.start))
        self.network = network.to(memory_format=torch.channels_last)
        self.average = ModelEmaV3(self.network, decay=0.999, use_warmup=True)
        self.optimizer = torch.optim.AdamW(
            param_groups_weight_decay(self.network, arguments.weight_decay), lr=arguments.learning_rate
        )
        self.step = 0
        self.seconds = 0.0

    def draw_batch(self, pixels, labels):
        """Two views of random pictures and their labels; a function of the seed and the step alone."""
        generator = torch.Generator().manual_seed(1_000_003 * self.arguments.seed + self.step)
        size = VIEW_SIZES[int(torch.multinomial(torch.tensor(VIEW_SHARES), 1, generator=generator))]
        rows = torch.randint(len(pixels), (self.arguments.batch_size,), generator=generator)
        pictures, targets = pixels[rows].repeat(2, 1, 1, 1), labels[rows].repeat(2)
        return random_views(pictures, size, targets >= N_CLASSES["glyphs"], generator), targets

    def train_step(self, pixels, labels):
        """Take one step and return its three losses and the share of views classified correctly."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.arguments.steps, self.arguments.learning_rate)
        views, targets = self.draw_batch(pixels, labels)
        with torch.autocast("cpu", torch.bfloat16):
            scores, projections, described = self.network(views)
        classes = functional.cross_entropy(scores.float(), targets, label_smoothing=0.1)
        contrast = contrastive_loss(projections)
        looks = glance_loss(described, views)
        self.optimizer.zero_grad()
        (classes + self.arguments.contrast * contrast + self.arguments.looks * looks.sum()).backward()
        self.optimizer.step()
        self.step += 1
        self.average.update(self.network, self.step)
        correct = (scores.argmax(1) == targets).float().mean()
        return np.array([classes.item(), contrast.item(), correct.item(), *looks.tolist()])

    def run(self, pixels, labels):
        """Train to the last step, with a line in the log and a checkpoint now and then."""
        self.network.train()
        start, already, recent = time.perf_counter(), self.seconds, []
        while self.step < min(self.arguments.steps, self.arguments.stop_after or math.inf):
            recent.append(self.train_step(pixels, labels))
            self.seconds = already + time.perf_counter() - start
            if self.step % self.arguments.log_every == 0 or self.step == self.arguments.steps:
                classes, contrast, accuracy, *looks = np.mean(recent, axis=0)
                recent.clear()
                print(
                    f"step {self.step:6d}  {self.seconds / 60:6.1f} min  classes {classes:.3f}  "
                    f"contrast {contrast:.3f}  accuracy {accuracy:.3f}  "
                    "colours {:.3f}  histogram {:.3f}  edges {:.3f}".format(*looks),
                    flush=True,
                )
                self.save()

    def save(self):
        """Write the checkpoint in one piece."""
        part = f"{self.arguments.output}.part"
        state = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimizer")}
        about = {name: getattr(self.arguments, name) for name in ("architecture", "architecture_kwargs", "seed")}
        torch.save({**state, **about, "step": self.step, "seconds": self.seconds}, part)
        os.replace(part, self.arguments.output)

    def resume(self):
        """Go on from the checkpoint, if there is one."""
        if os.path.exists(self.arguments.output):
            state = torch.load(self.arguments.output, weights_only=True)
            for name in ("network", "average", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.seconds = state["step"], state["seconds"]


def build_parser():
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="folder with the shards of generate")
    parser.add_argument("--output", required=True, help="checkpoint file; a run goes on from it if it exists")
    parser.add_argument("--n-images", type=int, default=120_000, help="pictures to use (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3_700, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--stop-after", type=int, help="end at this step, to go on later as if nothing had been")
    parser.add_argument("--batch-size", type=int, default=128, help="pictures per step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="highest rate (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="of AdamW (default: %(default)s)")
    parser.add_argument("--contrast", type=float, default=0.5, help="contrastive loss's weight (default: %(default)s)")
    parser.add_argument("--looks", type=float, default=2.5, help="weight of each look (default: %(default)s)")
    parser.add_argument("--start", metavar="FILE", help="safetensors file of a backbone to start from")
    parser.add_argument("--architecture", default=ARCHITECTURE, help="timm model (default: %(default)s)")
    parser.add_argument(
        "--architecture-kwargs", type=json.loads, default=ARCHITECTURE_KWARGS, help="its arguments, as JSON"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--log-every", type=int, default=100, help="steps per line and checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and views (default: %(default)s)")
    return parser


def main():
    """Train as the command line says."""
    arguments = build_parser().parse_args()
    torch.set_num_threads(arguments.threads)
    trainer = Trainer(arguments)
    trainer.resume()
    trainer.run(*load_images(arguments.images, arguments.n_images))


if __name__ == "__main__":
    main()
