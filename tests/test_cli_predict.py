"""``sktl predict``: the labels that the model predicts, and of rows that it was fitted on."""

import csv
import io

import joblib
import numpy as np
import pandas as pd
import pytest
import timm
from safetensors.torch import save_file
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from small_models import make_network

import sktl
from sktl.cli import main


@pytest.fixture
def predict(tmp_path, capsys):
    """Return a function that gives a model's file to ``sktl predict``; exit status, output and errors are returned."""

    def run(model, *words):
        joblib.dump(model, tmp_path / "model.joblib")
        return main(["predict", str(tmp_path / "model.joblib"), *map(str, words)]), *capsys.readouterr()

    return run


@pytest.fixture
def embed():
    return sktl.PretrainedFeatureTransformer(make_network(), image_size=16)


def test_labels_are_those_that_the_model_predicts(predict, embed, image_paths):
    paths, labels = image_paths
    y = np.where(labels == "disc", "ill", "well")
    strict = FixedThresholdClassifier(LogisticRegression(C=1e-3), threshold=0.999, pos_label="well")
    model = make_pipeline(embed, strict).fit(paths, y)
    code, out, _ = predict(model, *paths[:6], "--proba", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["label"] for row in rows] == model.predict(paths[:6]).tolist() == ["ill"] * 6
    assert [row["probability"] for row in rows] == [row["probability of ill"] for row in rows]
    assert min(float(row["probability"]) for row in rows) < 0.5  # more probable or not, "well" is not certain enough
    lines = [line.split() for line in predict(model, *paths[:6])[1].splitlines()]
    assert [line[1:] for line in lines] == [["ill", f"{float(row['probability']):.3f}"] for row in rows]


@pytest.mark.parametrize("container", ["default", "pandas"])
def test_network_runs_once(container, predict, image_paths, monkeypatch):
    paths, labels = image_paths
    options = {"image_size": 16, "max_epochs": 1, "random_state": 0}
    model = sktl.FineTuneClassifier(make_network(), "fine_tuning", **options).set_output(transform=container)
    expected, asked = model.fit(paths, labels).predict_proba(paths[:3]), []
    compute = sktl.FineTuneClassifier._embeddings
    monkeypatch.setattr(sktl.FineTuneClassifier, "_embeddings", lambda *given: asked.append(given) or compute(*given))
    _, out, _ = predict(model, *paths[:3], "--csv")
    found = [float(row["probability"]) for row in csv.DictReader(io.StringIO(out))]
    assert found == pytest.approx(expected.max(axis=1), abs=1e-6)
    assert len(asked) == 1


@pytest.mark.parametrize("last", [LogisticRegression(), HistGradientBoostingClassifier(max_iter=1)], ids=repr)
def test_files_that_a_lenient_transformer_passes_over_are_reported(last, predict, embed, image_paths, tmp_path):
    paths, labels = image_paths
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    model = make_pipeline(embed.set_params(on_error="nan"), last).fit(paths, labels)
    code, out, err = predict(model, tmp_path / "broken.png", paths[0])
    assert code == 1
    assert [line.split()[:2] for line in out.splitlines()] == [[paths[0], model.predict(paths[:1])[0]]]
    assert "broken.png: " in err


def test_model_with_several_labels_per_image_is_refused(predict, embed, image_paths):
    paths, labels = image_paths
    Y = np.stack([labels == label for label in ("disc", "square")], axis=1).astype(int)
    code, out, err = predict(make_pipeline(embed, KNeighborsClassifier(3)).fit(paths, Y), paths[0])
    assert (code, out) == (2, "")
    assert "prints one label per image, and this model predicts several" in err


def numbers_model(embed):
    return make_pipeline(embed, LogisticRegression()).fit(np.eye(8), [0, 1] * 4)


TEXTS = ["a good film", "An AWFUL movie!", "dull", "the story is great."] * 3
STATISTICS = [
    make_pipeline(sktl.TextStatistics(), StandardScaler(), LogisticRegression()),
    make_pipeline(FeatureUnion([("statistics", sktl.TextStatistics())]), LogisticRegression()),
    CalibratedClassifierCV(make_pipeline(sktl.TextStatistics(), LogisticRegression()), cv=2),
]


@pytest.mark.parametrize("model", STATISTICS, ids=["pipeline", "union", "calibrated"])
def test_names_of_files_are_not_taken_for_texts(model, predict, tmp_path, monkeypatch):
    (tmp_path / "review.txt").write_text("an awful movie")
    monkeypatch.chdir(tmp_path)
    code, out, err = predict(model.fit(TEXTS, [1, 0] * 6), "review.txt")
    assert (code, out) == (2, "")
    assert "`sktl predict` takes images, and this model was fitted on texts." in err


def test_model_of_rows_of_numbers_is_refused(predict, embed, image_paths):
    code, out, err = predict(numbers_model(embed), image_paths[0][0])
    assert (code, out) == (2, "")
    assert "`sktl predict` takes images, and this model was fitted on numbers." in err


@pytest.mark.parametrize("as_frame", [True, False])
def test_model_of_a_table_is_refused(as_frame, predict, embed, image_paths):
    paths, labels = image_paths
    table = pd.DataFrame({"photo": paths, "price": np.arange(len(paths), dtype=float)})
    columns = ColumnTransformer([("image", embed, [0]), ("number", StandardScaler(), [1])])
    model = make_pipeline(columns, KNeighborsClassifier(3)).fit(table if as_frame else table.to_numpy(), labels)
    code, out, err = predict(model, paths[0])
    assert (code, out) == (2, "")
    assert "`sktl predict` takes images, and this model was fitted on a table of 2 columns." in err


def test_weights_that_a_small_model_refers_to(image_paths, tmp_path, capsys):
    paths, labels = image_paths
    weights = tmp_path / "public.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    model = sktl.FineTuneClassifier("test_resnet", "feature_extraction", weights=weights, persist="reference")
    model.set_params(image_size=32, random_state=0).fit(paths, labels)
    file, moved = str(tmp_path / "model.sktl"), tmp_path / "moved.safetensors"
    sktl.save(model, file)
    weights.rename(moved)
    assert main(["predict", file, paths[0]]) == 2
    assert "as --weights on the command line" in capsys.readouterr().err
    assert main(["predict", file, *paths[:4], "--weights", str(moved), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["label"] for row in rows] == sktl.load(file, weights=moved).predict(paths[:4]).tolist()
    (tmp_path / "model.joblib").touch()
    assert main(["predict", str(tmp_path / "model.joblib"), paths[0], "--weights", str(moved)]) == 2
    assert "--weights goes with files that sktl.save wrote" in capsys.readouterr().err
