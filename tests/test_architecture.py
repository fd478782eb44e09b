"""The plan of the house, checked: who may import whom, which room knows which library, how long things may get."""

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sktl

PACKAGE = Path(sktl.__file__).parent

# A module imports from rooms above its own and from its own, never from one below.
ROOMS = [
    {"exceptions", "_forks"},
    {"_deps", "_params", "_random", "_spread", "_undo", "_writing"},
    {"inputs"},
    {"backbones"},
    {"embedding"},
    {"strategies"},
    {"training"},
    {"persistence"},
    {"_base", "_costs", "_fit_tasks"},
    {"_finetuning"},
    {"transformer", "finetune", "regression", "scalar_mix", "text_statistics"},
    {"_deployment"},
    {"export"},
    {"plots", "distributed", "serving", "testing", "cli", "__main__"},  # leaves
]
ROOM_OF_ROOT = len(ROOMS)  # sktl/__init__.py gathers the public names: only the leaves may import it
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
LEAVES = ROOMS[-1]

# The rooms that may import a library (the longest matching name counts); numpy, torch, scikit-learn and tqdm are free.
IMPORTERS = {
    "PIL": {"inputs", "testing", "cli", "serving"},  # the last two draw images
    "timm": {"backbones"},
    "timm.data": {"inputs"},
    "timm.data.mixup": {"training"},
    "timm.utils": {"training"},  # averaged weights
    "timm.data.resolve_model_data_config": {"backbones"},  # asks a network, knows nothing of images
    "timm.data.imagenet_info": {"backbones"},  # names of classes
    "transformers": {"backbones"},
    "torchvision": set(),
    "joblib": {"embedding", "testing", "cli"},
    "sqlite3": {"embedding"},
    "openvino": {"embedding"},
    "peft": {"strategies"},
    "skorch": {"training"},
    "safetensors": {"backbones", "embedding"},
    "skops": {"persistence"},
    "matplotlib": {"plots"},
    "accelerate": {"distributed"},
    "fsspec": {"embedding"},
    "pyarrow": {"distributed"},
    "ray": {"distributed"},
    "dask": {"distributed"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "skl2onnx": {"export"},
    "fastapi": {"serving"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "python_multipart": {"serving"},
    "prometheus_client": {"serving"},
    "pandas": {"distributed"},
    "polars": set(),
}

IMPORTING_FUNCTIONS = {"import_extra", "import_module", "__import__"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def module_name(path):
    """``sktl/inputs/rows.py`` -> ``sktl.inputs.rows``; a package is named by its folder."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def room_of(name):
    """``sktl.inputs.rows`` -> ``inputs``; the package itself -> ``""``."""
    return name.split(".")[1] if "." in name else ""


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def import_nodes(tree):
    """All nodes that import at run time, those inside functions included."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if is_type_checking(node):
            continue
        todo.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
            yield node


def imported_names(name):
    """Names that module ``name`` imports: ``a.b`` for ``import a.b``, ``a.b.c`` for ``from a.b import c``."""
    for node in import_nodes(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: relative import; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif ast.unparse(node.func).split(".")[-1] in IMPORTING_FUNCTIONS:
            yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))


def target_module(imported):
    """The module of sktl that an imported name lives in: ``sktl.inputs.open_rows`` -> ``sktl.inputs``."""
    while imported not in FILES:
        imported = imported.rpartition(".")[0]
    return imported


def edges(name):
    """The modules of sktl that module ``name`` imports."""
    return {target_module(other) for other in imported_names(name) if other.split(".")[0] == "sktl"}


def rank(name):
    return RANK[room_of(name)] if room_of(name) else ROOM_OF_ROOT


def allowed_importers(imported):
    """The rooms that may import this name, or None if every room may."""
    parts = imported.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in IMPORTERS:
            return IMPORTERS[prefix]
    return None


def own_length(function):
    """Lines of a function from ``def`` to its end, without its docstring."""
    length = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        length -= docstring.end_lineno - docstring.lineno + 1
    return length


def only_stores(function):
    """A constructor as scikit-learn wants it has a line per parameter, and no more to read than a table."""
    return function.name == "__init__" and all(
        ast.unparse(line).startswith("super().__init__(")
        or (
            isinstance(line, ast.Assign)
            and ast.unparse(line) == f"self.{ast.unparse(line.value)} = {ast.unparse(line.value)}"
        )
        for line in function.body
    )


def test_public_names():
    assert sorted(sktl.__all__) == [
        "FineTuneClassifier",
        "FineTuneRegressor",
        "PretrainedFeatureTransformer",
        "ScalarMix",
        "TextStatistics",
        "__version__",
        "exceptions",
        "export_onnx",
        "inspect",
        "list_backbones",
        "load",
        "push_to_hub",
        "save",
        "search_costs",
        "strategies",
    ]
    assert set(sktl.__all__) <= set(dir(sktl))
    for name in sktl.__all__:
        assert getattr(sktl, name) is not None


def test_public_strategies():
    assert sorted(sktl.strategies.__all__) == [
        "Batch",
        "BitFit",
        "FeatureExtraction",
        "FineTuning",
        "FromScratch",
        "GradualUnfreezing",
        "JointTraining",
        "L2SP",
        "LearningWithoutForgetting",
        "LinearProbeThenFineTuning",
        "LoRA",
        "PartialFineTuning",
        "STRATEGIES",
        "Start",
        "Strategy",
        "WiseFT",
        "resolve_strategy",
    ]


def test_every_module_has_a_room():
    assert {room_of(name) for name in FILES} - {""} == set(RANK)


def test_the_table_of_rooms_is_true():
    page = (PACKAGE.parent / "docs" / "contributing.rst").read_text(encoding="utf-8")
    _, table = page.partition(":widths: 26 52 22\n")[::2]
    rows = [row.split("\n     -") for row in table.partition("\n\nnumpy, torch")[0].split("\n   * - ")[2:]]
    rooms = [[name.removesuffix(".py").rstrip("/") for name in re.findall("``(.+?)``", row[0])] for row in rows]
    told = [room for each in rooms for room in each]
    assert set(told) == set(RANK)
    assert [RANK[room] for room in told] == sorted(RANK[room] for room in told)
    for names, (_, _, libraries) in zip(rooms, rows, strict=True):
        known = {library.partition(".")[0] for library, importers in IMPORTERS.items() if importers & set(names)}
        assert set(re.findall("``(.+?)``", libraries)) == known, names


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name)])
def test_imports_go_down(name):
    for other in edges(name):
        if room_of(name) == room_of(other):
            continue
        if room_of(other) == "":
            assert room_of(name) in LEAVES, f"{name} imports sktl itself; import from the room that has the name"
        else:
            assert rank(other) < rank(name) or {room_of(name), room_of(other)} <= LEAVES, f"{name} imports {other}"


@pytest.mark.parametrize("name", FILES)
def test_each_library_is_known_in_one_room(name):
    for imported in imported_names(name):
        allowed = allowed_importers(imported)
        assert allowed is None or room_of(name) in allowed, f"{name} imports {imported}; only {sorted(allowed)} may"


def test_no_import_cycles():
    graph = defaultdict(set)
    for name in FILES:
        graph[name] = edges(name) - {name}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("name", FILES)
def test_functions_are_short(name):
    functions = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    too_long = {
        function.name: own_length(function)
        for function in functions
        if own_length(function) > MAX_FUNCTION_LINES and not only_stores(function)
    }
    assert not too_long
