"""The layers of a network in order, from the input to the output, as groups of parameters."""

from torch import nn

_FEW_CHILDREN = 3


def layer_groups(module: nn.Module) -> list[list[str]]:
    """Group a network's parameters by depth.

    The network is asked (``layer_groups``, timm's ``group_matcher``); one that does not know is split at its direct
    children, and where there are three or fewer, at what a sequence among them contains, such as stages. A
    normalisation belongs to the layers before it, which timm says of some networks only.

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
    return join_norms(module, _groups_of_timm(module) or _groups_by_children(module))


def join_norms(module: nn.Module, groups: list[list[str]]) -> list[list[str]]:
    """Put groups that hold nothing but vectors, the weights of a normalisation, to the groups before them."""
    joined = groups[:1]
    for group in groups[1:]:
        if any(module.get_parameter(name).ndim > 1 for name in group):
            joined.append(group)
        else:
            joined[-1] = joined[-1] + group
    return joined


def _groups_of_timm(module: nn.Module) -> list[list[str]] | None:
    if not hasattr(module, "group_matcher"):
        return None
    from timm.models import group_parameters

    try:
        matcher = module.group_matcher(coarse=True)
    except AssertionError:  # so RDNet says that it has none
        return None
    by_depth = group_parameters(module, matcher)
    return [by_depth[depth] for depth in sorted(by_depth)]


def _groups_by_children(module: nn.Module, prefix: str = "") -> list[list[str]]:
    children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
    own = [prefix + name for name, _ in module.named_parameters(recurse=False)]
    if len(children) == 1 and not own:
        name, child = children[0]
        return _groups_by_children(child, f"{prefix}{name}.")
    groups = [own] if own else []
    for name, child in children:
        if len(children) <= _FEW_CHILDREN and isinstance(child, nn.Sequential | nn.ModuleList):
            groups += _groups_by_children(child, f"{prefix}{name}.")
        else:
            groups.append([f"{prefix}{name}.{parameter}" for parameter, _ in child.named_parameters()])
    return groups
