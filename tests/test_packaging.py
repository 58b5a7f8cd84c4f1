"""The files that describe the package say the same."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RECIPE = yaml.safe_load((ROOT / "packaging/conda/recipe.yaml").read_text())
ENTRY = yaml.safe_load((ROOT / "packaging/scverse/meta.yaml").read_text())
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
CONDA_NAMES = {"igraph": "python-igraph", "matplotlib": "matplotlib-base", "torch": "pytorch"}


@pytest.mark.parametrize(
    "said", [RECIPE["context"]["version"], ENTRY["version"], CITATION["version"]]
)
def test_one_version(said):
    assert said == PROJECT["version"]


def test_conda_needs_what_pip_needs():
    ours = [re.match(r"([\w-]+)(.*)", d).groups() for d in PROJECT["dependencies"]]
    ours = {(CONDA_NAMES.get(name, name), limit) for name, limit in ours}
    conda = [d.split() for d in RECIPE["requirements"]["run"] if not d.startswith("python ")]
    assert {(name, limit) for name, limit in conda} == ours
    scripts = [f"{name} = {target}" for name, target in PROJECT["scripts"].items()]
    assert RECIPE["build"]["python"]["entry_points"] == scripts


def test_the_ecosystem_entry_is_complete():
    # The required fields of scverse/ecosystem-packages, schema.json.
    wanted = {"name", "description", "project_home", "documentation_home", "install", "license",
              "tags", "version", "contact"}  # fmt: skip
    assert wanted <= set(ENTRY)
    assert ENTRY["license"] == PROJECT["license"] == RECIPE["about"]["license"]
    assert ENTRY["install"]["pypi"] == PROJECT["name"] == RECIPE["package"]["name"]
    assert ENTRY["project_home"] == PROJECT["urls"]["Source"]


def test_workflows_run_the_targets_there_are():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert yaml.safe_load(path.read_text())["jobs"], path.name
        for target in re.findall(r"make ([a-z-]+)", path.read_text()):
            assert target in targets, f"{path.name}: make {target}"


def test_readme_says_what_support_there_is():
    assert "## Support" in (ROOT / "README.md").read_text()
