"""Cost of scoring one embedding: seconds of each group of scores, growth with cells, peak memory.

Gaussian clusters of 14 types in 9 batches, 64 dimensions. Run with ``OMP_NUM_THREADS=1``.
"""

from __future__ import annotations

import argparse
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from scvi_qbm.benchmark.metrics.scgraph import ScGraphReference
from scvi_qbm.benchmark.scores import GROUPS, Reference, score_embedding


def simulate(n_cells: int, n_dims: int = 64, seed: int = 0) -> tuple[np.ndarray, Reference]:
    rng = np.random.default_rng(seed)
    types = rng.choice(14, n_cells, p=rng.dirichlet(np.full(14, 5.0)))
    batch = rng.integers(9, size=n_cells)
    fine = 3 * types + rng.integers(3, size=n_cells)
    centres, finer = rng.normal(size=(14, n_dims)), 0.3 * rng.normal(size=(42, n_dims))
    shifts = rng.normal(size=(9, n_dims)) * 0.3
    noise = rng.normal(size=(n_cells, n_dims)) * 1.5
    x = centres[types] + finer[fine] + noise
    labels = np.array([f"t{t:02d}" for t in types])
    names = tuple(np.unique(labels))
    distances = np.linalg.norm(centres[:, None] - centres, axis=2)[: len(names), : len(names)]
    reference = Reference(
        labels=labels,
        batch=np.array([f"b{b}" for b in batch]),
        fine_labels=np.array([f"f{f:02d}" for f in fine]),
        unintegrated=(x + 3 * shifts[batch])[:, :50].astype(np.float32),
        scgraph=ScGraphReference(distances / distances.max(0), names, ("b0",), False),
        pseudotime=np.linalg.norm(x - centres[0], axis=1),
        trajectory_labels=labels,
    )
    return (x + shifts[batch]).astype(np.float32), reference


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(n_cells: int, n_dims: int, n_jobs: int) -> list[dict[str, float | str]]:
    """Twice in one process: the first run pays for imports and compilation (numba, JAX)."""
    x, reference = simulate(n_cells, n_dims)
    before, rows = peak_gb(), []
    for start in ("cold", "warm"):
        started = time.perf_counter()
        scores, _ = score_embedding(x, reference, n_jobs=n_jobs)
        row = {"cells": n_cells, "start": start, "total": time.perf_counter() - started}
        row |= {name: scores[f"seconds_{name}"] for name in ("neighbors", *GROUPS)}
        rows.append(row | {"before_gb": before, "peak_gb": peak_gb(), "errors": scores["errors"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[5000, 10_000, 20_000])
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmark/metrics_cost.csv"))
    args = parser.parse_args()
    rows = []
    for n_cells in args.cells:
        # A process of its own, so that its peak memory is its own.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            rows += process.submit(measure, n_cells, args.dims, args.n_jobs).result()
        table = pd.DataFrame(rows)
        print(table.tail(2).round(2).to_string(index=False), flush=True)
    if len(args.cells) > 1:
        warm = table[table["start"] == "warm"].astype({"cells": float})
        logs = {c: np.log(warm[c].astype(float)) for c in ("cells", "total", "neighbors", *GROUPS)}
        growth = {c: np.polyfit(logs["cells"], logs[c], 1)[0] for c in logs if c != "cells"}
        print("growth exponents:", {c: round(float(e), 2) for c, e in growth.items()})
        cold = table[table["start"] == "cold"].astype({"cells": float})
        per_cell = np.polyfit(cold["cells"], cold["peak_gb"], 1)[0] * 2**20
        print(f"memory: {per_cell:.0f} KiB a cell")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table.round(3).to_csv(args.out, index=False)


if __name__ == "__main__":
    main()
