"""The tutorials' code runs, on small parameters, and their outputs are kept in the notebooks.

All notebooks run in this process, which has imported scvi already and has UMAP compiled once;
``make tutorials`` runs each in a kernel of its own.
"""

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))


def load_runner():
    spec = importlib.util.spec_from_file_location("execute", TUTORIALS / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """IPython with nothing in it, in an empty folder."""
    from scvi_qbm.samplers import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    # The shell puts a module of its own there.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    return InteractiveShell(user_ns={}, config=Config(HistoryManager={"enabled": False}))


SLOW = ("3_samplers", "4_ising_machines", "5_benchmark", "6_million_cells")


@pytest.mark.long
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow) if p.stem in SLOW else p for p in NOTEBOOKS],
    ids=lambda p: p.stem,
)
def test_cells_run(path, shell):
    for cell in load_runner().read(path, quick=True).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "root"),
    [("pbmc_10x_3techs", "HSC"), pytest.param("paul15_myeloid", "MEP", marks=pytest.mark.slow)],
)
def test_first_analysis_of_real_data(name, root, shell, shared_data):
    """Tutorial 1 on data with batches, to the end, without a warning of ours."""
    values = {"path": str(shared_data / f"{name}.h5ad"), "root_label": root, "max_epochs": 8}
    with warnings.catch_warnings(record=True) as caught:
        for cell in load_runner().read(TUTORIALS / "1_first_analysis.ipynb", quick=False).cells:
            if cell.cell_type == "code":
                shell.run_cell(cell.source).raise_error()
            if "parameters" in cell.metadata.get("tags", []):
                shell.user_ns.update(values)
            if "import scvi_qbm" in cell.source:
                warnings.simplefilter("always")
    ours = ("scvi_qbm", "ipython-input", "ipykernel")  # by stacklevel=2, the cell that called us
    assert not [str(w.message) for w in caught if any(x in w.filename for x in ours)]
    adata, new = shell.user_ns["adata"], shell.user_ns["new"]
    assert {"attractor", "leiden", "free_energy", "dpt_pseudotime"} <= set(adata.obs)
    assert new.n_obs == 500 and new.obs["attractor"].notna().all()
    assert shell.user_ns["both"].obsm["X_qbmvi"].shape[0] > adata.n_obs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_there_and_small(path):
    notebook = json.loads(path.read_text())
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert any(c["outputs"] for c in cells) and path.stat().st_size < 2e6
    assert not any(o["output_type"] == "error" for c in cells for o in c["outputs"])
    # The numbers and pictures kept are those of the full parameters.
    assert notebook["metadata"]["scvi_qbm"]["quick"]
    assert any("parameters" in c["metadata"].get("tags", []) for c in cells)
