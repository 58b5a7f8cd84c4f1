"""Why trajectory conservation fails: see docs/evidence.md.

    python benchmarks/trajectory_probe.py bench-methods-output

For the embeddings of a benchmark's seed 0 on sets with a start of their trajectory: scIB's score
of the embedding as it is and through two functions of it, and the leading eigenvalue of the
diffusion map, which scanpy's pseudotime all but leaves out from 0.9994 on.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import scanpy as sc
from anndata import AnnData

from scvi_qbm.benchmark.config import DataSpec
from scvi_qbm.benchmark.data import load_data
from scvi_qbm.benchmark.scores import prepare_reference
from scvi_qbm.metrics.trajectory import trajectory_conservation

METHODS = ("qbmvi", "qbmvi_paper", "bernoulli", "gaussian", "scvi")


def views(method: str, embedding: np.ndarray) -> dict[str, np.ndarray]:
    out = {"as it is": embedding}
    if method in ("qbmvi", "qbmvi_paper", "bernoulli"):
        q = np.clip(embedding, 1e-6, 1 - 1e-6)
        out["arcsin sqrt q"] = np.arcsin(np.sqrt(q))
        out["logits within 3"] = np.clip(np.log(q / (1 - q)), -3, 3)
    return out


def leading(embedding: np.ndarray) -> float:
    cells = AnnData(embedding)
    sc.pp.neighbors(cells, use_rep="X")
    sc.tl.diffmap(cells)
    return float(cells.uns["diffmap_evals"][1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    known = DataSpec.__dataclass_fields__
    for name, info in json.loads((args.directory / "config.json").read_text())["data"].items():
        spec = DataSpec(**{k: v for k, v in info.items() if k in known})
        if spec.root_label is None:
            continue
        reference = prepare_reference(
            load_data(spec),
            layer=None,
            batch_key=spec.batch_key,
            label_key=spec.label_key,
            root_key=spec.root_key,
            root_label=spec.root_label,
        )
        for method in METHODS:
            path = args.directory / "embeddings" / name / method / "0.npz"
            if not path.exists():
                continue
            for view, x in views(method, np.load(path)["embedding"]).items():
                found = trajectory_conservation(
                    x, reference.pseudotime, reference.trajectory_labels
                )
                print(
                    f"| {name} | {method} | {view} | {found.score:.2f} | {leading(x):.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
