"""The layers of a network in order, from the input to the output, as groups of parameters."""

from torch import nn


def layer_groups(module: nn.Module) -> list[list[str]]:
    """Group a network's parameters by depth.

    The network is asked (``layer_groups``, timm's ``group_matcher``); one that does not know is split at its direct
    children.

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

        groups = group_parameters(module, module.group_matcher(coarse=True))
        return [groups[depth] for depth in sorted(groups)]
    return _groups_by_children(module)


def _groups_by_children(module: nn.Module, prefix: str = "") -> list[list[str]]:
    children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
    own = [prefix + name for name, _ in module.named_parameters(recurse=False)]
    if len(children) == 1 and not own:
        name, child = children[0]
        return _groups_by_children(child, f"{prefix}{name}.")
    groups = [[f"{prefix}{name}.{parameter}" for parameter, _ in child.named_parameters()] for name, child in children]
    return ([own] if own else []) + groups
