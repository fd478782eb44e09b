"""Displays: what they draw, from what, and that they leave no trace."""

import numpy as np
import pytest

from sktl.exceptions import MissingExtraError
from sktl.plots import StrategyComparisonDisplay

RESULTS = [
    {"way": "from_scratch", "cv_accuracy": 0.91, "cv_std": 0.02, "test_accuracy": 0.90, "seconds": 30.0},
    {"way": "lp_ft", "cv_accuracy": 0.97, "cv_std": 0.01, "test_accuracy": 0.98, "seconds": 131.4},
    {"way": "feature_extraction", "cv_accuracy": 0.95, "cv_std": 0.0, "test_accuracy": 0.96, "seconds": 0.3},
]


@pytest.fixture
def pyplot():
    """pyplot, without the figures of the test afterwards."""
    pyplot = pytest.importorskip("matplotlib.pyplot", reason='needs matplotlib: pip install "sktl[plots]"')
    yield pyplot
    pyplot.close("all")


def row_labels(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def drawn_texts(ax):
    return [text.get_text() for text in ax.texts]


def test_best_way_is_at_the_top(pyplot):
    display = StrategyComparisonDisplay.from_results(RESULTS, title="shapes").plot()
    accuracy, seconds = display.axes_
    assert row_labels(accuracy) == ["lp_ft", "feature_extraction", "from_scratch"]
    assert accuracy.get_ylim() == (2.5, -0.5)
    assert drawn_texts(accuracy) == ["0.970 ± 0.010", "0.950 ± 0.000", "0.910 ± 0.020"]
    assert drawn_texts(seconds) == ["131", "0.3", "30.0"]
    assert display.figure_.get_suptitle() == "shapes"


def test_marks_stand_where_the_numbers_are(pyplot):
    ax = StrategyComparisonDisplay.from_results(RESULTS).plot().axes_[0]
    cross_validation, test = (line for line in ax.lines if line.get_marker() in ("o", "D"))
    np.testing.assert_array_equal(cross_validation.get_xdata(), [0.97, 0.95, 0.91])
    np.testing.assert_array_equal(test.get_xdata(), [0.98, 0.96, 0.90])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["cross-validation, mean ± std", "test"]


def test_draws_accuracy_on_given_axes(pyplot):
    figure, (left, right) = pyplot.subplots(1, 2)
    display = StrategyComparisonDisplay.from_results(RESULTS, title="shapes").plot(ax=right)
    assert display.axes_.tolist() == [right]
    assert display.figure_ is figure
    assert right.get_title() == "shapes"
    assert not left.has_data()


def test_takes_a_frame(pyplot):
    pandas = pytest.importorskip("pandas")
    display = StrategyComparisonDisplay.from_results(pandas.DataFrame(RESULTS))
    assert display.names == [row["way"] for row in RESULTS]
    assert list(display.seconds) == [row["seconds"] for row in RESULTS]


def test_takes_a_frame_of_polars():
    polars = pytest.importorskip("polars")
    display = StrategyComparisonDisplay.from_results(polars.DataFrame(RESULTS))
    assert display.names == [row["way"] for row in RESULTS]
    assert display.cv_mean == [row["cv_accuracy"] for row in RESULTS]


def test_takes_results_without_test_and_seconds(pyplot):
    bare = [{key: row[key] for key in ("way", "cv_accuracy", "cv_std")} for row in RESULTS]
    assert len(StrategyComparisonDisplay.from_results(bare).plot().axes_) == 1


def test_refuses_no_results():
    with pytest.raises(ValueError, match="no rows"):
        StrategyComparisonDisplay.from_results([])


def search_of_dummies(grid=None, **options):
    from sklearn.datasets import load_iris
    from sklearn.dummy import DummyClassifier
    from sklearn.model_selection import GridSearchCV

    grid = grid or {"strategy": ["prior", "stratified"]}
    search = GridSearchCV(DummyClassifier(random_state=0), grid, cv=3, **options)
    return search.fit(*load_iris(return_X_y=True)).cv_results_


def test_takes_cv_results_of_a_grid_search(pyplot):
    results = search_of_dummies()
    display = StrategyComparisonDisplay.from_cv_results(results).plot()
    assert sorted(row_labels(display.axes_[0])) == ["prior", "stratified"]
    assert list(display.cv_mean) == list(results["mean_test_score"])
    assert display.axes_[0].get_xlabel() == "score"


def test_takes_cv_results_of_several_metrics(pyplot):
    results = search_of_dummies(scoring={"accuracy": "accuracy", "f1": "f1_macro"}, refit="accuracy")
    display = StrategyComparisonDisplay.from_cv_results(results, metric="f1").plot()
    assert list(display.cv_mean) == list(results["mean_test_f1"])
    assert list(display.cv_std) == list(results["std_test_f1"])
    assert display.axes_[0].get_xlabel() == "f1"
    with pytest.raises(ValueError, match=r"no 'mean_test_score'.* 'metric' .* of 'accuracy', 'f1', got 'score'"):
        StrategyComparisonDisplay.from_cv_results(results)


def test_ways_that_were_tried_with_several_settings_are_told_apart():
    grid = [{"strategy": ["prior"], "random_state": [0, 1]}, {"strategy": ["uniform"]}]
    display = StrategyComparisonDisplay.from_cv_results(search_of_dummies(grid))
    assert display.names == ["prior, random_state=0", "prior, random_state=1", "uniform"]


def test_names_the_parameters_that_were_searched():
    with pytest.raises(ValueError, match=r"no 'param_backbone'.* 'param' .* of 'strategy', got 'backbone'"):
        StrategyComparisonDisplay.from_cv_results(search_of_dummies(), param="backbone")


def test_save_writes_a_picture_and_opens_no_figure(pyplot, tmp_path):
    StrategyComparisonDisplay.from_results(RESULTS, title="shapes").save(tmp_path / "picture", dpi=50)
    assert (tmp_path / "picture").read_bytes().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == []


def test_save_writes_what_the_name_of_the_file_says(pyplot, tmp_path):
    StrategyComparisonDisplay.from_results(RESULTS).save(tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("seconds", [[0.3, 0.3], [1e-3, 4e3], [0.0, 0.0]])
@pytest.mark.parametrize("names", [["a", "b"], ["w" * 60, "a way with a long name"]])
def test_nothing_overlaps_or_leaves_the_figure(pyplot, names, seconds):
    results = [
        {"way": name, "cv_accuracy": value, "cv_std": 0.3, "test_accuracy": value, "seconds": duration}
        for name, value, duration in zip(names, [1.0, 0.0], seconds, strict=True)
    ]
    figure = StrategyComparisonDisplay.from_results(results, title="shapes").plot().figure_
    figure.draw_without_rendering()
    accuracy, time = figure.axes
    numbers = [text.get_window_extent() for text in accuracy.texts]
    bars = [text.get_window_extent() for text in time.texts]
    assert max(box.x1 for box in numbers) < time.get_window_extent().x0
    assert max(box.x1 for box in bars) <= figure.bbox.x1
    assert min(label.get_window_extent().x0 for label in accuracy.get_yticklabels()) >= 0


def test_without_matplotlib_says_how_to_get_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(MissingExtraError, match=r"StrategyComparisonDisplay\.plot needs .*sktl\[plots\]"):
        StrategyComparisonDisplay.from_results(RESULTS).plot()
