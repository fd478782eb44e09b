"""Statistics of texts: what they count, in which containers, and what is no text."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_union
from sklearn.utils import estimator_checks

from sktl import TextStatistics
from sktl.exceptions import InputError

TEXTS = ["It's GREAT, well-made!! Isn't it? Yes.", "", "42 films; 7 days...", "Füße_und 你好。", "plain"]


def test_counts():
    table = TextStatistics().set_output(transform="pandas").fit_transform(TEXTS)
    assert table["n_characters"].tolist() == [38, 0, 19, 12, 5]
    assert table["n_words"].tolist() == [6, 0, 4, 2, 1]  # It's GREAT well-made Isn't it Yes
    assert table["n_sentences"].tolist() == [3, 0, 1, 1, 1]
    assert table["n_exclamation_marks"].tolist() == [2, 0, 0, 0, 0]
    assert table["n_question_marks"].tolist() == [1, 0, 0, 0, 0]
    assert table["mean_word_length"][4] == 5
    assert table["mean_sentence_length"][0] == 2
    assert table["share_unique_words"][0] == 1
    assert table["share_capital_words"][0] == pytest.approx(1 / 6)
    assert table["share_digits"][2] == pytest.approx(3 / 19)
    assert table["share_punctuation"][2] == pytest.approx(4 / 19)
    assert table["share_capitals"].tolist()[1:] == pytest.approx([0, 0, 1 / 9, 0])
    assert (table.loc[1] == 0).all()


def test_chosen_statistics_keep_their_order():
    chosen = TextStatistics(["n_words", "n_characters"])
    np.testing.assert_array_equal(chosen.fit_transform(["a b"]), [[2, 3]])
    assert list(chosen.get_feature_names_out()) == ["n_words", "n_characters"]
    for wrong in (["n_words", "n_lies"], []):
        with pytest.raises(ValueError, match="'statistics' parameter of TextStatistics must be 'all' or hold names"):
            TextStatistics(wrong).fit(["a"])
    with pytest.raises(ValueError, match="'statistics' parameter"):
        TextStatistics("n_words").fit(["a"])


@pytest.mark.parametrize(
    "container",
    [
        tuple,
        np.array,
        lambda texts: np.array(texts, dtype=object)[:, None],
        lambda texts: pd.Series(texts, index=range(7, 7 + len(texts)), name="review"),
        lambda texts: pd.DataFrame({"review": texts}),
        pl.Series,
        lambda texts: pl.DataFrame({"review": texts}),
        lambda texts: [text.encode() for text in texts],
    ],
    ids=["tuple", "array", "object column", "Series", "DataFrame", "polars", "polars frame", "bytes"],
)
def test_containers(container):
    expected = TextStatistics().fit_transform(TEXTS)
    np.testing.assert_array_equal(TextStatistics().fit(container(TEXTS)).transform(container(TEXTS)), expected)


def test_names_of_frames_are_kept_and_compared():
    statistics = TextStatistics().fit(pd.DataFrame({"review": TEXTS}))
    assert (statistics.n_features_in_, list(statistics.feature_names_in_)) == (1, ["review"])
    with pytest.raises(ValueError, match="feature names should match"):
        statistics.transform(pd.DataFrame({"title": TEXTS}))
    assert not hasattr(statistics.fit(TEXTS), "feature_names_in_")


def test_missing_values_and_other_rows():
    rows = ["good", None, np.nan, 3, b"\xff", "\ud800"]
    with pytest.raises(InputError, match="5 of 6 rows") as raised:
        TextStatistics().fit_transform(rows)
    assert [row.index for row in raised.value.rows] == [1, 2, 3, 4, 5]
    table = TextStatistics(on_error="nan").fit_transform(rows)
    np.testing.assert_array_equal(np.isnan(table), [[index > 0] * 12 for index in range(6)])


class Broken(list):
    """A container that fails at a row."""

    def __getitem__(self, index):
        if index == 1:
            raise KeyError("blob missing")
        return super().__getitem__(index)


def test_errors_of_a_container_name_the_row():
    with pytest.raises(InputError, match=r"row 1: .*Broken cannot give this row: KeyError\('blob missing'\)"):
        TextStatistics().fit_transform(Broken(TEXTS))
    table = TextStatistics(on_error="nan").fit_transform(Broken(TEXTS))
    np.testing.assert_array_equal(np.isnan(table).all(axis=1), np.arange(len(TEXTS)) == 1)


@pytest.mark.parametrize("X", [np.zeros((3, 2)), pd.DataFrame({"a": ["x"], "b": ["y"]}), "a text", 3])
def test_what_is_no_column(X):
    with pytest.raises(InputError, match=r"column of texts, got|wrap it in a list"):
        TextStatistics().fit(X)


def test_without_fit_and_in_a_union():
    np.testing.assert_array_equal(TextStatistics().transform(TEXTS), TextStatistics().fit_transform(TEXTS))
    union = make_union(TextStatistics(), TfidfVectorizer())
    assert union.fit_transform(TEXTS).shape == (5, len(union.get_feature_names_out()))


@pytest.mark.parametrize("parameters", [{"statistics": "n_words"}, {"on_error": "ignore"}])
@pytest.mark.parametrize("ask", [lambda model: model.transform(TEXTS), lambda model: model.get_feature_names_out()])
def test_parameters_are_checked_without_fit_too(parameters, ask):
    with pytest.raises(ValueError, match=f"The '{next(iter(parameters))}' parameter of TextStatistics must be"):
        ask(TextStatistics(**parameters))


def test_clone_and_repr():
    statistics = TextStatistics(["n_words"], on_error="nan")
    assert eval(repr(statistics)).get_params() == clone(statistics).get_params() == statistics.get_params()


# parametrize_with_checks gives up on estimators that take no tables; these checks need none.
CHECKS = [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_param_validation",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
]


@pytest.mark.parametrize("check", CHECKS)
def test_scikit_learn_checks(check):
    getattr(estimator_checks, check)("TextStatistics", TextStatistics())
