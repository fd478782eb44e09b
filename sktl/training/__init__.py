"""The network in training: backbone and head, the skorch net, data, callbacks."""

from sktl.training.callbacks import EpochReport, EpochTasks, StopEarly, ValidScore, sets_rates
from sktl.training.checkpoint import Checkpoint, describe, describe_fit, describe_parameters
from sktl.training.data import Targets, TrainingData, describe_rows, map_rows, merge_duplicates
from sktl.training.head import (
    fit_linear_head,
    fit_multilabel_head,
    fit_ridge_head,
    head_outputs,
    pack_head,
    unpack_head,
)
from sktl.training.loop import train
from sktl.training.losses import CrossEntropyLoss, MultilabelLoss
from sktl.training.net_settings import make_net
from sktl.training.network import (
    Network,
    build_network,
    check_steps,
    check_trained,
    restore_network,
    trained_backbone,
)
from sktl.training.new_heads import make_head, train_head, zero_linear
from sktl.training.passes import EmbeddingRows, Passes, head_alone
from sktl.training.peers import Peers, current_peers, training_with
from sktl.training.plain import plain_callbacks, plain_history, put_history
from sktl.training.precision import autocast_dtype
from sktl.training.rate import find_learning_rate
from sktl.training.views import VariantRows, Views

__all__ = [
    "Checkpoint",
    "CrossEntropyLoss",
    "EmbeddingRows",
    "EpochReport",
    "EpochTasks",
    "MultilabelLoss",
    "Network",
    "Passes",
    "Peers",
    "StopEarly",
    "Targets",
    "TrainingData",
    "ValidScore",
    "VariantRows",
    "Views",
    "autocast_dtype",
    "build_network",
    "check_steps",
    "check_trained",
    "current_peers",
    "describe",
    "describe_fit",
    "describe_parameters",
    "describe_rows",
    "find_learning_rate",
    "fit_linear_head",
    "fit_multilabel_head",
    "fit_ridge_head",
    "head_alone",
    "head_outputs",
    "make_head",
    "make_net",
    "map_rows",
    "merge_duplicates",
    "pack_head",
    "plain_callbacks",
    "plain_history",
    "put_history",
    "restore_network",
    "sets_rates",
    "train",
    "train_head",
    "trained_backbone",
    "training_with",
    "unpack_head",
    "zero_linear",
]
