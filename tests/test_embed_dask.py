"""Dask collections in, the same embeddings as from transform out; also when a worker is killed."""

import os
import signal

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sktl import PretrainedFeatureTransformer
from sktl.distributed import embed_dask
from sktl.exceptions import InputError

dask = pytest.importorskip("dask", reason='needs Dask: pip install "sktl[dask]"')
pytest.importorskip("distributed", reason='needs Dask: pip install "sktl[dask]"')
import dask.array as da  # noqa: E402
import dask.bag as db  # noqa: E402
import dask.dataframe as dd  # noqa: E402
import joblib  # noqa: E402
import pandas as pd  # noqa: E402
from distributed import Client, LocalCluster  # noqa: E402

SEPARATE = {"chunks": (8, 16, -1, -1)}


@pytest.fixture(scope="module")
def transformer(image_arrays):
    return PretrainedFeatureTransformer(image_size=32, device="cpu").fit(image_arrays[0])


@pytest.fixture(autouse=True)
def in_this_thread():
    """Where a test starts no cluster, Dask computes in the calling thread."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def client():
    """Two worker processes, gone at the end of the module."""
    settings = {"distributed.worker.profile.enabled": False, "distributed.comm.timeouts.connect": "60s"}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_arrays(transformer, image_arrays):
    X = image_arrays[0]
    result = embed_dask(da.from_array(X, **SEPARATE), transformer)
    assert result.shape == (30, 256)
    assert result.chunks == ((8, 8, 8, 6), (256,))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result.compute(), transformer.transform(X))


def test_arrays_of_paths_and_of_flattened_images(transformer, image_paths, rng):
    paths = np.array(image_paths[0], dtype=object)
    result = embed_dask(da.from_array(paths, chunks=11), transformer)
    np.testing.assert_array_equal(result.compute(), transformer.transform(paths))
    flat = rng.integers(0, 256, (12, 64), dtype=np.uint8)
    reader = PretrainedFeatureTransformer(image_shape=(8, 8), image_size=32, device="cpu").fit(flat)
    result = embed_dask(da.from_array(flat, chunks=(5, 32)), reader)
    np.testing.assert_array_equal(result.compute(), reader.transform(flat))


def test_data_frames_keep_their_index(transformer, image_paths):
    frame = pd.DataFrame({"photo": image_paths[0], "price": range(30)}, index=range(100, 130))
    collection = dd.from_pandas(frame, npartitions=3)
    result = embed_dask(collection, transformer, column="photo")
    assert list(result.columns) == list(transformer.get_feature_names_out())
    computed = result.compute()
    assert list(computed.index) == list(frame.index)
    np.testing.assert_array_equal(computed.to_numpy(), transformer.transform(image_paths[0]))
    pd.testing.assert_frame_equal(embed_dask(collection["photo"], transformer).compute(), computed)


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_output_of_the_transformer_is_not_changed(output, image_arrays):
    X = image_arrays[0][:6]
    transformer = PretrainedFeatureTransformer(image_size=32, device="cpu", output=output).fit(X)
    expected = transformer.set_output(transform="pandas").transform(X)
    result = embed_dask(da.from_array(X, chunks=(3, -1, -1, -1)), transformer).compute()
    np.testing.assert_array_equal(result, expected)
    pd.testing.assert_frame_equal(transformer.transform(X), expected)


def test_partitions_without_rows(transformer, image_paths):
    frame = pd.DataFrame({"photo": image_paths[0][:10], "price": range(10)})
    few = dd.from_pandas(frame, npartitions=5)
    result = embed_dask(few[few["price"] >= 8], transformer, column="photo").compute()
    assert result.shape == (2, 256)
    assert set(result.dtypes) == {np.dtype("float32")}


def test_bags(transformer, image_paths):
    result = embed_dask(db.from_sequence(image_paths[0], npartitions=4), transformer)
    np.testing.assert_array_equal(result.compute(), transformer.transform(image_paths[0]))


def test_what_cannot_be_embedded(transformer, image_paths):
    frame = dd.from_pandas(pd.DataFrame({"photo": image_paths[0], "price": range(30)}), npartitions=1)
    with pytest.raises(InputError, match=r"has no column 'picture'; its columns are \['photo', 'price'\]"):
        embed_dask(frame, transformer, column="picture")
    with pytest.raises(InputError, match="say which one holds the images"):
        embed_dask(frame, transformer)
    with pytest.raises(InputError, match="embed_dask takes a Dask array, data frame, series or bag, got list"):
        embed_dask(image_paths[0], transformer)
    with pytest.raises(NotFittedError):
        embed_dask(frame, PretrainedFeatureTransformer(), column="photo")
    with pytest.raises(InputError, match="no such file"):
        embed_dask(db.from_sequence(["gone.png"]), transformer).compute()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_worker_processes_and_one_that_is_killed(transformer, client, rng):
    X = rng.integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)
    expected = transformer.transform(X)
    lazy = embed_dask(da.from_array(X, chunks=(20, -1, -1, -1)), transformer)
    persisted = lazy.persist(scheduler=client)
    pids = client.run(os.getpid)
    assert len(pids) == 2
    os.kill(next(iter(pids.values())), getattr(signal, "SIGKILL", signal.SIGTERM))
    np.testing.assert_array_equal(persisted.compute(scheduler=client), expected)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_grid_search_on_the_workers(client, image_paths, tmp_path):
    paths, labels = image_paths
    embed = PretrainedFeatureTransformer(image_size=32, device="cpu", memory=tmp_path, cache_bytes=0)
    model = make_pipeline(embed, LogisticRegression())
    grid = {"logisticregression__C": [0.1, 1.0]}
    expected = GridSearchCV(model, grid, cv=2).fit(paths, labels)
    with joblib.parallel_config("dask", client=client):
        search = GridSearchCV(model, grid, cv=2).fit(paths, labels)
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], atol=1e-6
    )
    np.testing.assert_array_equal(search.predict(paths), expected.predict(paths))
