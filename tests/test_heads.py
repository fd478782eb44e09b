"""What turns embeddings into classes: layers, small networks, modules of one's own, models of scikit-learn."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from skorch.callbacks import Callback
from small_models import Net, make_model, make_regressor, three_digits
from torch import nn

from sktl.exceptions import StrategyError
from sktl.training import Targets, make_head, train_head
from sktl.training.new_heads import MLPHead


@pytest.fixture
def few():
    X, y = three_digits()
    return X, np.array(["zero", "one", "two"])[y]


def own_head():
    with torch.random.fork_rng():
        torch.manual_seed(0)  # or a test that asks for a score has another start each time
        return nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3))


HEADS = {"mlp": "mlp", "module": own_head()}
MODELS = [
    LogisticRegression(max_iter=1000),
    GaussianNB(),
    KNeighborsClassifier(3),
    LinearSVC(),
]


@pytest.mark.parametrize("strategy", ["feature_extraction", "lp_ft", "fine_tuning"])
@pytest.mark.parametrize("head", HEADS)
def test_networks_as_head(few, head, strategy):
    X, y = few
    model = make_model(strategy, head=HEADS[head], max_epochs=10, learning_rate=0.02).fit(X, y)
    assert model.score(X, y) > 0.7
    proba = model.predict_proba(X)
    np.testing.assert_array_equal(model.classes_[proba.argmax(axis=1)], model.predict(X))
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict_proba(X), proba)
    again = clone(model).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), proba)


def test_mlp_head_has_a_hidden_layer(few):
    module = make_model("feature_extraction", head="mlp").fit(*few).net_.module_.head
    assert isinstance(module, MLPHead)
    assert (module[0].in_features, module[2].out_features) == (16, 3)


def test_head_is_trained_on_standardised_embeddings_and_takes_plain_ones():
    """The scale and the place of the embeddings must not matter, and the loss is that of the plain ones."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(60, 8)).astype(np.float32)
    targets = Targets((embeddings[:, 0] * embeddings[:, 1] > 0).astype(int), np.ones(60))

    def fitted(shift, scale):
        head, given = make_head("mlp", 8, 2, seed=0), (embeddings * scale + shift).astype(np.float32)
        loss = train_head(
            head, given, targets, nn.CrossEntropyLoss(reduction="none"), dropout=0.0, weight_decay=0.01, seed=0
        )
        with torch.no_grad():
            scores = head(torch.from_numpy(given))
        assert nn.functional.cross_entropy(scores, torch.from_numpy(targets.values)).item() == pytest.approx(
            loss, rel=1e-3
        )
        return scores.numpy(), loss

    scores, loss = fitted(0.0, 1.0)
    assert loss < 0.1  # what no linear head can learn
    np.testing.assert_allclose(fitted(5.0, 10.0)[0], scores, atol=0.2)


def test_a_row_of_weight_two_is_two_rows():
    rng = np.random.default_rng(0)
    embeddings, values = rng.normal(size=(20, 4)).astype(np.float32), rng.integers(0, 2, 20)
    weight = np.where(np.arange(20) < 10, 1.0, 3.0)
    head = make_head("mlp", 4, 2, seed=0)
    targets, criterion = Targets(values, weight), nn.CrossEntropyLoss(reduction="none")
    loss = train_head(head, embeddings, targets, criterion, dropout=0.0, weight_decay=0.0, seed=0)
    repeated = np.repeat(np.arange(20), weight.astype(int))
    with torch.no_grad():
        scores = head(torch.from_numpy(embeddings[repeated]))
    expected = nn.functional.cross_entropy(scores, torch.from_numpy(values[repeated])).item()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_module_of_the_wrong_width_is_refused(few):
    with pytest.raises(ValueError, match=r"cannot be run on embeddings of width 16"):
        make_model(head=nn.Linear(7, 3)).fit(*few)
    with pytest.raises(ValueError, match=r"output of shape \(2, 5\); expected \(2, 3\)"):
        make_model(head=nn.Linear(16, 5)).fit(*few)


def norm_head(n_outputs):
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, n_outputs))


@pytest.mark.parametrize(
    ("strategy", "n_rows", "parameters"),
    [
        ("lp_ft", 45, {"batch_size": 1}),
        ("fine_tuning", 45, {"batch_size": 2}),  # some have one row less
        ("fine_tuning", 44, {"batch_size": 4, "gradient_accumulation": 4}),
        ("fine_tuning", 45, {"batch_size": 1, "learning_rate": "auto"}),
    ],
)
def test_steps_of_one_row_are_refused_before_training_where_a_layer_needs_several(few, strategy, n_rows, parameters):
    X, y = few[0][:n_rows], few[1][:n_rows]
    model = make_model(strategy, head=norm_head(3), callbacks=[NoEpoch()], **parameters)
    with pytest.raises(ValueError, match=rf"With {n_rows} different rows, batch_size=. .* Give a larger batch_size"):
        model.fit(X, y)
    make_model(strategy, **parameters).fit(X, y)


