"""Where the time of a training step goes, SCVI and QBMVI; part of ``make bench-scale``.

    python benchmarks/profile_step.py bench-output/scale-data/cells_10000.h5ad --out profile.csv

By torch's profiler on one thread, which costs some time itself: read it as shares. Waiting for
negative samples is timed apart.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

import pandas as pd
import scvi
import torch
from anndata import read_h5ad
from torch.profiler import ProfilerActivity, profile

from scvi_qbm import QBMVI
from scvi_qbm.prior import NegativePhase

GROUPS = {
    "reading cells": ("enumerate(DataLoader)",),
    "log-gamma functions": ("aten::lgamma", "aten::digamma", "_CountTerms"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::matmul", "aten::bmm"),
    "batch norm, dropout, softmax": ("batch_norm", "dropout", "softmax", "bernoulli"),
    "Lightning and Adam, in Python": ("Optimizer.step",),
}


def group_of(name: str) -> str:
    return next((g for g, parts in GROUPS.items() if any(p in name for p in parts)), "elementwise")


def shares(model, n_epochs: int) -> pd.Series:
    """Milliseconds a step by group."""
    waited, collect = [0.0], NegativePhase.collect

    def timed(self):
        started = time.perf_counter()
        out = collect(self)
        waited[0] += time.perf_counter() - started
        return out

    options = {"enable_progress_bar": False, "early_stopping": False, "train_size": 1.0}
    NegativePhase.collect = timed
    try:
        with profile(activities=[ProfilerActivity.CPU]) as found:
            model.train(max_epochs=n_epochs, **options)
    finally:
        NegativePhase.collect = collect
    n_steps = n_epochs * -(-model.adata.n_obs // 128)
    out = pd.Series(0.0, index=[*GROUPS, "elementwise", "waiting for negative samples"])
    for event in found.key_averages():
        out[group_of(event.key)] += event.self_cpu_time_total / 1e3
    python = "Lightning and Adam, in Python"
    out[python] -= waited[0] * 1e3
    out["waiting for negative samples"] = waited[0] * 1e3
    return out / n_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench-output/scale/profile.csv"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    adata, columns = read_h5ad(args.data), {}
    for name, cls, n_latent in (
        ("SCVI 64", scvi.model.SCVI, 64),
        ("QBMVI 64", QBMVI, 64),
        ("QBMVI 256", QBMVI, 256),
    ):
        cls.setup_anndata(adata, batch_key="batch")
        model = cls(adata, n_latent=n_latent, gene_likelihood="nb")
        # A machine that has learned something needs more temperatures than a new one.
        model.train(max_epochs=10 if cls is QBMVI else 1, enable_progress_bar=False)
        columns[name] = shares(model, args.epochs)
    table = pd.DataFrame(columns)
    table.loc["step"] = table.sum()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table.round(2).rename_axis("ms a step").to_csv(args.out)
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
