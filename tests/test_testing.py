"""sktl.testing: our own estimators pass, a good estimator of another package passes, and each fault is found."""

import random
import warnings

import numpy as np
import pytest
import torch
from faulty_estimators import FAULTS, MeanColour, NearestColour, ReadsFilesAsBGR, StacksPixels, TransformsUnfitted
from PIL import Image, ImageFile
from sklearn.exceptions import EstimatorCheckFailedWarning

from sktl import FineTuneClassifier, FineTuneRegressor, PretrainedFeatureTransformer
from sktl.testing import check_image_estimator, image_estimator_checks_generator, parametrize_with_image_checks


@parametrize_with_image_checks(
    [
        PretrainedFeatureTransformer(image_size=32),
        FineTuneClassifier(strategy="feature_extraction", image_size=32),
        FineTuneRegressor(strategy="feature_extraction", image_size=32),
    ]
)
def test_our_estimators(estimator, check):
    check(estimator)


@parametrize_with_image_checks(
    [FineTuneClassifier(strategy="lp_ft", image_size=32, max_epochs=1)], containers=["paths", "array"]
)
def test_our_estimators_that_train(estimator, check):
    check(estimator)


@pytest.fixture
def untouched():
    """Put back what the faulty estimators change."""
    states = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    limits, threads = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES), torch.get_num_threads()
    yield
    np.random.set_state(states[0])  # noqa: NPY002
    random.setstate(states[1])
    torch.set_rng_state(states[2])
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = limits
    torch.set_num_threads(threads)


def failures(estimator):
    results = check_image_estimator(estimator, on_fail=None, containers=["paths", "pil", "arrays", "array"])
    return {result["check_name"].split("[")[0] for result in results if result["status"] == "failed"}


@pytest.mark.parametrize("kind", [MeanColour, NearestColour])
def test_a_good_estimator_passes(kind):
    assert failures(kind()) == set()


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_its_check(name):
    kind, expected = FAULTS[name]
    found = failures(kind())
    assert found >= expected - {"..."}
    assert found == expected or "..." in expected, "a check complains of what is no fault"


# What it offers -------------------------------------------------------------------------------------------------------


def test_first_failure_is_raised_with_the_name_of_the_check():
    with pytest.raises(AssertionError, match="before fit must raise") as caught:
        check_image_estimator(TransformsUnfitted())
    assert "check_unfitted_is_said" in caught.value.__notes__[0]


def test_failures_may_be_warnings():
    with pytest.warns(EstimatorCheckFailedWarning, match="check_unfitted_is_said"):
        check_image_estimator(TransformsUnfitted(), on_fail="warn", containers=["pil"])


def test_expected_failures_are_told_apart():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = check_image_estimator(
            ReadsFilesAsBGR(),
            expected_failed_checks={"check_containers_agree[arrays]": "a", "check_containers_agree": "b"},
        )
    reasons = {result["check_name"]: result["expected_to_fail_reason"] for result in results}
    failed = {result["check_name"]: result for result in results if result["status"] == "xfail"}
    assert set(failed) == {"check_containers_agree[arrays]", "check_containers_agree[array]"}
    assert reasons["check_containers_agree[arrays]"] == "a"
    assert reasons["check_containers_agree[array]"] == "b"
    assert reasons["check_no_rows"] is None


def test_only_the_containers_asked_for_are_used():
    names = [check.name for _, check in image_estimator_checks_generator(StacksPixels(), containers=["array"])]
    assert "check_order_of_rows[array]" in names
    assert not any("[p" in name or "check_sizes" in name for name in names)
    assert {result["status"] for result in check_image_estimator(StacksPixels(), containers=["array"])} == {"passed"}


def test_expected_failures_are_marked_for_pytest():
    mark = parametrize_with_image_checks(
        [TransformsUnfitted()], expected_failed_checks=lambda estimator: {"check_unfitted_is_said": "known"}
    ).mark
    marked = [case for case in mark.args[1] if not isinstance(case, tuple) or hasattr(case, "marks")]
    assert [case.values[1].name for case in marked] == ["check_unfitted_is_said"]
    assert marked[0].marks[0].kwargs == {"reason": "known"}


@pytest.mark.parametrize("containers", [["tensor"], []])
def test_unknown_containers_are_refused(containers):
    with pytest.raises(ValueError, match=r"'containers' parameter must be some of \['paths'"):
        check_image_estimator(MeanColour(), containers=containers)


def test_a_class_is_refused():
    with pytest.raises(TypeError, match=r"MeanColour\(\)"):
        check_image_estimator(MeanColour)
