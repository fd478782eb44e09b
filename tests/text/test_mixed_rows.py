"""Rows of several kinds: a picture, a caption and numbers, each column embedded in its own way."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sktl import PretrainedFeatureTransformer, TextStatistics
from sktl.embedding import _run
from sktl.exceptions import InputError

IMAGE = {"image_size": 32, "dtype": "float32"}


@pytest.fixture
def table(image_paths, reviews):
    """Thirty rows of a picture, a caption and two numbers; the class shows in the picture and in the caption."""
    paths, kinds = image_paths
    rng = np.random.default_rng(0)
    captions = [f"a {kind} . {text}" for kind, text in zip(kinds, reviews[0], strict=False)]
    numbers = rng.normal(size=(len(paths), 2))
    frame = pd.DataFrame({"path": paths, "caption": captions, "height": numbers[:, 0], "price": numbers[:, 1]})
    return frame, kinds


def columns(bert, on_error="raise", **parameters):
    return ColumnTransformer(
        [
            ("image", PretrainedFeatureTransformer(**IMAGE, on_error=on_error, **parameters), "path"),
            ("text", PretrainedFeatureTransformer(bert, dtype="float32", on_error=on_error, **parameters), "caption"),
            ("stats", TextStatistics(on_error=on_error), "caption"),
            ("num", StandardScaler(), ["height", "price"]),
        ]
    )


@pytest.mark.parametrize("convert", [lambda frame: frame, pl.from_pandas], ids=["pandas", "polars"])
def test_columns_go_to_their_own_transformers(table, bert, convert):
    frame, _ = table
    transformer = columns(bert)
    result = transformer.fit_transform(convert(frame))
    assert result.shape == (30, 256 + 16 + 12 + 2)
    parts = transformer.output_indices_
    image = PretrainedFeatureTransformer(**IMAGE).fit_transform(frame["path"])
    text = PretrainedFeatureTransformer(bert, dtype="float32").fit_transform(frame["caption"])
    np.testing.assert_array_equal(result[:, parts["image"]], image)
    np.testing.assert_array_equal(result[:, parts["text"]], text)
    np.testing.assert_array_equal(result[:, parts["stats"]], TextStatistics().fit_transform(frame["caption"]))


@pytest.mark.parametrize("container", ["pandas", "polars"])
@pytest.mark.parametrize("selection", ["caption", ["caption"]])
def test_set_output_names_every_column(table, bert, container, selection):
    frame, _ = table
    frame = frame if container == "pandas" else pl.from_pandas(frame)
    transformer = columns(bert)
    transformer.set_params(
        transformers=[(n, t, selection if n in ("text", "stats") else c) for n, t, c in transformer.transformers]
    )
    result = transformer.set_output(transform=container).fit_transform(frame)
    assert type(result).__module__.startswith(container)
    names = list(result.columns)
    assert names[0] == "image__pretrainedfeaturetransformer0"
    assert {"text__pretrainedfeaturetransformer15", "stats__n_words", "num__price"} <= set(names)
    assert names == list(transformer.get_feature_names_out())
    if container == "pandas":
        assert list(result.index) == list(frame.index)


def test_index_of_pandas_is_kept(table, bert):
    frame, _ = table
    frame = frame.set_axis([f"row {n}" for n in range(30)])
    result = columns(bert).set_output(transform="pandas").fit_transform(frame)
    assert list(result.index) == list(frame.index)


def with_gaps(frame):
    frame = frame.copy()
    frame.loc[3, "path"] = None
    frame.loc[5, "caption"] = np.nan
    frame.loc[7, "price"] = np.nan
    return frame


def test_missing_values_are_errors_unless_nan_is_wanted(table, bert):
    frame, _ = table
    with pytest.raises(InputError, match="row 3: missing value"):
        columns(bert).fit_transform(with_gaps(frame))
    result = columns(bert, on_error="nan").set_output(transform="pandas").fit_transform(with_gaps(frame))
    missing = result.isna()
    for rows, prefix in (([3], "image__"), ([5], "text__"), ([5], "stats__"), ([7], "num__price")):
        part = missing[[name for name in missing if name.startswith(prefix)]]
        assert part.loc[rows].all(axis=None)
        assert not part.drop(rows).any(axis=None)


@pytest.mark.parametrize(
    "model",
    [
        HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=2),
        make_pipeline(SimpleImputer(), LogisticRegression(max_iter=1000)),
        make_pipeline(SimpleImputer(), StandardScaler(), SVC()),
        make_pipeline(SimpleImputer(), StandardScaler(), KNeighborsClassifier(3)),
    ],
    ids=["HistGradientBoosting", "LogisticRegression", "SVC", "k-NN"],
)
def test_models_on_rows_with_gaps(table, bert, model):
    frame, y = table
    pipeline = make_pipeline(columns(bert, on_error="nan"), model)
    assert pipeline.fit(with_gaps(frame), y).score(with_gaps(frame), y) > 0.8


def test_xgboost_on_rows_with_gaps(table, bert):
    xgboost = pytest.importorskip("xgboost", reason="needs the package xgboost")
    frame, y = table
    model = make_pipeline(columns(bert, on_error="nan"), xgboost.XGBClassifier(n_estimators=5, n_jobs=1))
    codes = np.unique(y, return_inverse=True)[1]
    assert model.fit(with_gaps(frame), codes).score(with_gaps(frame), codes) > 0.8


def test_a_search_embeds_each_cell_once(table, bert, tmp_path, monkeypatch):
    frame, y = table
    computed = []
    compute = _run.Run._compute

    def count(self, batch):
        result = compute(self, batch)
        computed.extend((self.view.key, digest) for digest in result)
        return result

    monkeypatch.setattr(_run.Run, "_compute", count)
    pipeline = make_pipeline(columns(bert, memory=tmp_path, cache_bytes=0), LogisticRegression(max_iter=1000))
    GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1.0]}, cv=3).fit(frame, y)
    assert len(computed) == len(set(computed)) == frame["path"].nunique() + frame["caption"].nunique()


def test_union_of_backbones_and_stacked_layers(bert, reviews):
    texts, y = reviews
    random = PretrainedFeatureTransformer(bert, weights=None, dtype="float32")
    layers = PretrainedFeatureTransformer(bert, layer=[0, 1], dtype="float32")
    union = make_union(random, layers, TextStatistics())
    assert union.fit_transform(texts).shape == (40, 16 + 32 + 12)
    assert cross_val_score(make_pipeline(union, StandardScaler(), LogisticRegression()), texts, y, cv=2).mean() > 0.8


def test_columns_given_to_the_wrong_backbone(table, bert):
    frame, _ = table
    swapped = columns(bert)
    swapped.set_params(transformers=[("image", swapped.transformers[0][1], "caption")])
    with pytest.raises(InputError, match="seems to hold texts"):
        swapped.fit_transform(frame)
    swapped.set_params(transformers=[("text", PretrainedFeatureTransformer(bert), "path")])
    with pytest.raises(InputError, match="seems to hold paths of images"):
        swapped.fit_transform(frame)
