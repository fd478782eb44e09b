"""How large is a stored model, and how long do writing and reading take?

A classifier on a pretrained network is fitted on a few generated pictures and stored in every form that sktl knows;
beside it a bare torch module in joblib, its state dict in safetensors, a skorch net with AdamW after one epoch, and an
embetter pipeline where that is installed::

    python docs/benchmarks/persistence.py --backbones resnet50 mobilenetv2_100
    python docs/benchmarks/persistence.py --ways vit_small_patch16_224
    python docs/benchmarks/persistence.py --classifiers resnet50 mobilenetv2_100=WEIGHTS.safetensors

The second command fits a classifier in several ways instead, and shows how little of it has to be stored where the
public weights are named (``persist="reference"``). The third compares what classifiers take in every form with the
bytes of the weights in it: a network that came with an original classifier, and the new head.

Weights are random: sizes and times do not depend on them. Each time is the least of several; "ready" is reading until
the network is there, which sktl builds when it is first used.
"""

import argparse
import importlib.util
import os
import pickle
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import joblib
import numpy as np
import safetensors.torch
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import sktl
from sktl.backbones import _backbone


def least(work, repeats):
    """Return the least time in milliseconds, and what the work gave."""
    times = []
    for _ in range(repeats):
        _backbone._built.clear()  # what an earlier round has built is not shared
        started = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - started)
    return 1000 * min(times), result


def pictures(n=8):
    return np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8), np.arange(n) % 2


def fitted(architecture, weights, **settings):
    X, y = pictures()
    embed = sktl.PretrainedFeatureTransformer(architecture, weights=weights, image_size=64, **settings)
    return make_pipeline(embed, LogisticRegression()).fit(X, y)


def module_of(model):
    return model[0].backbone_.module


def build(architecture, state):
    """What whoever loads safetensors has to do."""
    with torch.device("meta"):
        module = timm.create_model(architecture, num_classes=0)
    module.load_state_dict(state, assign=True)
    return module


def skorch_net(architecture):
    from skorch import NeuralNetClassifier

    X, y = pictures()
    settings = {"optimizer": torch.optim.AdamW, "max_epochs": 1, "train_split": None, "verbose": 0}
    net = NeuralNetClassifier(timm.create_model(architecture, num_classes=2), **settings)
    return net.fit(X.transpose(0, 3, 1, 2).astype(np.float32), y.astype(np.int64))


def embetter_pipeline(architecture):
    from embetter.vision import TimmEncoder

    create = timm.create_model
    with mock.patch("timm.create_model", lambda name, pretrained, **kwargs: create(name, **kwargs)):  # no download
        return make_pipeline(TimmEncoder(architecture), LogisticRegression())


def forms(architecture, folder):
    """Yield name, function that writes, function that reads, function that makes it ready."""
    weights = folder / "public.safetensors"
    safetensors.torch.save_file(timm.create_model(architecture, num_classes=0).state_dict(), weights)
    model = fitted(architecture, weights)
    small = fitted(architecture, weights, persist="reference")
    module = module_of(model)
    paths = {
        name: folder / f"model.{name}"
        for name in ("safetensors", "module", "joblib", "sktl", "small", "net", "embetter")
    }
    yield (
        "safetensors, network built by hand",
        paths["safetensors"],
        lambda: safetensors.torch.save_file(module.state_dict(), paths["safetensors"]),
        lambda: safetensors.torch.load_file(paths["safetensors"]),
        lambda: build(architecture, safetensors.torch.load(paths["safetensors"].read_bytes())),
    )
    yield joblib_form("joblib of a bare module", module, paths["module"], lambda loaded: loaded)
    yield joblib_form("sktl, joblib", model, paths["joblib"], module_of)
    yield (
        "sktl, sktl.save",
        paths["sktl"],
        lambda: sktl.save(model, paths["sktl"]),
        lambda: sktl.load(paths["sktl"]),
        lambda: module_of(sktl.load(paths["sktl"])),
    )
    yield joblib_form("sktl, joblib, persist='reference'", small, paths["small"], module_of)
    yield joblib_form("skorch with AdamW, joblib", skorch_net(architecture), paths["net"], lambda net: net.module_)
    if importlib.util.find_spec("embetter"):
        yield joblib_form("embetter, joblib", embetter_pipeline(architecture), paths["embetter"], lambda loaded: loaded)


