"""Part (c) of the sampling benchmark: optima of Moebius ladders, planted and SK models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track
from scipy.stats import binomtest

from scvi_qbm.benchmark.rows import Rows
from scvi_qbm.benchmark.sampling.instances import (
    moebius_ladder,
    moebius_optimum,
    planted,
    sherrington_kirkpatrick,
)
from scvi_qbm.benchmark.sampling.solvers import SOLVERS, Solver, available, run_solver
from scvi_qbm.ising import Ising

# Couplings of planted and SK models drawn anew: times to solution differ widely between them.
_INSTANCES = 3


def time_to_solution(rate: float, seconds: float) -> float:
    """Seconds to have seen the optimum with probability 0.99, at ``seconds`` a run.

    Ronnow et al. (2014), Science 345, 420.
    """
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
        batch -= batch % solver.smallest
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
    low, high = binomtest(successes, trials).proportion_ci(method="wilson")
    return {
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
        "beats_best_known": bool(best < ground - 1e-6 * abs(ground)),
    }


def _instances(
    directory: Path, quick: bool, seed: int
) -> Iterator[tuple[str, int, int, Ising, float]]:
    for n in (200,) if quick else (200, 400, 800, 1000):
        yield "Moebius", n, 0, moebius_ladder(n), moebius_optimum(n)
    for n in (64,) if quick else (64, 128):
        for k in range(1 if quick else _INSTANCES):
            yield "planted", n, k, *planted(n, 0.75, seed + k)
    for n in (100,) if quick else (256, 512):
        for k in range(1 if quick else _INSTANCES):
            ising = sherrington_kirkpatrick(n, seed + k)
            seconds = 1.0 if quick else 30.0
            yield "SK", n, k, ising, _best_known(directory, ising, seed + k, seconds)


def _best_known(directory: Path, ising: Ising, seed: int, seconds: float) -> float:
    """Least energy of a long annealing with seeds of its own: no proof of optimality."""
    rows = Rows(directory, "best_known")
    key = {"n_spins": ising.n_spins, "seed": seed, "seconds": seconds}
    row = rows.find(key)
    if row is None:
        found = [
            _success(SOLVERS["SA"], ising, effort, -math.inf, seconds / 2, seed + 77_000_000)[3]
            for effort in (3000, 30_000)
        ]
        row = {"energy": min(found)}
        rows.add(key, row)
    return float(row["energy"])


def optimum(directory: Path, *, quick: bool, seed: int) -> pd.DataFrame:
    """Success rate and time to solution; the ladders of 800 and 1,000 get a longer budget."""
    rows = Rows(directory, "optimum")
    for family, n, instance, ising, ground in _instances(directory, quick, seed):
        for name, solver in track(list(available().items()), f"{family} {n}"):
            seconds = 0.3 if quick else 30.0 if n >= 800 else 8.0 if family == "Moebius" else 4.0
            key = {
                "family": family,
                "n_spins": n,
                "instance": instance,
                "solver": name,
                "seed": seed,
                "budget": seconds,
            }
            if key not in rows and (name != "spectral" or family == "Moebius"):
                rows.add(key, success_row(solver, ising, ground, seconds, seed))
    return rows.frame()
