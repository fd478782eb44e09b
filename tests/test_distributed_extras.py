"""Without the package that a door leads to, the error says what to install; without a fitted model, what to fit."""

import sys

import pytest

from sktl import PretrainedFeatureTransformer
from sktl.distributed import data_parallel, embed_dask, embed_ray, embed_to_parquet, read_shards, report_to_tune
from sktl.exceptions import MissingExtraError


@pytest.fixture
def transformer(image_arrays):
    return PretrainedFeatureTransformer(image_size=32).fit(image_arrays[0])


def enter_data_parallel():
    with data_parallel():
        pass


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("dask", "dask", lambda transformer, folder: embed_dask([], transformer)),
        ("ray", "ray", lambda transformer, folder: embed_ray([], transformer)),
        ("ray", "ray", lambda transformer, folder: report_to_tune()),
        ("accelerate", "accelerate", lambda transformer, folder: enter_data_parallel()),
        ("pyarrow", "parquet", lambda transformer, folder: embed_to_parquet([("a", b"x")], folder, transformer)),
        ("pyarrow", "parquet", lambda transformer, folder: list(read_shards(folder))),
    ],
    ids=["embed_dask", "embed_ray", "report_to_tune", "data_parallel", "embed_to_parquet", "read_shards"],
)
def test_missing_extra(package, extra, call, transformer, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package '{package}'.*pip install 'sktl\[{extra}\]'"):
        call(transformer, tmp_path)
