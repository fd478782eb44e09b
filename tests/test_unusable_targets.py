"""Labels, targets and groups that cannot be used: which row, and what to do about it."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from small_models import make_model, make_regressor, three_digits

WORDS = np.array(["zero", "one", "two"])


@pytest.fixture
def rows():
    """Digits, and their names as a list."""
    X, y = three_digits()
    return X, WORDS[y].tolist()


# Missing --------------------------------------------------------------------------------------------------------------

MISSING = {
    "list with None": (lambda y: y, None, "None"),
    "list with NaN": (lambda y: y, float("nan"), "nan"),
    "list with NumPy's NaN": (lambda y: y, np.float32("nan"), "nan"),
    "list with pandas.NA": (lambda y: y, pd.NA, "<NA>"),
    "tuple": (tuple, None, "None"),
    "object array": (lambda y: np.array(y, dtype=object), None, "None"),
    "object array with NaN": (lambda y: np.array(y, dtype=object), np.nan, "nan"),
    "column": (lambda y: np.array(y, dtype=object)[:, None], None, "None"),
    "Series of objects": (lambda y: pd.Series(y, dtype=object, index=range(100, 145)), None, "None"),
    "Series of strings": (lambda y: pd.Series(y, dtype="string"), None, "<NA>"),
    "Series of categories": (lambda y: pd.Series(y, dtype="category"), None, "nan"),
    "frame": (lambda y: pd.DataFrame({"label": pd.Series(y, dtype=object)}), None, "None"),
    "polars": (lambda y: pl.Series(y), None, "None"),
    "Arrow": (lambda y: pa.array(y), None, "None"),
}


@pytest.mark.filterwarnings("ignore:A column-vector y")
@pytest.mark.parametrize("kind", MISSING)
def test_missing_label_is_refused_by_its_row(rows, kind):
    X, y = rows
    make, nothing, shown = MISSING[kind]
    y[7] = nothing
    with pytest.raises(ValueError, match=rf"^y\[7\] is missing \({shown}\)\. Leave out the rows"):
        make_model("lp_ft").fit(X, make(y))


@pytest.mark.parametrize("kind", ["numbers", "nullable", "dates", "array of dates"])
def test_missing_value_that_is_no_string_is_refused(rows, kind):
    X, _ = rows
    if kind == "numbers":
        y = np.arange(45) % 3 / 2
        y[[7, 9]] = np.nan
    elif kind == "nullable":
        y = pd.Series(np.arange(45) % 3, dtype="Int64")
        y[[7, 9]] = pd.NA
    else:
        y = [pd.Timestamp(2020, 1, 1 + day % 3) for day in range(45)]
        y[7] = y[9] = pd.NaT
        y = y if kind == "dates" else pd.Series(y).to_numpy()
    with pytest.raises(ValueError, match=r"^y\[7\] is missing \(.*\), and 1 more like it\. Leave out the rows"):
        make_model("lp_ft").fit(X, y)


def test_missing_label_of_a_pass_or_of_validation_is_refused(rows):
    X, y = rows
    wrong = [*y[:-1], None]
    with pytest.raises(ValueError, match=r"^y_val\[44\] is missing"):
        make_model("lp_ft").fit(X, y, X_val=X, y_val=wrong)
    with pytest.raises(ValueError, match=r"^y\[44\] is missing"):
        make_model("lp_ft").partial_fit(X, wrong, classes=WORDS)


def test_missing_entry_in_columns_of_labels_is_refused(rows):
    X, _ = rows
    Y = [[row % 2, 1 - row % 2] for row in range(45)]
    Y[3] = [0, None]
    with pytest.raises(ValueError, match=r"^y\[3\] is missing \(None\)"):
        make_model("lp_ft").fit(X, Y)


@pytest.mark.parametrize("nothing", [None, np.nan])
def test_missing_number_is_refused_by_its_row(rows, nothing):
    X, _ = rows
    y = [float(row) for row in range(45)]
    y[5] = nothing
    with pytest.raises(ValueError, match=r"^y\[5\] is missing"):
        make_regressor("lp_ft").fit(X, y)


def test_the_word_nan_is_a_label_like_any_other(rows):
    X, y = rows
    model = make_model("feature_extraction").fit(X, ["nan" if word == "two" else word for word in y])
    assert model.classes_.tolist() == ["nan", "one", "zero"]


# Several --------------------------------------------------------------------------------------------------------------

SEVERAL = {
    "tuples": lambda words: [(word, "digit") if row else (word,) for row, word in enumerate(words)],
    "tuples of one length": lambda words: [(word, "digit") for word in words],
    "sets": lambda words: [{word} for word in words],
    "lists": lambda words: [[word, "digit"][: 1 + row % 2] for row, word in enumerate(words)],
    "Series of lists": lambda words: pd.Series([[word, "digit"] for word in words]),
    "arrays": lambda words: [np.array([word, "digit"][: 1 + row % 2]) for row, word in enumerate(words)],
    "numbers": lambda words: [(0, 1, 2) if word == "two" else (0, 1) for word in words],
    "numbers of one length": lambda words: [(0, 2) if row == 0 else (1, 2) for row in range(len(words))],
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_labels_of_a_row_are_to_be_columns(rows, kind):
    X, y = rows
    with pytest.raises(ValueError, match=r"^y\[0\] is a \w+ of labels, .*MultiLabelBinarizer\(\)\.fit_transform\(y\)"):
        make_model("lp_ft").fit(X, SEVERAL[kind](y))


def test_columns_may_come_as_lists_or_tuples(rows):
    X, _ = rows
    for kind in (list, tuple):
        y = [kind((row % 2, 1 - row % 2)) for row in range(45)]
        assert make_model("feature_extraction").fit(X, y).multilabel_


# Groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA])
def test_missing_group_is_refused_by_its_row(rows, nothing, early_stopping):
    X, y = rows
    groups = [f"patient {row % 9}" for row in range(45)]
    groups[4] = nothing
    with pytest.raises(ValueError, match=r"^groups\[4\] is missing \(.*\)\. Give a row .* a group of its own"):
        make_model("lp_ft", early_stopping=early_stopping).fit(X, y, groups=groups)


def test_missing_group_number_is_refused_by_its_row(rows):
    X, y = rows
    groups = np.where(np.arange(45) == 4, np.nan, np.arange(45) % 9)
    with pytest.raises(ValueError, match=r"^groups\[4\] is missing \(nan\)"):
        make_model("lp_ft", early_stopping=True).fit(X, y, groups=groups)
