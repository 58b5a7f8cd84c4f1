"""Every public name has a complete numpydoc docstring, and the checker sees what is missing.

A method that overrides another may have none: it inherits that of the next class above it, ours or
that of scvi-tools or Lightning, and may then not take a parameter which that one does not take.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
import types
import typing
import warnings

import pytest
from numpydoc.docscrape import NumpyDocString

import scvi_qbm

PACKAGE = scvi_qbm.__name__
ROLE_OR_CODE = re.compile(r"``.+?``|:[\w:]+:`[^`]+`", re.DOTALL)
# A type, not a sentence: dotted names, with brackets and alternatives.
NAME = r"[A-Za-z_][\w.]*"
TYPE = re.compile(rf"{NAME}(\[[\w\s.,|\[\]]+\])?( \| {NAME}(\[[\w\s.,|\[\]]+\])?)*")
STARS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
WITH_TEXT = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns")


def ours(obj):
    return getattr(obj, "__module__", "").split(".")[0] in (PACKAGE, __name__)


def underlying(member):
    """The function behind a method, property, cache or decorator."""
    if isinstance(member, property):
        member = member.fget
    member = getattr(member, "__func__", None) or getattr(member, "func", None) or member
    return inspect.unwrap(member)


def public_modules():
    yield scvi_qbm
    for info in pkgutil.walk_packages(scvi_qbm.__path__, f"{PACKAGE}."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            yield importlib.import_module(info.name)


def members_of(cls):
    """``(name, member, defining class, what it overrides)`` of all public members of our own."""
    seen = set()
    for i, base in enumerate(cls.__mro__):
        for name, member in vars(base).items() if ours(base) else ():
            if name.startswith("_") or name in seen or isinstance(member, type):
                continue
            seen.add(name)
            if inspect.isfunction(underlying(member)):
                yield name, member, base, overridden(name, cls.__mro__[i + 1 :])


def overridden(name, bases):
    """The function with a docstring that one of this name inherits it from."""
    found = (underlying(vars(base)[name]) for base in bases if name in vars(base))
    return next((f for f in found if inspect.isfunction(f) and f.__doc__), None)


def public_items():
    """``name -> (object, class that defines it, what it overrides)``, each object once."""
    items = {}
    for module in public_modules():
        for name in getattr(module, "__all__", ()):
            obj = getattr(module, name, None)  # see test_public_names_exist
            if not ours(obj) or not (inspect.isclass(obj) or callable(obj)):
                continue  # constants and type aliases: see below
            items[f"{obj.__module__}.{obj.__qualname__}"] = obj, None, None
            if inspect.isclass(obj):
                for name, *member in members_of(obj):
                    base = member[1]
                    items[f"{base.__module__}.{base.__qualname__}.{name}"] = member
    return items


def statements(node):
    """All nodes of a body that can raise out of it: not functions inside, nor what is caught."""
    caught = isinstance(node, ast.Try) and any(
        getattr(h.type, "id", "Exception") == "Exception"
        and not any(isinstance(child, ast.Raise) for child in ast.walk(h))
        for h in node.handlers
    )
    for child in ast.iter_child_nodes(node):
        inside = isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef)
        if not inside and not (caught and child in node.body):
            yield child
            yield from statements(child)


@functools.cache
def raised_by(function, owner, depth=1):
    """Exceptions that a function raises itself, or through a private helper of its module."""
    body = list(statements(ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]))
    names = set()
    for node in body:
        if isinstance(node, ast.Raise) and node.exc is not None:
            exc = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            names.add(getattr(exc, "attr", getattr(exc, "id", "")))
        elif isinstance(node, ast.Call) and depth:
            called = node.func
            name = getattr(called, "attr", getattr(called, "id", ""))
            where = sys.modules[function.__module__]
            if isinstance(called, ast.Attribute):
                where = owner if getattr(called.value, "id", "") in ("self", "cls") else None
            helper = underlying(getattr(where, name, None)) if name.startswith("_") else None
            if inspect.isfunction(helper) and helper.__module__ == function.__module__:
                names |= raised_by(helper, owner, depth - 1)
    # Capitals: neither `raise error` nor a method that makes one, nor a private exception.
    return {name for name in names if name[:1].isupper()}


def signature_names(function, *, bound):
    # Of the code itself: `__signature__` may be that of the function it hands its arguments to.
    code, names, cells = function.__code__, function.__globals__, function.__closure__
    bare = types.FunctionType(code, names, closure=cells)
    parameters = list(inspect.signature(bare).parameters.values())[bound:]
    return [STARS.get(p.kind, "") + p.name for p in parameters]


def order_faults(doc, section, wanted):
    documented = [name.strip() for entry in doc[section] for name in entry.name.split(",")]
    missing = [name for name in wanted if name not in documented]
    unknown = [name for name in documented if name not in wanted]
    if missing:
        yield f"{section}: missing {missing}"
    if unknown:
        yield f"{section}: unknown {unknown}"
    if not missing and not unknown and documented != wanted:
        yield f"{section}: not in the order of the signature, {wanted}"


def text_faults(doc, text):
    if not " ".join(doc["Summary"]).strip():
        yield "no summary"
    for section in WITH_TEXT:
        for entry in doc[section]:
            name = entry.name or entry.type
            description = " ".join(entry.desc).strip().rstrip(".").lower()
            if not description:
                yield f"{section}: {name!r} has no description"
            elif section == "Parameters" and description in (name.lower(), f"the {name.lower()}"):
                yield f"{section}: {name!r} is described by its own name"
    if "`" in ROLE_OR_CODE.sub("", text):
        yield "single backticks: neither code nor a reference"


def raises_faults(doc, function, owner):
    documented = {n.strip().split(".")[-1] for e in doc["Raises"] for n in e.type.split(",")}
    for name in sorted(raised_by(function, owner) - documented):
        if name != "NotImplementedError" or documented:
            yield f"Raises: missing {name}"


def function_faults(doc, function, owner, *, is_property):
    yield from raises_faults(doc, function, owner)
    if is_property:
        if ":" in ROLE_OR_CODE.sub("", " ".join(doc["Summary"])):
            yield "a colon in a property's summary: Sphinx takes what is before it for a type"
        return
    static = owner is not None and isinstance(
        inspect.getattr_static(owner, function.__name__, None), staticmethod
    )
    wanted = signature_names(function, bound=owner is not None and not static)
    yield from order_faults(doc, "Parameters", wanted)
    yield from returns_faults(doc, function)


def words(text):
    return {name.split(".")[-1] for name in re.findall(NAME, str(text))}


def returns_faults(doc, function):
    annotation = function.__annotations__.get("return")
    entries = doc["Returns"] + doc["Yields"]
    if annotation not in (None, "None", "NoReturn") and not entries:
        yield f"Returns: missing, the annotation is {annotation}"
    try:
        resolved = typing.get_type_hints(function).get("return")
    except NameError:  # imported for type checkers only
        resolved = annotation
    known = words(str(annotation).replace("NDArray", "ndarray")) | words(resolved)
    for entry in entries:
        if not TYPE.fullmatch(entry.type):
            yield f"Returns: {entry.type!r} is no type"
        elif annotation not in (None, "Any") and not words(entry.type) <= known:
            yield f"Returns: {entry.type!r}, where the annotation is {annotation}"


def class_faults(doc, cls):
    if issubclass(cls, tuple):
        wanted = list(cls._fields)
    elif dataclasses.is_dataclass(cls):
        wanted = [field.name for field in dataclasses.fields(cls) if field.init]
    else:
        maker = next((base for base in cls.__mro__ if "__init__" in vars(base)), object)
        wanted = signature_names(vars(maker)["__init__"], bound=True) if ours(maker) else []
    section = "Parameters" if doc["Parameters"] else "Attributes"
    if wanted:
        yield from order_faults(doc, section, wanted)
    for name in ("__init__", "__post_init__"):
        made = vars(cls).get(name)
        if inspect.isfunction(made) and not made.__code__.co_filename.startswith("<"):
            yield from raises_faults(doc, made, cls)


def inherited_faults(function, base):
    """A docstring that is inherited says nothing of parameters that only the override has.

    ``*args`` and ``**kwargs`` hand on what the other takes.
    """
    named = [n for n in signature_names(function, bound=True) if not n.startswith("*")]
    extra = [name for name in named if name not in signature_names(base, bound=True)]
    return [f"no docstring, and the inherited one does not know {extra}"] if extra else []


def faults(obj, owner=None, base=None):
    """What is wrong with an object's docstring, in words; nothing if it is complete."""
    is_class = inspect.isclass(obj)
    text = obj.__doc__ if is_class else underlying(obj).__doc__
    if not text or not text.strip():
        if base is not None:
            return inherited_faults(underlying(obj), base)
        return ["no docstring"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        doc = NumpyDocString(inspect.cleandoc(text))
    out = [str(w.message) for w in caught] + list(text_faults(doc, text))
    if is_class:
        return out + list(class_faults(doc, obj))
    is_property = isinstance(obj, property | functools.cached_property)
    return out + list(function_faults(doc, underlying(obj), owner, is_property=is_property))


ITEMS = public_items()


@pytest.mark.parametrize("name", sorted(ITEMS))
def test_docstring_is_complete(name):
    found = faults(*ITEMS[name])
    assert not found, f"{name}:\n  " + "\n  ".join(found)


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_public_names_exist(module):
    names = getattr(module, "__all__", ())
    assert [name for name in names if not hasattr(module, name)] == []


def undocumented_constants(source, names):
    """Assigned names without a ``#:`` comment above, which is what Sphinx shows of them."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        found = {getattr(target, "id", None) for target in targets} & set(names)
        if found and not lines[node.lineno - 2].startswith("#: "):
            yield from found


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_constants_say_what_they_are(module):
    names = getattr(module, "__all__", ())
    assert list(undocumented_constants(inspect.getsource(module), names)) == []


def test_a_bare_constant_is_found():
    source = "#: Said.\nA = 1\n# Not said.\nB: int = 2\n_C = 3\n"
    assert list(undocumented_constants(source, ["A", "B"])) == ["B"]


def test_what_is_collected():
    public = {
        "scvi_qbm.model._qbmvi.QBMVI",  # named by a public module, made in a private one
        "scvi_qbm.model._training.TrainingMixin.train",
        "scvi_qbm.samplers.base.Sampler.sample",
        "scvi_qbm.ising.Ising.from_boltzmann",
        "scvi_qbm.prior.boltzmann.BoltzmannPrior.W",
        "scvi_qbm.benchmark.run.run_benchmark",
    }
    assert public <= set(ITEMS)
    assert not any("SCVI" in name for name in ITEMS)
    assert all(not name.rsplit(".", 1)[1].startswith("_") for name in ITEMS)


GOOD = '''
def good(x: int, *rest: int, **options: int) -> int:
    """One more.

    Parameters
    ----------
    x
        A number.
    *rest, **options
        Not used, see :func:`len` and ``len``.

    Returns
    -------
    int
        x + 1.

    Raises
    ------
    ValueError
        If x is 3.
    KeyError
        Where a helper raises it.
    """
    if x == 3:
        raise ValueError
    _helper()
    return x + 1

def _helper() -> None:
    raise KeyError("k")
'''
X = "x\n        A number.\n"
RETURNS = "    Returns\n    -------\n    int\n        x + 1.\n\n"
FAULTS = {
    "no docstring": (re.search(r'    """.+?"""\n', GOOD, re.DOTALL)[0], ""),
    "no summary": ("One more.\n\n", "\n\n"),
    "Parameters: missing ['x']": (f"    {X}", ""),
    "Parameters: missing ['*rest']": ("*rest, **options", "**options"),
    "Parameters: unknown ['y']": (X, X + "    y\n        Another.\n"),
    "Parameters: not in the order": ("*rest, **options", "**options, *rest"),
    "Parameters: 'x' has no description": ("        A number.\n", ""),
    "Parameters: 'x' is described by its own name": ("A number.", "The x."),
    "Returns: missing, the annotation is int": (RETURNS, ""),
    "Returns: 'int' has no description": ("        x + 1.\n", ""),
    "Returns: 'The sum of two numbers.' is no type": (
        "    int\n",
        "    The sum of two numbers.\n",
    ),
    "Returns: 'str', where the annotation is int": ("    int\n", "    str\n"),
    "Raises: missing ValueError": ("    ValueError\n        If x is 3.\n", ""),
    "Raises: missing KeyError": ("    KeyError\n        Where a helper raises it.\n", ""),
    "Raises: 'ValueError' has no description": ("        If x is 3.\n", ""),
    "single backticks": ("``len``", "`len`"),
}
GOOD_CLASS = '''
class Good:
    """A pair.

    Parameters
    ----------
    a, b
        Numbers.

    Raises
    ------
    ValueError
        If a is b.
    """
    def __init__(self, a: int, b: int) -> None:
        if a == b:
            raise ValueError

    @property
    def both(self) -> tuple[int, int]:
        """Both numbers."""
        return 1, 2

    @staticmethod
    def zero() -> None:
        """Do nothing."""
'''
CLASS_FAULTS = {
    "Parameters: missing ['b']": ("a, b", "a"),
    "Parameters: unknown ['c']": ("a, b", "a, b, c"),
    "Raises: missing ValueError": (
        "    Raises\n    ------\n    ValueError\n        If a is b.\n",
        "",
    ),
    "Good.both: no docstring": ('        """Both numbers."""\n', ""),
    "Good.both: a colon": ("Both numbers.", "Both: numbers."),
}


GOOD_HEIR = '''
import collections

class Base:
    """One that says it all."""
    def more(self, x: int) -> None:
        """Do more.

        Parameters
        ----------
        x
            A number.
        """

class Heir(Base, collections.Counter):
    """One that says what is new."""
    def more(self, x: int) -> None:
        raise NotImplementedError

    def elements(self, *args: int) -> None:
        pass
'''
HEIR_FAULTS = {
    "Heir.more: no docstring, and the inherited one does not know ['y']": (
        "x: int) -> None:\n        raise",
        "x: int, y: int) -> None:\n        raise",
    ),
    "Heir.elements: no docstring, and the inherited one does not know ['x']": (
        "self, *args: int",
        "self, x: int",
    ),
    "Heir.others: no docstring": ("elements", "others"),
    "Heir.more: Parameters: missing ['x']": (
        "        raise NotImplementedError",
        '        """Do much more."""',
    ),
    "no docstring": ('    """One that says what is new."""\n', ""),
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Faults of everything public in a module of this source."""

    def make(source):
        name = "made_up_module"
        (tmp_path / f"{name}.py").write_text(f"from __future__ import annotations\n{source}")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(sys.modules[__name__], "PACKAGE", name)
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        monkeypatch.setitem(sys.modules, name, module)
        out = []
        for key, obj in vars(module).items():
            if key.startswith("_") or not ours(obj):
                continue
            out += [f"{key}: {f}" for f in faults(obj)]
            if inspect.isclass(obj):
                for name, *member in members_of(obj):
                    out += [f"{key}.{name}: {f}" for f in faults(*member)]
        return out

    return make


SOURCES = {
    "good": (GOOD, FAULTS),
    "Good": (GOOD_CLASS, CLASS_FAULTS),
    "Heir": (GOOD_HEIR, HEIR_FAULTS),
}


@pytest.mark.parametrize("source", [source for source, _ in SOURCES.values()], ids=SOURCES)
def test_a_complete_docstring_passes(made, source):
    assert made(source) == []


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, (_, all) in SOURCES.items() for fault in all]
)
def test_each_fault_is_found_by_itself(made, name, fault):
    source, all = SOURCES[name]
    old, new = all[fault]
    assert source.count(old) >= 1
    (found,) = made(source.replace(old, new, 1))
    assert found.removeprefix(f"{name}: ").startswith(fault)
