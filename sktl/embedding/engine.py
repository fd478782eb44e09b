"""Rows in, embeddings out: the policies of a call, resolved, and the call itself."""

import hashlib
import json
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from sktl.backbones import takes_texts
from sktl.embedding._run import EmbeddingStats, Run
from sktl.embedding._threads import CpuShare, cpu_share
from sktl.embedding.policy import resolve_devices, resolve_dtype
from sktl.embedding.runtime import resolve_runtime

# Raised whenever a change makes the same row give other numbers; stored rows of older versions are then not found.
EMBEDDING_VERSION = 1
# Rows per pass. On one core, more gain nothing once the activations outgrow its cache, and cost a lone row its padding;
# in a small network, what torch spends around each operation has to be shared among more of them.
_CPU_BATCH, _CPU_BATCH_OF_SMALL = 8, 16
_SMALL_PARAMETERS = 5_000_000
_GPU_BATCH = 256
# Tokens per pass, whatever the length of the texts: passes then cost about the same, and a lone text little.
_CPU_TOKENS, _GPU_TOKENS = 512, 32_768


class Plan(NamedTuple):
    """How to compute, all "auto" resolved."""

    devices: tuple[torch.device, ...]
    dtype: torch.dtype
    runtime: str
    batch_size: int
    n_threads: int
    share: CpuShare
    insists: bool  # on a precision or runtime of the user's own: then a replacement is worth a warning
    tokens_per_pass: int | None = None  # for texts, unless the user gave a batch size

    @property
    def lanes(self):
        """Forward passes that run side by side; a GPU works on one at a time anyway."""
        return len(self.devices) * self.lanes_per_device

    @property
    def lanes_per_device(self):
        """Those of them that run on the same device."""
        return self.share.lanes if self.device.type == "cpu" else 1

    @property
    def device(self):
        """The first device; the others are of its type."""
        return self.devices[0]

    def rows_per_pass(self, length):
        """Say how many rows make a batch.

        Parameters
        ----------
        length : int or None
            Tokens of each row; None for images.

        Returns
        -------
        n_rows : int
            The same for all batches of rows of that length.
        """
        if length is None or self.tokens_per_pass is None:
            return self.batch_size
        return max(1, self.tokens_per_pass // length)

    def namespace(self, view, input_config):
        """Say how rows are computed: the part of a stored row's key that is the same for all rows of a call.

        Parameters
        ----------
        view : FeatureView
            What computes them.

        input_config : dict or str
            How rows become its input.

        Returns
        -------
        namespace : str
            64 hexadecimal digits.
        """
        how = {
            "view": view.key,
            "input": input_config,
            "dtype": str(self.dtype).removeprefix("torch."),
            "runtime": self.runtime,
            "version": EMBEDDING_VERSION,
        }
        return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()


def make_plan(view, *, device="auto", dtype="auto", batch_size="auto", n_threads=None, runtime="auto"):
    """Resolve the policies of a call; see :func:`embed` for the parameters.

    Returns
    -------
    plan : Plan
        The same for the same view and parameters, whatever the rows are.
    """
    devices = resolve_devices(device)
    device = devices[0]
    share = cpu_share()
    tokens_per_pass = None
    if isinstance(batch_size, str) and batch_size == "auto":
        batch_size = _rows_per_pass(view, device)
        if takes_texts(view.data_config):
            tokens_per_pass = _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS
    insists = not (isinstance(dtype, str) and dtype == "auto" and runtime == "auto")
    if takes_texts(view.data_config) and runtime == "auto":
        runtime = "torch"  # others prepare a program for every length of texts, which takes longer than it saves
    return Plan(
        devices=devices,
        dtype=_common_dtype(dtype, devices),
        runtime=resolve_runtime(runtime, device),
        batch_size=_positive("batch_size", batch_size),
        n_threads=_positive("n_threads", max(share.cores, len(devices)) if n_threads is None else n_threads),
        share=share,
        insists=insists,
        tokens_per_pass=tokens_per_pass,
    )


def embed(
    rows,
    view,
    *,
    device="auto",
    dtype="auto",
    batch_size="auto",
    n_threads=None,
    runtime="auto",
    stores=(),
    on_error="raise",
    verbose=0,
):
    """Compute the embedding of each row.

    Parameters
    ----------
    rows : Rows
        A sequence with ``label(i)``, whose items have a ``digest`` and either ``pixels()`` (uint8 RGB, preprocessed
        here as the backbone asks) or ``model_input()`` (float32, already normalised; or int32 tokens, as many as the
        item's ``length``).

    view : FeatureView
        The network as ``module`` with ``data_config``, ``width`` and ``key``. It is never changed.

    device : {"auto"}, str, torch.device or list of them, default="auto"
        Where to compute; "auto" takes CUDA, MPS or the CPU, in this order. Several devices of one type share the rows.

    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Precision of the network; "auto" takes bfloat16 where it is native, else float32. A precision that changes the
        embeddings of a network too much is replaced by float32, with a warning if it was asked for by name.

    batch_size : int or "auto", default="auto"
        Rows per forward pass; each pass is filled up to this number. "auto" takes 256 on a GPU; on a CPU, where every
        core runs a pass of its own, 16 for a network of less than 5 million parameters and 8 for others. Of texts it
        takes as many as make 32,768 tokens on a GPU and 512 on a CPU. A pass that does not fit into memory is repeated
        in halves.

    n_threads : int or None, default=None
        Threads that decode (and, on a CPU, compute); None takes as many as torch would use.

    runtime : {"auto", "torch", "compile", "openvino"}, default="auto"
        What runs the network; "auto" takes OpenVINO on a CPU if it is installed, else torch.

    stores : sequence of store, default=()
        Asked in turn for each row before it is computed; what an earlier one lacks it is given.

    on_error : {"raise", "nan"}, default="raise"
        Whether rows that cannot be embedded raise one error that names them all, or become rows of NaN. A row for which
        the network itself gives NaN or infinity is computed again in float32 before it counts as such.

    verbose : int, default=0
        From 1 on, a progress bar is shown.

    Returns
    -------
    embeddings : ndarray of shape (len(rows), view.width), dtype float32
        In the order of the rows.
    """
    policy = {"device": device, "dtype": dtype, "batch_size": batch_size, "n_threads": n_threads, "runtime": runtime}
    return embed_with_stats(rows, view, stores=stores, on_error=on_error, verbose=verbose, **policy)[0]


def embed_with_stats(rows, view, *, stores=(), on_error="raise", verbose=0, **policy):
    """Compute embeddings as :func:`embed` does, and say what it took.

    Parameters
    ----------
    rows, view, stores, on_error, verbose, **policy
        As for :func:`embed`.

    Returns
    -------
    embeddings : ndarray of shape (len(rows), view.width), dtype float32
        In the order of the rows.

    stats : EmbeddingStats
        Counts of rows and passes.
    """
    if on_error not in ("raise", "nan"):
        raise ValueError(f"The 'on_error' parameter must be 'raise' or 'nan', got {on_error!r} instead.")
    plan = make_plan(view, **policy)
    stats = EmbeddingStats(rows=len(rows))
    with tqdm(total=len(rows), disable=verbose < 1, desc="embedding", unit="row") as bar:
        run = Run(rows, view, plan, stores=tuple(stores), skip_bad=on_error == "nan", stats=stats, progress=bar.update)
        return run.result(), stats


def _rows_per_pass(view, device):
    if device.type != "cpu":
        return _GPU_BATCH
    n_parameters = sum(parameter.numel() for parameter in view.module.parameters())
    return _CPU_BATCH_OF_SMALL if n_parameters < _SMALL_PARAMETERS else _CPU_BATCH


def _common_dtype(dtype, devices):
    """The precision that all devices are good at."""
    resolved = {resolve_dtype(dtype, device) for device in devices}
    return resolved.pop() if len(resolved) == 1 else torch.float32


def _positive(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"The {name!r} parameter must be an int in the range [1, inf), got {value!r} instead.")
    return int(value)
