"""Shards of embedding rows, named by what they hold, and the catalogue of those in one folder.

A shard is a safetensors file of three tensors: ``rows`` (float32, n x width), ``checksums`` (n x 8 bytes, of each key
and row) and ``keys`` (n x 20 bytes). The last two are the end of the file, and its name carries their hash: so the end
alone tells which rows a shard holds, and its checksums prove each row, however it is read.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import safetensors.numpy

KEY_BYTES, CHECKSUM_BYTES = 20, 8
SUFFIX = ".safetensors"
_INDEX_BYTES = KEY_BYTES + CHECKSUM_BYTES


def row_key(namespace, digest):
    """The key that a row is stored under."""
    return hashlib.blake2b(digest, key=bytes.fromhex(namespace), digest_size=KEY_BYTES).digest()


def row_checksum(key, value):
    """What proves that a row is whole, and is the one of that key."""
    return hashlib.blake2b(value, key=key, digest_size=CHECKSUM_BYTES).digest()


class ShardInfo(NamedTuple):
    """A shard of the catalogue: its name and bytes, its number of rows and their width, and where they start."""

    name: str
    size: int
    n_rows: int
    width: int
    start: int

    def span(self, first, last):
        """Name, start and end of some consecutive rows, the last included."""
        n_bytes = 4 * self.width
        return self.name, self.start + first * n_bytes, self.start + (last + 1) * n_bytes


class Place(NamedTuple):
    """Where a row may be: the number of the shard, its position there, and its checksum."""

    shard: int
    position: int
    checksum: bytes


def pack(rows):
    """Make a shard.

    Parameters
    ----------
    rows : dict of bytes to bytes
        Key and little-endian float32 values of each, all of one length.

    Returns
    -------
    name : str
        What the shard has to be called.

    data : bytes
        Its content.
    """
    keys = b"".join(rows)
    checksums = b"".join(row_checksum(key, value) for key, value in rows.items())
    values = np.frombuffer(b"".join(rows.values()), dtype="<f4").reshape(len(rows), -1)
    tensors = {
        "rows": values,
        "checksums": np.frombuffer(checksums, np.uint8).reshape(-1, CHECKSUM_BYTES),
        "keys": np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES),
    }
    name = f"{len(rows)}-{values.shape[1]}-{_index_hash(checksums + keys)}{SUFFIX}"
    # safetensors puts wider types first, and orders the others by name.
    return name, safetensors.numpy.save(tensors, metadata={"format": "sktl-embeddings", "version": "1"})


class Catalog:
    """Which rows the shards of a folder hold.

    A row takes 24 bytes here: the first 8 of its key, its checksum, and its place.

    Parameters
    ----------
    folder : ObjectFolder
        Of one namespace.

    Attributes
    ----------
    shards : list of ShardInfo
        In the order in which they were found.

    unreadable : dict of str to str
        Shards that are no shards, and why.
    """

    def __init__(self, folder):
        self.folder = folder
        self.shards = []
        self.unreadable = {}
        self._known = set()
        self._prefixes = np.empty(0, ">u8")
        self._checksums = np.empty((0, CHECKSUM_BYTES), np.uint8)
        self._places = np.empty((0, 2), np.int32)

    def refresh(self):
        """Take in the shards that came since the last call."""
        sizes = self.folder.sizes()
        new = [name for name in sizes if name.endswith(SUFFIX) and (name, sizes[name]) not in self._known]
        infos = [_info(name, sizes[name]) for name in new]
        for name, info in zip(new, infos, strict=True):
            if info is None:
                self._refuse(name, sizes[name], "it is not as long as its name says")
        infos = [info for info in infos if info is not None]
        ends = self.folder.read_ranges(
            [(info.name, info.size - info.n_rows * _INDEX_BYTES, info.size) for info in infos]
        )
        self._take_in(infos, ends)

    def find(self, keys):
        """Look up where rows may be.

        Parameters
        ----------
        keys : list of bytes
            Of the rows.

        Returns
        -------
        places : dict of bytes to list of Place
            Keys of which no shard knows are absent.
        """
        wanted = np.frombuffer(b"".join(key[:8] for key in keys), ">u8")
        starts = np.searchsorted(self._prefixes, wanted, "left")
        ends = np.searchsorted(self._prefixes, wanted, "right")
        return {
            key: [
                Place(*map(int, self._places[index]), self._checksums[index].tobytes()) for index in range(start, end)
            ]
            for key, start, end in zip(keys, starts, ends, strict=True)
            if end > start
        }

    def _take_in(self, infos, ends):
        prefixes, checksums, places = [self._prefixes], [self._checksums], [self._places]
        for info, end in zip(infos, ends, strict=True):
            if isinstance(end, FileNotFoundError):
                continue  # somebody removed it meanwhile
            if isinstance(end, Exception):
                raise end
            if _index_hash(end) != info.name.removesuffix(SUFFIX).rpartition("-")[2]:
                self._refuse(info.name, info.size, "its end is not what its name says")
                continue
            index = np.frombuffer(end, np.uint8)
            split = info.n_rows * CHECKSUM_BYTES
            checksums.append(index[:split].reshape(-1, CHECKSUM_BYTES))
            keys = index[split:].reshape(-1, KEY_BYTES)
            prefixes.append(np.ascontiguousarray(keys[:, :8]).view(">u8").ravel())
            number = np.full(info.n_rows, len(self.shards))
            places.append(np.column_stack([number, np.arange(info.n_rows)]).astype(np.int32))
            self.shards.append(info)
            self._known.add((info.name, info.size))
        merged = np.concatenate(prefixes)
        order = np.argsort(merged, kind="stable")
        self._prefixes = merged[order]
        self._checksums = np.concatenate(checksums)[order]
        self._places = np.concatenate(places)[order]

    def _refuse(self, name, size, reason):
        self._known.add((name, size))  # with another length it is looked at again
        self.unreadable[name] = reason


def _info(name, size):
    """What a shard's name says; None if it says nothing, or something else than its size does."""
    parts = name.removesuffix(SUFFIX).split("-")
    if len(parts) != 3 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    n_rows, width = int(parts[0]), int(parts[1])
    start = size - n_rows * (_INDEX_BYTES + 4 * width)
    return ShardInfo(name, size, n_rows, width, start) if start > 8 else None


def _index_hash(index):
    return hashlib.blake2b(index, digest_size=16).hexdigest()
