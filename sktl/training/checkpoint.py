"""A fit that is cut off goes on where it was: its state after each epoch, in a file that is never torn."""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from skorch.callbacks import Callback, LRScheduler, PassthroughScoring
from skorch.history import History
from torch import nn

from sktl.backbones import digest_of
from sktl.exceptions import CheckpointError
from sktl.training.data import Targets, map_rows
from sktl.training.parts import random_state, set_random_state

_FORMAT = 1
_FILE = "training.ckpt"


class Checkpoint(Callback):
    """Write the state of training after each epoch, and go on from there if a fit finds it.

    The state is that of the network, the optimizer, the callbacks that have one (``state_dict`` and
    ``load_state_dict``: schedule, early stopping, averaged weights), the random numbers and the history. It is written
    to a temporary file, which then takes the place of the last one.

    Parameters
    ----------
    folder : path-like
        Made where it does not exist. One fit at a time.
    identity : dict of str to str
        What must be the same for a fit to go on, by name; see :func:`describe_fit`.

    Attributes
    ----------
    n_epochs_found : int
        Epochs that an earlier fit has done.
    """

    n_epochs_found = 0

    def __init__(self, folder: str | os.PathLike, identity: dict[str, str]):
        self.folder = Path(folder)
        self.identity = identity

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / _FILE

    def check(self) -> None:
        """Refuse a checkpoint of another fit, and a folder that cannot be written to, before anything is computed."""
        _make_folder(self.folder)
        for unfinished in self.folder.glob(f".{_FILE}-*"):
            unfinished.unlink(missing_ok=True)
        self._read()

    def on_train_begin(self, net, **kwargs):
        state = self._read()
        if state is not None:
            self._restore(net, state)

    def on_epoch_end(self, net, **kwargs):
        if net.stopping_:  # a fit that went on from here would not know; from the epoch before it stops here again
            return
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, "identity": self.identity, **self._state(net)}, buffer)
        _write(self.path, buffer.getbuffer())

    def remove(self) -> None:
        """Remove the checkpoint of a fit that has come to its end."""
        self.path.unlink(missing_ok=True)

    def _state(self, net) -> dict[str, Any]:
        return {
            "network": net.module_.state_dict(),
            "optimizer": net.optimizer_.state_dict(),
            "callbacks": {name: callback.state_dict() for name, callback in _with_state(net).items()},
            "random": random_state(torch.device(net.device)),
            "order": net.iterator_train__generator.get_state(),
            "n_parts": net.parts_.n,
            "history": json.dumps(net.history.to_list(), default=lambda value: value.item()),
        }

    def _restore(self, net, state: dict[str, Any]) -> None:
        net.module_.load_state_dict(state["network"])
        net.optimizer_.load_state_dict(state["optimizer"])
        for name, callback in _with_state(net).items():
            if name in state["callbacks"]:  # a user's may have come since
                callback.load_state_dict(state["callbacks"][name])
        set_random_state(state["random"], torch.device(net.device))
        net.iterator_train__generator.set_state(state["order"])
        net.parts_.n = max(net.parts_.n, state["n_parts"])  # what was asked for, or what memory had room for
        net.history = History(json.loads(state["history"]))
        self.n_epochs_found = len(net.history)
        for _, callback in net.callbacks_:
            if isinstance(callback, PassthroughScoring):  # which tells the epochs that are better than all before
                best = min if callback.lower_is_better else max
                callback.best_score_ = best(
                    (epoch[callback.name] for epoch in net.history if callback.name in epoch),
                    default=callback.best_score_,
                )

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            known = state["format"], state["identity"]
        except Exception as error:  # whatever a damaged or foreign file makes torch raise
            raise CheckpointError(f"'{self.path}' cannot be read as a checkpoint of training: remove it.") from error
        if known != (_FORMAT, self.identity):
            raise CheckpointError(
                f"'{self.path}' belongs to another fit: {_differences(known[1], self.identity)}. Give the same "
                "parameters and data to go on with that fit, another folder as checkpoint=, or remove the file."
            )
        return state