def joblib_form(name, model, path, ready):
    return (
        name,
        path,
        lambda: joblib.dump(model, path),
        lambda: joblib.load(path),
        lambda: ready(joblib.load(path)),
    )


def show_ways(architecture):
    """Print what a classifier takes by each way of transfer, once the public weights need not be in it."""
    X, y = pictures()
    ways = {
        "fine_tuning, embedded": ("fine_tuning", "embed"),
        "feature_extraction": ("feature_extraction", "reference"),
        "bitfit": ("bitfit", "reference"),
        "partial": ("partial", "reference"),
    }
    if importlib.util.find_spec("peft"):
        ways["lora, rank 4, linear layers"] = (sktl.strategies.LoRA(rank=4, target_modules="linear"), "reference")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "public.safetensors")
        safetensors.torch.save_file(timm.create_model(architecture, num_classes=0).state_dict(), weights)
        settings = {"weights": weights, "image_size": 64, "max_epochs": 1, "random_state": 0}
        full = None
        for name, (strategy, persist) in ways.items():
            model = sktl.FineTuneClassifier(architecture, strategy, persist=persist, **settings).fit(X, y)
            size = len(pickle.dumps(model))
            full = full or size
            print(f"{architecture:24s} {name:30s} {size:12,d} bytes {100 * size / full:8.2f} %", flush=True)


def published(architecture, folder):
    """Write a network with its classifier, as networks are published; returns the file."""
    path = Path(folder, f"{architecture}.safetensors")
    safetensors.torch.save_file(timm.create_model(architecture).state_dict(), path)
    return path


def bytes_of_weights(model):
    """Return the bytes of the weights that a classifier needs: network, head, and the old head where it was trained."""
    modules = [model.backbone_.module, model.net_.module_.head]
    if model.strategy_.needs_original_head:
        modules.append(model._original.module)
    return sum(value.numel() * value.element_size() for module in modules for value in module.state_dict().values())


def show_classifiers(networks):
    """Print the bytes of stored classifiers in every form, and what they are over those of the weights in them."""
    import cloudpickle

    X, y = pictures()
    strategies = ["feature_extraction", "fine_tuning", "lwf", *(["lora"] if importlib.util.find_spec("peft") else [])]
    with tempfile.TemporaryDirectory() as folder:
        for architecture, _, weights in (network.partition("=") for network in networks):
            settings = {"weights": weights or published(architecture, folder), "image_size": 64, "max_epochs": 1}
            for strategy in strategies:
                model = sktl.FineTuneClassifier(architecture, strategy, batch_size=8, random_state=0, **settings)
                of_weights = bytes_of_weights(model.fit(X, y))
                path = Path(folder, "model")
                sizes = {"pickle": len(pickle.dumps(model)), "cloudpickle": len(cloudpickle.dumps(model))}
                joblib.dump(model, path)
                sizes["joblib"] = path.stat().st_size
                sktl.save(model, path)
                sizes["sktl.save"] = path.stat().st_size
                row = "  ".join(f"{form} {size:,d} = {size / of_weights:.4f}" for form, size in sizes.items())
                print(f"{architecture} {strategy}: weights {of_weights:,d} bytes; {row}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "mobilenetv2_100"], help="timm names")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement (default: 5)")
    parser.add_argument("--ways", metavar="NETWORK", help="sizes by way of transfer, of this timm network")
    parser.add_argument("--classifiers", nargs="+", metavar="NETWORK[=WEIGHTS]", help="sizes over those of the weights")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.ways:
        return show_ways(options.ways)
    if options.classifiers:
        return show_classifiers(options.classifiers)
    print(f"{'network':18s} {'form':36s} {'MB':>8s} {'write ms':>9s} {'read ms':>9s} {'ready ms':>9s}")
    for architecture in options.backbones:
        with tempfile.TemporaryDirectory() as folder:
            for name, path, write, read, ready in forms(architecture, Path(folder)):
                times = [least(work, options.repeats)[0] for work in (write, read, ready)]
                row = f"{os.path.getsize(path) / 1e6:8.2f} " + " ".join(f"{value:9.1f}" for value in times)
                print(f"{architecture:18s} {name:36s} {row}", flush=True)


if __name__ == "__main__":
    main()
