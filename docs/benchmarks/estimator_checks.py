"""How many of scikit-learn's checks do sktl's estimators pass, and others that bring networks to scikit-learn?

Each estimator is given to ``check_estimator`` with its own tags and no expected failure, under ``SCIPY_ARRAY_API=1``,
and its checks are counted: passed, failed, skipped; a suite that an estimator brings to an end is counted up to there.
Ours also go through ``sktl.testing.check_image_estimator``. Peers are counted where they are installed: ``skorch``,
``embetter``; scikit-learn's MLPClassifier is there to compare with::

    python docs/benchmarks/estimator_checks.py
    python docs/benchmarks/estimator_checks.py --only skorch
"""

import os

os.environ["SCIPY_ARRAY_API"] = "1"  # SciPy looks at it when it is imported

import argparse
import time
import warnings
from collections import Counter
from unittest import mock

import torch
from sklearn.neural_network import MLPClassifier
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from sktl import FineTuneClassifier, FineTuneRegressor, PretrainedFeatureTransformer
from sktl.strategies import FeatureExtraction
from sktl.testing import check_image_estimator

FAMILIES = ["sktl/tiny", "test_resnet", "test_vit", "test_convnext"]


def ours():
    """Yield our estimators on a backbone of each family, with a name for each."""
    for name in FAMILIES:
        common = {"image_size": 32} if name == "sktl/tiny" else {"image_size": 32, "weights": None}
        short = {"max_epochs": 1, "batch_size": 64}
        yield f"PretrainedFeatureTransformer, {name}", PretrainedFeatureTransformer(name, **common)
        for kind in (FineTuneClassifier, FineTuneRegressor):
            # Random features say less than pretrained ones, and a check asks for a score: the head is penalised less.
            weak = kind is FineTuneRegressor and name != "sktl/tiny"
            strategy = FeatureExtraction(C=100) if weak else "feature_extraction"
            yield f"{kind.__name__}, feature_extraction, {name}", kind(name, strategy, **common)
            if name == "sktl/tiny" or kind is FineTuneClassifier:
                # In so few epochs the usual learning rate does not come to rest, and checks ask for a score.
                rate = {} if name == "sktl/tiny" and kind is FineTuneClassifier else {"learning_rate": 3e-5}
                yield f"{kind.__name__}, lp_ft, {name}", kind(name, "lp_ft", **common, **short, **rate)


class Perceptron(nn.Module):
    """One hidden layer, on as many features as there are, of any kind of number."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.LazyLinear(100), nn.ReLU(), nn.LazyLinear(10), nn.Softmax(dim=-1))

    def forward(self, X):
        return self.layers(X.float())


def peers():
    """Yield what others offer, where it is installed."""
    yield "scikit-learn MLPClassifier", MLPClassifier(max_iter=50)
    try:
        from skorch import NeuralNetClassifier

        yield "skorch NeuralNetClassifier", NeuralNetClassifier(Perceptron, max_epochs=20, verbose=0)
    except ImportError:
        print("skorch is not installed")
    try:
        import timm
        from embetter.vision import ImageLoader, TimmEncoder
    except ImportError:
        print("embetter is not installed")
        return
    create = timm.create_model
    with mock.patch("timm.create_model", lambda name, pretrained, **kwargs: create(name, **kwargs)):  # no download
        yield "embetter TimmEncoder", TimmEncoder("test_resnet")
    yield "embetter ImageLoader", ImageLoader()


def count(check, estimator):
    """Return how many checks have which outcome, the names of those that failed, and what ended the suite, if so."""
    results, end = [], ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(estimator, results)
    except Exception as error:  # of whatever kind a peer raises
        end = f"aborted: {type(error).__name__}: {error}"
    failed = [result["check_name"] for result in results if result["status"] == "failed"]
    return Counter(result["status"] for result in results), ", ".join(failed), end


def scikit_learn(estimator, results):
    """Run scikit-learn's checks."""
    check_estimator(estimator, on_fail=None, on_skip=None, callback=lambda **result: results.append(result))


def images(estimator, results):
    """Run sktl's checks of estimators of images."""
    results += check_image_estimator(estimator, on_fail=None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a part of the names to count, such as Classifier or skorch")
    parser.add_argument("--show-failed", action="store_true", help="name the checks that fail")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'estimator':58} {'checks':13} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>7}")
    for is_ours, pairs in ((True, ours()), (False, peers())):
        for name, estimator in pairs:
            if arguments.only.lower() not in name.lower():
                continue
            for check in (scikit_learn, images) if is_ours else (scikit_learn,):
                start = time.perf_counter()
                outcome, failed, end = count(check, estimator)
                spent = time.perf_counter() - start
                numbers = f"{outcome['passed']:6} {outcome['failed']:6} {outcome['skipped']:7} {spent:7.1f}"
                print(f"{name:58} {check.__name__:13} {numbers}  {end}".rstrip(), flush=True)
                if arguments.show_failed and failed:
                    print(f"    {failed}")


if __name__ == "__main__":
    main()
