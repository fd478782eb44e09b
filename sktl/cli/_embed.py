"""``sktl embed``: images of any number into a folder of Parquet files."""

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from sktl.cli._folder import find_images
from sktl.distributed import ShardReport, embed_to_parquet, read_parquet_rows
from sktl.exceptions import InputError
from sktl.transformer import PretrainedFeatureTransformer


def run_embed(arguments) -> int:
    """Embed images into Parquet files.

    Parameters
    ----------
    arguments : argparse.Namespace
        What was written on the command line.

    Returns
    -------
    code : int
        1 if some of the images cannot be used, else 0.
    """
    rows = _open_source(Path(arguments.source), arguments.out, arguments.column, arguments.keep)
    first = next(rows, None)
    if first is None:
        raise InputError(f"There are no images in {arguments.source!r}.")
    transformer = PretrainedFeatureTransformer(
        arguments.backbone,
        weights=arguments.weights,
        image_size=arguments.image_size,
        device=arguments.device,
        memory=arguments.memory,
    ).fit(["any.png"])  # learns that rows are images, and reads none
    report = embed_to_parquet(chain([first], rows), arguments.out, transformer, rows_per_shard=arguments.rows_per_shard)
    _say(report, arguments.out)
    return 1 if report.bad else 0


def _open_source(source: Path, out: str, column: str | None, keep: tuple[str, ...]) -> Iterator[tuple[str, Any, dict]]:
    """Return the rows of a folder of images, a folder of Parquet files, or one such file."""
    if source.is_file():
        return read_parquet_rows([source], column, keep, root=source.parent)
    if not source.is_dir():
        raise InputError(f"There is no folder or file {str(source)!r}.")
    own = Path(out).resolve()  # may lie in the source
    files = sorted(path for path in source.rglob("*.parquet") if path.is_file() and own not in path.resolve().parents)
    if files:
        return read_parquet_rows(files, column, keep, root=source)
    if column is not None or keep:
        raise InputError(f"--column and --keep are for Parquet files, and there are none in {str(source)!r}.")
    return ((_name(path.relative_to(source)), str(path), {}) for path in find_images(source))


def _name(path: Path) -> str:
    """Return a path as text that can be stored; names of files are bytes, and need not be text."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def _say(report: ShardReport, out: str) -> None:
    for row in report.bad:
        print(f"sktl: error: {row.label}: {row.reason}", file=sys.stderr)
    found = f" ({report.found:,} were there already)" if report.found else ""
    files = "file" if report.shards == 1 else "files"
    print(f"{report.written:,} rows written to {out} in {report.shards:,} {files}{found}")
