"""Who may import whom.

``TABLE`` says of each room (a file or folder at the top of the package) which rooms and, behind
the bar, which heavy packages its files import, be it in a function or for type checkers only. It
is the whole truth: an import that it lacks fails, and so does an entry that nothing uses. A room
imports only rooms whose rows are below its own. A file with a row of its own does not count for
its room: that is how an optional package is held to one file.

To print the table as the sources have it now::

    python tests/test_layers.py
"""

import ast
import graphlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import scvi_qbm

TABLE = """
cli: __init__ _files _fit benchmark data recipes relaxations samplers | anndata torch
_fit: _checks _files _fit_report benchmark data model tl | anndata lightning scanpy scvi
_fit_report: benchmark data model pl | anndata matplotlib scanpy scvi
benchmark: __init__ _checks _files alignment data diagnostics distributions ising model module pl
    recipes runner samplers tl | anndata lightning matplotlib scanpy scvi sklearn torch
tl: _numbers model | anndata scanpy
hub: model | scvi
__init__: ising model samplers
model: _checks _files _numbers _signature alignment checkpoint data ising labelled_module
    labelled_plan landscape logz module novelty plan prior recipes relaxations runner samplers |
    anndata scvi torch
labelled_plan: labelled_module plan | scvi torch
plan: module prior recipes | scvi torch
labelled_module: _signature module prior samplers | scvi torch
module: _numbers _signature distributions encoders prior recipes relaxations samplers | scvi torch
prior: diagnostics ising logz samplers | torch
logz: _numbers diagnostics ising samplers
samplers: _files _jit _numbers diagnostics ising
samplers/adapters/bifurcation.py: _numbers ising | simulated_bifurcation torch
samplers/adapters/dimod.py: _numbers ising | dimod openjij
samplers/adapters/kaiwu/worker.py:  | kaiwu
samplers/adapters/to_dimod.py: _numbers ising | dimod
samplers/engine/torch_chains.py: ising | torch
samplers/engine/torch_kernels.py:  | torch
samplers/torch_tempering.py: ising | torch
encoders: relaxations | scvi torch
pl: _numbers | anndata matplotlib scanpy
data: _checks _jit _numbers | anndata scanpy scvi torch
landscape: _jit ising
runner: _files | lightning scvi torch
checkpoint: _files | lightning scvi torch
diagnostics: ising
novelty:  | sklearn
relaxations:  | torch
recipes:
distributions:  | scvi torch
alignment:  | sklearn torch
_signature:
_numbers:
_jit:
_files:
_checks:  | anndata
ising:
"""
HEAVY = set(
    "anndata dimod dwave kaiwu lightning matplotlib openjij scanpy scvi simulated_bifurcation "
    "sklearn torch".split()
)
IMPORTERS = {"import_module", "__import__", "require"}  # what imports by a string
MAX_LINES = 450

