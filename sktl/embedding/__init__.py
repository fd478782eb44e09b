"""Embeddings of rows: device and precision, batched computation, and the stores that spare it."""

from sktl.embedding.engine import EmbeddingStats, embed, embed_with_stats
from sktl.embedding.policy import resolve_device, resolve_dtype
from sktl.embedding.store import MemoryStore, default_store

__all__ = [
    "EmbeddingStats",
    "MemoryStore",
    "default_store",
    "embed",
    "embed_with_stats",
    "resolve_device",
    "resolve_dtype",
]