class NoEpoch(Callback):
    def on_epoch_begin(self, net, **kwargs):
        pytest.fail("training has begun")


def test_a_head_that_is_fitted_alone_sees_more_than_batch_size_says(few):
    make_model("feature_extraction", head=norm_head(3), batch_size=1, gradient_accumulation=64).fit(*few)


def test_one_row_is_refused_where_a_layer_needs_several(few):
    X, y = few[0][:1], few[1][:1]
    message = "With 1 different rows, .* Give a larger batch_size or more rows"
    for strategy in ("feature_extraction", "fine_tuning"):
        with pytest.raises(ValueError, match=message):
            make_regressor(strategy, head=norm_head(1)).fit(X, [1.0])
        make_regressor(strategy, head="mlp").fit(X, [1.0])
        stream = make_model(strategy, head=norm_head(3)).partial_fit(*few, classes=["one", "two", "zero"])
        with pytest.raises(ValueError, match=message):
            stream.partial_fit(X, y)
        stream.partial_fit(*few)


def test_variants_of_one_row_are_several(few):
    make_regressor("feature_extraction", head=norm_head(1), augment="light").fit(few[0][:1], [1.0])


class SeesSomething(Net):
    """Takes no blank images."""

    def forward(self, images):
        if self.training and images.std() == 0:
            raise ValueError("blank image")
        return super().forward(images)


def test_steps_of_one_row_are_tried_only_to_compare_them_with_others(few):
    make_model("fine_tuning", backbone=SeesSomething(), batch_size=1).fit(few[0][:4], few[1][:4])


def test_module_given_as_head_is_left_alone(few):
    head = own_head()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    model = make_model("fine_tuning", head=head).fit(*few)
    assert model.head is head
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_lazy_layers_are_to_be_run_before(few):
    head = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"lazy layers without weights: call it once, .* \(2, 16\)"):
        make_model("lp_ft", head=head).fit(*few)
    head(torch.zeros(1, 16))
    assert make_model("lp_ft", head=head).fit(*few).net_.module_.head[0].in_features == 16


def test_a_head_that_is_fitted_alone_learns_by_a_rule_of_its_own(few):
    first = make_model("feature_extraction", head="mlp").fit(*few).predict_proba(few[0])
    other = {"learning_rate": 1e-6, "batch_size": 2, "max_epochs": 7}
    np.testing.assert_array_equal(
        make_model("feature_extraction", head="mlp", **other).fit(*few).predict_proba(few[0]), first
    )
    passed = [
        make_model("feature_extraction", head="mlp", learning_rate=rate).partial_fit(*few, classes=np.unique(few[1]))
        for rate in (1e-6, 1e-2)
    ]
    assert not np.allclose(*(model.predict_proba(few[0]) for model in passed))


class Logarithm(nn.Module):
    """Gives no numbers for what is below zero."""

    def forward(self, embeddings):
        return (embeddings - 100).log()


@pytest.mark.parametrize("strategy", ["feature_extraction", "lp_ft"])
def test_head_that_gives_no_numbers_is_an_error(few, strategy):
    model = make_model(strategy, head=nn.Sequential(nn.Linear(16, 3), Logarithm()))
    with pytest.raises(FloatingPointError, match=r"loss of the head alone is nan .*learning rate 0\.001"):
        model.fit(*few)
    assert not hasattr(model, "net_")


def test_dropout_is_part_of_training_alone(few):
    plain, dropped = (make_model("fine_tuning", dropout=p, max_epochs=2).fit(*few) for p in (0.0, 0.5))
    assert dropped.net_.module_.dropout.p == 0.5
    assert not np.array_equal(plain.predict_proba(few[0]), dropped.predict_proba(few[0]))
    np.testing.assert_array_equal(dropped.predict_proba(few[0]), dropped.predict_proba(few[0]))


# Models of scikit-learn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", MODELS, ids=lambda head: type(head).__name__)
def test_a_model_as_head_is_the_model_on_the_embeddings(few, head):
    X, y = few
    model = make_model("feature_extraction", head=head).fit(X, y)
    embeddings = model.transform(X)
    alone = clone(head).fit(embeddings, y)
    np.testing.assert_array_equal(model.predict(X), alone.predict(embeddings))
    for method in ("predict_proba", "decision_function"):
        assert hasattr(model, method) == hasattr(alone, method)
        if hasattr(alone, method):
            np.testing.assert_allclose(getattr(model, method)(X), getattr(alone, method)(embeddings), atol=1e-2)
    assert hasattr(model, "predict_log_proba") == hasattr(alone, "predict_proba")
    if hasattr(alone, "predict_proba"):
        np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X), rtol=1e-5)
    assert type(model.head_) is type(head)
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict(X), model.predict(X))


