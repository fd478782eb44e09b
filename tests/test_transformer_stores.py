"""PretrainedFeatureTransformer's stores: what each parameter bounds, and who finds what there."""

import contextlib
import copy
import pickle
import sqlite3

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from sktl import FineTuneClassifier, PretrainedFeatureTransformer
from sktl.embedding import DiskStore, MemoryStore, _run, default_store, open_store
from sktl.exceptions import InputError

MIB = 2**20


class Counting(nn.Module):
    """Means of quarters of a picture; counts the images that its copies in this process see."""

    seen = 0

    def forward(self, images):
        Counting.seen += len(images)
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture(autouse=True)
def usual_store():
    """Each test starts with an empty store, and leaves its bound as it is by default."""
    default_store(512 * MIB).clear()
    yield
    default_store(512 * MIB).clear()


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


def counting(**parameters):
    """Return a transformer that runs one image per pass, so that images can be counted."""
    return PretrainedFeatureTransformer(
        Counting(), image_size=16, batch_size=1, dtype="float32", device="cpu", runtime="torch", **parameters
    )


def images_seen(embed, X):
    """Return how many images of X go through the network."""
    before = Counting.seen
    embed.transform(X)
    return Counting.seen - before


def test_rows_are_found_in_the_store_of_the_process(pictures):
    embed = counting().fit(pictures)
    assert images_seen(embed, pictures) >= len(pictures)
    assert images_seen(embed, pictures) == 0
    assert len(default_store()) == len(pictures)


def test_without_the_store_rows_are_computed_again(pictures):
    embed = counting(cache_bytes=0).fit(pictures)
    first = embed.transform(pictures)
    assert images_seen(embed, pictures) == len(pictures)
    assert len(default_store()) == 0
    np.testing.assert_array_equal(embed.transform(pictures), first)


@pytest.mark.parametrize("as_place", [str, "file://{}".format], ids=["folder", "url"])
def test_what_the_process_knew_before_is_kept_in_a_place_named_later(pictures, tmp_path, as_place):
    counting().fit(pictures).transform(pictures[:30])
    embed = counting(memory=as_place(tmp_path)).fit(pictures)
    expected = embed.transform(pictures[:20])
    n_files = sum(1 for path in tmp_path.rglob("*") if path.is_file())
    assert images_seen(embed, pictures[:20]) == 0
    assert sum(1 for path in tmp_path.rglob("*") if path.is_file()) == n_files, "what is there is not written again"
    default_store().clear()
    assert images_seen(embed, pictures[:20]) == 0
    assert images_seen(embed, pictures[20:30]) == 10
    np.testing.assert_array_equal(embed.transform(pictures[:20]), expected)


def test_without_the_store_of_the_process_the_folder_still_serves(pictures, tmp_path):
    embed = counting(cache_bytes=0, memory=tmp_path).fit(pictures)
    assert images_seen(embed, pictures) >= len(pictures)
    assert images_seen(embed, pictures) == 0
    assert len(default_store()) == 0


def test_the_bound_is_kept(pictures):
    embed = counting(cache_bytes=4000).fit(pictures)
    expected = counting(cache_bytes=0).fit(pictures).transform(pictures)
    for _ in range(2):
        np.testing.assert_array_equal(embed.transform(pictures), expected)
        assert 5 < len(default_store()) < len(pictures)
    assert default_store()._bytes <= 4000


def test_the_last_estimator_decides_on_the_bound(pictures):
    large, small, none = counting().fit(pictures), counting(cache_bytes=4000).fit(pictures), counting(cache_bytes=0)
    large.transform(pictures)
    assert len(default_store()) == len(pictures)
    none.fit(pictures).transform(pictures)  # leaves aside what others keep
    assert len(default_store()) == len(pictures)
    small.transform(pictures[:1])
    assert default_store()._bytes <= 4000
    large.transform(pictures)
    assert default_store().max_bytes == 512 * MIB
    assert len(default_store()) == len(pictures)


def test_classifier_keeps_to_the_bound_too(pictures):
    y = np.arange(len(pictures)) % 2
    model = FineTuneClassifier(Counting(), "feature_extraction", image_size=16, cache_bytes=0).fit(pictures, y)
    expected = model.predict_proba(pictures)
    assert len(default_store()) == 0
    model.set_params(cache_bytes=4000)
    np.testing.assert_array_equal(model.predict_proba(pictures), expected)
    assert 0 < default_store()._bytes <= 4000


