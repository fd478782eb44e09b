"""Convolutional networks, traced and rewritten for inference.

The network is traced on the level of torch's operators, so no class of layers has to be known. (Tracing its modules
with ``torch.fx.symbolic_trace`` would also disturb what other threads run meanwhile.) BatchNorm is then folded into the
convolution before it; on a CPU, activations and residual sums join the convolution as well, through the oneDNN
operators that torch's own compiler uses (``torch/_inductor/fx_passes/mkldnn_fusion.py``). The caller compares the
result with the network itself.
"""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sktl.embedding._tape import take_down

_aten = torch.ops.aten
_CONVOLUTION = _aten.convolution.default
_BATCH_NORM = _aten.batch_norm.default
_BATCH_NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ADD = (_aten.add.Tensor, _aten.add_.Tensor)
_ACTIVATIONS = {
    _aten.relu.default: "relu",
    _aten.relu_.default: "relu",
    _aten.hardswish.default: "hardswish",
    _aten.hardswish_.default: "hardswish",
    _aten.silu.default: "swish",
    _aten.silu_.default: "swish",
    _aten.sigmoid.default: "sigmoid",
    _aten.hardsigmoid.default: "hardsigmoid",
}


def is_fusable(network):
    """Whether a network has anything to fold."""
    return any(isinstance(module, _BATCH_NORM_MODULES) for module in network.modules())


def trace(network, example):
    """Take down what `network` does, for inputs of the shape of `example`, and fold its BatchNorm.

    Parameters
    ----------
    network : nn.Module
        In float32 and eval mode.
    example : Tensor
        A float32 input on the network's device, in the memory format to be used.

    Returns
    -------
    program : torch.fx.GraphModule
        In float32; may share weights with the network.
    """
    program = take_down(network, example)
    with torch.no_grad():
        _fold_batch_norm(program)
    return program


def fuse(traced, dtype):
    """Make a program of a precision.

    Parameters
    ----------
    traced : torch.fx.GraphModule
        What :func:`trace` gave; left as it is.
    dtype : torch.dtype
        Precision of the program, input and output included.

    Returns
    -------
    program : torch.fx.GraphModule
        With weights of its own.
    """
    program = copy.deepcopy(traced)
    with torch.no_grad():
        _cast(program, dtype)
        if _has_onednn(program, dtype):
            _fuse_pointwise(program)
    _drop_unused_tensors(program)
    program.recompile()
    return program


# BatchNorm ----------------------------------------------------------------------------------------------------------


def _fold_batch_norm(program):
    for node in list(program.graph.nodes):
        if node.target is not _BATCH_NORM or not _is_private(node.args[0], _CONVOLUTION) or node.args[0].args[6]:
            continue
        if node.args[5]:
            continue  # it goes by the statistics of the batch
        _fold_into(program, node.args[0], node)
        node.replace_all_uses_with(node.args[0])
        program.graph.erase_node(node)


def _fold_into(program, convolution, batch_norm):
    _, gamma, beta, mean, var, _, _, eps, _ = batch_norm.args
    conv_weight, conv_bias, mean, var, gamma, beta = (
        _tensor(program, node) for node in (*convolution.args[1:3], mean, var, gamma, beta)
    )
    weight, bias = fuse_conv_bn_weights(conv_weight, conv_bias, mean, var, eps, gamma, beta)
    layout = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
    with program.graph.inserting_before(convolution):
        weight = _constant(program, f"{convolution.name}_weight", weight.to(memory_format=layout))
        bias = _constant(program, f"{convolution.name}_bias", bias)
    convolution.args = (convolution.args[0], weight, bias, *convolution.args[3:])


def _cast(program, dtype):
    """Store every float32 weight in another precision; a constant is what no longer changes."""
    for node in program.graph.nodes:
        if node.op == "get_attr":
            value = _tensor(program, node)
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                _set_tensor(program, node.target, value.to(dtype))


# oneDNN -------------------------------------------------------------------------------------------------------------


