"""What the parts of a batch have in common, when they run side by side: statistics, and the order of random numbers."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class PartsDisagreeError(RuntimeError):
    """Parts of a batch did not do the same in the same order, so that what one of them computed means nothing here."""


class Meeting:
    """Where all parts of a batch exchange what they computed; each waits there for the others.

    Parameters
    ----------
    n : int
        Number of parts.
    cores : semaphore
        Held by a part at work; one that waits gives it to another.

    Attributes
    ----------
    failure : BaseException or None
        What ended the first part that failed.
    """

    def __init__(self, n: int, cores: threading.Semaphore):
        self.failure: BaseException | None = None
        self._barrier = threading.Barrier(n)
        self._cores = cores
        self._rounds: tuple[list, list] = [None] * n, [None] * n  # a part may be one exchange ahead of another

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Hold a core for a part's work; if it fails the others get a ``BrokenBarrierError`` instead of waiting."""
        with self._cores:
            try:
                yield
            except threading.BrokenBarrierError:
                raise
            except BaseException as error:
                self.failure = self.failure or error
                self.close()
                raise

    def exchange(
        self, part: int, number: int, topic: tuple, values: tuple[torch.Tensor, ...]
    ) -> list[tuple[torch.Tensor, ...]]:
        """Hand in the values of a part, and return those of all of them, in the order of the parts.

        Parameters
        ----------
        part : int
            Whose values.
        number : int
            Counts the exchanges.
        topic : tuple
            What the values are; the same in all parts.
        values : tuple of tensor
            Not changed by anybody afterwards.

        Raises
        ------
        PartsDisagreeError
            If the topics differ.
        """
        brought = self._rounds[number % 2]
        brought[part] = topic, values
        self._cores.release()
        try:
            self._barrier.wait()
        finally:
            self._cores.acquire()
        topics, contributions = zip(*brought, strict=True)
        if len(set(topics)) > 1:
            raise PartsDisagreeError(f"Parts of a batch are at different places: {topics}")
        return list(contributions)

    def close(self) -> None:
        """Let nobody wait any more."""
        self._barrier.abort()


class PartOfBatch(TorchFunctionMode):
    """Runs a part of a batch as if the others were there, and with random numbers of its own.

    Inside the context, batch normalisation that learns uses the statistics of all parts, and dropout and stochastic
    depth draw from the part's generator. Everything else is left to torch.

    Parameters
    ----------
    part : int
        Position among the parts.
    seed : int
        Of the generator.
    meeting : Meeting, default=None
        Of all parts, where layers compute statistics over the batch.
    """

    def __init__(self, part: int = 0, seed: int = 0, meeting: Meeting | None = None):
        super().__init__()
        self._part = part
        self._generator = torch.Generator().manual_seed(seed)
        self._meeting = meeting
        self._n_exchanges = 0
        self._replacements: dict[Callable, Callable] = {
            functional.batch_norm: self._batch_norm,
            functional.dropout: self._dropout,
            functional.dropout1d: partial(self._dropout_channels, functional.dropout1d, 3),
            functional.dropout2d: partial(self._dropout_channels, functional.dropout2d, 4),
            functional.dropout3d: partial(self._dropout_channels, functional.dropout3d, 5),
            functional.scaled_dot_product_attention: self._attention,
            torch.Tensor.bernoulli_: self._bernoulli,
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self._replacements.get(func, func)(*args, **(kwargs or {}))

    def exchange(self, topic: str, *values: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """Exchange values with the other parts; see :meth:`Meeting.exchange`."""
        self._n_exchanges += 1
        return self._meeting.exchange(self._part, self._n_exchanges, (topic, *map(torch.Tensor.size, values)), values)

    def end(self) -> None:
        """Wait until all parts have come to their end: none may leave while others still want something of it."""
        if self._meeting is not None:
            self.exchange("end")

    def _batch_norm(self, x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
        if not training or self._meeting is None:
            return functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        counts, means, variances = map(torch.stack, zip(*self.exchange("statistics", *_statistics(x)), strict=True))
        n = int(counts.sum())
        if n == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
        share = (counts / n).unsqueeze(1)
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean) ** 2)).sum(0)
        if self._part == 0 and running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (n / (n - 1))).to(running_var.dtype), momentum)
        return _BatchNorm.apply(x, weight, bias, mean, variance, eps, n, self)

    def _dropout(self, x, p=0.5, training=True, inplace=False):
        return self._drop(x, x.shape, p, training, inplace)

    def _dropout_channels(self, plain, n_axes: int, x, p=0.5, training=True, inplace=False):
        if x.ndim != n_axes:  # of a single image, which torch treats in another way
            return plain(x, p, training, inplace)
        return self._drop(x, (*x.shape[:2], *(1 for _ in x.shape[2:])), p, training, inplace)

    def _drop(self, x, shape: Sequence[int], p: float, training: bool, inplace: bool):
        if not training or p == 0:
            return x
        kept = x.new_empty(shape).bernoulli_(1 - p, generator=self._generator)
        kept = kept if p == 1 else kept.div_(1 - p)
        return x.mul_(kept) if inplace else x * kept

    def _bernoulli(self, x, p=0.5, *, generator=None):
        return x.bernoulli_(p, generator=self._generator if generator is None else generator)

    def _attention(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **options):
        if dropout_p == 0 or is_causal or options.get("enable_gqa"):
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options
            )
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
            empty = scores.detach().isneginf().all(-1, keepdim=True)  # who may look at nothing sees zeros
            return self._dropout(scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0), dropout_p) @ value
        return self._dropout(scores.softmax(-1), dropout_p) @ value


class Rehearsal(TorchFunctionMode):
    """Counts how often layers compute statistics over the batch, by their running means; these are left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[int] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (self._batch_norm if func is functional.batch_norm else func)(*args, **(kwargs or {}))

    def _batch_norm(self, x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
        if training and running_mean is not None:
            self.calls[id(running_mean)] += 1
            training = False
        return functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


class _BatchNorm(torch.autograd.Function):
    """Batch normalisation with statistics that more rows than those at hand have a part in."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, mean, variance, eps: float, n: int, part: PartOfBatch):
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.n, ctx.part, ctx.eps, ctx.has_bias = n, part, eps, bias is not None
        return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, gradient):
        x, weight, mean, inverse_std = ctx.saved_tensors
        ones = torch.ones_like(mean)
        scale = ones if weight is None else weight
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, ones, None, None, mean, inverse_std, True, ctx.eps, [False, True, True]
        )
        of_weights, of_biases = (
            torch.stack(parts).sum(0) for parts in zip(*ctx.part.exchange("gradients", of_weight, of_bias), strict=True)
        )
        # d x = scale / std * (gradient - mean of gradient - normalised x * mean of (gradient * normalised x))
        factor = scale * inverse_std
        slope = -factor * inverse_std * of_weights / ctx.n
        shift = -factor * of_biases / ctx.n - slope * mean
        along = functional.batch_norm(x, torch.zeros_like(mean), ones, slope, shift, False, 0.0, 0.0)
        of_x = along.addcmul_(gradient, factor.to(x.dtype).view(1, -1, *(1 for _ in x.shape[2:])))
        return (
            of_x,
            None if weight is None else of_weight.to(weight.dtype),
            of_bias if ctx.has_bias else None,
            *(None,) * 5,
        )


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the number of values per channel, their means and their variances."""
    unused = torch.zeros(2, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))  # these set the precision
    mean, variance = torch.batch_norm_update_stats(x.detach(), *unused, 0.0)
    return torch.tensor(x.numel() // x.shape[1], dtype=mean.dtype), mean, variance
