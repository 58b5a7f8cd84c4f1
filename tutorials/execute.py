"""Execute the tutorials: ``python tutorials/execute.py [--quick] [name ...]``.

Without ``--quick`` outputs are written back into the notebooks. With it nothing is written, and
the parameters in a notebook's metadata, ``{"scvi_qbm": {"quick": {"max_epochs": 2}}}``, replace
those of its cell with the tag ``parameters``: the whole code on less work. So
tests/test_tutorials.py runs the cells, without a kernel. The last picture of the cell with the tag
``thumbnail`` goes to docs/_static/tutorials.
"""

import argparse
import base64
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent


def single_threaded() -> None:
    """Numba's first parallel kernel resets torch's threads, so both need the variable."""
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def notebooks() -> list[Path]:
    """All tutorials, in the order of their numbers."""
    return sorted(HERE.glob("*.ipynb"))


def read(path: Path, quick: bool) -> nbformat.NotebookNode:
    """A notebook, with its small parameters where ``quick``."""
    notebook = nbformat.read(path, as_version=4)
    if quick:
        smaller = notebook.metadata.get("scvi_qbm", {}).get("quick", {})
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += "".join(f"\n{name} = {value!r}" for name, value in smaller.items())
    return notebook


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run in a fresh kernel and an empty directory; the first failing cell raises."""
    with tempfile.TemporaryDirectory() as directory:
        client = NotebookClient(
            notebook, timeout=1800, resources={"metadata": {"path": directory}}
        )
        client.execute()


def thumbnail(notebook: nbformat.NotebookNode, path: Path) -> None:
    """A small copy of one picture, for docs/tutorials.md."""
    (cell,) = (c for c in notebook.cells if "thumbnail" in c.metadata.get("tags", []))
    pictures = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
    with Image.open(io.BytesIO(base64.b64decode(pictures[-1]))) as image:
        image.thumbnail((300, 150))
        image.save(HERE.parent / "docs" / "_static" / "tutorials" / f"{path.stem}.png")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="part of a notebook's name; default all")
    parser.add_argument("--quick", action="store_true", help="small parameters, nothing written")
    arguments = parser.parse_args()
    single_threaded()
    chosen = [
        p for p in notebooks() if not arguments.names or any(n in p.stem for n in arguments.names)
    ]
    if not chosen:
        parser.error(f"no tutorial is called {arguments.names}: {[p.stem for p in notebooks()]}")
    for path in chosen:
        start = time.perf_counter()
        notebook = read(path, arguments.quick)
        execute(notebook)
        if not arguments.quick:
            for cell in notebook.cells:
                cell.metadata.pop("execution", None)  # times of day, which differ every time
                # Other libraries' remarks and paths of this machine.
                kept = [o for o in cell.get("outputs", ()) if o.get("name") != "stderr"]
                if cell.cell_type == "code":
                    cell.outputs = kept
            nbformat.write(notebook, path)
            thumbnail(notebook, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