def _has_onednn(program, dtype):
    if any(_tensor(program, node).device.type != "cpu" for node in program.graph.nodes if node.op == "get_attr"):
        return False
    operators = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(operators, "_convolution_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported())


def _fuse_pointwise(program):
    for node in list(program.graph.nodes):
        if node.target is _CONVOLUTION and not node.args[6] and len(node.meta["shape"]) == 4:
            _fuse_convolution(program, node)


def _fuse_convolution(program, node):
    """Let one oneDNN call compute a convolution and the single operation or two that follow it."""
    last, other, attribute = node, None, "none"
    following = _only_user(last)
    if following is not None and following.target in _ADD and _is_residual(following, node):
        last = following
        other = next(arg for arg in following.args if arg is not node)
        following = _only_user(last)
    # With a sum, oneDNN's binary operator allows nothing but ReLU.
    allowed = _ACTIVATIONS if other is None else {_aten.relu.default: "relu", _aten.relu_.default: "relu"}
    if following is not None and following.target in allowed:
        last, attribute = following, allowed[following.target]
    inputs, weight, bias, stride, padding, dilation, _, _, groups = node.args
    with program.graph.inserting_before(last):
        packed = _packed(program, weight, inputs, padding, stride, dilation, groups)
        geometry = (bias, padding, stride, dilation, groups)
        if other is None:
            operator = torch.ops.mkldnn._convolution_pointwise.default
            args = (inputs, packed, *geometry, attribute, [], "")
        else:
            operator = torch.ops.mkldnn._convolution_pointwise.binary
            unary = None if attribute == "none" else attribute
            args = (inputs, other, packed, *geometry, "add", 1.0, unary, [], "")
        fused = program.graph.call_function(operator, args)
    fused.meta["shape"] = last.meta["shape"]
    last.replace_all_uses_with(fused)
    while last is not node:  # from the end back to the convolution; in-place operators are no dead code to torch.fx
        before = node if last.target in _ADD else _before(last)
        program.graph.erase_node(last)
        last = before
    program.graph.erase_node(node)


def _packed(program, weight, inputs, padding, stride, dilation, groups):
    """The weight in the blocked layout that oneDNN would otherwise make in every call."""
    value = _tensor(program, weight).contiguous(memory_format=torch.channels_last)
    packed = torch.ops.mkldnn._reorder_convolution_weight(
        value, padding, stride, dilation, groups, list(inputs.meta["shape"])
    )
    return _constant(program, f"{weight.target}_packed", packed)


def _is_residual(add, convolution):
    if add.kwargs or len(add.args) != 2 or add.args[0] is add.args[1]:
        return False
    return all(
        isinstance(arg, torch.fx.Node) and arg.meta["shape"] == convolution.meta["shape"] for arg in add.args
    ) and (add.target is _aten.add.Tensor or add.args[0] is convolution)


# Graphs -------------------------------------------------------------------------------------------------------------


def _only_user(node):
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_private(node, target):
    return isinstance(node, torch.fx.Node) and node.target is target and len(node.users) == 1


def _before(node):
    return node.args[0]


def _tensor(program, node):
    return None if node is None else getattr(program, node.target)


def _set_tensor(program, name, value):
    if isinstance(getattr(program, name, None), nn.Parameter):
        delattr(program, name)
    setattr(program, name, value)


def _constant(program, name, value):
    setattr(program, name, value)  # no buffer: they cannot hold oneDNN's opaque tensors
    return program.graph.create_node("get_attr", name)


def _drop_unused_tensors(program):
    for node in program.graph.find_nodes(op="get_attr"):
        if not node.users:
            program.graph.erase_node(node)
    used = {node.target for node in program.graph.find_nodes(op="get_attr")}
    for name in [*program._parameters, *program._buffers, *vars(program)]:
        value = getattr(program, name, None)
        if isinstance(value, torch.Tensor) and name not in used:
            delattr(program, name)
