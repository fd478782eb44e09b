"""PretrainedFeatureTransformer.transform_batches: a stream in, a stream out."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from sktl import PretrainedFeatureTransformer
from sktl.embedding import default_store
from sktl.exceptions import InputError


@pytest.fixture(scope="module")
def transformer(image_arrays):
    return PretrainedFeatureTransformer(image_size=32).fit(image_arrays[0])


def test_batches_in_order_as_transform_gives_them(transformer, image_arrays):
    X = image_arrays[0]
    parts = list(transformer.transform_batches(iter([X[:7], X[7:8], X[8:]])))
    assert [len(part) for part in parts] == [7, 1, 22]
    np.testing.assert_array_equal(np.concatenate(parts), transformer.transform(X))


def test_batches_are_read_one_at_a_time(transformer, image_arrays):
    read = []

    def stream():
        for number in range(4):
            read.append(number)
            yield image_arrays[0][number : number + 2]

    results = transformer.transform_batches(stream())
    assert read == []
    next(results)
    assert read == [0]
    next(results)
    assert read == [0, 1]


def test_an_empty_batch_stays_in_its_place(transformer, image_arrays):
    X = image_arrays[0]
    parts = list(transformer.transform_batches([X[:2], [], X[:0], X[2:3]]))
    assert [part.shape for part in parts] == [(2, 256), (0, 256), (0, 256), (1, 256)]
    assert all(part.dtype == np.float32 for part in parts)


def test_an_empty_batch_of_tensors_is_a_tensor(image_arrays):
    X = image_arrays[0]
    transformer = PretrainedFeatureTransformer(image_size=32, output="torch").fit(X)
    assert torch.cat(list(transformer.transform_batches([X[:2], X[:0], X[2:3]]))).shape == (3, 256)


def test_containers_and_names_are_those_of_transform(image_paths):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"photo": image_paths[0][:6]}, index=list("abcdef"))
    transformer = PretrainedFeatureTransformer(image_size=32).set_output(transform="pandas").fit(frame)
    parts = list(transformer.transform_batches([frame[:4], frame[4:4], frame[4:]]))
    pd.testing.assert_frame_equal(pd.concat(parts), transformer.transform(frame))


def test_the_store_in_memory_is_left_aside(transformer, rng):
    default_store().clear()
    list(transformer.transform_batches([rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)]))
    assert len(default_store()) == 0
    assert transformer.cache_bytes > 0


def test_a_folder_is_used(image_arrays, tmp_path):
    transformer = PretrainedFeatureTransformer(image_size=32, memory=tmp_path).fit(image_arrays[0])
    list(transformer.transform_batches([image_arrays[0]]))
    _, stats = transformer.set_params(cache_bytes=0)._transform_with_stats(image_arrays[0])
    assert (stats.computed, stats.from_stores) == (0, 30)


def test_a_bad_row_is_named_with_its_batch(transformer, image_arrays):
    X = image_arrays[0]
    results = transformer.transform_batches([list(X[:2]), [X[2], b"no picture"]])
    next(results)
    with pytest.raises(InputError, match="row 1") as caught:
        next(results)
    assert caught.value.__notes__ == ["in batch 1 of those given to transform_batches"]


def test_paths_instead_of_batches_are_refused(transformer, image_paths):
    with pytest.raises(InputError, match="single image"):
        list(transformer.transform_batches(image_paths[0]))


def test_not_fitted_shows_at_once():
    with pytest.raises(NotFittedError):
        PretrainedFeatureTransformer().transform_batches([])
