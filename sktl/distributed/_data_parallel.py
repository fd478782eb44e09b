"""Training on several GPUs: one process for each, started by torchrun or accelerate."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sktl._deps import import_extra
from sktl.training import Peers, training_with


@contextmanager
def data_parallel(cpu: bool = False) -> Iterator[Peers]:
    """Let the processes of ``torchrun`` fit one estimator together.

    All processes run the same script on the same rows. Each trains on its part of every batch and gradients are
    averaged, so that every step is the one that a single process would take on the whole batch; ``batch_size`` is the
    size of the whole batch. In the end all processes have the same fitted estimator. A script that is started without
    ``torchrun`` runs as if the block were not there.

    Parameters
    ----------
    cpu : bool, default=False
        Train on the CPU even if there are GPUs. Without GPUs the CPU is used in any case; there the processes
        communicate through gloo.

    Yields
    ------
    peers : Peers
        ``peers.rank`` is 0 in exactly one of the processes, which should be the one to write files and to print.

    Raises
    ------
    MissingExtraError
        If accelerate is not installed.

    Notes
    -----
    All that is random in a fit is decided by the first process, except dropout, which differs between processes.
    Embeddings and the outputs for validation rows are computed by each process for itself.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktl import FineTuneClassifier
    >>> from sktl.distributed import data_parallel
    >>> X, y = load_digits(return_X_y=True)
    >>> model = FineTuneClassifier(strategy="fine_tuning", image_shape=(8, 8), image_size=32, max_epochs=1)
    >>> with data_parallel() as peers:  # doctest: +SKIP
    ...     model.fit(X, y)
    ...     if peers.rank == 0:
    ...         joblib.dump(model, "model.joblib")
    """
    accelerate = import_extra("accelerate", extra="accelerate", caller="data_parallel")
    operations = import_extra("accelerate.utils", extra="accelerate", caller="data_parallel")
    state = accelerate.PartialState(cpu=cpu or not torch.cuda.is_available())

    def add_up(tensor: torch.Tensor) -> torch.Tensor:
        return operations.reduce(tensor, "sum")

    peers = Peers(state.process_index, state.num_processes, state.device, add_up)
    with training_with(peers):
        yield peers
