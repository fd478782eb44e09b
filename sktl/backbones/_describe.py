"""Writes down settings, functions and classes the same way in every process, so that a hash can tell them apart.

What published libraries define is told by its name. What anybody else defines may change under its name from one
session to the next, so its code is written down as well, with what it reads: closures, defaults, global names.
"""

import copyreg
import dis
import functools
import hashlib
import secrets
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

# Where a name says what is meant: an edit there is a new version of a library that many have.
_NAMED = {*sys.stdlib_module_names, "numpy", "scipy", "sklearn", "PIL", "timm", "torch", "transformers", "sktl"}
_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device)
_CONTAINERS = (list, tuple, dict, set, frozenset)
_NO_STEPS = ((None, None), (None, None))
_LOAD_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
# Methods that change a list, dict, set or deque.
_WRITING = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert", "pop", "popitem", "popleft"),
    *("remove", "reverse", "rotate", "setdefault", "sort", "update"),
}
_LOCKS = (type(threading.Lock()), type(threading.RLock()))
# torch's own bookkeeping, and timm's notes on where a network comes from.
NOT_SETTINGS = {*vars(nn.Module()), "pretrained_cfg", "default_cfg"}
_HELD = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that Python code defines


class Description:
    """The settings of one network.

    Functions, classes and objects that are more than their name get a number where they stand, and are written down
    once by :meth:`rest`: they may refer to each other in circles.

    Parameters
    ----------
    known : mapping of int to str
        Names of modules, by ``id``, that are written down elsewhere.
    """

    def __init__(self, known: Mapping[int, str]):
        self._names = dict(known)
        self._numbered: list[Any] = []  # kept alive, so that no other object gets the same id
        self._queue: deque[Any] = deque()
        self._open: list[int] = []  # containers being written down

    def rest(self) -> Iterator[str]:
        """Yield a line for each thing that was given a number."""
        while self._queue:
            value = self._queue.popleft()
            yield f"{self._names[id(value)]}:{self._content(value)}\n"

    def __call__(self, value: object, *, partly: bool = False) -> str | None:
        """Write a value down.

        Parameters
        ----------
        value : object
            Anything.
        partly : bool, default=False
            Whether to return None for objects of published libraries. Their own layers hold such things beside the
            settings that they were made from.
        """
        if value is None or _is_one_of(value, _PLAIN, partly):
            return repr(value)
        if _is_one_of(value, _CONTAINERS, partly):
            return self._container(value, partly)
        if isinstance(value, partial):
            return f"partial{self((value.func, value.args, value.keywords), partly=partly)}"
        if isinstance(value, (type, FunctionType)) or (isinstance(value, BuiltinFunctionType) and not _is_bound(value)):
            return self._function_or_class(value)
        if partly and _is_named(value.__func__ if isinstance(value, MethodType) else type(value)):
            return None
        return self._other(value)

    def _container(self, value: Any, partly: bool) -> str:
        if id(value) in self._open:
            return "..."
        self._open.append(id(value))
        items = value.items() if isinstance(value, dict) else value
        lines = [str(self(item, partly=partly)) for item in items]
        self._open.pop()
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(lines)}]"
        return f"{{{', '.join(sorted(lines) if partly or not isinstance(value, dict) else lines)}}}"

    def _function_or_class(self, value: Any) -> str:
        name = _name(value)
        if _is_named(value) and not getattr(value, "__closure__", None):
            return name
        return self._number(value, name)

    def _other(self, value: Any) -> str:
        """Write down what the layers of published libraries are not made from."""
        if id(value) in self._names:
            return self._names[id(value)]
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized:
            return f"{_name(type(value))} {tensor_digest(value)}"
        if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
            return f"{value.dtype.descr}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
        if isinstance(value, ModuleType):
            return f"module {value.__name__}"
        if isinstance(value, MethodType):
            return f"{self(value.__func__)} of {self(value.__self__)}"
        if isinstance(value, (staticmethod, classmethod)):
            return f"{type(value).__name__} {self(value.__func__)}"
        if isinstance(value, property):
            return f"property {self((value.fget, value.fset))}"
        if isinstance(value, functools.cached_property):
            return f"property {self(value.func)}"
        if isinstance(value, torch.jit.ScriptFunction):
            return f"script {value.code}"
        if isinstance(value, _LOCKS):
            return type(value).__name__
        return self._number(value, _name(type(value)))

    def _number(self, value: object, name: str) -> str:
        if id(value) not in self._names:
            self._names[id(value)] = f"{name}#{len(self._numbered)}"
            self._numbered.append(value)
            self._queue.append(value)
        return self._names[id(value)]

    # What has a number -----------------------------------------------------------------------------------------------

    def _content(self, value: Any) -> str:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, nn.Module):
            held = {name: list(vars(value)[name].items()) for name in _HELD}
            return f"{self(type(value))}{self.hooks(value)}{self({**own_settings(value), **held})}"
        return self._object(value)

    def _function(self, function: FunctionType) -> str:
        cells = [_cell_content(cell) for cell in function.__closure__ or ()]
        inputs = (cells, function.__defaults__, function.__kwdefaults__, vars(function))
        if _is_named(function):
            return f"{self(inputs)}"
        return f"{self(inputs)}{self._code(function.__code__)}{self._globals(function)}"

    def _code(self, code: CodeType) -> str:
        """Write down a code object without the places where it stood: file, lines, columns."""
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        constants = [self._code(each) if isinstance(each, CodeType) else self(each) for each in code.co_consts]
        return f"{counts}{names}{constants}{code.co_code.hex()}{code.co_exceptiontable.hex()}"

    def _globals(self, function: FunctionType) -> str:
        """Write down the global names that a function reads; not those that it counts up itself, nor a package's."""
        space = function.__globals__
        if _is_installed(space.get("__name__", "")):
            return ""
        codes = list(_nested(function.__code__))
        read, written = _names_used(codes)
        names = sorted(name for name in read - written if name in space and not _is_dunder(name))
        attributes = {name for code in codes for name in code.co_names}
        return str([(name, self._global(space[name], attributes)) for name in names])

    def _global(self, value: Any, attributes: set[str]) -> str:
        if not isinstance(value, ModuleType) or id(value) in self._open:
            return str(self(value))
        if value.__name__.partition(".")[0] in _NAMED or _is_installed(value.__name__):
            return value.__name__
        self._open.append(id(value))
        used = sorted(attributes & vars(value).keys())
        described = [(name, self._global(vars(value)[name], attributes)) for name in used if not _is_dunder(name)]
        self._open.pop()
        return f"{value.__name__}{described}"

    def _class(self, cls: type) -> str:
        counters = {name for value in vars(cls).values() for name in _counters(_function_of(value), cls)}
        members = [
            (name, self(vars(cls)[name]))
            for name in sorted(vars(cls))
            if name not in counters and name != "_abc_impl" and (not _is_dunder(name) or _function_of(vars(cls)[name]))
        ]
        return f"{self(cls.__bases__)}{members}"

    def _object(self, value: Any) -> str:
        """Write down what a copy of an object is made from, as pickle does; nothing else is equal to what cannot be."""
        wrapped = getattr(value, "__wrapped__", None)
        if callable(wrapped):  # functools.cache
            return f"{_name(type(value))} of {self(wrapped)}"
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            made_from = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception:  # whatever the class raises where it cannot be pickled
            return _token(value)
        if isinstance(made_from, str):
            return made_from
        function, arguments, state, *items = (*made_from, None, None, None)[:5]
        if isinstance(state, dict):
            state = sorted(state.items(), key=lambda item: str(item[0]))
        return str(self((function, arguments, state, *(None if each is None else list(each) for each in items))))

    def hooks(self, module: nn.Module) -> str:
        """Write down what runs before and after a module; empty if nothing does."""
        if isinstance(module, torch.jit.ScriptModule):
            return _token(module)  # its code is not to be seen from here
        hooks = [list(vars(module)[name].values()) for name in _HOOKS]
        return str(self(hooks)) if any(hooks) else ""


