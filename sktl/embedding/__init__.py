"""Embeddings of rows: device and precision, batched computation, and the stores that spare it."""

from sktl.embedding._open import open_store
from sktl.embedding._threads import ThreadLimit, cpu_share
from sktl.embedding.disk import DiskStore
from sktl.embedding.engine import EmbeddingStats, embed, embed_with_stats
from sktl.embedding.object_store import ObjectStore
from sktl.embedding.objects import ObjectFolder
from sktl.embedding.policy import resolve_device, resolve_devices, resolve_dtype
from sktl.embedding.runtime import clear_cache
from sktl.embedding.store import MemoryStore, Store, default_store

__all__ = [
    "DiskStore",
    "EmbeddingStats",
    "MemoryStore",
    "ObjectFolder",
    "ObjectStore",
    "Store",
    "ThreadLimit",
    "clear_cache",
    "cpu_share",
    "default_store",
    "embed",
    "embed_with_stats",
    "open_store",
    "resolve_device",
    "resolve_devices",
    "resolve_dtype",
]
