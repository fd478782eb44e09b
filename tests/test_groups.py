"""Rows that belong together are held out together, inside a cross-validation too."""

from typing import ClassVar

import numpy as np
import pytest
import sklearn
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate
from sklearn.pipeline import make_pipeline
from small_models import DEFAULTS, Net, make_model, make_regressor, three_digits

from sktl import FineTuneClassifier
from sktl.embedding import default_store


class Watching(Net):
    """A network that takes down which images it sees."""

    seen: ClassVar[set] = set()

    def forward(self, images):
        Watching.seen.update((image * 50).round().char().numpy().tobytes() for image in images)
        return super().forward(images)


@pytest.fixture
def few():
    return three_digits()


def seen():
    """What networks saw since the last call."""
    images = set(Watching.seen)
    Watching.seen.clear()
    return images


@pytest.fixture
def groups():
    """Fifteen groups of three rows, named, and not in order."""
    return np.array([f"patient {number:02}" for number in np.random.default_rng(0).permutation(45) % 15])


def sides(groups, held_out):
    kept = np.setdiff1d(np.arange(len(groups)), held_out)
    return set(groups[kept]), set(groups[held_out])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.34, 0.6])
def test_no_group_is_on_both_sides(few, groups, fraction, seed):
    X, y = few
    model = make_model(early_stopping=True, validation_fraction=fraction, random_state=seed)
    held_out = model.fit(X, y, groups=groups).validation_indices_
    kept_groups, held_groups = sides(groups, held_out)
    assert held_groups
    assert not kept_groups & held_groups
    assert abs(len(held_out) / 45 - fraction) < 0.15
    assert set(np.delete(y, held_out)) == {0, 1, 2}


def test_regression_keeps_groups_together(few, groups):
    X, _ = few
    model = make_regressor(early_stopping=True, validation_fraction=0.2).fit(X, X.mean(axis=1), groups=groups)
    kept_groups, held_groups = sides(groups, model.validation_indices_)
    assert len(held_groups) == 3
    assert not kept_groups & held_groups


def test_rows_of_the_same_content_link_their_groups(few, groups):
    X, y = few[0].copy(), few[1].copy()
    first = [np.flatnonzero(groups == name)[0] for name in np.unique(groups)[:4]]
    X[first], y[first] = X[first[0]], y[first[0]]
    for seed in range(8):
        model = make_model(early_stopping=True, validation_fraction=0.3, random_state=seed).fit(X, y, groups=groups)
        kept_groups, held_groups = sides(groups, model.validation_indices_)
        assert not kept_groups & held_groups
        assert len(held_groups & set(groups[first])) in (0, 4)


def test_rows_without_weight_link_nothing(few, groups):
    X, y = few
    weight = np.ones(45)
    weight[groups == "patient 03"] = 0
    one = np.where(groups == "patient 03", "patient 04", groups)
    held_out = (
        make_model(early_stopping=True, validation_fraction=0.3).fit(X, y, weight, groups=one).validation_indices_
    )
    assert not np.isin(np.flatnonzero(weight == 0), held_out).any()


def test_what_cannot_be_held_out_is_explained(few):
    X, y = few
    model = make_model(early_stopping=True, validation_fraction=0.3)
    with pytest.raises(ValueError, match="all rows are of one group"):
        model.fit(X, y, groups=np.zeros(45))
    with pytest.raises(ValueError, match=r"of these 3 none can be held out .*X_val and y_val"):
        model.fit(X, y, groups=y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(X, y, groups=np.zeros(44))


def test_groups_do_nothing_where_nothing_is_held_out(few, groups):
    X, y = few
    assert make_model("feature_extraction", early_stopping=True).fit(X, y, groups=groups).validation_indices_ is None
    assert make_model().fit(X, y, groups=np.zeros(45)).validation_indices_ is None


def test_early_stopping_never_sees_the_outer_fold(few, groups):
    """What the network saw until the fold is scored has nothing in common with the fold."""
    X, y = few
    default_store().clear()
    n_held_out = []
    model = FineTuneClassifier(Watching(), "fine_tuning", early_stopping=True, validation_fraction=0.3, **DEFAULTS)
    model.fit(X, y)
    seen()
    tries = [seen() for rows in (X[:1], X[1:2]) if len(model.predict(rows))]
    probes = (tries[0] & tries[1]) | {bytes(3 * 16 * 16)}  # what a network is tried on, and padding

    def score(model, X_test, y_test):
        in_fit = seen() - probes
        model.predict(X_test)
        in_test = seen() - probes
        assert len(in_test) == len(X_test)
        assert len(in_fit) == 45 - len(X_test)  # held-out rows are among them
        assert not in_fit & in_test
        n_held_out.append(len(model.validation_indices_))
        return 0.0

    seen()
    with sklearn.config_context(enable_metadata_routing=True):
        model.set_fit_request(groups=True)
        cross_validate(model, X, y, cv=GroupKFold(3), params={"groups": groups}, scoring=score, error_score="raise")
    assert len(n_held_out) == 3
    assert min(n_held_out) > 0


@pytest.mark.parametrize("kind", ["cross_validate", "GridSearchCV", "Pipeline"])
def test_groups_and_weights_are_routed(few, groups, kind):
    X, y = few
    weight = 1.0 + np.arange(45) % 2
    taken = []

    class Noting(FineTuneClassifier):
        def fit(self, X, y, sample_weight=None, *, groups=None):
            taken.append((X, sample_weight, groups))
            return super().fit(X, y, sample_weight, groups=groups)

    with sklearn.config_context(enable_metadata_routing=True):
        model = Noting(Net(), "fine_tuning", early_stopping=True, validation_fraction=0.3, **DEFAULTS)
        model.set_fit_request(sample_weight=True, groups=True).set_score_request(sample_weight=True)
        params = {"groups": groups, "sample_weight": weight}
        if kind == "cross_validate":
            cross_validate(model, X, y, cv=GroupKFold(3), params=params, error_score="raise")
        elif kind == "GridSearchCV":
            GridSearchCV(model, {"strategy": ["bitfit"]}, cv=GroupKFold(3), error_score="raise").fit(X, y, **params)
        else:
            make_pipeline("passthrough", model).fit(X, y, **params)
    assert len(taken) == {"cross_validate": 3, "GridSearchCV": 4, "Pipeline": 1}[kind]
    index = {row.tobytes(): position for position, row in enumerate(X)}
    for rows, weights, names in taken:
        positions = [index[row.tobytes()] for row in rows]
        np.testing.assert_array_equal(weights, weight[positions])
        np.testing.assert_array_equal(names, groups[positions])
