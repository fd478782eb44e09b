"""The services and stores that the guide shows work as they are shown."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import joblib
import pytest

import sktl

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "serving"


def test_service_of_twenty_lines(image_paths, tmp_path, monkeypatch):
    pytest.importorskip("fastapi", reason="the example is for FastAPI")
    pytest.importorskip("python_multipart", reason="FastAPI needs it for uploads")
    pytest.importorskip("httpx", reason="FastAPI's test client needs it")
    from fastapi.testclient import TestClient

    paths, labels = image_paths
    model = sktl.FineTuneClassifier(strategy="feature_extraction", image_size=32).fit(paths, labels)
    joblib.dump(model, tmp_path / "shapes.joblib")
    monkeypatch.setenv("MODEL", str(tmp_path / "shapes.joblib"))
    spec = importlib.util.spec_from_file_location("app", EXAMPLES / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    client = TestClient(module.app)
    answer = client.post("/predict", files={"file": Path(paths[0]).read_bytes()})
    expected = dict(zip(model.classes_, model.predict_proba(paths[:1])[0].round(4).tolist(), strict=True))
    assert answer.json() == pytest.approx(expected)
    assert client.post("/predict", files={"file": b"no picture"}).status_code == 422


def test_mlflow_store(tmp_path):
    pytest.importorskip("mlflow", reason="the example is for MLflow")
    code = """
import sys; sys.path.insert(0, sys.argv[1]); import mlflow_model
store = "sqlite:///" + sys.argv[2] + "/mlflow.db"
print(mlflow_model.main(store) if len(sys.argv) == 3 else mlflow_model.predict(store, sys.argv[3], load()))
""".replace("load()", "__import__('sklearn.datasets').datasets.load_digits(as_frame=True).data[:5]")

    def run(*words):
        command = [sys.executable, "-c", code, str(EXAMPLES), str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    uri = run().splitlines()[-1]
    assert "[0 1 2 3 4]" in run(uri)