@pytest.mark.parametrize("cache_bytes", [-1, 1.5, "1 GB", None])
@pytest.mark.parametrize("estimator", [PretrainedFeatureTransformer, FineTuneClassifier])
def test_bound_must_be_a_whole_number(estimator, cache_bytes, pictures):
    with pytest.raises(ValueError, match="'cache_bytes' parameter"):
        estimator(cache_bytes=cache_bytes).fit(pictures, np.arange(len(pictures)) % 2)


def test_a_damaged_row_is_computed_again_and_replaced(pictures, tmp_path, monkeypatch):
    """And is not waited for as if another process were computing it."""
    embed = counting(cache_bytes=0, memory=DiskStore(tmp_path)).fit(pictures)
    first = embed.transform(pictures)
    with contextlib.closing(sqlite3.connect(embed.memory.path, isolation_level=None)) as database:
        for damage, row in (("zeroblob(length(value))", 3), ("'text'", 5)):
            database.execute(f"UPDATE rows SET value = {damage} WHERE rowid = {row}")
    monkeypatch.setattr(_run.time, "sleep", lambda seconds: pytest.fail("It waits for rows that nobody computes."))
    before = Counting.seen
    np.testing.assert_array_equal(embed.transform(pictures), first)
    assert Counting.seen - before == 2
    assert images_seen(embed, pictures) == 0


def test_copies_share_a_store_in_memory(pictures):
    """A search clones the estimator for each fit: an empty store in each would keep nothing for the others."""
    embed = counting(cache_bytes=0, memory=MemoryStore(max_bytes=10**6)).fit(pictures)
    embed.transform(pictures)
    assert clone(embed).memory is embed.memory
    assert copy.deepcopy(counting(memory=embed.memory)).memory is embed.memory
    assert images_seen(clone(embed).fit(pictures), pictures) == 0
    assert len(pickle.loads(pickle.dumps(embed.memory))) == 0


class Logged(Counting):
    """Notes each image that it sees in a file, whatever process it runs in."""

    def __init__(self, log):
        super().__init__()
        self.log = str(log)

    def forward(self, images):
        with open(self.log, "ab", buffering=0) as log:
            log.write(b".\n" * int(images.flatten(1).any(dim=1).sum()))  # blank ones only ask for the width
        return super().forward(images)


@pytest.mark.slow
def test_search_in_processes_embeds_each_image_once_over_all_of_them(pictures, tmp_path):
    """The rows on disk are shared by the workers, and so is the work on them."""
    log, y = tmp_path / "seen", np.arange(len(pictures)) % 2
    embed = PretrainedFeatureTransformer(
        Logged(log), image_size=16, batch_size=1, dtype="float32", device="cpu", runtime="torch", memory=tmp_path
    )
    grid = {"logisticregression__C": [0.01, 0.1, 1.0, 10.0]}
    model = make_pipeline(embed, LogisticRegression(max_iter=1000))
    search = GridSearchCV(model, grid, cv=4, n_jobs=2, error_score="raise").fit(pictures, y)
    processes, check_images = 3, 2
    seen = len(log.read_bytes().splitlines())
    assert len(pictures) <= seen <= 1.05 * len(pictures) + processes * check_images
    store = open_store(tmp_path)
    assert (
        store._try(lambda database: database.execute("SELECT COUNT(*) FROM rows").fetchone()[0], 0, writes=False) == 40
    )
    alone = GridSearchCV(model.set_params(pretrainedfeaturetransformer__memory=None), grid, cv=4).fit(pictures, y)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])


def test_the_store_on_disk_can_be_bounded(tmp_path, rng):
    images = rng.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    store = DiskStore(tmp_path, max_bytes=100_000)
    embed = clone(PretrainedFeatureTransformer(image_size=32, memory=store, cache_bytes=0))
    first = embed.fit_transform(images)
    with sqlite3.connect(store.path) as database:
        n_rows = database.execute("SELECT COUNT(*) FROM rows").fetchone()[0]
    assert 0 < n_rows < 200
    np.testing.assert_array_equal(embed.transform(images), first)


def test_pictures_with_too_many_pixels_are_refused():
    pictures = [Image.new("RGB", (30, 30)), Image.new("RGB", (32, 32))]
    with pytest.raises(InputError, match=r"row 1.*1,?024"):
        PretrainedFeatureTransformer(max_pixels=1000).fit_transform(pictures)
