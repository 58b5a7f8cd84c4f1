"""What the relaxation's noise costs in nats: the tables of docs/training.md. ``make bench-bound``.

    python benchmarks/bench_bound.py [--sets NAME ...] [--seeds 2] [--out bound-output]

QBMVI is trained once; held-out cells are then bounded with the relaxed code that it was trained
with (``noisy``) and with the mean of the code given its bits (``settled``, what every method of a
trained model does). ``--cells`` draws so many cells, all by default. Rows are kept as they come.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from pathlib import Path

import scvi
import torch

from scvi_qbm import QBMVI
from scvi_qbm.benchmark.config import DataSpec
from scvi_qbm.benchmark.data.specs import load_data, resolve
from scvi_qbm.benchmark.methods.common import budget
from scvi_qbm.benchmark.methods.vae import qbmvi
from scvi_qbm.benchmark.rows import Rows

SETS = {
    "pbmc_10x_3techs": None,
    "pancreas_panc8_small": None,
    "pancreas_endocrinogenesis_e15": None,
    "paul15_myeloid": 2000,
    "cellmix_lines_6batches_2kgenes": None,
    "pbmc_3k_4k_facs": 2000,
    "pbmc_kang_ctrl_8donors": None,
}


def bounds(model: QBMVI, kind: str) -> dict[str, float]:
    torch.manual_seed(0)
    cells = model.validation_indices
    elbo, error = model.get_elbo(indices=cells, n_samples=10, return_error=True)
    log_px = model.get_marginal_ll(indices=cells, n_mc_samples=100, n_mc_samples_per_pass=20)
    return {f"elbo_{kind}": elbo, f"se_{kind}": error, f"iw_{kind}": float(log_px)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--cells", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("bound-output"))
    args = parser.parse_args()
    os.environ.setdefault("SCVI_QBM_DATA_DIR", str(args.data))
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.WARNING
    rows = Rows(args.out, "noise")
    for seed in range(args.seeds):
        for name in args.sets:
            spec = DataSpec(name, max_cells=args.cells or None, n_top_genes=SETS[name])
            adata = load_data(resolve(spec))
            key = {"data": name, "cells": adata.n_obs, "seed": seed}
            if key in rows:
                continue
            batch = "batch" if adata.obs["batch"].nunique() > 1 else None
            epochs = budget(100, adata.n_obs)
            model = qbmvi(adata, batch_key=batch, seed=seed, max_epochs=epochs).model
            row = {"epochs": len(model.history["elbo_validation"])} | bounds(model, "settled")
            # Relaxed codes as in training, all else (dropout, batch norm) as after it.
            model.module.z_encoder._settle = lambda qz: qz
            rows.add(key, row | bounds(model, "noisy"))
    frame = rows.frame()
    frame.to_csv(args.out / "noise.csv", index=False)
    print(
        frame.groupby(["data", "cells"], sort=False).mean(numeric_only=True).round(2).to_string()
    )


if __name__ == "__main__":
    main()
