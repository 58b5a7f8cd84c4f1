import importlib.util
import json
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))


def load_runner():
    spec = importlib.util.spec_from_file_location("execute", TUTORIALS / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_run(path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    load_runner().execute(path, quick=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_there_and_small(path):
    notebook = json.loads(path.read_text())
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert any(c["outputs"] for c in cells) and path.stat().st_size < 2e6
    assert not any(o["output_type"] == "error" for c in cells for o in c["outputs"])
    # The numbers and pictures kept are those of the full parameters.
    assert notebook["metadata"]["scvi_qbm"]["quick"]
    assert any("parameters" in c["metadata"].get("tags", []) for c in cells)
