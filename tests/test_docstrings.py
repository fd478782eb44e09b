"""Everything public has a numpydoc docstring that says shapes, types and results."""

import inspect
import operator

import pytest

import sktl
from sktl import distributed, exceptions, strategies, testing

numpydoc_validate = pytest.importorskip("numpydoc.validate", reason='needs numpydoc: pip install "sktl[docs]"')

IGNORED = {
    "ES01",  # no extended summary where one line says it
    "EX01",  # methods share the example of their class
    "GL01",  # the summary starts on the line of the quotes
    "SA01",  # no "See Also" where nothing is near
    "RT02",  # one result may be named
    "YD01",
}


def public_objects():
    """Yield the dotted name of every public class, function and method that sktl itself defines."""
    for home in (sktl, strategies, distributed, exceptions, testing):
        for name in getattr(home, "__all__", [name for name in vars(home) if not name.startswith("_")]):
            thing = getattr(home, name)
            if not callable(thing) or not getattr(thing, "__module__", "").startswith("sktl"):
                continue
            yield f"{home.__name__}.{name}"
            if inspect.isclass(thing):
                yield from (f"{home.__name__}.{name}.{method}" for method in public_methods(thing))


def public_methods(cls):
    for name, thing in inspect.getmembers(cls, inspect.isfunction):
        if not name.startswith("_") and thing.__module__.startswith("sktl"):
            yield name


def inherits_docstring(name):
    """Tell whether a method overrides one that is documented, and does what that one says."""
    thing = operator.attrgetter(name.removeprefix("sktl."))(sktl)
    return thing.__doc__ is None and bool(inspect.getdoc(thing))


@pytest.mark.parametrize("name", sorted(set(public_objects())))
def test_docstring(name):
    ignored = IGNORED | ({"GL08"} if inherits_docstring(name) else set())
    result = numpydoc_validate.validate(name)
    problems = [f"{code}: {text}" for code, text in result["errors"] if code not in ignored]
    assert not problems
