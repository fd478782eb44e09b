"""Embeddings of Dask collections."""

import numpy as np

from sktl._deps import import_extra
from sktl.distributed._model import EmbeddingModel, choose_column
from sktl.exceptions import InputError


def embed_dask(data, transformer, *, column: str | None = None):
    """Embed a Dask collection, one chunk or partition at a time.

    Nothing is computed before Dask computes the result. The fitted transformer is sent once to each worker that needs
    it. If a worker is lost, Dask computes its results again.

    Parameters
    ----------
    data : dask array, data frame, series or bag
        An array of what ``transform`` takes, in chunks along its first axis; a column of paths or bytes; or a bag of
        paths, bytes, Pillow images or arrays.
    transformer : PretrainedFeatureTransformer
        Fitted.
    column : str, default=None
        The column of a data frame that holds the images; may be left out if there is only one.

    Returns
    -------
    embeddings : dask array or data frame
        An array of shape (n, width) for an array or a bag, float32, in the same chunks; for a data frame or a series a
        data frame with the same index, and columns named as ``get_feature_names_out`` says.

    Raises
    ------
    InputError
        If the data is no such collection, or has no such column.
    MissingExtraError
        If Dask is not installed.

    Notes
    -----
    Dask's workers are faster on Linux with ``MALLOC_MMAP_THRESHOLD_=33554432`` in the environment that they start in;
    the user guide says why.

    Examples
    --------
    >>> import numpy as np
    >>> import dask.array as da  # doctest: +SKIP
    >>> from sktl import PretrainedFeatureTransformer
    >>> from sktl.distributed import embed_dask
    >>> pictures = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    >>> transformer = PretrainedFeatureTransformer(image_size=32).fit(pictures[:1])
    >>> embeddings = embed_dask(da.from_array(pictures, chunks=(20, -1, -1, -1)), transformer)  # doctest: +SKIP
    >>> embeddings.shape, embeddings.chunks[0], embeddings.compute().dtype  # doctest: +SKIP
    ((60, 256), (20, 20, 20), dtype('float32'))
    """
    dask = import_extra("dask", extra="dask", caller="embed_dask")
    model = EmbeddingModel(transformer)
    kind = _kind(data)
    if kind is None:
        raise InputError(
            f"embed_dask takes a Dask array, data frame, series or bag, got {type(data).__name__} instead. "
            "Use transform, or transform_batches, for others."
        )
    embed = {"Array": _embed_array, "DataFrame": _embed_frame, "Series": _embed_series, "Bag": _embed_bag}[kind]
    options = {"column": column} if kind == "DataFrame" else {}
    # One node of the graph: sent once to each worker, and there one object for all tasks.
    return embed(data, dask.delayed(model, pure=False, traverse=False), model, **options)


def _kind(data) -> str | None:
    """Return what kind of Dask collection this is; one that was never imported it cannot be."""
    for part, names in (("array", ["Array"]), ("dataframe", ["DataFrame", "Series"]), ("bag", ["Bag"])):
        if not type(data).__module__.startswith(f"dask.{part}"):
            continue
        module = import_extra(f"dask.{part}", extra="dask", caller="embed_dask")
        for name in names:
            if isinstance(data, getattr(module, name)):
                return name
    return None


def _embed_array(array, shared, model):
    array = array.rechunk(dict.fromkeys(range(1, array.ndim), -1))
    return array.map_blocks(
        _embed_items,
        model=shared,
        drop_axis=list(range(1, array.ndim)),
        new_axis=1,
        chunks=(array.chunks[0], (model.width,)),
        meta=np.empty((0, 0), dtype=np.float32),
    )


def _embed_frame(frame, shared, model, column):
    return _embed_series(frame[choose_column(list(frame.columns), column, "data frame")], shared, model)


def _embed_series(series, shared, model):
    names = list(model.transformer.get_feature_names_out())
    nothing = _as_frame(np.empty((0, model.width), np.float32), series._meta.index[:0], names)
    return series.map_partitions(_embed_column, model=shared, names=names, meta=nothing)


def _embed_bag(bag, shared, model):
    dask = import_extra("dask", extra="dask", caller="embed_dask")
    array = import_extra("dask.array", extra="dask", caller="embed_dask")
    embed = dask.delayed(_embed_items, pure=False)
    shape = (np.nan, model.width)
    parts = [array.from_delayed(embed(part, shared), shape, dtype=np.float32) for part in bag.to_delayed()]
    return array.concatenate(parts, allow_unknown_chunksizes=True)


def _embed_items(items, model):
    return model(items if hasattr(items, "shape") else list(items))


def _embed_column(column, model, names):
    return _as_frame(model(column), column.index, names)


def _as_frame(values, index, names):
    pandas = import_extra("pandas", extra="dask", caller="embed_dask")
    return pandas.DataFrame(values, index=index, columns=names)
