"""Training on several GPUs: one process for each, started by torchrun or accelerate."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sktl._deps import import_extra
from sktl.training import Peers, training_with


@contextmanager
def data_parallel(cpu: bool = False) -> Iterator[Peers]:
    """Let the processes of ``torchrun`` fit one estimator together.

    All processes run the same script on the same rows. Each trains on its part of every batch, gradients are averaged,
    and so all take the step that one process would take on the whole batch; ``batch_size`` is that of the whole.
    In the end all have the same fitted estimator. In a script that is started by itself nothing changes.

    Parameters
    ----------
    cpu : bool, default=False
        Leave GPUs aside. Processes without any use the CPU, and talk through gloo.

    Yields
    ------
    peers : Peers
        ``peers.rank`` is 0 in one of the processes: the one to write files and print.

    Raises
    ------
    MissingExtraError
        If accelerate is not installed.

    Notes
    -----
    All that is random in a fit is decided by the first process, except dropout, which differs between them. Embeddings,
    and the outputs for validation rows, are computed by each process for itself.

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
