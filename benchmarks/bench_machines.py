"""The table of docs/kaiwu.md: what a machine is worth in training. Run by ``make bench-machines``.

    python benchmarks/bench_machines.py [--sets a,b] [--seeds 0,1,2] [--data ../shared/data]
        [--out machines-output]

Machines: independent tempered chains, in the place of a perfect one; our CIM; simulated annealing
that ends at temperature 1; and random spins. Settings: the default, where
Gibbs sweeps go on from rare draws, and a draw at every step with ten sweeps, one or none after
it. Values: nats a cell on the held-out cells, beside training with the default sampler. Rows are
kept as they are measured; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scvi

from scvi_qbm import QBMVI
from scvi_qbm.benchmark.rows import Rows
from scvi_qbm.data import pbmc68k
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import Sampler, get_sampler

REPORT = ("beta_drawn", "drawn_distance", "machine_share", "n_draws", "energy_gap")
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "each step, 10 sweeps": {"redraw_every": 1, "n_burn_in": 0, "n_sweeps": 10},
    "each step, 1 sweep": {"redraw_every": 1, "n_burn_in": 0, "n_sweeps": 1},
    "each step, none": {"redraw_every": 1, "n_burn_in": 0, "n_sweeps": 0},
}


class Machine(Sampler):
    """Another sampler, of which nothing is promised."""

    name, guarantee = "machine", "heuristic"

    def __init__(self, source: Sampler) -> None:
        self.source = source

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[np.ndarray, dict[str, Any]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = self.source.sample(ising, beta, n_samples, int(entropy.generate_state(1)[0]))
        return out.spins, {}


class Noise(Sampler):
    """Random spins."""

    name, guarantee = "noise", "heuristic"

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[np.ndarray, dict[str, Any]]:
        coins = np.random.default_rng(entropy).integers(0, 2, (n_samples, ising.n_spins))
        return (2 * coins - 1).astype(np.int8), {}


def machines() -> dict[str, Sampler]:
    tempering = get_sampler("parallel_tempering", n_chains=64, n_burn_in=100, n_threads=1)
    return {
        "perfect": Machine(tempering),
        "CIM": get_sampler("cim"),
        "annealing": get_sampler("simulated_annealing"),
        "noise": Noise(),
    }


def trained(adata: Any, seed: int, max_epochs: int | None, **options: Any) -> dict[str, float]:
    scvi.settings.seed = seed
    start = time.process_time()
    model = QBMVI(adata, **options)
    model.train(max_epochs=max_epochs, enable_progress_bar=False)
    row = {
        "elbo": float(model.get_elbo(indices=model.validation_indices)),
        "ll": float(model.get_marginal_ll(indices=model.validation_indices, n_mc_samples=100)),
        "cpu": time.process_time() - start,
    }
    history = model.history
    return row | {k: float(history[k].iloc[-1, 0]) for k in REPORT if k in history}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=lambda x: x.split(","), default=["pbmc68k", "10x"])
    parser.add_argument("--seeds", type=lambda x: [int(s) for s in x.split(",")], default=[0, 1])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("machines-output"))
    args = parser.parse_args()
    os.environ.setdefault("SCVI_QBM_DATA_DIR", str(args.data))
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = Rows(args.out, "machines")
    for seed in args.seeds:
        for name in args.sets:
            adata, key = load(name, args.data)
            QBMVI.setup_anndata(adata, batch_key=key)
            plan: list[tuple[str, str, dict[str, Any]]] = [("none", "tempering", {})]
            for setting, options in SETTINGS.items():
                for machine, sampler in machines().items():
                    given = {"sampler": sampler, **options}
                    both = {"sampler": "corrected", "sampler_options": given}
                    plan.append((machine, setting, both if options else {"sampler": sampler}))
            for machine, setting, options in plan:
                row = {"data": name, "seed": seed, "machine": machine, "setting": setting}
                if row not in rows:
                    rows.add(row, trained(adata, seed, args.epochs, **options))
    frame = rows.frame()
    frame.to_csv(args.out / "machines.csv", index=False)
    base = frame[frame.machine == "none"].set_index(["data", "seed"])["elbo"]
    frame["cost"] = (
        base.loc[list(zip(frame.data, frame.seed, strict=True))].to_numpy() - frame.elbo
    )
    values = frame[frame.machine != "none"].groupby(["setting", "machine"], sort=False)
    print(values[["cost", "beta_drawn", "drawn_distance", "machine_share", "cpu"]].mean().round(2))
    print(frame.pivot_table("cost", ["setting", "machine"], ["data"], sort=False).round(2))


def load(name: str, folder: Path) -> tuple[Any, str | None]:
    if name == "pbmc68k":
        adata = pbmc68k()
        adata.X = adata.layers["counts"]
        return adata, None
    import anndata

    return anndata.read_h5ad(folder / "pbmc_10x_3techs.h5ad"), "batch"


if __name__ == "__main__":
    main()
