"""The pages of the documentation hold every public name; `make docs` builds them."""

import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

import scvi_qbm
from scvi_qbm.cli import _parser

API = Path(__file__).parents[1] / "docs" / "api"
# The command line, which `scvi-qbm --help` documents.
COMMANDS = {"scvi_qbm.cli", "scvi_qbm.benchmark.commands"}


def public_modules():
    for info in pkgutil.walk_packages(scvi_qbm.__path__, "scvi_qbm."):
        if not re.search(r"\._", info.name) and info.name not in COMMANDS:
            yield info.name


def documented():
    """Full names on the pages."""
    out = set()
    for page in API.glob("*.md"):
        module = None
        for line in page.read_text().splitlines():
            if found := re.match(r"\.\. currentmodule:: ([\w.]+)", line):
                module = found[1]
            elif found := re.match(r"(?:   |\.\. autodata:: )(\w+)$", line):
                out.add(f"{module}.{found[1]}")
    return out


@pytest.mark.parametrize("name", public_modules())
def test_every_public_name_has_its_place(name):
    module = importlib.import_module(name)
    pages = documented()
    # Where a name is re-exported, one place is enough.
    there = {id(getattr(importlib.import_module(m), n)) for m, _, n in map(split, pages)}
    missing = [
        n
        for n in getattr(module, "__all__", ())
        if f"{name}.{n}" not in pages and id(getattr(module, n)) not in there
    ]
    assert not missing, f"not in docs/api: {', '.join(missing)}"


def split(name):
    return name.rpartition(".")


def test_pages_name_what_there_is():
    for module, _, name in map(split, documented()):
        assert name in importlib.import_module(module).__all__, f"{module} has no public {name}"


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
    """Command lines of ours in the shell blocks of a page."""
    for block in re.findall(r"```(?:console|bash)\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "scvi-qbm" in words:
                yield words[words.index("scvi-qbm") + 1 :]


@pytest.mark.parametrize("page", [p for p in PAGES if list(commands(p))], ids=lambda p: p.name)
def test_command_lines_are_understood(page):
    for words in commands(page):
        _parser().parse_args(words)


def test_a_command_that_does_not_exist_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```console\nscvi-qbm fit a.h5ad --out b.h5ad --colour red\n```")
    with pytest.raises(SystemExit):
        _parser().parse_args(next(commands(page)))
