"""The code in README, docs and docstrings runs as it stands."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SRC = ROOT / "src"
EXAMPLES = [p.relative_to(SRC) for p in sorted(SRC.rglob("*.py")) if ">>> " in p.read_text()]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.long
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_python_blocks(page, monkeypatch, tmp_path):
    from scvi_qbm.samplers import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    namespace = {}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), namespace)
    if page.name == "README.md":
        assert namespace["adata"].obsm["X_qbmvi"].shape == (700, 64)
        assert 0 < namespace["model"].get_log_partition().standard_error < 0.1


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("path", EXAMPLES, ids=str)
def test_docstring_examples(path):
    results = doctest.testmod(importlib.import_module(".".join(path.with_suffix("").parts)))
    assert results.attempted > 0 and results.failed == 0


# One term for each thing, and none that only the developers use.
AVOIDED = {
    r"\bhonest\w*": "say what was checked",
    r"\brooms?\b": "a part, or a module",
    r"what comes of it": "the result",
    r"\blaws?\b": "distribution",
    r"\b(better|held-out|validation) bounds?\b": "ELBO, or importance-weighted log-likelihood",
    r"\bin the place of\b": "instead of",
}


def check_words(name, text):
    text = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)
    for word, better in AVOIDED.items():
        found = re.search(rf".*{word}.*", text, flags=re.IGNORECASE)
        assert found is None, f"{name}: {found[0].strip()!r}: rather {better}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_words_that_stay_out(page):
    check_words(page.name, page.read_text())


def test_words_that_stay_out_of_docstrings():
    for path in sorted(SRC.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                check_words(path.relative_to(SRC), ast.get_docstring(node) or "")