def test_a_search_over_heads(few):
    grid = {"head": ["linear", "mlp", KNeighborsClassifier(3), LinearDiscriminantAnalysis()]}
    search = GridSearchCV(make_model("feature_extraction"), grid, cv=2, error_score="raise").fit(*few)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    nested = GridSearchCV(
        make_model("feature_extraction", head=KNeighborsClassifier()), {"head__n_neighbors": [1, 5]}, cv=2
    )
    assert "head__n_neighbors" in nested.fit(*few).best_params_


def test_another_head_replaces_the_one_before(few):
    model = make_model("feature_extraction", head=KNeighborsClassifier(3)).fit(*few)
    assert not hasattr(model, "net_")
    model.set_params(head="linear").fit(*few)
    assert not hasattr(model, "head_")
    model.set_params(head=KNeighborsClassifier(3)).fit(*few)
    assert not hasattr(model, "net_")


def test_weights_reach_a_model_as_head(few):
    X, y = few
    weight = np.where(y == "one", 3.0, 1.0)
    repeated = np.repeat(np.arange(len(y)), weight.astype(int))
    for head in (LogisticRegression(max_iter=1000), KNeighborsClassifier(3)):
        weighted = make_model("feature_extraction", head=head).fit(X, y, sample_weight=weight)
        expected = make_model("feature_extraction", head=head).fit(X[repeated], y[repeated])
        np.testing.assert_array_equal(weighted.predict(X), expected.predict(X))
    with pytest.raises(ValueError, match="takes no sample weights, so all must be multiples"):
        make_model("feature_extraction", head=KNeighborsClassifier(3)).fit(X, y, sample_weight=weight**0.5)


def test_a_class_of_weight_zero_needs_a_head_that_takes_weights(few):
    weighing, other = (
        make_model("feature_extraction", head=head, class_weight={"one": 0})
        for head in (LogisticRegression(max_iter=1000), KNeighborsClassifier(3))
    )
    assert "one" not in weighing.fit(*few).predict(few[0])
    with pytest.raises(ValueError, match=r"KNeighborsClassifier\(\) takes no sample weights, so a class of weight 0"):
        other.fit(*few)


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_some_class_must_have_weight(few, strategy):
    with pytest.raises(ValueError, match="'class_weight' parameter leaves no row with weight"):
        make_model(strategy, class_weight=dict.fromkeys(("zero", "one", "two"), 0)).fit(*few)


@pytest.mark.parametrize("head", [RandomForestClassifier(3), BaggingClassifier(DecisionTreeClassifier(), 2)])
def test_random_state_decides_what_a_head_draws(few, head):
    first, again, other = (
        make_model("feature_extraction", head=head, random_state=seed).fit(*few).predict_proba(few[0])
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert head.random_state is None


def test_a_head_keeps_a_seed_of_its_own(few):
    model = make_model("feature_extraction", head=RandomForestClassifier(3, random_state=5)).fit(*few)
    assert model.head_.random_state == 5


def test_a_class_is_no_head(few):
    with pytest.raises(ValueError, match=r"'head' parameter .* an instance of 'sklearn\.base\.BaseEstimator'"):
        make_model("feature_extraction", head=LogisticRegression).fit(*few)


def test_a_model_as_head_needs_a_frozen_backbone(few):
    with pytest.raises(StrategyError, match="goes with strategy='feature_extraction' only, not with LinearProbe"):
        make_model("lp_ft", head=LogisticRegression()).fit(*few)
    with pytest.raises(StrategyError, match="partial_fit needs a head trained by gradient steps"):
        make_model("feature_extraction", head=LogisticRegression()).partial_fit(*few, classes=np.unique(few[1]))


def test_a_regressor_is_no_head(few):
    with pytest.raises(ValueError, match="'head' parameter must be a classifier, got Ridge instead"):
        make_model("feature_extraction", head=Ridge()).fit(*few)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_new_head_is_in_float32_whatever_torch_makes_by_default(few, head):
    torch.set_default_dtype(torch.float64)
    try:
        model = make_model("fine_tuning", head=head).fit(*few)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {weight.dtype for weight in model.net_.module_.parameters()} == {torch.float32}
    assert model.predict(few[0]).shape == few[1].shape