def own_settings(module: nn.Module) -> dict[str, Any]:
    """Return what a module holds beside tensors, other modules and what torch notes of it, sorted by name."""
    return {name: value for name, value in sorted(vars(module).items()) if name not in NOT_SETTINGS}


def is_published(module: nn.Module) -> bool:
    """Say whether a module is told by its class's name and the plain ones among its settings."""
    forward = vars(module).get("forward")  # timm puts methods of its own there
    is_replaced = forward is not None and not (isinstance(forward, MethodType) and _is_named(forward.__func__))
    if is_replaced or any(vars(module)[name] for name in _HOOKS):
        return False
    return isinstance(module, torch.fx.GraphModule) or _is_named(type(module))  # a graph is held as code, too


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return a hash of type, shape and values."""
    if is_lazy(tensor):  # has neither shape nor values before its module is called
        return type(tensor).__name__
    facts = f"{tensor.dtype}:{tuple(tensor.shape)}"
    return facts if tensor.is_meta else f"{facts}:{hashlib.sha256(tensor_bytes(tensor)).hexdigest()}"


def tensor_bytes(tensor: torch.Tensor) -> bytes | memoryview:
    """Return the values of a tensor as they lie in memory."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _is_named(value: Any) -> bool:
    """Say whether the name of a function or class tells what it does."""
    modules = {value.__module__ or "builtins"}
    if modules == {"builtins"} and getattr(value, "__flags__", 0) & _HEAP_TYPE:
        return False  # from source that ran without a module
    if isinstance(value, FunctionType):  # functools.wraps gives a function the name of another
        modules.add(value.__globals__.get("__name__", ""))
    return "<" not in value.__qualname__ and all(module.partition(".")[0] in _NAMED for module in modules)


