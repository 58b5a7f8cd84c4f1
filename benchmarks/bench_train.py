"""Cost of a training epoch, negative phase and log Z included, against scvi.model.SCVI.

Both models have the same n_latent, n_hidden, n_layers, likelihood and batch size and train in
turn on the same data in one process; what counts is the ratio. Run by ``make bench-train``.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData, read_h5ad
from lightning.pytorch.callbacks import Callback
from scipy import sparse

from scvi_qbm import QBMVI
from scvi_qbm.samplers.engine import default_threads

KANG = Path(__file__).parents[2] / "shared/data/pbmc_kang_ctrl_8donors.h5ad"


def data() -> tuple[str, AnnData]:
    if KANG.exists():
        return KANG.stem, read_h5ad(KANG)
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.3, 1.0, size=(20, 1300))[rng.integers(20, size=12_000)]
    counts = sparse.csr_matrix(rng.poisson(rates).astype(np.float32))
    adata = AnnData(counts)
    adata.obs["batch"] = rng.choice(list("abcdefgh"), size=12_000)
    return "simulated, 12,000 x 1,300", adata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="rounds, SCVI and QBMVI in each")
    parser.add_argument("--epochs", type=int, default=2, help="epochs a round")
    parser.add_argument("--warm-epochs", type=int, default=20, help="QBMVI epochs before timing")
    parser.add_argument("--n-latent", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--out", type=Path, default=Path("bench-output/train.csv"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    threads = default_threads()
    torch.set_num_threads(threads)
    name, adata = data()
    rows = []
    for n_latent in args.n_latent:
        models = {}
        for label, cls in (("SCVI", scvi.model.SCVI), ("QBMVI", QBMVI)):
            scvi.settings.seed = 0
            cls.setup_anndata(adata, batch_key="batch")
            models[label] = cls(adata, n_latent=n_latent, gene_likelihood="nb")
        options = {"enable_progress_bar": False, "early_stopping": False}
        # Validation every epoch for both: QBMVI's log Z is estimated there, as in real use.
        options["check_val_every_n_epoch"] = 1
        models["SCVI"].train(max_epochs=1, **options)
        # A trained machine needs more temperatures than a new one: time that.
        models["QBMVI"].train(max_epochs=args.warm_epochs, **options)
        for _ in range(args.rounds):
            row = {"data": name, "cells": adata.n_obs, "n_latent": n_latent, "threads": threads}
            for label, model in models.items():
                timer = Timer()
                kwargs = {"plan_kwargs": {"n_epochs_kl_warmup": None}} | options
                model.train(max_epochs=args.epochs, callbacks=[timer], **kwargs)
                row[label] = timer.seconds / args.epochs
            row["ratio"] = row["QBMVI"] / row["SCVI"]
            row["levels"] = models["QBMVI"].history["n_levels"].iloc[-1].item()
            rows.append(row)
    table = pd.DataFrame(rows)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out, index=False)
    summary = table.groupby("n_latent")[["SCVI", "QBMVI", "ratio", "levels"]].median()
    print(f"{name}, {adata.n_obs} cells, {threads} threads; medians of {args.rounds} rounds")
    print(summary.rename(columns={"SCVI": "SCVI s/epoch", "QBMVI": "QBMVI s/epoch"}).round(3))


class Timer(Callback):
    """Seconds from the first epoch's start to the last one's end, without set-up and tear-down."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer, plan):
        if trainer.current_epoch == 0:
            self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, plan):
        self.seconds = time.perf_counter() - self.start


if __name__ == "__main__":
    main()
