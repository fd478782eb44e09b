"""From the ``memory`` parameter of an estimator to a store."""

import functools
import os

import joblib

from sktl.embedding.disk import DiskStore
from sktl.embedding.object_store import ObjectStore
from sktl.embedding.objects import is_url
from sktl.embedding.store import Store


def open_store(memory):
    """Turn the ``memory`` parameter of an estimator into a store.

    Parameters
    ----------
    memory : None, str, path, joblib.Memory or store
        A folder, a URL that fsspec knows, or a store. Of a ``joblib.Memory`` only the folder is used.

    Returns
    -------
    store : Store or None
        None if there is no folder. A store is returned as it is; for the same folder or URL, the same store is returned
        again.
    """
    if isinstance(memory, joblib.Memory):
        memory = memory.location
    if memory is None or isinstance(memory, Store):
        return memory
    if not isinstance(memory, (str, os.PathLike)):
        raise ValueError(
            "The 'memory' parameter must be None, a folder (str or path), a URL or a joblib.Memory, got "
            f"{memory!r} instead."
        )
    return _shared_store(memory) if is_url(memory) else _store_of(os.path.abspath(os.path.expanduser(memory)))


@functools.lru_cache(maxsize=16)
def _store_of(folder):
    """One store per folder: opening the database takes longer than reading from it."""
    return DiskStore(folder)


@functools.lru_cache(maxsize=16)
def _shared_store(url):
    """One store per URL: it takes requests to learn what is there."""
    return ObjectStore(url)