def describe_fit(
    estimator: BaseEstimator,
    left_out: Collection[str],
    facts: Mapping[str, str],
    data: Mapping[str, Sequence[tuple[Any, Targets] | None]],
) -> dict[str, str]:
    """Describe all that a fit's result depends on, to tell whether two fits are the same.

    Parameters
    ----------
    estimator : estimator
        Its parameters count.
    left_out : collection of str
        Parameters that do not count.
    facts : mapping of str to str
        Further things that count, by name; in place of a parameter of that name.
    data : mapping of str to sequence of (rows, Targets) or None
        What rows hold, by name: training rows and validation rows if there are any, say.

    Returns
    -------
    identity : dict of str to str
        By name.
    """
    versions = {"torch": str(torch.__version__)}
    digests = {name: _digest([part for part in parts if part is not None]) for name, parts in data.items()}
    return {**describe_parameters(estimator, left_out), **facts, **versions, **digests}


def describe_parameters(estimator: BaseEstimator, left_out: Collection[str] = ()) -> dict[str, str]:
    """Describe an estimator's parameters by texts, which differ where the parameters do.

    Parameters
    ----------
    estimator : estimator
        Its parameters are described each by :func:`describe`.
    left_out : collection of str, default=()
        Parameters that do not count.
    """
    parameters = estimator.get_params(deep=False)
    return {name: describe(value) for name, value in parameters.items() if name not in left_out}


def _with_state(net) -> dict[str, Any]:
    own = ((name, each.lr_scheduler_ if isinstance(each, LRScheduler) else each) for name, each in net.callbacks_)
    return {name: each for name, each in own if hasattr(each, "state_dict")}


def _differences(stored: dict[str, str], wanted: dict[str, str]) -> str:
    names = [name for name in {**wanted, **stored} if stored.get(name) != wanted.get(name)]
    sentences = []
    for name in names or ["the format"]:
        first, second = stored.get(name, ""), wanted.get(name, "")
        short = " " not in name and max(len(first), len(second)) < 60
        sentences.append(f"it has {name}={first}, and this one {name}={second}" if short else f"{name} differs")
    return "; ".join(sentences)


def describe(value: Any) -> str:
    """Return a text that is the same in every process, and another one for another value.

    Parameters
    ----------
    value : object
        Modules are described by their class alone, functions by their name.
    """
    if isinstance(value, BaseEstimator):
        parameters = {name: describe(each) for name, each in sorted(value.get_params(deep=False).items())}
        return f"{type(value).__name__}({', '.join(f'{name}={each}' for name, each in parameters.items())})"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, torch.Tensor):
        return digest_of({"": value})
    if isinstance(value, np.ndarray):
        return hashlib.sha256(f"{value.dtype}{value.shape}".encode() + value.tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {describe(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(describe, value)) + "]"
    if isinstance(value, partial):
        return f"partial{describe([value.func, value.args, value.keywords])}"
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)


def _digest(data: list[tuple[Any, Targets]]) -> str:
    digest = hashlib.sha256()
    for rows, targets in data:
        for row_digest in map_rows(lambda index, rows=rows: rows[index].digest, rows, range(len(targets))):
            digest.update(row_digest)
        labels = targets.values.astype(str) if targets.values.dtype == object else targets.values
        for values in (labels, targets.loss_weight):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=f".{_FILE}-"):  # one that was there may be read-only
            pass
    except OSError as error:
        reason = "it is a file" if os.path.isfile(folder) else error.strerror
        raise CheckpointError(
            "The 'checkpoint' parameter must be a folder in which files can be written, or that can be made; got "
            f"{str(folder)!r} instead ({reason}). Give another one."
        ) from error


def _write(path: Path, content) -> None:
    """Put a file into its place at once: whoever looks sees the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
