"""Samplers and minimisers as the sampling benchmark compares them: one thread each."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scvi_qbm.benchmark.sampling.instances import spectral
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import get_sampler


@dataclass(frozen=True)
class Solver:
    """A way to low energies, with an effort to be tuned."""

    sampler: str  # name in the registry
    effort: str  # the option that counts sweeps or steps
    efforts: tuple[int, ...]  # its values to choose from
    options: Callable[[Ising], dict[str, Any]]  # others, when minimising
    needs: str | None = None  # package, if not ours
    batch: int = 64  # states a call

    @property
    def ours(self) -> bool:
        """Whether it is this package's."""
        return self.needs is None

    @property
    def smallest(self) -> int:
        """Least batch, of which others are multiples; ours do 64 runs at a time."""
        return 64 if self.ours else 1


def _cold(ising: Ising) -> dict[str, Any]:
    """The range our annealing uses for the ground state, for the peers' annealing too."""
    from scvi_qbm.samplers.simulated_annealing import SimulatedAnnealing

    betas = SimulatedAnnealing(100, end="ground").betas(ising)
    return {"beta_range": (float(betas[0]), float(betas[-3]))}


def _nothing(_: Ising) -> dict[str, Any]:
    return {}


_SWEEPS = (100, 1000, 10_000, 100_000)
_STEPS = (300, 1000, 3000)

#: Solver by its name in tables and pictures.
SOLVERS: dict[str, Solver] = {
    "SA": Solver("simulated_annealing", "n_sweeps", _SWEEPS, lambda _: {"end": "ground"}),
    "SA Metropolis": Solver(
        "simulated_annealing",
        "n_sweeps",
        _SWEEPS,
        lambda _: {"end": "ground", "acceptance": "metropolis"},
    ),
    "CIM mean field": Solver(
        "cim", "n_steps", _STEPS, lambda _: {"sigma": 0.1, "gain": (-1.5, 0.0), "dt": 0.05}
    ),
    "CIM Gaussian": Solver("cim_gaussian", "n_steps", (1000, 3000), _nothing),
    "CIM CAC": Solver("cim_cac", "n_steps", _STEPS, _nothing),
    "CIM CFC": Solver("cim_cfc", "n_steps", _STEPS, _nothing),
    "CIM SFC": Solver("cim_sfc", "n_steps", _STEPS, _nothing),
    "dwave SA": Solver("dwave_annealing", "n_sweeps", _SWEEPS, _cold, "dwave.samplers", 16),
    "openjij SA": Solver("openjij_annealing", "n_sweeps", _SWEEPS, _cold, "openjij", 16),
    "ballistic SB": Solver(
        "simulated_bifurcation", "max_steps", (300, 1000, 3000), _nothing, "simulated_bifurcation"
    ),
    "discrete SB": Solver(
        "simulated_bifurcation",
        "max_steps",
        (1000, 3000, 10_000),
        lambda _: {"mode": "discrete"},
        "simulated_bifurcation",
    ),
    "spectral": Solver("spectral", "n", (0,), _nothing, batch=1000),
}


def available() -> dict[str, Solver]:
    """Solvers whose package is installed."""
    return {
        name: solver
        for name, solver in SOLVERS.items()
        if solver.needs is None or _installed(solver.needs)
    }


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def run_solver(
    solver: Solver,
    ising: Ising,
    effort: int,
    n_samples: int,
    seed: int,
    beta: float = 1.0,
    **options: Any,
) -> tuple[NDArray[np.float64], float]:
    """Energies of states that a solver finds, and the time they took."""
    if solver.sampler == "spectral":
        start = time.perf_counter()
        spins = spectral(ising, n_samples, seed)
        return ising.energy(spins), time.perf_counter() - start
    chosen = {**solver.options(ising), solver.effort: effort, **options}
    if solver.ours:
        chosen["n_threads"] = 1
    sampler = get_sampler(solver.sampler, **chosen)
    start = time.perf_counter()
    out = sampler.sample(ising, beta, n_samples, seed=seed)
    return out.energies, time.perf_counter() - start
