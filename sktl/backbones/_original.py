"""The classifier that a pretrained network came with: the head of the old task."""

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class OriginalHead:
    """The head of the task that a backbone was trained on, cut off and kept beside it.

    Attributes
    ----------
    module : nn.Module
        Maps embeddings of shape (n, width) to scores of shape (n, n_classes); frozen and shared, copy it to train it.
    classes : ndarray of shape (n_classes,)
        The old task's labels where they are known, else column numbers.
    source : dict or None
        Arguments of :func:`~sktl.backbones.load_backbone` by which this very head is found again; None if it was
        trained, or its network has no name.
    """

    module: nn.Module
    classes: np.ndarray
    source: dict[str, Any] | None = None

    @classmethod
    def from_module(cls, module: nn.Module, classes: np.ndarray) -> "OriginalHead":
        """Copy and freeze a head."""
        return cls(copy.deepcopy(module).cpu().float().eval().requires_grad_(False), np.asarray(classes))


def cut_off_head(network: nn.Module, backbone: nn.Module, input_size: list[int]) -> OriginalHead | None:
    """Take the classifier of a network, if the network is nothing but a backbone and a linear layer on its output.

    Parameters
    ----------
    network : nn.Module
        A timm model with its classifier.
    backbone : nn.Module
        The same without.
    input_size : list of int
        Shape (channels, height, width) of an image to compare the two on.

    Returns
    -------
    head : OriginalHead or None
        None if the network has several classifiers, or does more between embedding and score than one layer.
    """
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else None
    if not isinstance(classifier, nn.Linear):
        return None
    image = torch.linspace(-3, 3, int(np.prod(input_size)), dtype=torch.float32).sin().view(1, *input_size)
    with torch.inference_mode():
        expected = network.eval()(image)
        embedding = backbone.eval()(image)
        if embedding.ndim != 2 or embedding.shape[1] != classifier.in_features:
            return None
        found = classifier(embedding)
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        return None
    return OriginalHead.from_module(classifier, class_names(classifier.out_features))


def class_names(n_classes: int) -> np.ndarray:
    """Return the names of ImageNet's classes where timm knows a set of that size, else column numbers."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": n_classes})
    if subset is None:
        return np.arange(n_classes)
    info = ImageNetInfo(subset)
    names = info.label_descriptions()
    count = Counter(names)
    synsets = info.label_names()
    unique = [name if count[name] == 1 else f"{name} ({synsets[i]})" for i, name in enumerate(names)]
    return np.array(unique, dtype=object)  # as text of fixed width they would be larger than some networks
