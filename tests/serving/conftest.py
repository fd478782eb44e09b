"""A model, its pictures, and a server of both."""

from pathlib import Path

import pytest
from small_models import make_network

from sktl import FineTuneClassifier


@pytest.fixture(scope="session")
def model(image_paths):
    """A fitted classifier of shapes."""
    return FineTuneClassifier(make_network(), "feature_extraction", image_size=16, cache_bytes=0).fit(*image_paths)


@pytest.fixture(scope="module")
def client(model):
    """A client of a server with that model."""
    from servers import running

    from sktl.serving import make_app

    with running(make_app(model, name="shapes")) as client:
        yield client


@pytest.fixture(scope="session")
def contents(image_paths):
    """The files of the generated images, as bytes."""
    return [Path(path).read_bytes() for path in image_paths[0]]
