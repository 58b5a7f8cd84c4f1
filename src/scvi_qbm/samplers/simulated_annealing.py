"""Simulated annealing: independent chains cooled once, on the kernel of the Gibbs sampler."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scvi_qbm._numbers import one_of, positive_int
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import engine

from .base import Guarantee, Sampler

__all__ = ["SimulatedAnnealing"]

_SCHEDULES = ("geometric", "linear")
_ENDS = ("target", "ground")
_ACCEPTANCES = ("heat_bath", "metropolis")
# In units of the largest root-mean-square field: spins are nearly free above, frozen below.
_HOT, _COLD = 0.2, 10.0
_QUENCH = 2
_FROZEN = 1e4


def field_scale(ising: Ising) -> float:
    """Largest root-mean-square local field over free spins, ``max_i sqrt(b_i^2 + sum_j J_ij^2)``.

    1 for a model without couplings and fields.
    """
    squares = ising.b**2 + (ising.J**2).sum(axis=1)
    return float(np.sqrt(squares.max())) or 1.0


def annealing_betas(
    hot: float, cold: float, n_sweeps: int, schedule: str = "geometric"
) -> NDArray[np.float64]:
    """Inverse temperatures of ``n_sweeps`` sweeps; a single one is at ``cold``.

    From ``hot`` = 0 they are always linear.
    """
    if n_sweeps == 1:
        return np.array([cold])
    if schedule == "geometric" and hot > 0:
        return np.geomspace(hot, cold, n_sweeps)
    return np.linspace(hot, cold, n_sweeps)


class SimulatedAnnealing(Sampler):
    """Chains cooled from nearly free spins; one independent chain a sample.

    The slower the cooling the lower the energies. The states are not Boltzmann samples: where
    cooling was too fast they keep the frequencies with which valleys caught them on the way.

    Parameters
    ----------
    n_sweeps
        Sweeps a sample.
    end
        ``"target"``: cool to the inverse temperature asked for and stop. ``"ground"``: cool on
        until spins freeze and finish downhill, to minimise the energy; ``beta`` plays no part.
    beta_range
        ``(hot, cold)`` inverse temperatures in units of 1 / energy instead; fixed, whatever
        ``end`` and ``beta``.
    schedule
        ``"geometric"`` or ``"linear"`` in the inverse temperature.
    acceptance
        ``"heat_bath"`` or ``"metropolis"``, which flips more readily.
    n_threads
        Threads over chains; ``OMP_NUM_THREADS`` or all processors by default. Results do not
        depend on it.

    Raises
    ------
    ValueError
        If an option is unknown or out of range, or a geometric schedule starts at 0.

    References
    ----------
    Kirkpatrick, Gelatt and Vecchi (1983), Science 220, 671.
    """

    name: ClassVar[str] = "simulated_annealing"
    guarantee: ClassVar[Guarantee] = "heuristic"

    def __init__(
        self,
        n_sweeps: int = 1000,
        end: str = "target",
        beta_range: tuple[float, float] | None = None,
        schedule: str = "geometric",
        acceptance: str = "heat_bath",
        n_threads: int | None = None,
    ) -> None:
        self.n_sweeps = positive_int(n_sweeps, "n_sweeps")
        self.end = one_of(end, _ENDS, "end")
        self.schedule = one_of(schedule, _SCHEDULES, "schedule")
        self.acceptance = one_of(acceptance, _ACCEPTANCES, "acceptance")
        if beta_range is not None:
            hot, cold = (float(x) for x in beta_range)
            if not (0 <= hot <= cold and np.isfinite(cold)):
                raise ValueError(f"`beta_range` must be 0 <= hot <= cold, got {beta_range}.")
            if schedule == "geometric" and hot == 0:
                raise ValueError("A geometric schedule cannot start at 0; use schedule='linear'.")
            beta_range = (hot, cold)
        self.beta_range = beta_range
        self.n_threads = engine.checked_threads(n_threads)

    def betas(self, ising: Ising, beta: float = 1.0) -> NDArray[np.float64]:
        """The inverse temperature of every sweep.

        Parameters
        ----------
        ising
            The model, whose fields set the scale.
        beta
            Where cooling ends, in units of 1 / energy; not used with ``end="ground"`` or a
            ``beta_range``.

        Returns
        -------
        numpy.ndarray
            float64 ``(n_sweeps,)``, in units of 1 / energy.
        """
        scale = field_scale(ising)
        if self.beta_range is not None:
            hot, cold = self.beta_range
        else:
            cold = beta if self.end == "target" else _COLD / scale
            hot = min(_HOT / scale, cold)
        out = annealing_betas(hot, cold, self.n_sweeps, self.schedule)
        if self.end == "ground" and self.beta_range is None:
            out[-_QUENCH:] = max(cold, _FROZEN / scale)
        return out

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        betas = self.betas(ising, beta)
        chains = engine.start(ising, np.ones(1), n_samples, entropy)
        metropolis = self.acceptance == "metropolis"
        engine.anneal(chains, betas, self.n_threads, metropolis=metropolis)
        info = {
            "n_updates": chains.n_updates,
            "n_sweeps": self.n_sweeps,
            "beta_range": (float(betas[0]), float(betas[-1])),
        }
        return chains.states(), info
