"""What the chain samplers on the engine's ladders share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scvi_qbm.ising import Ising
from scvi_qbm.samplers import engine

from .base import ChainSampler
from .checks import positive_int


class LadderSampler(ChainSampler):
    """Gibbs chains, as ladders of one level; an algorithm overrides what it does otherwise."""

    record_levels = False

    def __init__(
        self,
        n_chains: int = 64,
        n_sweeps: int = 10,
        n_burn_in: int = 1000,
        n_threads: int | None = None,
    ) -> None:
        self.n_chains = positive_int(n_chains, "n_chains")
        self.n_sweeps = positive_int(n_sweeps, "n_sweeps")
        self.n_burn_in = positive_int(n_burn_in, "n_burn_in", 0)
        self.n_threads = engine.checked_threads(n_threads)

    def init(self, ising: Ising, beta: float = 1.0, seed: int | None = None) -> Any:
        return self._start(ising.scaled(beta), np.random.SeedSequence(seed))

    def step(self, state: Any, n_sweeps: int | None = None) -> Any:
        self._run(state, self.n_sweeps if n_sweeps is None else n_sweeps)
        return state

    def retarget(self, state: Any, ising: Ising, beta: float = 1.0) -> Any:
        state.retarget(ising.scaled(beta))
        return state

    def spins(self, state: Any) -> NDArray[np.int8]:
        out: NDArray[np.int8] = state.states()
        return out

    def _start(self, target: Ising, entropy: np.random.SeedSequence) -> Any:
        """Chains at random states; the target has its temperature already."""
        return engine.start(target, np.ones(1), self.n_chains, entropy)

    def _run(self, state: Any, n_sweeps: int) -> None:
        engine.run(state, n_sweeps, n_threads=self.n_threads)

    def _collect(self, state: Any, n_samples: int) -> tuple[NDArray[np.int8], dict[str, Any]]:
        return engine.collect(
            state, n_samples, self.n_sweeps, self.n_threads, levels=self.record_levels
        )

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        chains = self.step(self._start(ising.scaled(beta), entropy), self.n_burn_in)
        spins, info = self._collect(chains, n_samples)
        return spins, {**info, "n_burn_in": self.n_burn_in}
