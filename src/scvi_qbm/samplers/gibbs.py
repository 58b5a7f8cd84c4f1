"""Sequential heat-bath (Gibbs) chains at one temperature."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scvi_qbm.ising import Ising
from scvi_qbm.samplers.engine import chains as _chains

from .base import ChainSampler, positive_int

__all__ = ["Gibbs"]


class Gibbs(ChainSampler):
    """Heat-bath chains: every spin in turn is drawn from its law given all the others.

    Exact in the limit of many sweeps. At low temperature or with strong couplings a chain stays
    in its valley for very long: look at ``rhat_energy``, or use ``parallel_tempering``.

    Parameters
    ----------
    n_chains
        Independent chains, each started at a random state.
    n_sweeps
        Sweeps between kept samples; one sweep updates every spin once.
    n_burn_in
        Sweeps before the first kept sample.
    n_threads
        Threads over chains; ``OMP_NUM_THREADS`` or all processors by default. Results do not
        depend on it.

    Raises
    ------
    ValueError
        If an option is out of range.

    References
    ----------
    Geman and Geman (1984), IEEE TPAMI 6, 721.
    """

    name: ClassVar[str] = "gibbs"
    conformance: ClassVar[dict[str, Any]] = {
        "n_chains": 2048,
        "n_sweeps": 500,
        "n_burn_in": 1500,
    }

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
        self.n_threads = _chains.checked_threads(n_threads)

    def init(self, ising: Ising, beta: float = 1.0, seed: int | None = None) -> _chains.Chains:
        """Start ``n_chains`` chains at uniformly random states.

        Parameters
        ----------
        ising
            The model.
        beta
            Inverse temperature, >= 0, in units of 1 / energy.
        seed
            Same seed, same chains. ``None`` draws fresh entropy.

        Returns
        -------
        scvi_qbm.samplers.engine.chains.Chains
            The chains, unequilibrated: burn-in is up to the caller.
        """
        return self._start(ising, beta, np.random.SeedSequence(seed))

    def _start(self, ising: Ising, beta: float, entropy: np.random.SeedSequence) -> _chains.Chains:
        return _chains.start(ising.scaled(beta), np.ones(1), self.n_chains, entropy)

    def step(self, state: _chains.Chains, n_sweeps: int | None = None) -> _chains.Chains:
        """Advance every chain by sweeps of the heat bath.

        Parameters
        ----------
        state
            The chains; advanced in place.
        n_sweeps
            The sampler's own ``n_sweeps`` by default.

        Returns
        -------
        scvi_qbm.samplers.engine.chains.Chains
            The same chains.
        """
        _chains.run(
            state, self.n_sweeps if n_sweeps is None else n_sweeps, n_threads=self.n_threads
        )
        return state

    def retarget(self, state: _chains.Chains, ising: Ising, beta: float = 1.0) -> _chains.Chains:
        """Point the chains at another model, keeping their states.

        Parameters
        ----------
        state
            The chains; changed in place.
        ising
            A model of as many spins.
        beta
            Inverse temperature, >= 0, in units of 1 / energy.

        Returns
        -------
        scvi_qbm.samplers.engine.chains.Chains
            The same chains.

        Raises
        ------
        ValueError
            If the model has another number of spins.
        """
        _chains.retarget(state, ising.scaled(beta))
        return state

    def spins(self, state: _chains.Chains) -> NDArray[np.int8]:
        """States of the chains.

        Parameters
        ----------
        state
            The chains.

        Returns
        -------
        numpy.ndarray
            int8 ``(n_chains, n_spins)``, -1 and +1; a copy.
        """
        return state.states()

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        chains = self._start(ising, beta, entropy)
        _chains.run(chains, self.n_burn_in, n_threads=self.n_threads)
        spins, info = _chains.collect(chains, n_samples, self.n_sweeps, self.n_threads)
        return spins, {**info, "n_sweeps": self.n_sweeps, "n_burn_in": self.n_burn_in}
