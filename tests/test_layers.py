"""Who may import whom: left of the arrow may import right, and nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import scvi_qbm

ROOT = Path(scvi_qbm.__file__).parent
HEAVY = {
    "torch", "scvi", "lightning", "anndata", "scanpy", "sklearn", "matplotlib",
    "dimod", "dwave", "kaiwu", "openjij", "simulated_bifurcation",
}  # fmt: skip

# The one file that may import an optional back end.
BACK_ENDS = {
    "samplers/adapters/dimod.py": {"dimod", "openjij"},
    "samplers/adapters/kaiwu/worker.py": {"kaiwu"},
    "samplers/adapters/bifurcation.py": {"simulated_bifurcation", "torch"},
    "samplers/torch_tempering.py": {"torch"},
    "samplers/engine/torch_chains.py": {"torch"},
    "samplers/engine/torch_kernels.py": {"torch"},
}
# What imports by a string.
IMPORTERS = {"import_module", "__import__", "_require"}

# room -> (rooms of ours it may import, heavy packages it may import)
ALLOWED = {
    "__init__": ({"ising", "model", "samplers"}, set()),
    "cli": ({"__init__", "_fit", "benchmark", "samplers", "recipes", "relaxations", "data"},
            {"anndata", "torch"}),
    "_fit": ({"model", "_checks", "_files"}, {"anndata", "scvi"}),
    "benchmark": (
        {"__init__", "_checks", "_files", "model", "module", "distributions",
         "recipes", "data", "samplers", "pl", "diagnostics", "ising"},
        {"anndata", "scvi", "scanpy", "sklearn", "matplotlib", "torch", "lightning"},
    ),
    "model": (
        {"runner", "plan", "checkpoint", "module", "prior", "samplers", "ising",
         "landscape", "logz", "recipes", "relaxations", "data", "_checks", "_files"},
        {"anndata", "scvi", "torch"},
    ),
    "runner": (set(), {"scvi", "torch", "lightning"}),
    "checkpoint": ({"_files"}, {"scvi", "torch", "lightning"}),
    "plan": ({"module", "prior"}, {"scvi", "torch"}),
    "module": ({"prior", "relaxations", "encoders", "distributions"}, {"scvi", "torch"}),
    "encoders": ({"relaxations"}, {"scvi", "torch"}),
    "distributions": (set(), {"scvi", "torch"}),
    "landscape": ({"ising"}, set()),
    "prior": ({"samplers", "logz", "diagnostics", "ising"}, {"torch"}),
    "logz": ({"samplers", "ising"}, set()),
    "samplers": ({"diagnostics", "ising"}, set()),
    "diagnostics": ({"ising"}, set()),
    "relaxations": (set(), {"torch"}),
    "hub": ({"model"}, {"scvi"}),
    "pl": (set(), {"matplotlib"}),
    "recipes": (set(), set()),
    "data": (set(), {"anndata", "scanpy", "scvi", "torch"}),
    "_checks": (set(), {"anndata"}),
    "_files": (set(), set()),
    "ising": (set(), set()),
}  # fmt: skip


def called(node):
    return getattr(node.func, "id", getattr(node.func, "attr", None))


def imports(path):
    """``(top-level package, room of ours or None)`` of every import in a file, nested ones too."""
    package = ["scvi_qbm", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            is_package = stem == "scvi_qbm"
            names = [f"{stem}.{a.name}" if is_package else stem for a in node.names]
        elif isinstance(node, ast.Call) and node.args and called(node) in IMPORTERS:
            parts = ast.walk(node.args[0])
            strings = (p.value for p in parts if isinstance(p, ast.Constant))
            names = [s for s in strings if isinstance(s, str) and s[:1].isidentifier()][:1]
        else:
            continue
        for name in names:
            parts = name.split(".")
            room = None
            if parts[0] == "scvi_qbm":
                room = parts[1] if len(parts) > 1 and (ROOT / parts[1]).exists() else None
                if room is None:
                    known = len(parts) > 1 and (ROOT / f"{parts[1]}.py").exists()
                    room = parts[1] if known else "__init__"
            yield parts[0], room


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_run_downwards(path):
    path = ROOT / path
    room = room_of(path)
    ours, heavy = ALLOWED[room]
    heavy = heavy | BACK_ENDS.get(path.relative_to(ROOT).as_posix(), set())
    for package, target in imports(path):
        if package == "scvi_qbm":
            assert target == room or target in ours, f"{room} must not import {target}"
        elif package in HEAVY:
            assert package in heavy, f"{room} must not import {package}"


def test_a_planted_violation_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", ROOT)
    bad = ROOT / "samplers" / "exact.py"
    source = """
from scvi_qbm.model import QBMVI
from ..prior import BoltzmannPrior
import torch
import_module("dimod")
importlib.import_module("kaiwu." + name)
_require("dwave.samplers")
get_sampler("openjij")
"""
    monkeypatch.setattr(Path, "read_text", lambda self, *a: source)
    assert list(imports(bad)) == [
        ("scvi_qbm", "model"),
        ("scvi_qbm", "prior"),
        ("torch", None),
        ("dimod", None),
        ("kaiwu", None),
        ("dwave", None),
    ]


@pytest.mark.parametrize(("name", "packages"), BACK_ENDS.items())
def test_back_ends_are_where_they_are_said_to_be(name, packages):
    assert packages <= {package for package, _ in imports(ROOT / name)}


def test_every_room_exists():
    rooms = {room_of(path) for path in ROOT.rglob("*.py")}
    assert rooms == set(ALLOWED)


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
