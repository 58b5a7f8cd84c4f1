"""The tables of logbook/training.md on the negative phase. Run by ``make bench-negative``.

    python benchmarks/bench_negative.py barrier|chains|sweeps [--data ../shared/data]

``barrier``: what a ladder starts from, on two trained priors. ``chains``: chains against sweeps at
256 units. ``sweeps``: energy gap and drift by machine size and sweeps a step.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

import numpy as np
import scanpy as sc
import scvi
import torch
from anndata import AnnData, read_h5ad

from scvi_qbm import QBMVI
from scvi_qbm.samplers import engine, get_sampler
from scvi_qbm.samplers.parallel_tempering import ParallelTempering


def trained(adata: AnnData, max_epochs: int, *, stop: bool = False, **kwargs) -> QBMVI:
    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata, **kwargs)
    options = {} if stop else {"early_stopping": False, "check_val_every_n_epoch": 1}
    model.train(max_epochs=max_epochs, enable_progress_bar=False, **options)
    return model


def barrier(data: Path) -> None:
    counts = read_h5ad(data / "pbmc_kang_ctrl_8donors.h5ad")
    logged = counts.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    for model in (trained(logged, 12, recipe="paper"), trained(counts, 40)):
        ising = model.prior.ising
        sampler = get_sampler("parallel_tempering", n_chains=32)
        chains = sampler.warm_up(sampler.init(ising, seed=0), 1500)
        means = np.zeros(ising.n_spins)
        for _ in range(50):
            means += sampler.spins(sampler.step(chains, 10)).mean(axis=0) / 50
        fields = np.arctanh(np.clip(means, -0.95, 0.95))
        bases = {"uniform": 0 * means, "fields": ising.b, "half": fields / 2, "means": fields}
        for name, base in bases.items():
            entropy = np.random.SeedSequence(1)
            chains = engine.start(ising, np.linspace(0, 1, 20), 32, entropy, base)
            chains = sampler.step(sampler.warm_up(chains, 1500), 500)
            total = (1 - chains.swap_rates).sum()
            print(f"{ising.n_spins} units, {name}: {total:.2f}, {chains.n_levels}", flush=True)


def sweeps(data: Path) -> None:
    for n_latent in (64, 256):
        for n_sweeps in (5, 20):
            model = trained(
                read_h5ad(data / "pbmc_10x_3techs.h5ad"),
                60,
                n_latent=n_latent,
                relaxation_beta=2.0,
                sampler_options={"n_sweeps": n_sweeps},
            )
            gap, drift = (
                model.history[k].to_numpy(float)[-20:].mean()
                for k in ("energy_gap", "log_z_drift")
            )
            bound = -float(model.get_elbo(indices=model.validation_indices))
            print(f"{n_latent} {n_sweeps}: {bound:.1f} {gap:.2f} {drift:.2f}", flush=True)


def chains(data: Path) -> None:
    """More chains with fewer sweeps: the same work, how honest, what share of the time?"""
    for n_chains, n_sweeps in ((16, 10), (128, 1), (128, 2), (64, 2), (128, 10)):
        options = {"n_chains": n_chains, "n_sweeps": n_sweeps, "n_threads": 1}
        spent: list[float] = []
        step = ParallelTempering.step

        def timed(*args, step=step, spent=spent):
            start = time.perf_counter()
            out = step(*args)
            spent.append(time.perf_counter() - start)
            return out

        ParallelTempering.step = timed
        start = time.perf_counter()
        adata = read_h5ad(data / "pbmc_10x_3techs.h5ad")
        model = trained(adata, 40, n_latent=256, relaxation_beta=2.0, sampler_options=options)
        total = time.perf_counter() - start
        ParallelTempering.step = step
        gap = model.history["energy_gap"].to_numpy(float)[-20:]
        drift = model.history["log_z_drift"].to_numpy(float)[-20:].mean()
        bound = -float(model.get_elbo(indices=model.validation_indices))
        levels = model.module.negative_phase.draws.chains.n_levels
        print(
            f"{n_chains} x {n_sweeps}: bound {bound:.1f}, gap {gap.mean():.2f} "
            f"(sd {gap.std():.2f}), drift {drift:.2f}, {levels} levels, "
            f"draw {1e3 * np.median(spent):.2f} ms of {1e3 * total / len(spent):.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=["barrier", "chains", "sweeps"])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    tables = {"barrier": barrier, "chains": chains, "sweeps": sweeps}
    tables[args.table](args.data)


if __name__ == "__main__":
    main()
