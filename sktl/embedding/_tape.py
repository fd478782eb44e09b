"""What a network calls, taken down on the level of torch's operators.

``make_fx`` of ``torch.fx.experimental`` does that for any program, with no care for time: about eight times what is
needed here and twenty times a small network's pass, most of it spent on what BatchNorm returns.
"""

import itertools
import operator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_aten = torch.ops.aten
_NOWHERE = torch.device("meta")
_MADE_OF_OTHERS = "CompositeImplicitAutograd"
# Taken down as they are called, though made of others: one is looked for, the other chooses its way where it runs.
_WHOLE = {
    _aten.batch_norm.default: lambda inputs, *rest: torch.empty_like(inputs),  # a tenth of the time of asking torch
    _aten.scaled_dot_product_attention.default: _aten.scaled_dot_product_attention.default,
}
# A view where memory allows it: how it is laid out may differ from what is said without values.
_TAKEN_DOWN_AS = {_aten.view.default: _aten.reshape.default}


def take_down(network, example):
    """Call a network on an input without values, and return what it did.

    Parameters
    ----------
    network : nn.Module
        In eval mode.
    example : Tensor
        An input; its values are not looked at, and a network that asks for values is an error.

    Returns
    -------
    program : torch.fx.GraphModule
        Shares weights with the network. Nodes that give a tensor know its shape (``meta["shape"]``).
    """
    with torch.inference_mode():
        tape = _Tape(example.device)
        inputs = tape.note(example.to(_NOWHERE), tape.graph.placeholder("inputs"))
        # Without values from the start: in inference mode torch refuses views of other tensors.
        state = {name: tape.without_values(value) for name, value in _state_of(network)}
        with tape:
            outputs = torch.func.functional_call(network, state, (inputs,))
        tape.graph.output(tape.node_of(outputs))
    tape.graph.eliminate_dead_code()
    return torch.fx.GraphModule(tape.constants, tape.graph)


def _state_of(network):
    return itertools.chain(network.named_parameters(), network.named_buffers())


class _Tape(TorchDispatchMode):
    """Runs operators on tensors without values, and takes them down; other threads do not notice."""

    def __init__(self, device):
        super().__init__()
        self.device = device
        self.graph = torch.fx.Graph()
        self.constants = {}
        self._known = {}  # id of a tensor -> (that tensor, it without values, its node)

    def __torch_dispatch__(self, called, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if called not in _WHOLE and torch._C._dispatch_has_kernel_for_dispatch_key(called.name(), _MADE_OF_OTHERS):
            with self:
                return called._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        written = _TAKEN_DOWN_AS.get(called, called)
        node = self.graph.call_function(written, *tree_map(self.node_of, (args, self._where_it_runs(kwargs))))
        if any(argument.name == "device" for argument in called._schema.arguments):
            kwargs = {**kwargs, "device": _NOWHERE}
        args, kwargs = tree_map(self.without_values, (args, kwargs))
        result = _WHOLE.get(called, called)(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return self.note(result, node)
        for place, part in enumerate(result or ()):
            if isinstance(part, torch.Tensor):
                self.note(part, self.graph.call_function(operator.getitem, (node, place)))
        return result

    def note(self, tensor, node):
        """Know a tensor without values, from now on, as what a node gives."""
        node.meta["shape"] = tensor.shape
        self._known[id(tensor)] = tensor, tensor, node
        return tensor

    def node_of(self, value):
        """The node that gives a tensor."""
        return self._entry(value)[2] if isinstance(value, torch.Tensor) else value

    def without_values(self, value):
        """A tensor's stand-in; what is not known yet is a constant of the program."""
        return self._entry(value)[1] if isinstance(value, torch.Tensor) else value

    def _entry(self, tensor):
        if id(tensor) not in self._known:
            name = f"constant{len(self.constants)}"
            self.constants[name] = tensor
            node = self.graph.create_node("get_attr", name)
            node.meta["shape"] = tensor.shape
            stand_in = tensor.to(_NOWHERE)
            self._known[id(tensor)] = self._known[id(stand_in)] = tensor, stand_in, node
        return self._known[id(tensor)]

    def _where_it_runs(self, kwargs):
        return {name: self.device if value == _NOWHERE else value for name, value in kwargs.items()}
