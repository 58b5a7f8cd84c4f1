"""The paper's Figure 2, measured: distribution, reweighting, optima and time per sample.

Rows go to ``DIR/PART.jsonl`` as they are measured, each with its key, so that an interrupted run
goes on where it stopped; ``DIR/PART.csv`` and ``DIR/PART.png`` are made from them.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray
from rich.progress import track

from scvi_qbm._files import alone_in, replacing
from scvi_qbm.benchmark.rows import Rows
from scvi_qbm.benchmark.sampling.instances import sherrington_kirkpatrick
from scvi_qbm.benchmark.sampling.optimum import optimum
from scvi_qbm.benchmark.sampling.pictures import (
    draw_distribution,
    draw_optimum,
    draw_reweighting,
    draw_time,
)
from scvi_qbm.benchmark.sampling.solvers import SOLVERS, Solver, available, run_solver
from scvi_qbm.diagnostics import effective_beta, effective_sample_size, total_variation
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import get_sampler
from scvi_qbm.samplers.exact import all_energies, boltzmann_distribution

F64 = NDArray[np.float64]

# How each sampler is run where its distribution is in question; `dwave SA` where it is installed.
DISTRIBUTION: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("exact", {}),
    "PT": ("parallel_tempering", {"n_chains": 64, "n_sweeps": 10}),
    "Gibbs": ("gibbs", {"n_chains": 256, "n_sweeps": 20}),
    "SA": ("simulated_annealing", {"n_sweeps": 200}),
    "CIM mean field": ("cim", {}),
    "CIM corrected": ("corrected", {"sampler": "cim", "n_chains": 1000, "n_burn_in": 20}),
    "CIM CAC": ("cim_cac", {"n_steps": 500}),
    "CIM Gaussian": ("cim_gaussian", {}),
    "CAC corrected": ("corrected", {"sampler": "cim_cac", "n_chains": 1000, "n_burn_in": 20}),
    "dwave SA": ("dwave_annealing", {"n_sweeps": 200}),
}


def _distribution_samplers() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, (sampler, options) in DISTRIBUTION.items():
        if name not in SOLVERS or name in available():
            yield name, sampler, options


def trained_machine(directory: Path, n_latent: int, seed: int) -> Ising:
    """The prior of a QBMVI trained on the 700 cells that scanpy ships; made once, then kept."""
    path = directory / f"trained_{n_latent}_{seed}.npz"
    if not path.exists():
        import scvi

        from scvi_qbm.data import pbmc68k
        from scvi_qbm.model import QBMVI

        scvi.settings.seed = seed
        adata = pbmc68k()
        QBMVI.setup_anndata(adata, layer="counts")
        model = QBMVI(adata, n_latent=n_latent)
        model.train(enable_progress_bar=False)
        W, h = model.module.prior.parameters_numpy()
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, W=W, h=h)
    with np.load(path) as stored:
        return Ising.from_boltzmann(stored["W"], stored["h"])


def distribution(directory: Path, *, quick: bool, seed: int) -> pd.DataFrame:
    """Part (b): log-frequency of states against their energy, where every state can be listed."""
    rows = Rows(directory, "distribution")
    n, n_samples = (12, 4000) if quick else (16, 50_000)
    models = {
        "random": _random(n, seed),
        "trained": trained_machine(directory, n, seed),
    }
    for label, ising in models.items():
        energies, exact = all_energies(ising), boltzmann_distribution(ising)
        for name, sampler, options in _distribution_samplers():
            key = {"model": label, "sampler": name, "n_spins": n, "seed": seed}
            if key in rows:
                continue
            spins = _quiet_sample(sampler, options, ising, 1.0, n_samples, seed)
            index = (spins > 0) @ (1 << np.arange(n))
            counts = np.bincount(index, minlength=2**n)
            # States by what is expected, not by what was seen: that would flatter rare ones.
            seen = np.flatnonzero(exact * n_samples >= 10)
            seen = seen[np.argsort(-exact[seen])]
            frequency = np.log((counts[seen] + 0.5) / n_samples)
            slope, r = _weighted_line(-energies[seen], frequency, exact[seen])
            distance, floor = total_variation(spins, exact)
            rows.add(
                key,
                {
                    "slope": slope,
                    "r": r,
                    "n_samples": n_samples,
                    "n_states": len(seen),
                    "effective_beta": effective_beta(ising, spins)[0],
                    "total_variation": distance,
                    "floor": floor,
                    "energies": energies[seen].round(4).tolist()[:2000],
                    "log_frequency": frequency.round(4).tolist()[:2000],
                    "log_p": np.log(exact[seen]).round(4).tolist()[:2000],
                },
            )
    return rows.frame()


def _random(n: int, seed: int) -> Ising:
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(size=(n, n)) * 0.4, 1)
    return Ising(upper + upper.T, rng.normal(size=n) * 0.3)


def _quiet_sample(
    sampler: str, options: dict[str, Any], ising: Ising, beta: float, n: int, seed: int
) -> NDArray[np.int8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return get_sampler(sampler, **options).sample(ising, beta, n, seed=seed).spins


def _weighted_line(x: F64, y: F64, weight: F64) -> tuple[float, float]:
    """Slope and correlation of weighted points."""
    (xx, xy), (_, yy) = np.cov(x, y, aweights=weight)
    return xy / xx, xy / math.sqrt(xx * yy) if yy > 0 else math.nan


def energy_slope(cold: F64, hot: F64) -> tuple[float, float]:
    r"""Difference of inverse temperatures that two sets of energies show, and its standard error.

    For Boltzmann samples :math:`\log P_2(E)/P_1(E)` is a line in E of slope
    :math:`\beta_1 - \beta_2`, whatever the density of states; fitted by logistic regression.
    """
    x = np.concatenate([cold, hot])
    y = np.concatenate([np.ones(len(cold)), np.zeros(len(hot))])
    centre, scale = x.mean(), x.std() or 1.0
    design = np.stack([np.ones_like(x), (x - centre) / scale], axis=1)
    w = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ w, -30, 30)))
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-9 * np.eye(2)
        move = np.linalg.solve(hessian, design.T @ (y - p))
        w += move
        if np.abs(move).max() < 1e-9:
            break
    return float(-w[1] / scale), float(np.sqrt(np.linalg.inv(hessian)[1, 1]) / scale)


def reweighting(directory: Path, *, quick: bool, seed: int) -> pd.DataFrame:
    """Part (b) at 1,024 spins, where no state is seen twice: energies at two temperatures."""
    rows = Rows(directory, "reweighting")
    n, n_samples = (128, 400) if quick else (1024, 1000)
    ising = sherrington_kirkpatrick(n, seed)
    # One standard deviation of the energy between the two, so that the histograms overlap.
    step = 1.0 / math.sqrt(n / 2)
    for beta in (0.8, 1.2):
        for name, sampler, options in _distribution_samplers():
            key = {"beta": beta, "sampler": name, "n_spins": n, "seed": seed}
            if key in rows or name == "exact":
                continue
            if sampler == "parallel_tempering":
                options = {"n_chains": 100, "n_sweeps": 50, "n_burn_in": 2000}
            if sampler == "gibbs":
                options = {"n_chains": n_samples, "n_burn_in": 2000}
            start = time.perf_counter()
            sets = [
                ising.energy(_quiet_sample(sampler, options, ising, b, n_samples, seed + k))
                for k, b in enumerate((beta + step, beta))
            ]
            slope, error = energy_slope(*sets)
            if sampler == "parallel_tempering":
                sizes = [effective_sample_size(x.reshape(-1, 100).T) for x in sets]
                error *= math.sqrt(n_samples / min(sizes))
            rows.add(
                key,
                {
                    "delta_beta": step,
                    "ratio": slope / step,
                    "ratio_se": error / step,
                    "mean_energy": float(sets[1].mean() / n),
                    "seconds": time.perf_counter() - start,
                },
            )
    return rows.frame()


def _at_equal_quality(
    solver: Solver, ising: Ising, beta: float, level: float, seed: int
) -> tuple[int, float, float]:
    """Least effort whose states reach a mean energy: effort, seconds a sample, mean energy."""
    options = {"end": "target"} if solver.sampler == "simulated_annealing" else {}
    if solver.needs in ("dwave.samplers", "openjij"):
        options = {"beta_range": (0.1, 1.0)}
    effort, mean, each = 10, math.inf, 0.0
    # So many that the mean energy is known to a fraction of the tolerance.
    n_samples = 1024 if ising.n_spins <= 64 else 256
    while effort <= 50_000:
        run_solver(solver, ising, effort, 2, seed, beta, **options)
        energies, took = run_solver(solver, ising, effort, n_samples, seed + 1, beta, **options)
        mean, each = float(energies.mean()), took / len(energies)
        if mean <= level:
            return effort, each, mean
        if took > 60:
            break
        effort *= 2
    return effort, math.inf, mean


def per_sample(directory: Path, *, quick: bool, seed: int) -> pd.DataFrame:
    """Part (d): seconds a sample at 33 to 1,025 spins (the ancilla included), SK with fields.

    Heuristics get the least effort (doubled from 10) whose states reach, within 1 %, the mean
    energy of equilibrium at beta = 2 or a lower one: equal depth, not an equal distribution.
    Parallel tempering counts effective samples of the distribution, by the slower of energy and
    overlap, with and without its burn-in.
    """
    rows = Rows(directory, "time")
    beta = 2.0
    for n in (32, 64) if quick else (32, 64, 256, 512, 1024):
        ising = sherrington_kirkpatrick(n, seed, field_sd=0.1)
        key = {"n_spins": n + 1, "sampler": "PT", "seed": seed}
        if key not in rows:
            options = {"n_chains": 32, "n_burn_in": 2000, "n_sweeps": 5, "n_threads": 1}
            sampler = get_sampler("parallel_tempering", **options)
            sampler.sample(ising, beta, 64, seed=seed)
            start = time.perf_counter()
            sampler.sample(ising, beta, 32, seed=seed)
            burn_in = time.perf_counter() - start
            start = time.perf_counter()
            out = sampler.sample(ising, beta, 3200, seed=seed)
            took = time.perf_counter() - start
            # The slowest of energy and overlap counts: an energy decorrelates within a valley.
            mode = np.linalg.eigh(ising.J)[1][:, -1]
            size = min(
                effective_sample_size(x.reshape(-1, 32).T)
                for x in (out.energies, out.spins @ np.sign(mode))
            )
            rows.add(
                key,
                {
                    "seconds": (took - burn_in) / size,
                    "seconds_with_burn_in": took / size,
                    "mean_energy": float(out.energies.mean()),
                    "effort": float(size),
                    "rhat": out.info["rhat_energy"],
                },
            )
        reference = (rows.find(key) or {})["mean_energy"]
        for name, solver in track(list(available().items()), f"{n} spins"):
            key = {"n_spins": n + 1, "sampler": name, "seed": seed}
            if key in rows or name == "spectral":
                continue
            effort, each, mean = _at_equal_quality(
                solver, ising, beta, reference + 0.01 * abs(reference), seed
            )
            rows.add(key, {"seconds": each, "effort": effort, "mean_energy": mean})
    return rows.frame()


#: Part of the sampling benchmark -> what measures it, or goes on where it stopped, and draws it.
PARTS: dict[str, tuple[Callable[..., pd.DataFrame], Callable[..., Sequence[Axes]]]] = {
    "distribution": (distribution, draw_distribution),
    "reweighting": (reweighting, draw_reweighting),
    "optimum": (optimum, draw_optimum),
    "time": (per_sample, draw_time),
}


def run_sampling(directory: Path, *, parts: list[str], quick: bool, seed: int) -> None:
    """Measure parts, or go on with them, and write tables and pictures."""
    with alone_in(directory, "benchmarking"):
        _run_parts(directory, parts, quick=quick, seed=seed)


def _run_parts(directory: Path, parts: list[str], *, quick: bool, seed: int) -> None:
    for part in parts:
        measure, draw = PARTS[part]
        frame = measure(directory, quick=quick, seed=seed)
        lists = [c for c in frame if frame[c].map(lambda v: isinstance(v, list)).any()]
        frame.drop(columns=lists).to_csv(directory / f"{part}.csv", index=False)
        axes = draw(frame)
        axes[0].figure.savefig(directory / f"{part}.png", dpi=150)
        print(frame.drop(columns=lists).to_string(index=False, float_format=lambda v: f"{v:.3g}"))