def _is_one_of(value: object, types: tuple[type, ...], partly: bool) -> bool:
    """Say whether a value is no more than one of some types: a class of one's own may make more of it."""
    return type(value) in types or (isinstance(value, types) and (partly or _is_named(type(value))))


def _is_bound(function: BuiltinFunctionType) -> bool:
    return not isinstance(function.__self__, (type, ModuleType, type(None)))


def _is_installed(module: str) -> bool:
    """Say whether a module belongs to an installed package: what its functions call is left to its name."""
    package = sys.modules.get(module.partition(".")[0])
    origin = getattr(package, "__file__", None) or ""
    return "site-packages" in origin or "dist-packages" in origin


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _cell_content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # a name that was never given a value
        return "no value"


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _function_of(value: Any) -> FunctionType | None:
    """Return the function behind an entry of a class."""
    value = getattr(value, "__func__", getattr(value, "fget", value))
    return value if isinstance(value, FunctionType) else None


def _names_used(codes: list[CodeType]) -> tuple[set[str], set[str]]:
    """Return the global names that code reads, and those that it writes itself; ``Net.calls`` is one, written so.

    A name is written by an assignment, ``name += 1`` and calls such as ``name.append(...)``; an attribute of a global
    one, too.
    """
    read, written = set(), set()
    for code in codes:
        steps = [*((step.opname, step.argval) for step in dis.get_instructions(code)), *_NO_STEPS]
        for (operation, name), (second, attribute), (third, method) in zip(steps, steps[1:], steps[2:], strict=False):
            if operation in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                written.add(name)
            if operation not in ("LOAD_GLOBAL", "LOAD_NAME"):
                continue
            read.add(name)
            if second in _LOAD_ATTRIBUTE and attribute in _WRITING:
                written.add(name)
            if second == "COPY" and third == "LOAD_ATTR":
                written.add(f"{name}.{method}")
            if second == "LOAD_ATTR" and third in _LOAD_ATTRIBUTE and method in _WRITING:
                written.add(f"{name}.{attribute}")
    return read, written


def _counters(function: FunctionType | None, cls: type) -> Iterator[str]:
    """Yield the attributes of a class that a function counts up: ``Net.calls += 1``."""
    for name in _names_used(list(_nested(function.__code__)))[1] if function is not None else ():
        owner, _, attribute = name.rpartition(".")
        if function.__globals__.get(owner) is cls:
            yield attribute


_tokens: dict[int, tuple[weakref.ref, str]] = {}


def _token(value: object) -> str:
    """Return what no other object has, in this process or any other; the same for the same object where it can be."""
    if id(value) in _tokens and _tokens[id(value)][0]() is value:
        return _tokens[id(value)][1]
    token = secrets.token_hex(16)
    with suppress(TypeError):  # of objects that cannot be referred to weakly
        _tokens[id(value)] = (weakref.ref(value), token)
    return token
