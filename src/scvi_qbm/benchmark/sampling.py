"""The paper's Figure 2, measured: law, reweighting, optima and time per sample.

Rows go to ``DIR/PART.jsonl`` as they are measured, each with its key, so that an interrupted run
goes on where it stopped; ``DIR/PART.csv`` and ``DIR/PART.png`` are made from them.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import track

from scvi_qbm.diagnostics import effective_beta, effective_sample_size, total_variation
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import get_sampler
from scvi_qbm.samplers.exact import all_energies, boltzmann_law

from .instances import moebius_ladder, moebius_optimum, planted, sherrington_kirkpatrick
from .solvers import SOLVERS, Solver, available, run_solver

__all__ = ["PARTS", "Rows", "energy_slope", "run_sampling", "success_row", "wilson"]

F64 = NDArray[np.float64]

# How each sampler is run where its law is in question; `dwave SA` where it is installed.
LAW: dict[str, tuple[str, dict[str, Any]]] = {
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


class Rows:
    """Measured rows of one part, kept on disk as they come."""

    def __init__(self, directory: Path, part: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"{part}.jsonl"
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    self.rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break  # cut off while it was written: measured again

    def __contains__(self, key: dict[str, Any]) -> bool:
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.rows)

    def add(self, key: dict[str, Any], values: dict[str, Any]) -> None:
        """Append a row."""
        self.rows.append({**key, **values})
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        partial = self.path.with_suffix(".part")
        partial.write_text(text)
        partial.replace(self.path)

    def frame(self) -> pd.DataFrame:
        """All rows."""
        return pd.DataFrame(self.rows)


def _law_samplers() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, (sampler, options) in LAW.items():
        if name not in SOLVERS or name in available():
            yield name, sampler, options


def trained_machine(directory: Path, n_latent: int, seed: int) -> Ising:
    """The prior of a QBMVI trained on the 700 cells that scanpy ships; made once, then kept."""
    path = directory / f"trained_{n_latent}.npz"
    if not path.exists():
        import scvi

        from scvi_qbm.datasets import pbmc68k
        from scvi_qbm.model import QBMVI

        scvi.settings.seed = seed
        adata = pbmc68k()
        QBMVI.setup_anndata(adata, layer="counts")
        model = QBMVI(adata, n_latent=n_latent)
        model.train(enable_progress_bar=False)
        W, h = model.module.prior.parameters_numpy()
        np.savez(path, W=W, h=h)
    with np.load(path) as stored:
        return Ising.from_boltzmann(stored["W"], stored["h"])


def law(directory: Path, *, quick: bool, seed: int) -> pd.DataFrame:
    """Part (b): log-frequency of states against their energy, where every state can be listed."""
    rows = Rows(directory, "law")
    n, n_samples = (12, 4000) if quick else (16, 50_000)
    models = {
        "random": _random(n, seed),
        "trained": trained_machine(directory, n, seed),
    }
    for label, ising in models.items():
        energies, exact = all_energies(ising), boltzmann_law(ising)
        for name, sampler, options in _law_samplers():
            key = {"model": label, "sampler": name, "n_spins": n, "seed": seed}
            if key in rows:
                continue
            spins = _quiet_sample(sampler, options, ising, 1.0, n_samples, seed)
            index = (spins > 0) @ (1 << np.arange(n))
            counts = np.bincount(index, minlength=2**n)
            # States by what is expected, not by what was seen: that would flatter rare ones.
            seen = exact * n_samples >= 10
            frequency = np.log((counts[seen] + 0.5) / n_samples)
            slope, r = _weighted_line(-energies[seen], frequency, exact[seen])
            distance, floor = total_variation(spins, exact)
            rows.add(
                key,
                {
                    "slope": slope,
                    "r": r,
                    "n_states": int(seen.sum()),
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
    x, y = x - np.average(x, weights=weight), y - np.average(y, weights=weight)
    xx, xy, yy = (float((weight * a * b).sum()) for a, b in ((x, x), (x, y), (y, y)))
    return xy / xx, xy / math.sqrt(xx * yy) if yy > 0 else math.nan


def energy_slope(cold: F64, hot: F64) -> tuple[float, float]:
    r"""Difference of inverse temperatures that two sets of energies show, and its standard error.

    For Boltzmann samples :math:`\log P_2(E)/P_1(E)` is a line in E of slope
    :math:`\beta_1 - \beta_2`, whatever the density of states; fitted by logistic regression.

    Parameters
    ----------
    cold, hot
        Energies at the higher and at the lower inverse temperature, independent draws.

    References
    ----------
    Ferrenberg and Swendsen (1988), Phys. Rev. Lett. 61, 2635; Shirts (2013), JCTC 9, 909.
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
        for name, sampler, options in _law_samplers():
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


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a success rate (95 % by default)."""
    if trials == 0:
        return 0.0, 1.0
    p, spread = successes / trials, z * z / trials
    centre = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / trials + spread / trials / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def time_to_solution(rate: float, seconds: float) -> float:
    """Seconds to have seen the optimum with probability 0.99, at ``seconds`` a run."""
    if rate <= 0:
        return math.inf
    return seconds * max(1.0, math.log(0.01) / math.log1p(-min(rate, 1 - 1e-12)))


def _success(
    solver: Solver,
    ising: Ising,
    effort: int,
    ground: float,
    seconds: float,
    seed: int,
    batch: int | None = None,
) -> tuple[int, int, float, float]:
    """Successes, runs, seconds a run and the least energy within a budget of time."""
    run_solver(solver, ising, solver.efforts[0], 2, seed + 10_000_000)  # compile, warm caches
    successes = trials = 0
    spent, best, tolerance = 0.0, math.inf, 1e-6 * max(1.0, abs(ground))
    batch = solver.batch if batch is None else batch
    while spent < seconds:
        energies, took = run_solver(solver, ising, effort, batch, seed + trials)
        successes += int((energies <= ground + tolerance).sum())
        best = min(best, float(energies.min()))
        trials, spent = trials + batch, spent + took
        # A first batch tells how much fits into what is left.
        batch = int(np.clip(batch * (seconds - spent) / max(took, 1e-9), solver.smallest, 4096))
        if batch > 64:
            batch -= batch % 64
    return successes, trials, spent / trials, best


def success_row(
    solver: Solver, ising: Ising, ground: float, seconds: float, seed: int
) -> dict[str, Any]:
    """Tune the effort on one seed, measure the success rate on another, equal time for both.

    Efforts of which not even the smallest batch would fit are left out.
    """
    tuned: dict[int, float] = {}
    share, batch = seconds / len(solver.efforts), solver.batch
    batches: dict[int, int] = {}
    met: dict[int, int] = {}
    previous, each = solver.efforts[0], 0.0
    for effort in solver.efforts:
        expected = each * effort / max(previous, 1)
        if expected * solver.smallest > seconds:
            break
        if expected > 0:
            batch = int(np.clip(share / expected, solver.smallest, solver.batch))
        s, t, each, _ = _success(solver, ising, effort, ground, share, seed + 1_000_000, batch)
        # Half a success more than seen keeps efforts without any apart.
        tuned[effort] = time_to_solution((s + 0.5) / (t + 1), each)
        batches[effort], met[effort], previous = batch, s, effort
    # Where no effort met the optimum, the largest: less haste.
    effort = min(tuned, key=lambda e: tuned[e]) if any(met.values()) else max(tuned)
    successes, trials, each, best = _success(
        solver, ising, effort, ground, seconds, seed, batches[effort]
    )
    low, high = wilson(successes, trials)
    return {
        "budget": seconds,
        "effort": effort,
        "successes": successes,
        "runs": trials,
        "rate": successes / trials,
        "rate_low": low,
        "rate_high": high,
        "seconds_a_run": each,
        "tts99": time_to_solution(successes / trials, each),
        "tts99_low": time_to_solution(high, each),
        "tts99_high": time_to_solution(low, each),
        "best_energy": best,
        "ground_energy": ground,
    }


def _optimum_instances(
    directory: Path, quick: bool, seed: int
) -> Iterator[tuple[str, int, Ising, float]]:
    for n in (200,) if quick else (200, 400, 800, 1000):
        yield "Moebius", n, moebius_ladder(n), moebius_optimum(n)
    for n, alpha in ((64, 0.75),) if quick else ((64, 0.75), (128, 0.75)):
        yield "planted", n, *planted(n, alpha, seed)
    for n in (100,) if quick else (256, 512):
        ising = sherrington_kirkpatrick(n, seed)
        yield "SK", n, ising, _best_known(directory, ising, n, seed, 1 if quick else 60)


def _best_known(directory: Path, ising: Ising, n: int, seed: int, seconds: float) -> float:
    """Least energy of a long annealing with seeds of its own: no proof of optimality."""
    rows = Rows(directory, "best_known")
    key = {"n_spins": n, "seed": seed}
    if key not in rows:
        found = [
            _success(SOLVERS["SA"], ising, effort, -math.inf, seconds / 2, seed + 77_000_000)[3]
            for effort in (3000, 30_000)
        ]
        rows.add(key, {"energy": min(found)})
    return float(next(r["energy"] for r in rows.rows if key.items() <= r.items()))


def optimum(directory: Path, *, quick: bool, seed: int) -> pd.DataFrame:
    """Part (c): success rate and time to solution on Moebius ladders, planted and SK models."""
    rows = Rows(directory, "optimum")
    for family, n, ising, ground in _optimum_instances(directory, quick, seed):
        for name, solver in track(list(available().items()), f"{family} {n}"):
            key = {"family": family, "n_spins": n, "solver": name, "seed": seed}
            seconds = 0.3 if quick else 30.0 if n >= 800 else 8.0
            if key not in rows and (name != "spectral" or family == "Moebius"):
                rows.add(key, success_row(solver, ising, ground, seconds, seed))
    return rows.frame()


def _at_equal_quality(
    solver: Solver, ising: Ising, beta: float, level: float, seed: int
) -> tuple[int, float, float]:
    """Least effort whose states reach a mean energy; effort, seconds a sample, mean energy."""
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
    """Part (d): seconds a sample of equal quality at 33 to 1,025 spins (the ancilla included).

    Quality is the mean energy at beta = 2 on SK with fields: heuristics get the least effort
    (doubled from 10) whose states lie within 1 % of the equilibrium energy; parallel tempering
    counts effective samples, with and without its burn-in.
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
            size = effective_sample_size(out.energies.reshape(-1, 32).T)
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
        reference = next(r for r in rows.rows if key.items() <= r.items())["mean_energy"]
        for name, solver in track(list(available().items()), f"{n} spins"):
            key = {"n_spins": n + 1, "sampler": name, "seed": seed}
            if key in rows or name == "spectral":
                continue
            effort, each, mean = _at_equal_quality(
                solver, ising, beta, reference + 0.01 * abs(reference), seed
            )
            rows.add(key, {"seconds": each, "effort": effort, "mean_energy": mean})
    return rows.frame()


PARTS: dict[str, Callable[..., pd.DataFrame]] = {
    "law": law,
    "reweighting": reweighting,
    "optimum": optimum,
    "time": per_sample,
}


def run_sampling(directory: Path, *, parts: list[str], quick: bool, seed: int) -> None:
    """Measure parts, or go on with them, and write tables and pictures.

    Parameters
    ----------
    directory
        Where rows, tables and pictures go.
    parts
        Names in :data:`PARTS`.
    quick
        Small sizes and short budgets: shows that it runs, proves nothing.
    seed
        Seed of instances and samplers.
    """
    from scvi_qbm import plots

    for part in parts:
        frame = PARTS[part](directory, quick=quick, seed=seed)
        lists = [c for c in frame if frame[c].map(lambda v: isinstance(v, list)).any()]
        frame.drop(columns=lists).to_csv(directory / f"{part}.csv", index=False)
        axes = getattr(plots, f"sampling_{part}")(frame)
        axes[0].figure.savefig(directory / f"{part}.png", dpi=150)
        print(frame.drop(columns=lists).to_string(index=False, float_format=lambda v: f"{v:.3g}"))