TESTS = Path(__file__).parent
ROOT = Path(scvi_qbm.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
ROWS = {
    name.strip(): set(used.replace("|", " ").split())
    for name, _, used in (
        line.partition(":") for line in TABLE.replace("\n    ", " ").strip().splitlines()
    )
}


def nodes(tree, functions):
    for child in ast.iter_child_nodes(tree):
        if functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from nodes(child, functions)


def imported(source, file="", *, functions=True):
    """Dotted names that a file's source imports; ``from a import b`` is ``a.b``."""
    package = ["scvi_qbm", *file.split("/")[:-1]]
    for node in nodes(ast.parse(source), functions):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, node.module] if node.module else base
            yield from (".".join([*stem, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", None))
            texts = (getattr(part, "value", None) for part in ast.walk(node.args[0]))
            texts = [text for text in texts if isinstance(text, str) and text[:1].isidentifier()]
            if name in IMPORTERS and texts:
                yield texts[0]


def file_of(name):
    """The file of ours that a dotted name comes from."""
    parts = name.split(".")[1:]
    while True:
        for file in ("/".join(parts) + ".py", "/".join([*parts, "__init__.py"])):
            if file in FILES:
                return file
        parts.pop()


def read(file):
    return (ROOT / file).read_text()


def room_of(file):
    return file.split("/")[0].removesuffix(".py")


def row_of(file):
    return file if file in ROWS else room_of(file)


def used_by(source, file):
    """Rooms other than its own, and heavy packages, that a file imports."""
    names = list(imported(source, file))
    ours = {room_of(file_of(name)) for name in names if name.split(".")[0] == "scvi_qbm"}
    return ours - {room_of(file)} | {name.split(".")[0] for name in names} & HEAVY


def present():
    """``row -> {what it imports: a file that does}``, from the sources."""
    found = {row_of(file): {} for file in FILES}
    for file in FILES:
        found[row_of(file)] |= dict.fromkeys(used_by(read(file), file), file)
    return found


def as_table(found):
    graph = {room_of(file): [] for file in FILES}
    for row, used in found.items():
        graph[room_of(row)] += sorted(used.keys() - HEAVY)
    order = list(graphlib.TopologicalSorter(graph).static_order())[::-1]
    lines = []
    for row in sorted(found, key=lambda row: (order.index(room_of(row)), "/" in row, row)):
        used = sorted(found[row])
        ours = " ".join(name for name in used if name not in HEAVY)
        heavy = " ".join(name for name in used if name in HEAVY)
        line = f"{row}: {ours} | {heavy}".rstrip(" |")
        lines.append(textwrap.fill(line, 99, subsequent_indent="    "))
    return "\n".join(lines)


def table_faults(found):
    """What to do to the table, in words."""
    for row in found.keys() | ROWS.keys():
        if row not in ROWS:
            yield f"add a row for {row}"
            continue
        if row not in found:
            yield f"delete the row of {row}: there is no such file or folder"
            continue
        for name in found[row].keys() - ROWS[row]:
            yield f"{found[row][name]} imports {name}: if it may, add that to the row of {row}"
        for name in ROWS[row] - found[row].keys():
            yield f"delete {name} from the row of {row}: nothing imports it"
    order = [row for row in ROWS if "/" not in row]
    for row, used in ROWS.items():
        below = order[order.index(room_of(row)) + 1 :] if room_of(row) in order else []
        for name in used - HEAVY - set(below):
            yield f"{row} may not import {name}, whose row is not below"


def test_imports_are_those_of_the_table():
    assert sorted(table_faults(present())) == []


@pytest.mark.parametrize(
    ("row", "change", "fault"),
    [
        ("samplers", {"torch"}, "nothing imports it"),
        ("ising", {"diagnostics"}, "whose row is not below"),
        ("logz", {"ising"}, "logz.py imports ising: if it may, add that"),
        ("no_room", set(), "there is no such file"),
        ("logz", None, "add a row for logz"),
    ],
)
def test_what_is_wrong_in_a_table_is_found(monkeypatch, row, change, fault):
    found = present()
    if change is None:
        monkeypatch.delitem(ROWS, row)
    else:
        monkeypatch.setitem(ROWS, row, ROWS.get(row, set()) ^ change)
    assert fault in "\n".join(table_faults(found))


def test_every_way_to_import_is_seen():
    source = """
from scvi_qbm.model import QBMVI
from ..prior import BoltzmannPrior
from .. import logz
if TYPE_CHECKING:
    import torch.nn as nn
def lazy():
    import_module("dimod")
    importlib.import_module("kaiwu." + name)
    require("dwave.samplers")
    get_sampler("openjij")
"""
    file = "samplers/exact.py"
    at_import = {"model", "prior", "logz", "torch"}
    assert used_by(source, file) == at_import | {"dimod", "kaiwu", "dwave"}
    names = list(imported(source, file, functions=False))
    assert {name.split(".")[0] for name in names} == {"scvi_qbm", "torch"}


def test_no_files_import_each_other():
    graph = {}
    for file in FILES:
        names = imported(read(file), file, functions=False)
        graph[file] = {file_of(name) for name in names if name.split(".")[0] == "scvi_qbm"}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("imports run in a circle: " + " <- ".join(error.args[1]))


def test_files_are_short_enough_to_read():
    lengths = {file: len(read(file).splitlines()) for file in FILES}
    assert {file: n for file, n in lengths.items() if n > MAX_LINES} == {}


def test_no_test_imports_another():
    """What tests share is in tests/support, conftest.py and the naive twins."""
    for path in TESTS.rglob("*.py"):
        names = imported(path.read_text())
        modules = {part for name in names for part in name.split(".")[:-1] or [name]}
        assert not [m for m in modules if m.startswith("test_") or m == "conftest"], path


def test_a_sampler_costs_neither_torch_nor_scvi():
    code = (
        "import sys, scvi_qbm, scvi_qbm.logz; scvi_qbm.list_samplers();"
        "scvi_qbm.get_sampler('parallel_tempering');"
        "print([m for m in ('torch', 'scvi', 'scanpy', 'sklearn', 'pandas') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names():
    assert set(scvi_qbm.__all__) <= set(dir(scvi_qbm))
    for name in scvi_qbm.__all__:
        assert getattr(scvi_qbm, name) is not None
    assert scvi_qbm.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no_such"):
        _ = scvi_qbm.no_such


if __name__ == "__main__":
    print(as_table(present()))
