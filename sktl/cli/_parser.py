"""What can be written on the command line, and what the help says about it."""

import argparse
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version

STRATEGIES = ("feature_extraction", "wise_ft", "partial", "fine_tuning", "from_scratch")

_MAIN_EXAMPLES = """\
examples:
  sktl compare digits                     compare ways of transfer on scikit-learn's handwritten digits
  sktl compare birds                      ... on your pictures: birds/heron/*.jpg, birds/stork/*.jpg, ...
  sktl predict sktl-compare/birds/model.sktl holiday/
  sktl embed holiday/ --out holiday.parquet
  sktl backbones mobilenet
"""

_COMPARE_TEXT = f"""\
Find out which way of transfer suits your pictures.

Sets a part of the images aside for the test, cross-validates {len(STRATEGIES)} strategies of FineTuneClassifier on the
others (or those that --strategies names), beside a logistic regression on the embeddings and one on the raw pixels,
prints a table, draws it, and saves the way with the best cross-validated accuracy, fitted to all training images, as a
model for `sktl predict`.
"""

_COMPARE_EXAMPLES = """\
folders:
  DIR/<class>/<image files>      a part of them is set aside for the test
  DIR/train/<class>/<...> and DIR/test/<class>/<...>      the split is yours
  DIR/val/<class>/<...> beside them is not used: folds are taken from train. Folders that may be either parts or
  classes (train and val alone, for one) are refused.

examples:
  sktl compare digits
  sktl compare birds --strategies feature_extraction,wise_ft --epochs 3
  sktl compare birds --backbone mobilenetv2_100 --weights mobilenetv2_100.safetensors --image-size 128
"""

_PREDICT_TEXT = """\
Predict the class of image files with a model that `sktl compare` saved.

Prints one line per file: its name, the class that the model predicts, and the probability of that class. A file that
cannot be read is reported, and the others are predicted all the same; the exit status is then 1.

The model holds no pickle: reading it runs nothing that is inside. A .joblib or .pkl file is read too, and does run what
is inside: use only those from people you trust.
"""

_PREDICT_EXAMPLES = """\
examples:
  sktl predict sktl-compare/birds/model.sktl holiday/ one-more.jpg
  sktl predict sktl-compare/birds/model.sktl holiday/ --proba --csv > holiday.csv
"""


_EXPORT_TEXT = """\
Write a model that `sktl compare` saved as an ONNX graph, which onnxruntime and others run without Python.

The graph takes 8-bit RGB pixels, resized to the network's input size, and gives label and probabilities; how to resize
is in the file's metadata. `sktl predict FILE.onnx ...` does it all. Needs the extra: pip install "sktl[onnx]"
"""

_INSPECT_TEXT = """\
Say what is in a saved model without loading it: network, strategy, classes, sizes, versions, hashes, metrics.
"""

_EMBED_TEXT = """\
Embed any number of images into a folder of Parquet files.

The files are written one by one, each as a whole; a run that was stopped goes on where it stopped when it is started
again, and pictures that came since are added. Columns: name, hash (of the content), error, embedding. A picture that
cannot be read is reported and has a row without an embedding; the exit status is then 1.
"""

_EMBED_EXAMPLES = """\
examples:
  sktl embed holiday/ --out holiday.parquet
  sktl embed shop.parquet --column photo --keep price,label --out embeddings.parquet
  sktl embed holiday/ --out s3://bucket/holiday.parquet --backbone resnet50.a1_in1k
"""


_SERVE_TEXT = """\
Answer requests for predictions over HTTP, with a model that `sktl compare` saved.

  POST /predict     images as files of a form; JSON with classes and probabilities
  GET  /            a page for people: drop a picture, see the classes
  GET  /docs /model /health /metrics

Requests that come together go through the network together. There is no password: what others can reach belongs
behind a proxy that has one. SIGTERM and Ctrl+C finish what has begun. Needs: pip install "sktl[serve]"
"""

