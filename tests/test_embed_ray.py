"""Ray datasets in, the same embeddings as from transform out; also when an actor dies. Searches and trials on Ray."""

import os
import signal
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from small_models import Net, make_model, three_digits

from sktl import PretrainedFeatureTransformer
from sktl.distributed import embed_ray, report_to_tune
from sktl.exceptions import InputError

ray = pytest.importorskip("ray", reason='needs Ray: pip install "sktl[ray]"')
pytest.importorskip("ray.data", reason='needs Ray: pip install "sktl[ray]"')
from ray import tune  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(280),
    # Ray's own: deprecations between its parts, and files and sockets that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray on two cores and a GPU that is not there, gone at the end of the module."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))  # the workers import the networks of the tests
        options = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
        ray.init(num_cpus=2, num_gpus=1, object_store_memory=200 * 2**20, **options)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def by_name(dataset):
    """The rows of a dataset in the order of their names, which must not occur twice."""
    rows = sorted(dataset.take_all(), key=lambda row: row["name"])
    assert len({row["name"] for row in rows}) == len(rows)
    return np.stack([row["embedding"] for row in rows])


def named(paths):
    return ray.data.from_items([{"name": f"{n:03d}", "photo": path} for n, path in enumerate(paths)])


def test_paths_as_transform_embeds_them(image_paths):
    paths = image_paths[0]
    transformer = PretrainedFeatureTransformer(image_size=32, device="cpu").fit(paths)
    result = embed_ray(named(paths), transformer, column="photo", batch_size=8, num_gpus=1).materialize()
    assert sorted(result.columns()) == ["embedding", "name", "photo"]
    np.testing.assert_array_equal(by_name(result), transformer.transform(paths))
    assert "MapBatches(_Decoder):" in result.stats()  # a stage of its own, without the GPU


def test_unreadable_rows_and_what_cannot_be_embedded(image_paths, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    paths = [*image_paths[0][:5], str(tmp_path / "broken.png")]
    transformer = PretrainedFeatureTransformer(image_size=32, device="cpu", on_error="nan").fit(paths)
    found = by_name(embed_ray(named(paths), transformer, column="photo", num_actors=(1, 2)))
    np.testing.assert_array_equal(found, transformer.transform(paths))
    assert np.isnan(found).any(axis=1).tolist() == [False] * 5 + [True]
    with pytest.raises(Exception, match=r"row 5 \('.*broken.png'\)"):
        embed_ray(named(paths), transformer.set_params(on_error="raise"), column="photo").take_all()
    with pytest.raises(InputError, match=r"has no column 'picture'; its columns are \['name', 'photo'\]"):
        embed_ray(named(paths), transformer, column="picture")
    with pytest.raises(InputError, match="say which one holds the images"):
        embed_ray(named(paths), transformer)
    with pytest.raises(InputError, match=r"takes a ray.data.Dataset, got list"):
        embed_ray(paths, transformer)
    with pytest.raises(NotFittedError):
        embed_ray(named(paths), PretrainedFeatureTransformer(), column="photo")


class Mortal(Net):
    """Kills the first process that embeds with it elsewhere than where it was made."""

    def __init__(self, flag):
        super().__init__()
        self.flag = str(flag)
        self.home = os.getpid()

    def forward(self, images):
        if os.getpid() != self.home and len(images) > 2:  # in a real pass, after what was checked on few rows
            try:
                os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return super().forward(images)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


def test_rows_of_a_dead_actor_are_computed_again(rng, tmp_path):
    pictures = rng.integers(0, 256, (120, 16, 16, 3), dtype=np.uint8)
    network = Mortal(tmp_path / "died")
    policy = {"device": "cpu", "dtype": "float32", "runtime": "torch", "batch_size": 8}
    transformer = PretrainedFeatureTransformer(network, image_size=16, **policy).fit(pictures)
    dataset = ray.data.from_items([{"name": f"{n:03d}", "photo": each} for n, each in enumerate(pictures)])
    found = by_name(embed_ray(dataset, transformer, column="photo", batch_size=16))
    assert (tmp_path / "died").exists()
    np.testing.assert_allclose(found, transformer.transform(pictures), atol=1e-5)


def test_grid_search_over_strategies(image_paths):
    from ray.util.joblib import register_ray

    register_ray()
    X, y = three_digits()
    grid = {"strategy": ["feature_extraction", "fine_tuning"]}
    expected = GridSearchCV(make_model(device="cpu"), grid, cv=2).fit(X, y)
    with joblib.parallel_config("ray", n_jobs=2):
        search = GridSearchCV(make_model(device="cpu"), grid, cv=2).fit(X, y)
    assert search.best_params_ == expected.best_params_
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], atol=0.1)


def _trial(config):
    X, y = three_digits()
    model = make_model(max_epochs=6, learning_rate=config["learning_rate"], device="cpu", callbacks=[report_to_tune()])
    model.fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])


def test_tune_stops_trials_that_lag(tmp_path):
    tuner = tune.Tuner(
        tune.with_resources(_trial, {"cpu": 1}),
        param_space={"learning_rate": tune.grid_search([3e-2, 1e-2, 1e-7, 2e-7])},
        tune_config=tune.TuneConfig(
            metric="valid_loss",
            mode="min",
            scheduler=tune.schedulers.ASHAScheduler(max_t=6, grace_period=1, reduction_factor=2),
            max_concurrent_trials=1,
            reuse_actors=True,  # a process that has imported torch already
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    assert results.num_errors == 0
    assert results.get_best_result().config["learning_rate"] >= 1e-2
    epochs = {result.config["learning_rate"]: result.metrics["epoch"] for result in results}
    assert max(epochs.values()) == 6
    assert epochs[1e-7] < 6
    assert {"train_loss", "valid_loss", "valid_acc"} <= set(results[0].metrics)
