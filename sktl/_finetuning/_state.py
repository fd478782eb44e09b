"""What a pickle or a file holds of an estimator that trained a network."""

from typing import Any

import torch

from sktl._finetuning._parameters import TrainingParameters
from sktl.training import pack_head, plain_callbacks, plain_history, put_history, restore_network, unpack_head


class PlainState(TrainingParameters):
    """Keep the numbers of the head and the history of the net; build the net when it is first asked for.

    A subclass has ``_make_net(network, device)``, and after ``fit`` the attributes ``net_``, ``backbone_`` and
    ``strategy_``.
    """

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if state.get("callbacks"):
            state["callbacks"] = plain_callbacks(state["callbacks"])
        net = state.pop("net_", None)
        if net is not None:
            state["_net"] = {"head": pack_head(net.module_.head), "history": plain_history(net)}
        return state

    def __getattr__(self, name: str) -> Any:
        if name != "net_" or "_net" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        network = restore_network(self.backbone_, self.strategy_, unpack_head(self._net["head"]))
        net = self._make_net(network, torch.device("cpu")).initialize()
        put_history(net, self._net["history"])
        self.net_ = net
        return net
