"""Embeddings of Ray datasets, and the reports of a fit to Ray Tune."""

from typing import Any

import numpy as np

from sktl._deps import import_extra
from sktl.distributed._model import EmbeddingModel, choose_column
from sktl.embedding import embed
from sktl.exceptions import BadRow, InputError
from sktl.inputs import ImagePreprocessor, RowError, open_rows, raise_bad_rows
from sktl.training import EpochReport

_PIXELS, _IS_GOOD = "__sktl_pixels__", "__sktl_is_good__"


def embed_ray(
    dataset,
    transformer,
    *,
    column: str | None = None,
    output_column: str = "embedding",
    batch_size: int = 256,
    num_actors: int | tuple[int, int] = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
):
    """Embed a Ray dataset, with one network per actor.

    Images are read, decoded and resized by stateless tasks on all CPUs, and embedded by actors that each hold the
    network; Ray keeps either stage from running ahead of the other. (Where actors have no GPU, Ray may let them do
    both.) An actor that dies is started again, and the rows that it was working on are computed again. Nothing is
    computed before the dataset is read.

    Parameters
    ----------
    dataset : ray.data.Dataset
        With a column of paths, bytes or arrays.
    transformer : PretrainedFeatureTransformer
        Fitted. If it has a ``memory``, which all workers have to reach, the actors decode the images themselves, and
        only those whose embeddings are not found there.
    column : str, default=None
        The column that holds the images; may be left out if there is only one.
    output_column : str, default="embedding"
        The column that is added.
    batch_size : int, default=256
        Rows per task.
    num_actors : int or (int, int), default=1
        Number of actors, or their least and largest number.
    num_cpus : float, default=1
        Cores of each actor.
    num_gpus : float, default=0
        GPUs of each actor.

    Returns
    -------
    dataset : ray.data.Dataset
        The columns of the dataset, and the new one. Ray does not keep the order of rows unless its data context says
        so.

    Raises
    ------
    InputError
        If the dataset has no such column.
    MissingExtraError
        If Ray is not installed.

    Examples
    --------
    >>> import ray  # doctest: +SKIP
    >>> from sktl import PretrainedFeatureTransformer
    >>> from sktl.distributed import embed_ray
    >>> transformer = PretrainedFeatureTransformer().fit(["any.jpg"])
    >>> dataset = ray.data.read_parquet("s3://bucket/shop/")  # doctest: +SKIP
    >>> embed_ray(dataset, transformer, column="photo", num_gpus=1).write_parquet("out/")  # doctest: +SKIP
    """
    ray = import_extra("ray", extra="ray", caller="embed_ray")
    data = import_extra("ray.data", extra="ray", caller="embed_ray")
    model = EmbeddingModel(transformer)
    column = choose_column(_columns(dataset), column, "dataset")
    least, most = num_actors if isinstance(num_actors, tuple) else (num_actors, num_actors)
    decodes_apart = transformer.input_kind_ == "images" and transformer.memory is None
    if decodes_apart:
        dataset = dataset.map_batches(_Decoder(model, column), batch_size=batch_size, batch_format="numpy", num_cpus=1)
    return dataset.map_batches(
        _DecodedEmbedder if decodes_apart else _Embedder,
        fn_constructor_args=(ray.put(model), column, output_column),
        batch_size=batch_size,
        batch_format="numpy",
        compute=data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )


class _Decoder:
    """Adds preprocessed pixels to a batch; knows the network's preprocessing, not the network."""

    def __init__(self, model: EmbeddingModel, column: str):
        transformer = model.transformer
        self.column = column
        self.skips_bad = transformer.on_error == "nan"
        self.reading = {name: getattr(transformer, name) for name in ("channels", "root", "max_pixels")}
        self.data_config = transformer._view.data_config

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        preprocess = ImagePreprocessor(self.data_config)
        height, width = preprocess.config["input_size"][1:]
        items = list(batch[self.column])
        rows = open_rows(items, **self.reading) if items else []
        pixels = np.zeros((len(items), height, width, 3), dtype=np.uint8)
        bad = []
        for index in range(len(rows)):
            try:
                pixels[index] = preprocess(rows[index].pixels())
            except RowError as error:
                bad.append(BadRow(index, rows.label(index), str(error)))
        if bad and not self.skips_bad:
            raise_bad_rows(bad, len(rows))
        is_good = np.ones(len(rows), dtype=bool)
        is_good[[row.index for row in bad]] = False
        return {**batch, _PIXELS: pixels, _IS_GOOD: is_good}


class _Embedder:
    """An actor: a network that lives as long as the process, and gets batches."""

    def __init__(self, reference, column: str, output_column: str):
        ray = import_extra("ray", extra="ray", caller="embed_ray")
        self.model = ray.get(reference)
        self.column, self.output_column = column, output_column

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, self.output_column: self.model(list(batch[self.column]))}


class _DecodedEmbedder(_Embedder):
    """An actor whose batches come with preprocessed pixels."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pixels, is_good = batch.pop(_PIXELS), batch.pop(_IS_GOOD)
        transformer = self.model.transformer
        names = ("device", "dtype", "batch_size", "runtime", "on_error")
        options = {name: getattr(transformer, name) for name in names}
        embeddings = np.full((len(pixels), self.model.width), np.nan, dtype=np.float32)
        if is_good.any():
            embeddings[is_good] = embed(_Prepared(pixels[is_good]), transformer._view, **options)
        return {**batch, self.output_column: embeddings}


class _Prepared:
    """Rows of preprocessed pixels, as the engine takes them."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> "_PreparedRow":
        return _PreparedRow(index, self.pixels[index])

    def label(self, index: int) -> str:
        return f"row {index} of its batch"

    def position(self, index: int) -> int:
        return index


class _PreparedRow:
    def __init__(self, index: int, pixels: np.ndarray):
        self.digest = index.to_bytes(8, "big")  # no store is asked, and no two rows of a batch are merged
        self._pixels = pixels

    def model_input(self) -> np.ndarray:
        return self._pixels


def report_to_tune() -> EpochReport:
    """Make a callback that reports each epoch of a fit to Ray Tune, whose schedulers can then stop trials early.

    Returns
    -------
    callback : skorch callback
        For ``callbacks=`` of :class:`~sktl.FineTuneClassifier` and :class:`~sktl.FineTuneRegressor`, in a function that
        Ray Tune runs. Reports ``epoch``, ``train_loss`` and, with validation rows, ``valid_loss`` and the score.

    Raises
    ------
    MissingExtraError
        If Ray is not installed.

    Examples
    --------
    >>> from sktl import FineTuneClassifier
    >>> from sktl.distributed import report_to_tune
    >>> model = FineTuneClassifier(callbacks=[report_to_tune()])  # doctest: +SKIP
    """
    import_extra("ray.tune", extra="ray", caller="report_to_tune")
    return EpochReport(_report)


def _report(metrics: dict[str, float]) -> None:
    import_extra("ray.tune", extra="ray", caller="report_to_tune").report(metrics)


def _columns(dataset) -> list[str]:
    if not hasattr(dataset, "map_batches"):
        raise InputError(f"embed_ray takes a ray.data.Dataset, got {type(dataset).__name__} instead.")
    return list(dataset.columns() or [])
