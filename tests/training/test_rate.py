"""The learning rate that a short test finds: repeatable, searchable, on a copy; and how it is drawn."""

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from small_models import difference, make_model, three_digits

from sktl.plots import LearningRateFinderDisplay
from sktl.training.rate import HIGHEST, LOWEST, N_STEPS, choose_rate

RATES = np.geomspace(1e-5, 1, 6).tolist()


@pytest.mark.parametrize(
    ("losses", "highest_good"),
    [([2, 1.8, 1.2, 0.8, 1.5, 6], 3), ([1, 1, 1, 1, 1.04, 3], 4), ([1, 3, 5], 0), ([5, 4, 3, 2, 1, 0.5], 5)],
)
def test_rate_is_a_tenth_of_the_last_one_at_the_lowest_loss(losses, highest_good):
    curve = {"learning_rate": RATES[: len(losses)], "loss": losses, "smoothed_loss": losses}
    assert choose_rate(curve) == pytest.approx(RATES[highest_good] / 10)


@pytest.mark.parametrize("strategy", ["fine_tuning", "partial", "gradual_unfreezing"])
def test_training_with_the_rate_found_is_training_with_that_rate(strategy):
    found = make_model(strategy, learning_rate="auto", max_epochs=3).fit(*three_digits())
    rate, curve = found.learning_rate_, found.lr_curve_
    assert LOWEST / 10 <= rate <= HIGHEST / 10
    assert len(curve["learning_rate"]) == len(curve["loss"]) == len(curve["smoothed_loss"]) <= N_STEPS
    assert curve["learning_rate"][0] == pytest.approx(LOWEST)
    assert difference(found, make_model(strategy, learning_rate=rate, max_epochs=3).fit(*three_digits())) == 0.0
    again = make_model(strategy, learning_rate="auto", max_epochs=3).fit(*three_digits())
    assert again.lr_curve_ == curve


def test_loss_goes_up_at_the_end_of_the_curve_and_the_rate_is_below():
    model = make_model("from_scratch", learning_rate="auto", batch_size=15).fit(*three_digits())
    smoothed = model.lr_curve_["smoothed_loss"]
    assert model.learning_rate_ < model.lr_curve_["learning_rate"][int(np.argmin(smoothed))]
    assert all(np.isfinite(model.lr_curve_["loss"]))


def test_rate_is_found_anew_for_other_data_and_forgotten_where_it_is_given():
    model = make_model(learning_rate="auto").fit(*three_digits())
    first = model.lr_curve_
    model.fit(three_digits()[0][:30], three_digits()[1][:30])
    assert model.lr_curve_ != first
    model.set_params(learning_rate=0.01).fit(*three_digits())
    assert not hasattr(model, "lr_curve_")
    assert not hasattr(model, "learning_rate_")
    model.set_params(learning_rate="auto").fit(*three_digits())
    model.set_params(strategy="feature_extraction").fit(*three_digits())
    assert not hasattr(model, "lr_curve_")
    assert not hasattr(model, "learning_rate_")


def test_strategies_without_epochs_need_no_rate():
    model = make_model("feature_extraction", learning_rate="auto").fit(*three_digits())
    assert not hasattr(model, "lr_curve_")


def test_rate_can_be_one_of_those_searched():
    search = GridSearchCV(make_model(), {"learning_rate": ["auto", 1e-6]}, cv=2).fit(*three_digits())
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()


def test_rows_in_parts_have_no_test():
    with pytest.raises(ValueError, match="learning_rate should not be 'auto' with partial_fit"):
        make_model(learning_rate="auto").partial_fit(*three_digits(), classes=[0, 1, 2])


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="'learning_rate' parameter of FineTuneClassifier must be"):
        make_model(learning_rate="best").fit(*three_digits())


def test_curve_is_drawn():
    pyplot = pytest.importorskip("matplotlib.pyplot", reason='needs matplotlib: pip install "sktl[plots]"')
    model = make_model(learning_rate="auto").fit(*three_digits())
    display = LearningRateFinderDisplay.from_estimator(model)
    dots, line, chosen = display.ax_.get_lines()
    np.testing.assert_array_equal(dots.get_ydata(), model.lr_curve_["loss"])
    np.testing.assert_array_equal(line.get_xdata(), model.lr_curve_["learning_rate"])
    assert list(chosen.get_xdata()) == [model.learning_rate_] * 2
    assert display.ax_.get_xscale() == "log"
    _, ax = pyplot.subplots()
    assert LearningRateFinderDisplay.from_estimator(model, ax=ax).ax_ is ax
    pyplot.close("all")
    with pytest.raises(ValueError, match="fit it with learning_rate='auto'"):
        LearningRateFinderDisplay.from_estimator(make_model().fit(*three_digits()))
