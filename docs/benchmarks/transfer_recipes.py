"""FineTuneClassifier beside the recipes that people copy: the same weights, the same images, the same epochs.

Test accuracy and CPU seconds of fit, mean and standard deviation over seeds, on folders of ``train/<class>/<file>`` and
``test/<class>/<file>``, with all training images and with few per class::

    for set in cifar10_small caltech20 flowers5; do tar -xf ../shared/data/images/$set.tar -C /tmp; done
    pip install fastai
    python docs/benchmarks/transfer_recipes.py /tmp/cifar10_small /tmp/caltech20 /tmp/flowers5 \\
        --weights ../shared/data/weights/mobilenetv2_100.qnnpack_dequant.safetensors \\
        --per-class 5 20 all --seeds 3 --results /tmp/recipes.jsonl
    python docs/benchmarks/transfer_recipes.py --results /tmp/recipes.jsonl --table

Every image is first brought to a square PNG of ``--image-size``. All recipes are given these files, and none crops in
the test. A trial is a process with one thread; ``--jobs`` run side by side. A finished trial is a line of ``--results``
and is not run again, so that hours of it can be cut off and taken up. Seconds are those of the processor, from the list
of files to the fitted model, without imports: other work on the machine hardly touches them. The recipes themselves are
in ``recipes.py``.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageOps
from recipes import RECIPES

SETTINGS = ("backbone", "weights", "image_size", "epochs", "batch_size")


def prepare(source, target, size):
    """Write every image of a set as a square PNG of a size: its short side brought to it, then the centre."""
    for path in sorted(source.glob("*/*/*")):
        written = (target / path.relative_to(source)).with_suffix(".png")
        if not written.exists():
            written.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
            square.save(written.with_suffix(".part"), "png")
            written.with_suffix(".part").rename(written)


def read(folder, per_class, seed):
    """Return files and class numbers, so many per class, chosen at random."""
    rng = np.random.default_rng(seed)
    files, labels = [], []
    for label, directory in enumerate(sorted(folder.iterdir())):
        found = sorted(str(path) for path in directory.glob("*.png"))
        chosen = rng.permutation(len(found))[:per_class]
        files += [found[place] for place in chosen]
        labels += [label] * len(chosen)
    return files, np.array(labels)


def run_trial(settings):
    """Fit one recipe, and return the settings with accuracy and seconds of the processor."""
    if settings["recipe"].startswith("fastai"):
        import fastai.vision.all  # noqa: F401
    torch.set_num_threads(1)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(settings["seed"])
    folder = Path(settings["folder"])
    trial = SimpleNamespace(**settings, notes={})
    trial.files, trial.labels = read(folder / "train", settings["per_class"], settings["seed"])
    trial.n_classes = len(np.unique(trial.labels))
    test_files, test_labels = read(folder / "test", settings["test_per_class"], 0)
    started = time.process_time()
    predict = RECIPES[settings["recipe"]](trial)
    seconds = time.process_time() - started
    accuracy = float(np.mean(predict(test_files) == test_labels))
    return {**settings, "accuracy": accuracy, "seconds": round(seconds, 2), "rows": len(trial.files), **trial.notes}


def run_process(settings):
    """Run a trial in a process of its own; return its result, or None where it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--trial", json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"FAILED {settings}\n{done.stderr[-3000:]}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def key(result):
    """Return what tells a trial from others."""
    names = ("set", "per_class", "test_per_class", "seed", "recipe", *SETTINGS)
    return json.dumps([str(result[name]) for name in names])


def written(path):
    """Return the results of a file; a line that was cut off is none."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def asked(name, part):
    """Return whether a recipe is meant: by its name, or by a part of it that is no other's name."""
    return part == name or (part in name and part not in RECIPES)


def trials(arguments):
    """Return the settings of all trials, the first seed and the smallest sets first."""
    shared = {name: getattr(arguments, name) for name in (*SETTINGS, "test_per_class")}
    shared["weights"] = str(Path(arguments.weights).resolve())
    names = [name for name in RECIPES if not arguments.recipes or any(asked(name, part) for part in arguments.recipes)]
    for seed, per_class, folder, recipe in product(range(arguments.seeds), arguments.per_class, arguments.sets, names):
        images = arguments.results.with_suffix(".images") / f"{folder.name}-{arguments.image_size}"
        chosen = {"set": folder.name, "folder": str(images), "per_class": per_class, "seed": seed, "recipe": recipe}
        yield {**chosen, **shared}


def run(arguments):
    """Run what is not yet in the file of results; return whether all went well."""
    for folder in arguments.sets:
        images = arguments.results.with_suffix(".images") / f"{folder.name}-{arguments.image_size}"
        prepare(folder, images, arguments.image_size)
    done = {key(result) for result in written(arguments.results)}
    left = [settings for settings in trials(arguments) if key(settings) not in done]
    processes = ThreadPoolExecutor(arguments.jobs)
    running = [processes.submit(run_process, settings) for settings in left]
    failed = 0
    try:
        for number, finished in enumerate(as_completed(running), 1):
            result = finished.result()
            if result is None:
                failed += 1
                continue
            with arguments.results.open("a") as file:
                file.write("\n" + json.dumps(result))  # first the end of a line that may have been cut off
            print(f"{number}/{len(left)} {describe(result)}", flush=True)
    finally:
        processes.shutdown(cancel_futures=True)
    return not failed


def describe(result):
    """Return a line on a trial."""
    where = f"{result['set']}, {result['per_class'] or 'all'} per class, seed {result['seed']}"
    return f"{where}: {result['recipe']}: {result['accuracy']:.3f} in {result['seconds']:.1f} s"


def print_table(results):
    """Print accuracy and seconds of each recipe, by set, images per class and settings."""
    cells = {}
    for result in results:
        settings = f"{result['epochs']} epochs, {result['image_size']} px"
        place = (result["per_class"] or math.inf, result["set"], f"batches of {result['batch_size']}, {settings}")
        cells.setdefault(place, {}).setdefault(result["recipe"], []).append(result)
    for place, recipes in sorted(cells.items()):
        print(f"\n{place[1]}, {place[0]} images per class, {place[2]}".replace("inf", "all"))
        for recipe in (recipe for recipe in RECIPES if recipe in recipes):
            accuracy = [result["accuracy"] for result in recipes[recipe]]
            seconds = [result["seconds"] for result in recipes[recipe]]
            spread = f"{np.mean(accuracy):.3f} ± {np.std(accuracy):.3f}"
            print(f"  {recipe:46} {spread}  {np.mean(seconds):7.1f} s  ({len(accuracy)} seeds)")


def number_or_all(text):
    """Read a number of images."""
    return None if text == "all" else int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, nargs="*")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", help="a .safetensors file of the backbone's weights")
    parser.add_argument("--per-class", type=number_or_all, nargs="+", default=[5, 20, None])
    parser.add_argument("--test-per-class", type=number_or_all, default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--recipes", nargs="+", help="parts of their names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=Path("transfer_recipes.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the table of the results and stop")
    parser.add_argument("--trial", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trial:
        print(json.dumps(run_trial(arguments.trial)))
    elif arguments.table:
        print_table(written(arguments.results))
    elif not run(arguments):
        sys.exit(1)


if __name__ == "__main__":
    main()
