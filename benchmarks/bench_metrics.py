"""Cost of scoring one embedding: seconds of each group of scores, growth with cells, peak memory.

Gaussian clusters of 14 types in 9 batches, 64 dimensions. The first row is a cold start at the
smallest size: it pays for imports and compilation (numba, JAX), which the others do not, except
where JAX compiles again for another number of cells. Run with ``OMP_NUM_THREADS=1``.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

from scvi_qbm.benchmark.scores import GROUPS, Reference, score_embedding
from scvi_qbm.metrics.scgraph import ScGraphReference


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[5000, 10_000, 20_000])
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench-output/metrics.csv"))
    args = parser.parse_args()
    steps = [f"seconds_{name}" for name in ("neighbors", *GROUPS)]
    rows = []
    for i, n_cells in enumerate([args.cells[0], *args.cells]):
        x, reference = simulate(n_cells, args.dims)
        started = time.perf_counter()
        scores, _ = score_embedding(x, reference, n_jobs=args.n_jobs)
        total = time.perf_counter() - started
        row = {"cells": n_cells, "start": "cold" if i == 0 else "warm", "total": total}
        row |= {name.removeprefix("seconds_"): scores[name] for name in steps}
        row["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        row["errors"] = scores["errors"]
        rows.append(row)
        print(pd.DataFrame(rows[-1:]).round(2).to_string(index=False), flush=True)
    table = pd.DataFrame(rows)
    print(table.round(2).to_string(index=False))
    warm = table[table["start"] == "warm"]
    if len(warm) > 1:
        columns = ["total", "neighbors", *GROUPS]
        cells = np.log(warm["cells"].astype(float))
        growth = {c: np.polyfit(cells, np.log(warm[c].astype(float)), 1)[0] for c in columns}
        print("growth exponents:", {c: round(float(e), 2) for c, e in growth.items()})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out, index=False)


if __name__ == "__main__":
    main()
