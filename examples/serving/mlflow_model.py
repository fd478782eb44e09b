"""Log a fitted pipeline with MLflow, and load it back as a Python function."""

import mlflow
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sktl import PretrainedFeatureTransformer

TRUSTED = ["sktl.backbones._backbone.Backbone", "sktl.transformer.PretrainedFeatureTransformer"]


def main(store: str) -> str:
    """Fit, log to a local store, and return the address of the model."""
    mlflow.set_tracking_uri(store)
    X, y = load_digits(return_X_y=True, as_frame=True)
    embed = PretrainedFeatureTransformer(image_shape=(8, 8), image_size=32)
    model = make_pipeline(embed, LogisticRegression(max_iter=1000)).fit(X[:200], y[:200])
    with mlflow.start_run():
        mlflow.log_metric("accuracy", model.score(X[200:400], y[200:400]))
        logged = mlflow.sklearn.log_model(model, name="digits", skops_trusted_types=TRUSTED)
    return logged.model_uri


def predict(store: str, uri: str, X: pd.DataFrame):
    """Load the model, in any process, and predict."""
    mlflow.set_tracking_uri(store)
    return mlflow.pyfunc.load_model(uri).predict(X)


if __name__ == "__main__":
    uri = main("sqlite:///mlflow.db")
    print(uri, predict("sqlite:///mlflow.db", uri, load_digits(as_frame=True).data[:5]))