_SERVE_EXAMPLES = """\
examples:
  sktl serve sktl-compare/birds/model.sktl --gallery birds/
  curl -F images=@holiday.jpg http://127.0.0.1:8000/predict
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keep line breaks, and leave room for the names of options."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; ``run`` in what it parses is the function to call.

    Returns
    -------
    parser : argparse.ArgumentParser
        With one sub-parser per command.
    """
    parser = argparse.ArgumentParser(
        prog="sktl",
        description="Transfer learning that feels like scikit-learn.",
        epilog=_MAIN_EXAMPLES,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"sktl {version('sktl')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_compare(commands)
    _add_predict(commands)
    _add_inspect(commands)
    _add_export(commands)
    _add_serve(commands)
    _add_embed(commands)
    _add_backbones(commands)
    return parser


def _add_command(commands, name: str, **texts: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, formatter_class=_Formatter, **texts)
    command.add_argument("--traceback", action="store_true", help="show where an error came from")
    command.set_defaults(run=partial(_run, name))
    return command


def _run(name: str, arguments: argparse.Namespace) -> int:
    """Run a command: ``run_<name>`` of the module of that name, which is imported now and not to show the help."""
    return getattr(import_module(f"sktl.cli._{name}"), f"run_{name}")(arguments)


def _add_compare(commands) -> None:
    command = _add_command(
        commands,
        "compare",
        help="find out which way of transfer suits your pictures",
        description=_COMPARE_TEXT,
        epilog=_COMPARE_EXAMPLES,
    )
    command.add_argument("data", metavar="digits|DIR", help="scikit-learn's handwritten digits, or a folder of images")
    _add_network(command.add_argument_group("the network"), size="the backbone's own; 32 for digits")
    _add_experiment(command.add_argument_group("the comparison"))


def _add_network(group, size: str) -> None:
    group.add_argument(
        "--backbone", default="sktl/tiny", metavar="NAME", help="a name from `sktl backbones` (default: %(default)s)"
    )
    group.add_argument(
        "--weights",
        default="pretrained",
        metavar="FILE",
        help="a .safetensors or .pth file with the backbone's weights (default: the published ones)",
    )
    group.add_argument(
        "--image-size", type=_at_least(8), metavar="N", help=f"side of the images in pixels (default: {size})"
    )
    group.add_argument("--device", default="auto", help="cpu, cuda or mps (default: the fastest available)")
    group.add_argument("--memory", metavar="DIR", help="a folder to keep embeddings in, for later runs")


def _add_experiment(group) -> None:
    group.add_argument(
        "--strategies",
        type=_names,
        default=STRATEGIES,
        metavar="A,B,...",
        help=f"ways of transfer to try (default: {','.join(STRATEGIES)})",
    )
    group.add_argument(
        "--epochs", type=_at_least(1), default=5, metavar="N", help="passes over the images (default: %(default)s)"
    )
    group.add_argument(
        "--learning-rate",
        type=_positive,
        metavar="R",
        help="highest learning rate of the head (default: the strategy's own; 0.003 for digits)",
    )
    group.add_argument(
        "--cv", type=_at_least(2), default=3, metavar="K", help="folds of the cross-validation (default: %(default)s)"
    )
    group.add_argument(
        "--test-size",
        type=_fraction,
        default=0.25,
        metavar="F",
        help="share of the images set aside for the test (default: %(default)s)",
    )
    group.add_argument(
        "--max-images",
        type=_at_least(10),
        metavar="N",
        help="use at most N images, chosen at random, to be quicker (default: all)",
    )
    group.add_argument(
        "--jobs", type=_at_least(1), metavar="N", help="folds to train in parallel (default: one per core; 1 on a GPU)"
    )
    group.add_argument(
        "--random-state", type=_at_least(0), default=0, metavar="N", help="the random seed (default: %(default)s)"
    )
    group.add_argument("--out", metavar="DIR", help="folder for the results (default: sktl-compare/<name of the data>)")


def _add_predict(commands) -> None:
    command = _add_command(
        commands,
        "predict",
        help="predict the class of image files with a saved model",
        description=_PREDICT_TEXT,
        epilog=_PREDICT_EXAMPLES,
    )
    _add_model(command, "the model.sktl that `sktl compare` wrote, or the .onnx file of `sktl export`")
    command.add_argument("images", nargs="+", metavar="FILE|DIR", help="image files, or folders of them")
    command.add_argument("--proba", action="store_true", help="print the probability of every class")
    command.add_argument(
        "--runtime",
        choices=("auto", "onnx"),
        default="auto",
        help="onnx runs any model with onnxruntime; auto only .onnx files (default: %(default)s)",
    )
    command.add_argument("--csv", action="store_true", help="print comma-separated values with a header")


def _add_model(command, what: str) -> None:
    command.add_argument("model", metavar="MODEL", help=what)
    command.add_argument(
        "--weights", metavar="FILE", help='the public weights, for a model of sktl.save\'s with persist="reference"'
    )


def _add_export(commands) -> None:
    command = _add_command(
        commands,
        "export",
        help="write a saved model as an ONNX graph",
        description=_EXPORT_TEXT,
        epilog="example:\n  sktl export sktl-compare/birds/model.sktl birds.onnx\n",
    )
    _add_model(command, "the model.sktl that `sktl compare` wrote")
    command.add_argument("output", metavar="FILE.onnx", help="the file to write")


def _add_inspect(commands) -> None:
    command = _add_command(
        commands,
        "inspect",
        help="say what is in a saved model, without loading it",
        description=_INSPECT_TEXT,
        epilog="examples:\n  sktl inspect birds/model.sktl\n  sktl inspect birds/model.sktl --card > README.md\n",
    )
    command.add_argument("model", metavar="FILE.sktl", help="the file that `sktl compare` or sktl.save wrote")
    command.add_argument("--card", action="store_true", help="print a model card in Markdown, for Hugging Face's hub")


def _add_embed(commands) -> None:
    command = _add_command(
        commands,
        "embed",
        help="embed any number of images into Parquet files",
        description=_EMBED_TEXT,
        epilog=_EMBED_EXAMPLES,
    )
    command.add_argument(
        "source", metavar="DIR|FILE.parquet", help="a folder of images, a folder of Parquet files, or one Parquet file"
    )
    command.add_argument("--out", required=True, metavar="DIR|URL", help="the folder of Parquet files to write")
    table = command.add_argument_group("if the source is Parquet files")
    table.add_argument(
        "--column",
        metavar="NAME",
        help="the column with the paths or bytes of the images (needed if several may hold them)",
    )
    table.add_argument(
        "--keep",
        type=_columns,
        default=(),
        metavar="A,B,...",
        help="columns to keep beside the embeddings (default: none)",
    )
    command.add_argument(
        "--rows-per-shard", type=_at_least(1), default=1024, metavar="N", help="rows per file (default: %(default)s)"
    )
    _add_network(command.add_argument_group("the network"), size="the backbone's own")


def _add_serve(commands) -> None:
    command = _add_command(
        commands,
        "serve",
        help="answer requests for predictions over HTTP",
        description=_SERVE_TEXT,
        epilog=_SERVE_EXAMPLES,
    )
    _add_model(command, "the model.sktl of `sktl compare`, or an .onnx file")
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, for this machine alone)"
    )
    command.add_argument(
        "--port",
        type=_at_least(0),
        default=8000,
        metavar="N",
        help="port to listen on; 0 takes a free one (default: %(default)s)",
    )
    command.add_argument("--name", help="what the page calls the model (default: taken from the path of MODEL)")
    command.add_argument(
        "--gallery", metavar="DIR", help="a folder of images; the page shows those most similar to a picture"
    )
    limits = command.add_argument_group("limits of a request")
    limits.add_argument(
        "--max-upload", type=_at_least(1), default=32, metavar="MIB", help="its size in MiB (default: %(default)s)"
    )
    limits.add_argument(
        "--max-images", type=_at_least(1), default=64, metavar="N", help="number of images (default: %(default)s)"
    )
    limits.add_argument(
        "--max-pixels",
        type=_at_least(1),
        default=50_000_000,
        metavar="N",
        help="pixels of each image (default: %(default)s)",
    )
    limits.add_argument(
        "--timeout", type=_positive, default=60.0, metavar="S", help="seconds to the answer (default: %(default)s)"
    )


def _add_backbones(commands) -> None:
    command = _add_command(
        commands,
        "backbones",
        help="list the pretrained networks",
        description="List what can be named as --backbone: the networks that ship with sktl, then timm's.",
        epilog="examples:\n  sktl backbones mobilenet\n  sktl backbones 'resnet50*'\n",
    )
    command.add_argument(
        "filter", nargs="?", default="", metavar="FILTER", help="a part of the name, or a pattern with wildcards"
    )
    command.add_argument("--all", action="store_true", help="list also those without published weights")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, got {text!r} instead")
        return value

    return number


def _fraction(text: str) -> float:
    return _number_between(text, 0.0, 1.0, "a number between 0 and 1")


def _positive(text: str) -> float:
    return _number_between(text, 0.0, float("inf"), "a positive number")


def _number_between(text: str, low: float, high: float, rule: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = low
    if not low < value < high:
        raise argparse.ArgumentTypeError(f"must be {rule}, got {text!r} instead")
    return value


def _columns(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _names(text: str) -> tuple[str, ...]:
    names = _columns(text)
    if not names:
        raise argparse.ArgumentTypeError(f"must name at least one of {','.join(STRATEGIES)}")
    return names
