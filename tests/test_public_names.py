"""Every public name says what it is, names its parameters and shapes, and has an example.

The rule. Public is what stands in the ``__all__`` of a module in ``PUBLIC``, and the public methods
of such classes. Each has a docstring. Each parameter stands in a Parameters (or Attributes)
section; where there are no more than two, naming them ````like this```` in the text will do. What
takes or gives arrays says their shapes. Functions, classes and the verbs of SCALE have an example
each, which ``pytest --doctest-modules`` runs; another class's example uses each of its methods,
but for properties that give back what the class was made of.
A method that overrides one of another library's class (``forward``, Lightning's hooks) needs its
docstring alone.
"""

import ast
import dataclasses
import inspect
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pyro_scale as ps

PUBLIC = (
    "pyro_scale",
    "pyro_scale.analysis",
    "pyro_scale.comparison",
    "pyro_scale.data",
    "pyro_scale.objectives",
    "pyro_scale.objectives.terms",
    "pyro_scale.plotting",
    "pyro_scale.preprocessing",
    "pyro_scale.programs",
    "pyro_scale.training",
)
ARRAYS = re.compile(r"Tensor|NDArray|ndarray|ArrayLike|DataFrame|Series|csr_matrix|spmatrix")
SHAPE = re.compile(r"shape|``\([^`]+\)``|\w x \w|per (cell|peak|epoch|row)|\(\d+, ?\d*\)", re.I)
SECTION = re.compile(r"^(?:Parameters|Attributes)\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", re.M | re.S)


def public_names() -> dict[str, Any]:
    """Every public function and class by where it is defined, once."""
    found = {}
    for module in map(import_module, PUBLIC):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) or (
                inspect.isclass(value) and value.__module__.startswith("pyro_scale")
            ):
                found[f"{value.__module__}.{name}"] = value
    return found


def offsets() -> dict[str, str]:
    """The public names that are no function, class or module, with where they may be defined."""
    return {
        name: module.__name__
        for module in map(import_module, PUBLIC)
        for name in module.__all__
        if not isinstance(value := getattr(module, name), ModuleType)
        and not inspect.isfunction(value)
        and not (inspect.isclass(value) and value.__module__.startswith("pyro_scale"))
    }


def methods(of: type) -> dict[str, Any]:
    """Public methods and properties written in this package, inherited or not."""
    found = {}
    for name in dir(of):
        member = inspect.getattr_static(of, name)
        function = getattr(member, "fget", getattr(member, "__func__", member))
        ours = str(getattr(function, "__module__", "")).startswith("pyro_scale")
        if not name.startswith("_") and inspect.isfunction(function) and ours:
            found[name] = function
    return found


def overrides(of: type, name: str) -> bool:
    """Whether another library's class has the name."""
    others = [base for base in of.__mro__ if not base.__module__.startswith("pyro_scale")]
    return any(name in vars(base) for base in others)


def parameters(function: Any) -> list[str]:
    """What a caller can give."""
    return [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]


def fields(of: type) -> list[str]:
    """What makes an object of the class: fields, or what its __init__ takes."""
    if dataclasses.is_dataclass(of):
        return [field.name for field in dataclasses.fields(of)]
    if hasattr(of, "_fields"):
        return list(of._fields)
    init = of.__init__
    mine = inspect.isfunction(init) and init.__module__.startswith("pyro_scale")
    return parameters(init) if mine and not getattr(of, "_is_protocol", False) else []


def sectioned(doc: str) -> set[str]:
    """The names that a Parameters or Attributes section explains."""
    lines = [line for part in SECTION.findall(doc) for line in part.splitlines()]
    heads = [line for line in lines if re.match(r"[*\w]", line)]
    return {name.strip(" *") for head in heads for name in head.split(" : ")[0].split(",")}


def undocumented(names: list[str], doc: str) -> list[str]:
    """The parameters that a docstring leaves out."""
    said = sectioned(doc)
    prose = len(names) <= 2

    def in_text(name: str) -> bool:
        return bool(re.search(rf"``[^`]*(?<!\w){name}(?!\w)[^`]*``", doc))

    return [name for name in names if name not in said and not (prose and in_text(name))]


def faults_of_function(function: Any, doc: str, *, example: bool = True) -> list[str]:
    """What a function, or a method with its class's docstring added, lacks."""
    own = inspect.getdoc(function) or ""
    faults = [] if own else ["no docstring"]
    faults += [f"parameter {p}" for p in undocumented(parameters(function), doc)]
    if ARRAYS.search(str(inspect.signature(function))) and not SHAPE.search(doc):
        faults.append("no shape")
    if example and ">>> " not in own:
        faults.append("no example")
    return faults


def faults(value: Any) -> list[str]:
    """What a public name lacks."""
    doc = inspect.getdoc(value) or ""
    if inspect.isfunction(value):
        return faults_of_function(value, doc)
    found = [] if vars(value).get("__doc__") else ["no docstring"]
    found += [f"parameter {p}" for p in undocumented(fields(value), doc)]
    found += [] if ">>> " in doc else ["no example"]
    for name, method in methods(value).items():
        own = inspect.getdoc(method) or ""
        if overrides(value, name):
            missing = [] if own else ["no docstring"]
        else:
            is_property = isinstance(inspect.getattr_static(value, name), property)
            missing = faults_of_function(
                method, own if is_property else f"{own}\n\n{doc}", example=value is ps.SCALE
            )
            used = any(re.search(rf"\.{name}\b", text) for text in examples(doc, own))
            missing += [] if used or name in sectioned(doc) else ["not in the example"]
        found += [f".{name}: {fault}" for fault in missing]
    return found


def examples(*docs: str) -> list[str]:
    """The lines of the examples."""
    lines = [line.lstrip() for doc in docs for line in doc.splitlines()]
    return [line for line in lines if line.startswith((">>>", "..."))]


@pytest.mark.parametrize("name", sorted(public_names()))
def test_public_name_is_documented(name):
    assert faults(public_names()[name]) == []


@pytest.mark.parametrize("name", sorted(offsets()))
def test_public_constant_is_explained_below_it(name):
    package = Path(ps.__file__).parent
    for path in package.rglob("*.py"):
        body = ast.parse(path.read_text("utf8")).body
        for at, below in pairwise(body):
            targets = getattr(at, "targets", [getattr(at, "target", None)])
            if isinstance(at, ast.Assign | ast.AnnAssign) and name in (
                getattr(target, "id", None) for target in targets
            ):
                text = below.value.value if isinstance(below, ast.Expr) else None
                assert isinstance(text, str), f"{path.name}: say below {name} what it is"
                return
    pytest.fail(f"{name} is assigned nowhere")


def test_what_is_not_documented_is_found():
    """The power of the checks above."""

    def three(x_np, y, z):
        """Sum of ``x_np``, ``y`` and ``z``.

        >>> 1
        1
        """

    def two(x_np: NDArray[np.float64], y: int):
        """Sum of ``x_np`` and y."""

    class Pair:
        """Two of them.

        >>> Pair()
        """

        def __init__(self, left):
            self.left = left

        def swap(self):
            pass

    Pair.__module__ = Pair.__init__.__module__ = Pair.swap.__module__ = "pyro_scale.pairs"
    assert faults(three) == ["parameter x_np", "parameter y", "parameter z"]
    assert faults(two) == ["parameter y", "no shape", "no example"]
    assert faults(Pair) == [
        "parameter left",
        ".swap: no docstring",
        ".swap: not in the example",
    ]
