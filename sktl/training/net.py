"""The skorch net that trains a network."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, EpochTimer, PassthroughScoring, PrintLog
from skorch.exceptions import SkorchException
from skorch.utils import noop

from sktl.embedding import ThreadLimit
from sktl.exceptions import StrategyError
from sktl.strategies import Batch, Strategy
from sktl.training.averaging import Averaging
from sktl.training.callbacks import EarlyStop, Settling
from sktl.training.gradients import add_gradients, lay_out_gradients
from sktl.training.lanes import Lanes, Splitting, n_parts_for
from sktl.training.lockstep import PartsDisagreeError
from sktl.training.losses import per_row
from sktl.training.mixing import Mixing
from sktl.training.network import Network
from sktl.training.parts import Parts
from sktl.training.peers import current_peers
from sktl.training.prefix import FrozenPrefix

LossAndOutput = tuple[torch.Tensor, torch.Tensor]
_T = TypeVar("_T")
_NOT_PRINTED = ["frozen_prefix", "precision"]  # the same in each epoch, or empty; history_ has them
_NOT_HELD_OUT = "No rows are held out here: give fit X_val= and y_val=, or set early_stopping=True."


class TransferNet(NeuralNet):
    """A skorch net whose loss is weighted by row and whose parameter groups and penalty come from a strategy.

    Parameters
    ----------
    module : Network
        Trained in place.
    strategy : Strategy
        Gives parameter groups and penalty.
    weight_decay : float
        For matrices and kernels; biases and normalisation layers have none.
    n_parts : int, default=1
        Into how many parts a batch is split, to save memory.
    autocast : torch.dtype, default=None
        Precision in which the network is run in training; None for that of its weights.
    mixing : Mixing, default=None
        Mixes the images of a batch.
    averaging : Averaging, default=None
        Gives the network that is validated in place of the one that is trained.
    cache_prefix : bool, default=True
        Whether the frozen part of the network that comes before all that is trained runs once per image, and not once
        per image and epoch. The weights after training are the same, but for rounding.
    **kwargs : dict
        skorch's own parameters.
    """

    prefix_: FrozenPrefix | None = None  # whose activations stand for images
    lanes_: Lanes | None = None  # in training on a CPU
    splitting_: Splitting | None = None  # of the steps over the lanes; not known before the first of an epoch
    stopping_: bool = False  # in the last epoch, where a callback has ended training

    def __init__(
        self,
        module: Network,
        *,
        strategy,
        weight_decay: float = 0.0,
        n_parts: int = 1,
        autocast: torch.dtype | None = None,
        mixing: Mixing | None = None,
        averaging: Averaging | None = None,
        cache_prefix: bool = True,
        **kwargs: Any,
    ):
        self.strategy = strategy
        self.weight_decay = weight_decay
        self.n_parts = n_parts
        self.autocast = autocast
        self.mixing = mixing
        self.averaging = averaging
        self.cache_prefix = cache_prefix
        super().__init__(module, **kwargs)

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [
            ("epoch_timer", EpochTimer()),
            ("train_loss", PassthroughScoring(name="train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring(name="valid_loss")),
            # skorch asks whether the sink is `print`, which other packages (Ray) replace.
            ("print_log", PrintLog(_NOT_PRINTED, sink=print if self.verbose else noop)),
        ]

    def get_params_for_optimizer(self, prefix, named_parameters):
        """Return the strategy's groups instead of one group of all parameters; see skorch."""
        kwargs = self.get_params_for(prefix)
        kwargs.setdefault("lr", self.lr)
        groups = [
            {**group, "params": _named(group["params"], self.strategy)}
            for group in self.strategy.param_groups(self.module_, kwargs["lr"])
        ]
        return (list(_split_by_decay(groups, self.weight_decay)),), kwargs

    @property
    def head_rate(self) -> float:
        """The head's learning rate, or the last group's where no group begins with the head."""
        groups = self.optimizer_.param_groups
        head = {id(parameter) for parameter in self.module_.head.parameters()}
        return next((each["lr"] for each in groups if id(each["params"][0]) in head), groups[-1]["lr"])

    @property
    def evaluated_network(self) -> Network:
        """The network whose weights are the result as things stand."""
        averaged = None if self.averaging is None else self.averaging.network
        return self.module_ if averaged is None else averaged

    def infer(self, x, network: Network | None = None, **fit_params):
        """Run the network, or a copy of it, or what of it comes after the frozen prefix; see skorch."""
        if network is None:
            network = self.module_ if self.module_.training else self.evaluated_network
        x = x.to(self.device, copy=True)  # networks may write into what they are given, and a step may be run again
        with self.in_precision():
            output = network(x) if self.prefix_ is None else self.prefix_.finish(network.backbone, network, x)
        return output.float()

    def map_copies(self, function: Callable[[Network, Any], _T], items: Iterable[Any]) -> Iterator[_T]:
        """Call a function with the network, or copies of it in the lanes, and each item; yield the results in order."""
        if self.lanes_ is None:
            return (function(self.module_, item) for item in items)
        return self.lanes_.map(self.module_, function, items)

    def in_precision(self) -> torch.autocast:
        """Return the context in which the network is run."""
        device, enabled = torch.device(self.device).type, self.autocast is not None
        return torch.autocast(
            device, self.autocast, enabled=enabled, cache_enabled=False
        )  # lanes would share the cache

    def train_step(self, batch, **fit_params):
        """Make a step; on a CPU with one core in this thread, since rounding depends on their number; see skorch."""
        self._set_training(True)
        if self.splitting_ is None and self.lanes_ is not None:
            self.splitting_ = self.lanes_.splitting_of(
                self.module_, self.strategy, lambda network, n: self.infer(batch[0][:n], network)
            )
        with nullcontext() if self.lanes_ is None else ThreadLimit(1):
            return super().train_step(batch, **fit_params)

    def train_step_single(self, batch, **fit_params):
        """Add up the gradients of a batch over its parts; see skorch."""
        self._set_training(True)
        _check_anything_is_trained(self.module_, self.strategy)
        inputs, known = batch
        batch = self._mixed(inputs, known) if self.mixing is not None else (inputs, known | self._drawn(len(inputs)))

        def attempt(parts: list[slice]) -> dict[str, torch.Tensor]:
            self._zero_grad_optimizer()
            run = self._train_side_by_side if self._goes_side_by_side else self._train_one_by_one
            return _gathered(run(batch, parts))

        def at_least() -> int:
            return self._count_parts(batch[0]) if self._goes_side_by_side else 1

        try:
            step = self.parts_.run(len(batch[0]), attempt, at_least)
        except PartsDisagreeError:  # which no rehearsal has shown
            self.splitting_ = Splitting(False)
            step = self.parts_.run(len(batch[0]), attempt, at_least)
        return {**step, "loss": self.peers_.combine(self.module_, step["loss"], len(batch[0]))}

    @property
    def _goes_side_by_side(self) -> bool:
        """Whether a step is made in the lanes; parts that need each other are all at work, and save no memory."""
        splitting = self.splitting_
        return splitting is not None and splitting.possible and not (splitting.meets and self.parts_.n > 1)

    def _drawn(self, n: int) -> dict[str, torch.Tensor]:
        """Return what the strategy draws for a step, by name, so that it is split into parts along with the batch."""
        return {f"drawn_{number}": value for number, value in enumerate(self.strategy.draw(n))}

    def _count_parts(self, inputs: torch.Tensor) -> int:
        """Say into how many parts the lanes split a batch."""
        return n_parts_for(inputs.shape, is_tokens=not (inputs.is_floating_point() or inputs.dtype == torch.uint8))

    def _train_one_by_one(self, batch, parts: list[slice]) -> Iterator[LossAndOutput]:
        for part in parts:
            loss, y_pred = self._forward(self.module_, batch, part, training=True)
            loss.backward()
            yield loss.detach(), y_pred.detach()

    def _train_side_by_side(self, batch, parts: list[slice]) -> Iterator[LossAndOutput]:
        trained = [parameter for parameter in self.module_.parameters() if parameter.requires_grad]

        def step_on(network: Network, part: slice):
            loss, y_pred = self._forward(network, batch, part, training=True)
            return loss.detach(), y_pred.detach(), torch.autograd.grad(loss, trained, allow_unused=True)

        at_once = max(1, len(parts) // self.parts_.n)
        for loss, y_pred, gradients in self.lanes_.map_parts(self.module_, step_on, parts, self.splitting_, at_once):
            self.lanes_.share_out(add_gradients, trained, gradients)
            yield loss, y_pred
        self.lanes_.share_out(lay_out_gradients, trained)

    def _mixed(self, images: torch.Tensor, known: dict[str, torch.Tensor]):
        """Mix a batch's images with those of the batch turned round, and say what is known of the latter too."""
        images, share = self.mixing.mix(self.module_.normalise(images.to(self.device)))
        others = {name: value.flip(0) for name, value in known.items()} | self._drawn(len(images))
        known = known | self._drawn(len(images)) | {f"other_{name}": value for name, value in others.items()}
        return images, {**known, "share": torch.full((len(images),), share)}

    def validation_step(self, batch, **fit_params):
        """Compute outputs and loss of a batch over its parts; see skorch."""
        self._set_training(False)

        def loss_on(network: Network, part: slice) -> LossAndOutput:
            with torch.no_grad():
                return self._forward(network, batch, part, training=False)

        def attempt(parts: list[slice]) -> dict[str, torch.Tensor]:
            network = self.evaluated_network
            if self.lanes_ is None:
                return _gathered(loss_on(network, part) for part in parts)
            return _gathered(self.lanes_.map(network, loss_on, parts, max(1, len(parts) // self.parts_.n)))

        step = self.parts_.run(
            len(batch[0]), attempt, lambda: 1 if self.lanes_ is None else self._count_parts(batch[0])
        )
        return {**step, "loss": self.peers_.mean(step["loss"])}  # the same in all, for they are to stop together

    def _forward(self, network: Network, batch, part: slice, training: bool) -> LossAndOutput:
        """Return a part's share of the batch's loss, and its outputs."""
        inputs, known = batch[0][part], {name: value[part] for name, value in batch[1].items()}
        if network.training != training:
            network.train(training)
        with self.in_precision():
            y_pred = self.infer(inputs, network)
            loss = self.get_loss(y_pred, known, X=inputs, training=training, network=network)
        return loss * (len(inputs) / len(batch[0])), y_pred

    def get_loss(self, y_pred, y_true, X=None, training=False, network: Network | None = None):
        """Return the weighted mean loss of a batch, plus the strategy's penalty in training; see skorch."""
        network = self.module_ if network is None else network
        embeddings = network.take_embeddings() if training else None

        def loss_for(prefix: str) -> torch.Tensor:
            weight = y_true[f"{prefix}weight"].to(y_pred.device)
            losses = self.criterion_(y_pred, y_true[f"{prefix}target"].to(y_pred.device))
            loss = (per_row(losses) * weight).mean()
            if not training:
                return loss
            drawn = tuple(value for name, value in y_true.items() if name.startswith(f"{prefix}drawn_"))
            batch = Batch(X, y_true[f"{prefix}row"], weight, embeddings, drawn)
            return loss + self.strategy.penalty(network, batch, y_pred)

        if "share" not in y_true:
            return loss_for("")
        share = float(y_true["share"][0])
        return share * loss_for("") + (1 - share) * loss_for("other_")

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Begin an epoch in the history; see skorch."""
        super().on_epoch_begin(net, dataset_train=dataset_train, dataset_valid=dataset_valid, **kwargs)
        self.splitting_ = None  # the strategy may change what is trained
        if self.lanes_ is not None:
            self.lanes_.forget()
        self.history.record("precision", str(self.autocast or torch.float32).removeprefix("torch."))

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        """Begin a batch in the history, and note the rate of its step; see skorch."""
        super().on_batch_begin(net, batch=batch, training=training, **kwargs)
        if training:
            self.history.record_batch("lr", self.head_rate)

    def notify(self, method_name, **kwargs):
        """Run the callbacks; where one stops training at the end of an epoch the others see it first; see skorch."""
        getattr(self, method_name)(self, **kwargs)
        for _, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **kwargs)
            except (EarlyStop, KeyboardInterrupt) as signal:
                if method_name != "on_epoch_end" or not _stops_in_good_order(callback, signal):
                    raise
                self.stopping_ = True
            except (KeyError, SkorchException) as error:
                if "valid_" in str(error) and self.history and "valid_loss" not in self.history[-1]:
                    error.add_note(_NOT_HELD_OUT)
                raise
        if self.stopping_ and method_name == "on_epoch_end":
            raise EarlyStop

    @contextmanager
    def _in_lanes(self) -> Iterator[None]:
        """Have lanes for a while, where training is on a CPU."""
        if torch.device(self.device).type != "cpu":
            yield
            return
        try:
            with Lanes() as self.lanes_:
                yield
        finally:
            self.lanes_ = None

    def partial_fit(self, X, y=None, classes=None, **fit_params):
        """Train, and let an interrupt through: a half-trained net must not pass for a fitted one; see skorch."""
        if not self.initialized_:
            self.initialize()
        self.parts_ = Parts(self.n_parts, torch.device(self.device))
        self.stopping_ = False
        self.peers_ = current_peers()
        self.peers_.start_alike(self.module_)
        with self._in_lanes():
            self.notify("on_train_begin", X=X, y=y)
            with suppress(EarlyStop):
                self.fit_loop(X, y, epochs=self.max_epochs - len(self.history))  # some may be done, in a checkpoint
            for _, callback in self.callbacks_:
                if isinstance(callback, Settling):
                    callback.settle(self)
            self.notify("on_train_end", X=X, y=y)
        return self


def _stops_in_good_order(callback: Callback, signal: BaseException) -> bool:
    """Tell early stopping from an interrupt: skorch's raises a KeyboardInterrupt, as Ctrl-C does."""
    return isinstance(signal, EarlyStop) or (
        isinstance(callback, EarlyStopping) and callback.misses_ == callback.patience
    )


def _gathered(parts: Iterable[LossAndOutput]) -> dict[str, torch.Tensor]:
    losses, outputs = zip(*parts, strict=True)
    return {"loss": torch.stack(losses).sum(), "y_pred": torch.cat(outputs)}


def _check_anything_is_trained(network: Network, strategy: Strategy) -> None:
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise StrategyError(
            f"{type(strategy).__name__} trains nothing in this step: no parameter of the backbone or the head has "
            "requires_grad. Leave some on in prepare, or set them in on_epoch_begin."
        )


def _named(parameters: Iterable, strategy: Strategy) -> list[tuple[str, torch.nn.Parameter]]:
    """Return named parameters as a list; they may come as an iterator, which can be run through once."""
    parameters = list(parameters)
    if any(isinstance(each, torch.Tensor) for each in parameters):
        raise StrategyError(
            f"{type(strategy).__name__}.param_groups must give named parameters, such as "
            "list(network.head.named_parameters()), and it gave parameters without names."
        )
    return parameters


def _split_by_decay(groups, weight_decay: float):
    """Take weight decay off vectors: biases and the scales of normalisation layers; a group may bring its own."""
    for group in groups:
        for is_matrix in (True, False):
            params = [(name, value) for name, value in group["params"] if (value.ndim > 1) == is_matrix]
            if params:
                decay = group.get("weight_decay", weight_decay) if is_matrix else 0.0
                yield {**group, "params": params, "weight_decay": decay}
