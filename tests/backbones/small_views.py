"""Small networks whose layers are looked at, and what they are given."""

from sktl.backbones import load_backbone

SIZE = 64
NAMES = ("test_resnet", "test_vit", "test_convnext")
FLOAT32 = {"device": "cpu", "dtype": "float32", "runtime": "torch"}


def load(name):
    return load_backbone(name, None, {"crop_pct": 1.0}, SIZE)  # pictures of this size are used as they are
