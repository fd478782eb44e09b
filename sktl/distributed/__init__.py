"""Beyond one process: embeddings of more rows than one machine holds, and the doors to Dask and Ray."""

from sktl.distributed._dask import embed_dask
from sktl.distributed._data_parallel import data_parallel
from sktl.distributed._ray import embed_ray, report_to_tune
from sktl.distributed._shards import Shard, ShardReport, embed_to_parquet, read_parquet_rows, read_shards

__all__ = [
    "Shard",
    "ShardReport",
    "data_parallel",
    "embed_dask",
    "embed_ray",
    "embed_to_parquet",
    "read_parquet_rows",
    "read_shards",
    "report_to_tune",
]
