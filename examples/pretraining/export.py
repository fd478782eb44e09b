"""Turn a checkpoint of `train` into the two files that the package ships.

Usage::

    python -m examples.pretraining.export --checkpoint /tmp/pretrain/tiny.pt --version 3 --output sktl/backbones/bundled
"""

import argparse
import hashlib
import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save

INPUT_SIZE = 64


def averaged_backbone(checkpoint):
    """Rebuild the backbone with the averaged weights of a checkpoint.

    Parameters
    ----------
    checkpoint : dict
        What `train` saved.

    Returns
    -------
    nn.Module
        In evaluation mode, without classifier and projector.
    """
    network = timm.create_model(checkpoint["architecture"], num_classes=0, **checkpoint["architecture_kwargs"])
    prefix = "module.backbone."
    state = {name.removeprefix(prefix): value for name, value in checkpoint["average"].items() if prefix in name}
    network.load_state_dict(state, strict=True)
    return network.eval()


def describe(network, checkpoint, weights, version):
    """Describe the weights file as sktl reads it.

    Parameters
    ----------
    network : nn.Module
        The backbone.
    checkpoint : dict
        What `train` saved.
    weights : bytes
        Content of the safetensors file.
    version : int
        Which ``sktl/tiny`` this is.

    Returns
    -------
    dict
        JSON-able.
    """
    with torch.inference_mode():
        width = network(torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE)).shape[1]
    return {
        "name": "sktl/tiny",
        "version": version,
        "architecture": checkpoint["architecture"],
        "architecture_kwargs": checkpoint["architecture_kwargs"],
        "data_config": {
            "input_size": [3, INPUT_SIZE, INPUT_SIZE],
            "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "crop_pct": 1.0,
            "crop_mode": "center",
        },
        "width": width,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "license": "BSD-3-Clause",
    }


def build_parser():
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="file that train wrote")
    parser.add_argument("--version", type=int, required=True, help="a published version is never written again")
    parser.add_argument("--output", required=True, help="folder of the two files")
    return parser


def main():
    """Export what the command line names."""
    arguments = build_parser().parse_args()
    checkpoint = torch.load(arguments.checkpoint, weights_only=True)
    network = averaged_backbone(checkpoint)
    weights = save({name: value.half().contiguous() for name, value in network.state_dict().items()})
    target = Path(arguments.output) / f"tiny-{arguments.version}"
    target.with_suffix(".safetensors").write_bytes(weights)
    about = describe(network, checkpoint, weights, arguments.version)
    target.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
    print(f"{target}.safetensors: {len(weights) / 1e6:.2f} MB, step {checkpoint['step']}, sha256 {about['sha256']}")


if __name__ == "__main__":
    main()
