"""The server says what the model says, to the last bit, however many ask at once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from servers import as_files, running
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_models import make_network

from sktl import FineTuneClassifier, FineTuneRegressor, PretrainedFeatureTransformer
from sktl.exceptions import InputError
from sktl.serving import ServedModel, make_app

SMALL = {"image_size": 16, "cache_bytes": 0}


def post(client, images, **options):
    return client.post("/predict", files=as_files(images), **options)


def proba_of(answer):
    return np.array([each["probabilities"] for each in answer.json()["predictions"]])


@pytest.mark.parametrize("places", [[0], [1, 2, 3], list(range(30)), [4, 4, 4]])
def test_same_bits_as_the_model(client, model, contents, places):
    images = [contents[place] for place in places]
    answer = post(client, images)
    assert answer.status_code == 200
    found = answer.json()
    assert found["classes"] == ["disc", "square", "stripes"]
    assert [each["name"] for each in found["predictions"]] == [f"{number}.png" for number in range(len(images))]
    assert [each["label"] for each in found["predictions"]] == model.predict(images).tolist()
    np.testing.assert_array_equal(proba_of(answer), model.predict_proba(images))


@pytest.mark.parametrize("kind", ["image/png", "Image/JPEG; q=1", "image/*"])
def test_an_image_as_it_is(client, model, contents, kind):
    answer = client.post("/predict", content=contents[3], headers={"Content-Type": kind})
    assert answer.status_code == 200
    assert answer.json()["predictions"][0]["name"] == "image"
    np.testing.assert_array_equal(proba_of(answer), model.predict_proba(contents[3:4]))


def test_crowd_changes_no_bit(client, model, contents):
    expected = [model.predict_proba([content]) for content in contents]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda place: post(client, [contents[place % 30]]), range(120)))
    assert {answer.status_code for answer in answers} == {200}
    for place, answer in enumerate(answers):
        np.testing.assert_array_equal(proba_of(answer), expected[place % 30])
    passes = float(client.get("/metrics").text.split("\nsktl_batch_images_count ")[1].split()[0])
    assert passes < 120  # requests went together


def test_bad_images_in_a_crowd_spoil_no_other_answer(client, model, contents):
    def ask(place):
        return post(client, [contents[0], b"GIF8"] if place % 2 else [contents[place % 30]])

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(60)))
    assert [answer.status_code for answer in answers] == [200, 422] * 30


def make_pipe(last):
    return make_pipeline(PretrainedFeatureTransformer(make_network(), **SMALL), StandardScaler(), last)


@pytest.mark.parametrize("batch_size", ["auto", 3])
def test_pipeline_with_a_classic_model(batch_size, image_paths, contents):
    model = make_pipe(LogisticRegression())
    model.set_params(pretrainedfeaturetransformer__batch_size=batch_size).fit(*image_paths)
    with running(make_app(model)) as client:
        answer = post(client, contents[:5])
    np.testing.assert_array_equal(proba_of(answer), model.predict_proba(contents[:5]))
    assert [each["label"] for each in answer.json()["predictions"]] == model.predict(contents[:5]).tolist()


def served_proba(model, contents):
    """Ask without a server between."""
    served = ServedModel(model, 10**6)
    served.warm_up()
    return served.answer(served.run([served.prepare(content) for content in contents])).proba


@pytest.mark.parametrize("place", [0, 1, 2])
def test_steps_that_are_left_out(place, image_paths, contents):
    model = make_pipe(LogisticRegression())
    model.steps.insert(place, ("nothing", "passthrough"))
    model.fit(*image_paths)
    np.testing.assert_array_equal(served_proba(model, contents[:5]), model.predict_proba(contents[:5]))


def test_steps_of_a_pipeline_in_a_pipeline(image_paths, contents):
    embed, *rest = (step for _, step in make_pipe(LogisticRegression()).steps)
    model = make_pipeline(make_pipeline("passthrough", embed, None), make_pipeline("passthrough", *rest))
    model.fit(*image_paths)
    np.testing.assert_array_equal(served_proba(model, contents[:5]), model.predict_proba(contents[:5]))


FIRST = [f"pretrainedfeaturetransformer{number}" for number in range(3)]


@pytest.mark.parametrize("container", ["pandas", "polars"])
@pytest.mark.parametrize("middle", [StandardScaler(), ColumnTransformer([("first", StandardScaler(), FIRST)])])
def test_steps_get_embeddings_in_the_container_that_they_were_fitted_on(container, middle, image_paths, contents):
    pytest.importorskip(container)
    model = make_pipeline(PretrainedFeatureTransformer(make_network(), **SMALL), middle, LogisticRegression())
    model.set_output(transform=container).fit(*image_paths)
    # warnings are errors here: of names that are missing, for one
    np.testing.assert_array_equal(served_proba(model, contents[:5]), model.predict_proba(contents[:5]))


@pytest.mark.parametrize("head", ["mlp", LogisticRegression()])
def test_heads_of_other_kinds(head, image_paths, contents):
    model = FineTuneClassifier(make_network(), "feature_extraction", head=head, max_epochs=1, **SMALL)
    model.fit(*image_paths)
    with running(make_app(model)) as client:
        answer = post(client, contents[:5])
    np.testing.assert_array_equal(proba_of(answer), model.predict_proba(contents[:5]))


@pytest.mark.parametrize("n_targets", [None, 2])
@pytest.mark.parametrize(
    "make", [lambda: FineTuneRegressor(make_network(), "lp_ft", max_epochs=1, **SMALL), lambda: make_pipe(Ridge())]
)
def test_regressors_answer_with_numbers(make, n_targets, image_paths, contents, rng):
    target = rng.normal(size=30 if n_targets is None else (30, n_targets))
    model = make().fit(image_paths[0], target)
    with running(make_app(model)) as client:
        answer = post(client, contents[:3]).json()
        assert client.get("/model").json()["kind"] == "regressor"
    assert [each["value"] for each in answer["predictions"]] == model.predict(contents[:3]).tolist()
    assert "classes" not in answer


def test_classes_of_numbers_stay_numbers(image_paths, contents):
    model = FineTuneClassifier(make_network(), "feature_extraction", **SMALL).fit(image_paths[0], np.arange(30) % 3)
    with running(make_app(model)) as client:
        answer = post(client, contents[:2]).json()
    assert answer["classes"] == [0, 1, 2]
    assert [each["label"] for each in answer["predictions"]] == model.predict(contents[:2]).tolist()


class Sizes(DummyClassifier):
    """A model that is none of ours, and cannot be taken apart."""

    def predict_proba(self, X):
        return np.array([[len(image) % 2, 1 - len(image) % 2] for image in X], dtype=float)


def test_foreign_models_are_asked_request_by_request(contents):
    model = Sizes().fit(contents[:4], [0, 1, 0, 1])
    with running(make_app(model)) as client:
        answer = post(client, contents[:3])
    np.testing.assert_array_equal(proba_of(answer), model.predict_proba(contents[:3]))


def test_exported_graphs_are_served(model, contents):
    pytest.importorskip("onnxscript", reason='needs the extra: pip install "sktl[onnx]"')
    from sktl.export import OnnxModel, to_onnx

    graph = OnnxModel(to_onnx(model))
    with running(make_app(graph)) as client:
        answer = post(client, contents[:3])
        bad = post(client, [contents[0], b"GIF8"])
    # onnxruntime rounds by the size of the pass, and one request may be split among passes
    np.testing.assert_allclose(proba_of(answer), graph.predict_proba(contents[:3]), atol=1e-6)
    assert [row["index"] for row in bad.json()["rows"]] == [1]


def test_mounted_in_another_application(model, contents):
    from fastapi import FastAPI

    mounted = make_app(model)
    app = FastAPI(lifespan=lambda app: mounted.router.lifespan_context(mounted))
    app.mount("/shapes", mounted)
    with running(app) as client:
        answer = client.post("/shapes/predict", files=as_files(contents[:2]))
        assert client.get("/shapes/metrics").status_code == 200
    np.testing.assert_array_equal(proba_of(answer), model.predict_proba(contents[:2]))


class TestRefusedModels:
    def test_transformer(self, image_paths):
        with pytest.raises(InputError, match=r"needs a model that predicts, got .*'PretrainedFeatureTransformer'"):
            make_app(PretrainedFeatureTransformer(make_network(), **SMALL).fit(image_paths[0]))

    def test_unfitted(self):
        with pytest.raises(NotFittedError):
            make_app(FineTuneClassifier())

    def test_rows_of_numbers(self):
        model = FineTuneClassifier(make_network(), "feature_extraction", **SMALL).fit(np.eye(4), [0, 1, 0, 1])
        with pytest.raises(InputError, match="this model was fitted on numbers"):
            make_app(model)

    @pytest.mark.parametrize("last", [KNeighborsClassifier(3), OneVsRestClassifier(LogisticRegression())], ids=repr)
    def test_several_labels_of_a_model_behind_the_embeddings(self, last, image_paths):
        paths, labels = image_paths
        targets = np.stack([labels == label for label in ("disc", "square")], axis=1).astype(int)
        model = make_pipeline(PretrainedFeatureTransformer(make_network(), **SMALL), last).fit(paths, targets)
        with pytest.raises(InputError, match="one label per image"):
            make_app(model)
