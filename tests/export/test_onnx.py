"""An exported graph computes what the estimator computes, says what it needs, and is written whole or not at all."""

import copy
import json
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from small_models import WAYS, make_network, three_digits

from sktl import FineTuneClassifier, FineTuneRegressor, PretrainedFeatureTransformer, export_onnx
from sktl.exceptions import ExportError, InputError, MissingExtraError
from sktl.inputs import ImagePreprocessor

onnx = pytest.importorskip("onnx", reason='needs the extra: pip install "sktl[onnx]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='needs the extra: pip install "sktl[onnx]"')
pytest.importorskip("skl2onnx", reason='needs the extra: pip install "sktl[onnx]"')
pytest.importorskip("onnxscript", reason='needs the extra: pip install "sktl[onnx]"')

from sktl.export import OnnxModel, _export, to_onnx  # noqa: E402

SMALL = {"image_size": 16, "dtype": "float32", "cache_bytes": 0}
FAMILIES = ["sktl/tiny", "test_vit", "test_convnext", "test_resnet"]


def embed(**options):
    return PretrainedFeatureTransformer(make_network(), **{**SMALL, **options})


def classify(strategy="feature_extraction", **options):
    return FineTuneClassifier(make_network(), strategy, max_epochs=1, random_state=0, **{**SMALL, **options})


def run(content, pixels):
    session = onnxruntime.InferenceSession(content)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": pixels}), strict=True))


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """A network that gives embeddings is traced once, whatever comes behind it: that takes seconds."""
    graphs, trace = {}, _export.network_graph

    def network_graph(parts, head):
        if parts.has_head:
            return trace(parts, head)
        if parts.view.key not in graphs:
            graphs[parts.view.key] = trace(parts, head)
        return copy.deepcopy(graphs[parts.view.key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_export, "network_graph", network_graph)
        yield


@pytest.fixture(scope="module")
def shapes(image_arrays):
    X, y = image_arrays
    return X[:12], y[:12]


@pytest.fixture(scope="module")
def exported(shapes):
    """A pipeline with its ONNX file's content."""
    model = make_pipeline(embed(), StandardScaler(), LogisticRegression()).fit(*shapes)
    return model, to_onnx(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_of_each_family(name, shapes):
    weights = "pretrained" if name.startswith("sktl/") else None
    model = PretrainedFeatureTransformer(name, weights=weights, image_size=32, dtype="float32").fit(shapes[0])
    content = to_onnx(model)
    resize = ImagePreprocessor(model.backbone_.data_config)
    for n_images in (1, 3):
        pixels = np.stack([resize(image) for image in shapes[0][:n_images]])
        found = run(content, pixels)["embeddings"]
        np.testing.assert_allclose(found, model.transform(shapes[0][:n_images]), atol=1e-4)


def test_embeddings_of_a_view(shapes):
    model = embed(layer=["stem", "body"], tta="hflip", normalize=True).fit(shapes[0])
    np.testing.assert_allclose(OnnxModel(to_onnx(model)).transform(shapes[0]), model.transform(shapes[0]), atol=1e-4)


@pytest.mark.parametrize("strategy", WAYS)
def test_probabilities_of_each_strategy(strategy, shapes):
    model = classify(strategy).fit(*shapes)
    graph = OnnxModel(to_onnx(model))
    for n_images in (1, 3, 12):
        X = shapes[0][:n_images]
        np.testing.assert_allclose(graph.predict_proba(X), model.predict_proba(X), atol=1e-4)
        np.testing.assert_array_equal(graph.predict(X), model.predict(X))
    np.testing.assert_array_equal(graph.classes_, model.classes_)


@pytest.mark.parametrize(
    ("last", "output", "method"),
    [
        (LogisticRegression(), "probabilities", "predict_proba"),
        (RandomForestClassifier(5, random_state=0), "probabilities", "predict_proba"),
        (LinearSVC(), "scores", "decision_function"),
        (PCA(3), "transformed", "transform"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_pipelines_with_classic_models(last, output, method, shapes):
    model = make_pipeline(embed(), StandardScaler(), last).fit(*shapes)
    content = to_onnx(model)
    resize = ImagePreprocessor(model[0].backbone_.data_config)
    found = run(content, np.stack([resize(image) for image in shapes[0]]))
    np.testing.assert_allclose(found[output], getattr(model, method)(shapes[0]), atol=1e-4)
    if output != "transformed":
        np.testing.assert_array_equal(found["label"], model.predict(shapes[0]))
        np.testing.assert_array_equal(OnnxModel(content).predict(shapes[0]), model.predict(shapes[0]))


@pytest.mark.parametrize("n_targets", [None, 1, 2])
def test_pipelines_with_classic_regressors(n_targets, shapes):
    target = shapes[0].mean(axis=(1, 2))[:, :n_targets] if n_targets else shapes[0].mean(axis=(1, 2, 3))
    model = make_pipeline(embed(), Ridge()).fit(shapes[0], target)
    graph = OnnxModel(to_onnx(model))
    assert graph.kind == "regressor"
    assert not hasattr(graph, "classes_")
    assert not hasattr(graph, "predict_proba")
    found, expected = graph.predict(shapes[0]), model.predict(shapes[0])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("n_targets", [None, 1, 2])
def test_predictions_of_a_regressor(n_targets, shapes):
    target = 100 + shapes[0].mean(axis=(1, 2))[:, :n_targets] if n_targets else shapes[0].mean(axis=(1, 2, 3))
    model = FineTuneRegressor(make_network(), "feature_extraction", **SMALL).fit(shapes[0], target)
    graph = OnnxModel(to_onnx(model))
    assert graph.kind == "regressor"
    found = graph.predict(shapes[0])
    assert found.shape == target.shape
    np.testing.assert_allclose(found, model.predict(shapes[0]), rtol=1e-4)


def classic():
    return make_pipeline(embed(), LogisticRegression())


@pytest.mark.parametrize(
    ("make", "labels"),
    [
        (classify, [7, 3]),
        (classify, [True, False]),
        (classify, [1.0, 2.0]),
        (classify, np.array(["é", "x y"], dtype=object)),
        (classic, [7, 3]),
        (classic, [True, False]),
    ],
)
def test_labels_of_any_type(make, labels, shapes):
    y = np.asarray(labels)[np.arange(12) % 2]
    model = make().fit(shapes[0], y)
    graph = OnnxModel(to_onnx(model))
    found = graph.predict(shapes[0])
    np.testing.assert_array_equal(found, model.predict(shapes[0]))
    assert found.dtype.kind == ("U" if y.dtype == object else y.dtype.kind)
    assert graph.classes_.tolist() == model.classes_.tolist()


def test_search_is_exported_by_its_best_estimator(shapes):
    search = GridSearchCV(
        make_pipeline(embed(), LogisticRegression()), {"logisticregression__C": [0.1, 1.0]}, cv=2
    ).fit(*shapes)
    graph = OnnxModel(to_onnx(search))
    np.testing.assert_allclose(graph.predict_proba(shapes[0]), search.predict_proba(shapes[0]), atol=1e-4)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_steps_that_are_left_out(place, shapes):
    model = make_pipeline(embed(), StandardScaler(), LogisticRegression())
    model.steps.insert(place, ("nothing", "passthrough"))
    model.fit(*shapes)
    graph = OnnxModel(to_onnx(model))
    np.testing.assert_allclose(graph.predict_proba(shapes[0]), model.predict_proba(shapes[0]), atol=1e-4)


def test_steps_that_are_left_out_of_a_pipeline_in_a_pipeline(shapes):
    first = make_pipeline(None, embed(), "passthrough")
    last = make_pipeline("passthrough", StandardScaler(), make_pipeline("passthrough"), LogisticRegression())
    model = make_pipeline(first, make_pipeline("passthrough"), last).fit(*shapes)
    graph = OnnxModel(to_onnx(model))
    np.testing.assert_allclose(graph.predict_proba(shapes[0]), model.predict_proba(shapes[0]), atol=1e-4)


def test_step_that_a_search_leaves_out(shapes):
    pipeline = make_pipeline(embed(), StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipeline, {"standardscaler": ["passthrough"]}, cv=2).fit(*shapes)
    graph = OnnxModel(to_onnx(search))
    np.testing.assert_allclose(graph.predict_proba(shapes[0]), search.predict_proba(shapes[0]), atol=1e-4)


def test_left_out_steps_around_a_fine_tuned_network(shapes):
    model = Pipeline([("nothing", "passthrough"), ("net", classify()), ("end", "passthrough")]).fit(*shapes)
    graph = OnnxModel(to_onnx(model))
    np.testing.assert_allclose(graph.predict_proba(shapes[0]), model[1].predict_proba(shapes[0]), atol=1e-4)


FIRST = [f"pretrainedfeaturetransformer{number}" for number in range(3)]


@pytest.mark.parametrize(
    "middle",
    [
        StandardScaler(),
        ColumnTransformer([("first", StandardScaler(), FIRST)]),
        ColumnTransformer([("last", "drop", [-1]), ("first", StandardScaler(), FIRST)], remainder="passthrough"),
    ],
    ids=["scaler", "columns", "remainder"],
)
def test_pipelines_that_pass_frames_on(middle, shapes):
    pytest.importorskip("pandas")
    model = make_pipeline(embed(), middle, LogisticRegression()).set_output(transform="pandas").fit(*shapes)
    graph = OnnxModel(to_onnx(model))
    np.testing.assert_allclose(graph.predict_proba(shapes[0]), model.predict_proba(shapes[0]), atol=1e-4)


def test_head_of_two_layers(shapes):
    model = classify(head="mlp").fit(*shapes)
    np.testing.assert_allclose(
        OnnxModel(to_onnx(model)).predict_proba(shapes[0]), model.predict_proba(shapes[0]), atol=1e-4
    )


def test_fine_tuned_network_as_step(shapes):
    model = make_pipeline(classify("fine_tuning"), LogisticRegression()).fit(*shapes)
    graph = OnnxModel(to_onnx(model))
    np.testing.assert_allclose(graph.predict_proba(shapes[0]), model.predict_proba(shapes[0]), atol=1e-4)


class TestFile:
    def test_graph_starts_at_pixels(self, exported):
        graph = onnx.load_from_string(exported[1]).graph
        onnx.checker.check_model(exported[1], full_check=True)
        (given,) = graph.input
        sides = given.type.tensor_type.shape.dim
        assert (given.name, given.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
        assert sides[0].dim_param
        assert [side.dim_value for side in sides[1:]] == [16, 16, 3]

    def test_metadata(self, exported):
        model, content = exported
        found = {entry.key: json.loads(entry.value) for entry in onnx.load_from_string(content).metadata_props}
        assert found["sktl.classes"] == ["disc", "square", "stripes"]
        assert found["sktl.preprocessing"] == ImagePreprocessor(model[0].backbone_.data_config).config
        assert found["sktl.kind"] == "classifier"
        assert set(found["sktl.versions"]) == {"sktl", "torch", "timm", "scikit-learn"}

    def test_path_is_returned_and_nothing_else_is_left(self, exported, tmp_path):
        assert export_onnx(exported[0], tmp_path / "model.onnx") == tmp_path / "model.onnx"
        assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]

    def test_failed_write_keeps_the_old_file(self, exported, tmp_path, monkeypatch):
        old = tmp_path / "model.onnx"
        old.write_bytes(b"old")

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            export_onnx(exported[0], old)
        assert old.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [old]

    def test_missing_folder_is_said_before_anything_is_traced(self, exported, tmp_path, monkeypatch):
        monkeypatch.setattr("torch.onnx.export", None)
        with pytest.raises(FileNotFoundError):
            export_onnx(exported[0], tmp_path / "nowhere" / "model.onnx")

    def test_estimator_is_left_alone(self, shapes):
        model = classify("fine_tuning").fit(*shapes)
        expected = model.predict_proba(shapes[0])
        to_onnx(model)
        np.testing.assert_array_equal(model.predict_proba(shapes[0]), expected)


class Doubled(TransformerMixin, BaseEstimator):
    """A step that nobody has a converter for."""

    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def transform(self, X):
        return 2 * X


class TestRefusals:
    @pytest.mark.parametrize("model", [classify(), make_pipeline(embed(), LogisticRegression())])
    def test_unfitted(self, model, tmp_path):
        with pytest.raises(NotFittedError):
            export_onnx(model, tmp_path / "model.onnx")

    def test_foreign_estimator(self, tmp_path):
        with pytest.raises(ExportError, match="begins with one, got LogisticRegression instead"):
            export_onnx(LogisticRegression(), tmp_path / "model.onnx")

    @pytest.mark.parametrize("step", [Doubled(), FeatureUnion([("twice", Doubled())])], ids=["step", "union"])
    def test_step_without_counterpart(self, step, shapes, tmp_path):
        model = make_pipeline(embed(), step, LogisticRegression()).fit(*shapes)
        with pytest.raises(ExportError, match=rf"\({type(step).__name__}\), .* cannot be written as an ONNX graph"):
            export_onnx(model, tmp_path / "model.onnx")
        assert not list(tmp_path.iterdir())

    def test_model_as_head(self, tmp_path):
        model = FineTuneClassifier(
            strategy="feature_extraction", head=LogisticRegression(), image_shape=(8, 8), image_size=32
        )
        model.fit(*three_digits())
        with pytest.raises(ExportError, match=r"head=LogisticRegression\(\) is no part of a network"):
            export_onnx(model, tmp_path / "model.onnx")

    def test_rows_of_plain_numbers(self, shapes):
        model = embed().fit(np.ones((4, 5)))
        with pytest.raises(ExportError, match="fitted on rows of plain numbers"):
            to_onnx(model)

    def test_classic_head(self, shapes):
        model = classify(head=LogisticRegression()).fit(*shapes)
        with pytest.raises(ExportError, match=r"LogisticRegression.* is no part of a network.* Pipeline"):
            to_onnx(model)

    def test_head_that_says_something_else(self, shapes, monkeypatch):
        model = classify().fit(*shapes)
        monkeypatch.setattr(FineTuneClassifier, "predict_proba", lambda self, X: np.zeros((len(X), 3)))
        with pytest.raises(ExportError, match="The head of this FineTuneClassifier cannot be written"):
            to_onnx(model)

    def test_texts(self, shapes):
        model = embed().fit(shapes[0])
        model.input_kind_ = "texts"
        with pytest.raises(ExportError, match="only networks of images can"):
            to_onnx(model)

    @pytest.mark.parametrize("package", ["onnx", "onnxruntime", "skl2onnx", "onnxscript"])
    def test_missing_extra(self, package, exported, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=rf"export_onnx\(\) needs .*{package}.*pip install 'sktl\[onnx\]'"):
            to_onnx(exported[0])


class TestOnnxModel:
    def test_predicts_files_as_the_estimator_does(self, exported, image_paths):
        model, content = exported
        paths = image_paths[0]
        graph = OnnxModel(content, batch_size=7)
        np.testing.assert_allclose(graph.predict_proba(paths), model.predict_proba(paths), atol=1e-4)
        np.testing.assert_array_equal(graph.predict(paths), model.predict(paths))

    def test_names_all_bad_rows(self, exported, image_paths):
        X = [image_paths[0][0], b"GIF8", image_paths[0][1], "nowhere.png"]
        with pytest.raises(InputError, match=r"row 1: .*\n.*row 3 \('nowhere.png'\)") as caught:
            OnnxModel(exported[1], batch_size=1).predict(X)
        assert [row.index for row in caught.value.rows] == [1, 3]

    def test_is_opened_from_a_file(self, exported, tmp_path):
        (tmp_path / "model.onnx").write_bytes(exported[1])
        assert OnnxModel(tmp_path / "model.onnx").classes_.tolist() == ["disc", "square", "stripes"]

    def test_channels_of_the_estimator_hold_unless_others_are_given(self, rng):
        X = rng.integers(0, 256, (4, 3, 16, 3), dtype=np.uint8)
        model = embed(channels="first").fit(X)
        content = to_onnx(model)
        np.testing.assert_allclose(OnnxModel(content).transform(X), model.transform(X), atol=1e-4)
        last = OnnxModel(content, channels="last").transform(X.transpose(0, 2, 3, 1))
        np.testing.assert_allclose(last, model.transform(X), atol=1e-4)

    def test_channels_of_arrays_that_leave_it_open(self, exported, rng):
        model, content = exported
        X = rng.integers(0, 256, (2, 3, 32, 3), dtype=np.uint8)
        with pytest.raises(InputError, match="pass channels='first' or 'last'"):
            OnnxModel(content).predict_proba(X)
        last = OnnxModel(content, channels="last").predict_proba(X)
        np.testing.assert_array_equal(OnnxModel(content, channels="first").predict_proba(X.transpose(0, 3, 1, 2)), last)
        pictures = [Image.fromarray(pixels) for pixels in X]
        np.testing.assert_allclose(last, model.predict_proba(pictures), atol=1e-4)
        with pytest.raises(InputError, match="The 'channels' parameter must be 'first', 'last' or None, got 'lats'"):
            OnnxModel(content, channels="lats").predict_proba(X)

    @pytest.mark.parametrize("content", [b"", b"not a graph", b"\x80" * 100])
    def test_no_graph(self, content):
        with pytest.raises(ExportError, match="onnxruntime cannot read"):
            OnnxModel(content)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [("sktl.preprocessing", None, "wrote no such file"), ("sktl.format", '"2"', "install a newer")],
    )
    def test_foreign_and_newer_graphs(self, exported, key, value, message):
        graph = onnx.load_from_string(exported[1])
        facts = {entry.key: entry.value for entry in graph.metadata_props} | {key: value}
        onnx.helper.set_model_props(graph, {key: value for key, value in facts.items() if value is not None})
        with pytest.raises(ExportError, match=message):
            OnnxModel(graph.SerializeToString())


@pytest.mark.parametrize("strategy", ["feature_extraction", "lp_ft"])
def test_labels_in_columns(strategy, shapes, tmp_path):
    X, y = shapes
    Y = np.stack([y == label for label in np.unique(y)], axis=1).astype(int)
    model = classify(strategy).fit(X, Y)
    graph = OnnxModel(export_onnx(model, tmp_path / "labels.onnx"))
    assert graph.multilabel_
    np.testing.assert_allclose(graph.predict_proba(X), model.predict_proba(X), atol=1e-4)
    np.testing.assert_array_equal(graph.predict(X), graph.predict_proba(X) > 0.5)
