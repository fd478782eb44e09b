"""Forward passes: a filled batch through the network, whatever memory and precision have to say."""

import threading
import warnings
from queue import SimpleQueue

import numpy as np
import torch

from sktl.backbones import takes_texts
from sktl.embedding._threads import ThreadLimit
from sktl.embedding.runtime import get_runner, is_out_of_memory
from sktl.exceptions import PrecisionWarning
from sktl.inputs import ImagePreprocessor

NOT_FINITE = "the backbone gives NaN or infinity for it"


class Passes:
    """Runs batches, as many side by side as the plan has lanes; any number of threads may ask.

    Parameters
    ----------
    view : FeatureView
        The network.

    plan : Plan
        How to compute.

    Attributes
    ----------
    preprocess : ImagePreprocessor or None
        From pixels to rows of a batch; None for a network of texts.

    halvings : int
        How often a batch was halved for lack of memory.
    """

    def __init__(self, view, plan):
        self.plan = plan
        self.preprocess = None if takes_texts(view.data_config) else ImagePreprocessor(view.data_config)
        self.halvings = 0
        config = {} if self.preprocess is None else self.preprocess.config
        settings = plan.dtype, plan.runtime, config.get("mean"), config.get("std"), plan.share
        self._runners = [get_runner(view, device, *settings) for device in plan.devices]
        self._lock = threading.Lock()
        self._idle = SimpleQueue()  # of lanes: a pass takes the one that waits for longest
        for runner in self._runners * plan.lanes_per_device:
            self._idle.put(runner)

    def __call__(self, inputs, n_used):
        """Compute embeddings.

        Parameters
        ----------
        inputs : Tensor of shape (batch_size, ...)
            On the CPU; always as many rows as the plan asks for, so that a row's neighbours do not matter.

        n_used : int
            The first so many rows are wanted.

        Returns
        -------
        embeddings : ndarray of shape (n_used, width), dtype float32
            A row that overflows in a lower precision is computed again in float32; if it holds NaN or infinity, then
            because the network gives that for it.
        """
        values = self._forward(inputs, n_used)
        finite = np.isfinite(values).all(axis=1)
        if finite.all() or self.plan.dtype == torch.float32:
            return values
        return np.where(finite[:, None], values, self._forward(inputs, n_used, exact=True))

    def limit_thread(self):
        """Give the calling thread, which must be one of our own, its share of the cores."""
        if self.plan.device.type == "cpu":
            ThreadLimit(self.plan.share.threads)

    def warn_of_replacement(self, stacklevel):
        """Warn if the precision or runtime that the user asked for is not used."""
        complaints = [runner.complaint for runner in self._runners if runner.complaint]
        if complaints and self.plan.insists:
            warnings.warn(complaints[0], PrecisionWarning, stacklevel=stacklevel + 1)
            for runner in self._runners:
                runner.complaint = None

    def _forward(self, inputs, n_used, exact=False):
        """Embeddings of the first rows of a batch, in as many passes as memory asks for."""
        while True:
            size = min([len(inputs), *(runner.batch_limit for runner in self._runners if runner.batch_limit)])
            try:
                parts = [self._pass(inputs[start : start + size], exact) for start in range(0, n_used, size)]
                return np.concatenate(parts)[:n_used]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise MemoryError(
                        f"Not even one row of {tuple(inputs.shape[1:])} fits into the memory of "
                        f"{self.plan.device}: {error}"
                    ) from error
            self._halve(size)

    def _pass(self, inputs, exact):
        runner = self._idle.get()
        try:
            output = runner(inputs, exact)
        finally:
            self._idle.put(runner)
        return output.cpu().numpy()  # on a GPU the wait is here, while the next pass is queued

    def _halve(self, size):
        with self._lock:
            self.halvings += 1
            for runner in self._runners:
                runner.batch_limit = min(runner.batch_limit or size, max(1, size // 2))
        if self.plan.device.type == "cuda":
            torch.cuda.empty_cache()
