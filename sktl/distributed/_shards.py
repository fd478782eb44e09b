"""Embeddings of any number of rows as a folder of Parquet files, each written as a whole."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sktl._deps import import_extra
from sktl.embedding import EmbeddingStats, ObjectFolder
from sktl.exceptions import BadRow, InputError, ShardError

FORMAT_VERSION = 1
_OWN_COLUMNS = ("name", "hash", "error", "embedding")
_SUFFIX = ".parquet"


@dataclass(frozen=True, eq=False)
class Shard:
    """The rows of one file that have an embedding.

    Parameters
    ----------
    names : list of str
        Names of the rows.
    embeddings : ndarray of shape (n, width), float32
        One row per name.
    columns : dict of str to list
        The further columns.
    """

    names: list[str]
    embeddings: np.ndarray
    columns: dict[str, list]


class _Input(NamedTuple):
    """A row to embed: its position among those given, and what was given."""

    position: int
    name: str
    image: Any
    more: dict[str, Any]


@dataclass
class ShardReport:
    """What a run did.

    Parameters
    ----------
    found : int, default=0
        Rows that earlier runs had written.
    written : int, default=0
        Rows that this run wrote, those that cannot be read included.
    computed : int, default=0
        Images that went through the network in this run.
    shards : int, default=0
        Files that this run wrote.
    bad : list of BadRow, default=[]
        Rows that this run could not read: position among those given, name, reason.
    """

    found: int = 0
    written: int = 0
    computed: int = 0
    shards: int = 0
    bad: list[BadRow] = field(default_factory=list)


def embed_to_parquet(rows: Iterable, out, transformer, *, rows_per_shard: int = 1024) -> ShardReport:
    """Embed a stream of images into a folder of Parquet files; a run that is started again goes on where it stopped.

    Each file holds the columns ``name``, ``hash`` (of the image's content), ``error`` (why there is no embedding, or
    null), ``embedding`` and the further columns that were given; its metadata name the backbone and its fingerprint.
    A file appears when it is complete, so that a run that was stopped repeats the rows of one file at most, and none
    of them goes through the network again if the transformer's ``memory`` is a folder.

    Parameters
    ----------
    rows : iterable of (str, image) or (str, image, dict)
        A unique name, an image (a path, bytes, a Pillow image or an array), and further columns. Rows whose name is
        in one of the files already are skipped. The rows are read as they are needed, and never held all at once.
    out : path-like or str
        The folder, usually called ``*.parquet``, or a URL that fsspec knows. Only one run at a time may write to it.
    transformer : PretrainedFeatureTransformer
        Fitted.
    rows_per_shard : int, default=1024
        Rows per file.

    Returns
    -------
    report : ShardReport
        What was found and what was done. It lists the rows that cannot be read; in the files, these have no embedding.

    Raises
    ------
    ShardError
        If the folder holds embeddings of another backbone, other columns, or a file that cannot be read.
    InputError
        If the rows are not of the form above.

    Examples
    --------
    >>> import numpy as np
    >>> from sktl import PretrainedFeatureTransformer
    >>> from sktl.distributed import embed_to_parquet, read_shards
    >>> pictures = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    >>> transformer = PretrainedFeatureTransformer(image_size=32).fit(pictures)
    >>> rows = [(f"picture {number}", picture) for number, picture in enumerate(pictures)]
    >>> report = embed_to_parquet(rows, "embeddings.parquet", transformer, rows_per_shard=20)
    >>> report.written, report.shards
    (50, 3)
    >>> [shard.embeddings.shape for shard in read_shards("embeddings.parquet")]
    [(20, 256), (20, 256), (10, 256)]
    """
    check_is_fitted(transformer)
    if isinstance(rows_per_shard, bool) or not isinstance(rows_per_shard, Integral) or rows_per_shard < 1:
        raise ValueError(
            f"The 'rows_per_shard' parameter must be an int of at least 1, got {rows_per_shard!r} instead."
        )
    folder = ObjectFolder(out)
    if os.path.isfile(folder.url):
        raise ShardError(f"{folder.url!r} is a file, and embeddings are written to a folder of files.")
    identity = _identity(transformer)
    done, number, kept = _survey(folder, identity)
    transformer = copy(transformer).set_params(cache_bytes=0, on_error="nan")
    report = ShardReport()
    todo = _without_done(rows, done, report)
    while part := list(islice(todo, rows_per_shard)):
        table, computed, bad = _embed_part(part, transformer, identity, kept)
        kept = [name for name in table.column_names if name not in _OWN_COLUMNS]
        _write(folder, number + report.shards, table)
        report.written += len(part)
        report.shards += 1
        report.computed += computed
        report.bad += bad
    return report


def read_shards(out) -> Iterator[Shard]:
    """Read what :func:`embed_to_parquet` wrote, one file at a time.

    Parameters
    ----------
    out : path-like or str
        The folder.

    Yields
    ------
    shard : Shard
        Names, embeddings and further columns of one file; rows that could not be read are left out.

    Raises
    ------
    ShardError
        If there are no such files, or one cannot be read.
    """
    pc = _pyarrow("compute")
    folder = ObjectFolder(out)
    names = _shard_names(folder)
    if not names:
        raise ShardError(f"There are no embeddings in {folder.url!r}.")
    for name in names:
        table = _read(folder, name)
        table = table.filter(pc.is_valid(table["embedding"]))
        vectors = table["embedding"].combine_chunks()
        embeddings = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), vectors.type.list_size)
        kept = {key: table[key].to_pylist() for key in table.column_names if key not in _OWN_COLUMNS}
        yield Shard(table["name"].to_pylist(), embeddings, kept)


def read_parquet_rows(
    files: Iterable, column: str | None = None, keep=(), root=None
) -> Iterator[tuple[str, Any, dict]]:
    """Read images from Parquet files, for :func:`embed_to_parquet`.

    Parameters
    ----------
    files : iterable of path
        The files.
    column : str, default=None
        The column of paths, of bytes, or of Hugging Face's pairs of both; needed only if several columns may hold
        images.
    keep : sequence of str, default=()
        Columns to keep beside the embeddings.
    root : path, default=None
        A folder above the files: rows are named by the path of their file from there. None takes the path as given.

    Yields
    ------
    row : (str, image, dict)
        Its name consists of its file and its place there, as in ``"shop.parquet:17"``.

    Raises
    ------
    ShardError
        If a file cannot be read.
    InputError
        If a file lacks a column.
    """
    parquet = _pyarrow("parquet")
    for path in files:
        try:
            with parquet.ParquetFile(path) as file:
                wanted = _image_column(file.schema_arrow, column, keep, path)
                name = str(path) if root is None else Path(path).relative_to(root).as_posix()
                batches = file.iter_batches(batch_size=256, columns=list(dict.fromkeys([wanted, *keep])))
                for place, row in enumerate(row for batch in batches for row in batch.to_pylist()):
                    yield f"{name}:{place}", row[wanted], {key: row[key] for key in keep}
        except _arrow_errors() as error:
            raise ShardError(f"The file {str(path)!r} cannot be read as Parquet: {error}") from error


def _embed_part(part, transformer, identity, kept):
    """Return a table of some rows, how many images were computed, and which could not be read."""
    arrow = _pyarrow()
    embeddings, stats = _embed([row.image for row in part], transformer)
    good = np.ones(len(part), dtype=bool)
    errors: list[str | None] = [None] * len(part)
    for row in stats.bad:
        good[row.index], errors[row.index] = False, row.reason
    width = embeddings.shape[1]
    flat = arrow.array(np.where(good[:, None], embeddings, 0).reshape(-1))
    vectors = arrow.FixedSizeListArray.from_arrays(flat, width, mask=arrow.array(~good))
    names = [row.name for row in part]
    columns = {
        "name": arrow.array(names, arrow.string()),
        "hash": arrow.array(stats.digests, arrow.binary(32)),
        "error": arrow.array(errors, arrow.string()),
        "embedding": vectors,
        **_further_columns(part, kept),
    }
    bad = [BadRow(part[row.index].position, names[row.index], row.reason) for row in stats.bad]
    metadata = {"sktl": json.dumps(identity, sort_keys=True)}
    return arrow.table(columns).replace_schema_metadata(metadata), stats.computed, bad


def _embed(images, transformer) -> tuple[np.ndarray, EmbeddingStats]:
    if any(image is not None for image in images):
        return transformer._transform_with_stats(images)
    # Of nothing but missing values a transformer cannot tell what they would be.
    bad = [BadRow(index, f"row {index}", "missing value") for index in range(len(images))]
    nothing = np.full((len(images), transformer._view.width), np.nan, dtype=np.float32)
    return nothing, EmbeddingStats(rows=len(images), digests=[None] * len(images), bad=bad)


def _further_columns(part, kept):
    arrow = _pyarrow()
    keys = list(part[0].more) if kept is None else kept
    for row in part:
        if row.more.keys() != set(keys):
            raise ShardError(
                f"The row {row.name!r} has the further columns {list(row.more)}, where {keys} are expected: those of "
                "the rows before it. Another choice of columns needs another folder."
            )
    return {key: arrow.array([row.more[key] for row in part]) for key in keys}


def _without_done(rows: Iterable, done: set[str], report: ShardReport) -> Iterator[_Input]:
    """Yield the rows that no file holds yet, in one form."""
    for position, row in enumerate(rows):
        checked = _checked(row, position)
        if checked.name in done:
            report.found += 1
        else:
            yield checked


def _checked(row, position: int) -> _Input:
    if not isinstance(row, tuple) or len(row) not in (2, 3) or not isinstance(row[0], str):
        raise InputError(
            f"Row {position} must be (name, image) or (name, image, dict of further columns), got {row!r:.100} instead."
        )
    name, image = row[:2]
    more = row[2] if len(row) == 3 else {}
    taken = [key for key in more if key in _OWN_COLUMNS]
    if taken:
        raise InputError(f"A further column must not be called {taken[0]!r}: that is one of sktl's own.")
    return _Input(position, name, image, dict(more))


def _identity(transformer) -> dict[str, Any]:
    backbone = transformer.backbone_
    view = transformer._view
    return {"version": FORMAT_VERSION, "backbone": backbone.name, "fingerprint": view.key, "width": view.width}


def _survey(folder: ObjectFolder, identity: dict[str, Any]) -> tuple[set[str], int, list[str] | None]:
    """Return the names that the folder holds, the number of the next file, and its further columns."""
    done: set[str] = set()
    number, kept = 0, None
    for shard in _shard_names(folder):
        table = _read(folder, shard, ["name"])
        _check_identity(table.schema.metadata, identity, folder, shard)
        done.update(table["name"].to_pylist())
        number = max(number, int(shard.split("-")[1]) + 1)
        if kept is None:
            kept = [name for name in _columns(folder, shard) if name not in _OWN_COLUMNS]
    return done, number, kept


def _check_identity(metadata, identity: dict[str, Any], folder: ObjectFolder, shard: str) -> None:
    found = json.loads((metadata or {}).get(b"sktl", b"{}"))
    if found.get("fingerprint") != identity["fingerprint"]:
        raise ShardError(
            f"The folder {folder.url!r} holds embeddings of {found.get('backbone', 'an unknown backbone')!r} "
            f"(fingerprint {str(found.get('fingerprint'))[:12]}..., in {shard}), and {identity['backbone']!r} "
            f"(fingerprint {identity['fingerprint'][:12]}...) makes others. Choose another folder, or the same "
            "backbone, weights, size and layer."
        )


def _shard_names(folder: ObjectFolder) -> list[str]:
    return [name for name in folder.sizes() if name.startswith("part-") and name.endswith(_SUFFIX)]


def _write(folder: ObjectFolder, number: int, table) -> None:
    arrow, parquet = _pyarrow(), _pyarrow("parquet")
    buffer = arrow.BufferOutputStream()
    parquet.write_table(table, buffer)
    names = "\n".join(table["name"].to_pylist()).encode(errors="surrogateescape")
    folder.write(f"part-{number:06d}-{hashlib.sha256(names).hexdigest()[:12]}{_SUFFIX}", buffer.getvalue())


def _read(folder: ObjectFolder, name: str, columns=None):
    parquet = _pyarrow("parquet")
    try:
        return parquet.read_table(_pyarrow().BufferReader(folder.read(name)), columns=columns)
    except _arrow_errors() as error:
        raise ShardError(
            f"The shard {name!r} in {folder.url!r} cannot be read: {error} Remove it, and run again: its rows are then "
            "computed anew."
        ) from error


def _columns(folder: ObjectFolder, name: str) -> list[str]:
    return _pyarrow("parquet").read_schema(_pyarrow().BufferReader(folder.read(name))).names


def _image_column(schema, column: str | None, keep, path) -> str:
    missing = [name for name in ([column] if column else []) + list(keep) if name not in schema.names]
    if missing:
        raise InputError(f"The file {str(path)!r} has no column {missing[0]!r}; its columns are {schema.names}.")
    if column is not None:
        return column
    types = _pyarrow("types")
    kinds = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary, types.is_struct)
    found = [field.name for field in schema if field.name not in keep and any(is_kind(field.type) for is_kind in kinds)]
    if len(found) != 1:
        raise InputError(
            f"The file {str(path)!r} has {len(found)} columns that may hold images ({found or schema.names}); say "
            "which one does."
        )
    return found[0]


def _arrow_errors() -> tuple:
    return (_pyarrow().ArrowInvalid, _pyarrow().ArrowTypeError, OSError)


def _pyarrow(part: str | None = None):
    name = "pyarrow" if part is None else f"pyarrow.{part}"
    return import_extra(name, extra="parquet", caller="Writing or reading Parquet files")
