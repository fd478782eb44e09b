"""The layers of a network in order, from the input to the output, as groups of parameters."""

from torch import nn


def layer_groups(module: nn.Module) -> list[list[str]]:
    """Group a network's parameters by depth.

    The network is asked (``layer_groups``, timm's ``group_matcher``); one that does not know is split at its direct
    children. A normalisation at the end belongs to the layers before it, which timm says of some networks only.

    Parameters
    ----------
    module : nn.Module
        The network, without classifier.

    Returns
    -------
    groups : list of list of str
        Names of parameters; the first group is next to the input.
    """
    if hasattr(module, "layer_groups"):
        return module.layer_groups()
    if hasattr(module, "group_matcher"):
        from timm.models import group_parameters

        by_depth = group_parameters(module, module.group_matcher(coarse=True))
        groups = [by_depth[depth] for depth in sorted(by_depth)]
    else:
        groups = _groups_by_children(module)
    return join_last_norm(module, groups)


def join_last_norm(module: nn.Module, groups: list[list[str]]) -> list[list[str]]:
    """Put a last group that holds nothing but vectors, the weights of a normalisation, to the group before it."""
    if len(groups) < 2 or any(module.get_parameter(name).ndim > 1 for name in groups[-1]):
        return groups
    return [*groups[:-2], groups[-2] + groups[-1]]


def _groups_by_children(module: nn.Module, prefix: str = "") -> list[list[str]]:
    children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
    own = [prefix + name for name, _ in module.named_parameters(recurse=False)]
    if len(children) == 1 and not own:
        name, child = children[0]
        return _groups_by_children(child, f"{prefix}{name}.")
    groups = [[f"{prefix}{name}.{parameter}" for parameter, _ in child.named_parameters()] for name, child in children]
    return ([own] if own else []) + groups
