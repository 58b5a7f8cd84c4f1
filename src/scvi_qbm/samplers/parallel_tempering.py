"""Parallel tempering with a ladder that tunes itself."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from scvi_qbm._numbers import one_of, positive_int
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import engine

from .chain import LadderSampler, disagreement

__all__ = ["ParallelTempering"]

F64 = NDArray[np.float64]

MAX_LEVELS = 256
_FIRST_LEVELS = 8
_REFERENCES = ("uniform", "fields", "magnetisation")
# Mean spins: averaged over so many looks, one every so many sweeps, and shrunk, so that at
# lam = 0 every spin still turns now and then.
_HORIZON, _LOOK_EVERY, _SHRINK = 100, 8, 0.95


class Ladders(Protocol):
    """What the algorithm needs of its ladders: ``Chains`` (numba) or ``TorchChains``."""

    ladder: F64

    n_chains: int

    @property
    def n_levels(self) -> int: ...
    @property
    def proposed(self) -> NDArray[Any]: ...
    @property
    def swap_rates(self) -> F64: ...
    @property
    def round_trips(self) -> int: ...
    def relevel(self, ladder: F64) -> Ladders: ...
    def follow_means(self, horizon: int) -> None: ...
    def rebase(self, shrink: float) -> None: ...
    def forget(self) -> None: ...


def tuned_ladder(chains: Ladders, swap_rate: float, n_levels: int | None = None) -> F64:
    """Levels from 0 to 1 at which all neighbours would swap equally often, by the rates so far.

    Rejection rates add up along the path to the communication barrier; equal steps of it are
    equal swap rates. Without ``n_levels`` there are as many as ``swap_rate`` takes, at most 256.
    Syed et al. (2022), JRSS B 84, 321, section 5.
    """
    rejected = np.clip(1 - chains.swap_rates, 1e-4, 1.0)
    barrier = np.concatenate([[0.0], np.cumsum(rejected)])
    if n_levels is None:
        wanted = int(np.ceil(barrier[-1] / (1 - swap_rate))) + 1
        # A saturated pair (nothing accepted) hides how long the path is there: at least double.
        if rejected.max() > 0.95:
            wanted = max(wanted, 2 * chains.n_levels)
        n_levels = min(max(wanted, 2), MAX_LEVELS)
    levels = np.interp(np.linspace(0.0, barrier[-1], n_levels), barrier, chains.ladder)
    levels[0], levels[-1] = 0.0, 1.0
    return np.asarray(levels, dtype=np.float64)


class ParallelTempering(LadderSampler):
    r"""Replica exchange along a ladder of temperatures from infinite to the target.

    Each of ``n_chains`` independent ladders holds one replica a level of the path
    :math:`p_\lambda(s) \propto e^{-\lambda \beta E(s)}`, :math:`\lambda \in [0, 1]`. After every
    sweep neighbouring levels propose to swap, even and odd pairs in turn. Number and place of the
    levels are tuned during burn-in to equal swap rates, then kept.

    Parameters
    ----------
    n_chains
        Independent ladders; each gives one state of the target at a time.
    n_sweeps
        Sweeps (each followed by swaps) between kept samples.
    n_burn_in
        Sweeps before the first kept sample, the tuning of the ladder included.
    n_levels
        Number of temperatures; tuned to ``swap_rate`` by default.
    swap_rate
        Target acceptance of swaps, in (0, 1).
    reference
        What the ladder starts from at :math:`\lambda = 0`. ``"uniform"`` spins; ``"fields"``,
        independent spins in the model's own fields, so that only the couplings are tempered;
        ``"magnetisation"``, independent spins with the target's mean spins, learned on the way.
        The last is by far the shortest path (a trained prior of 256 units: 5 levels, not 19), but
        if all chains miss a mode so does the path they learn: keep ``"uniform"`` where nothing
        checks on it.
    n_threads
        Threads over ladders; ``OMP_NUM_THREADS`` or all processors by default. Results do not
        depend on it.
    record_levels
        Keep what :func:`scvi_qbm.pl.tempering_diagnostics` draws: with every kept sample the
        energies of all levels, and where their states came from. The states are the same.

    Raises
    ------
    ValueError
        If an option is out of range, or the reference unknown.

    Notes
    -----
    ``info`` reports ``betas``, ``swap_rates`` (by pair of neighbours), ``target_swap_rate`` (None
    where ``n_levels`` is given), ``barrier`` (the sum of rejection rates, the hardness of the
    path), ``round_trips`` (of all replicas, on the final ladder), ``round_trip_rate`` (a ladder
    and sweep), and the diagnostics of all chains. A RuntimeWarning says so when the chains have
    not mixed.

    ``record_levels`` adds ``level_energies``, float64 (n_draws, n_chains, n_levels), the tempered
    energies in nats (``beta`` times energy less offset, where the reference is uniform), and
    ``flow``, (n_levels,): of the states at a level that have seen an end of the ladder, the part
    that saw the hottest last. It falls evenly from 1 to 0 where states diffuse freely, and in a
    step at a bottleneck.

    References
    ----------
    Geyer (1991); Hukushima and Nemoto (1996); Syed et al. (2022), JRSS B 84, 321;
    Katzgraber et al. (2006), J. Stat. Mech. P03018 (flow).
    """

    name: ClassVar[str] = "parallel_tempering"
    conformance: ClassVar[dict[str, Any]] = {
        "n_chains": 64,
        "n_sweeps": 10,
        "n_burn_in": 300,
    }

    def __init__(
        self,
        n_chains: int = 32,
        n_sweeps: int = 5,
        n_burn_in: int = 1000,
        n_levels: int | None = None,
        swap_rate: float = 0.5,
        reference: str = "uniform",
        n_threads: int | None = None,
        record_levels: bool = False,
    ) -> None:
        super().__init__(n_chains, n_sweeps, n_burn_in, n_threads)
        self.n_levels = None if n_levels is None else positive_int(n_levels, "n_levels", 2)
        if not 0 < swap_rate < 1:
            raise ValueError(f"`swap_rate` must be between 0 and 1, got {swap_rate}.")
        self.swap_rate = float(swap_rate)
        self.reference = one_of(reference, _REFERENCES, "reference")
        self.record_levels = bool(record_levels)

    def _start(self, target: Ising, entropy: np.random.SeedSequence) -> Any:
        ladder = np.linspace(0.0, 1.0, self.n_levels or _FIRST_LEVELS)
        base = target.b if self.reference == "fields" else None
        return self._ladders(target, ladder, entropy, base)

    def _ladders(
        self, target: Ising, ladder: F64, entropy: np.random.SeedSequence, base: F64 | None
    ) -> Any:
        return engine.start(target, ladder, self.n_chains, entropy, base)

    def step(self, state: Any, n_sweeps: int | None = None) -> Any:
        if self.reference != "magnetisation":
            return super().step(state, n_sweeps)
        left = self.n_sweeps if n_sweeps is None else n_sweeps
        while left > 0:
            self._run(state, min(left, _LOOK_EVERY))
            state.follow_means(_HORIZON)
            left -= _LOOK_EVERY
        return state

    def adapt(self, state: Ladders) -> Any:
        """Re-place the levels by the swap rates seen, and the reference by the spins seen.

        Parameters
        ----------
        state
            The ladders. Without swaps of every pair since the last call they stay as they are.

        Returns
        -------
        Any
            The ladders, new ones if their levels moved; swap statistics start afresh.
        """
        if state.proposed.min(initial=1) == 0:
            return state
        ladder = tuned_ladder(state, self.swap_rate, self.n_levels)
        if len(ladder) != state.n_levels or np.abs(ladder - state.ladder).max() > 1e-3:
            state = state.relevel(ladder)
        if self.reference == "magnetisation":
            state.rebase(_SHRINK)
        state.forget()
        return state

    def warm_up(self, state: Ladders, n_sweeps: int) -> Any:
        """Run and tune in rounds of doubling length, then half as long again on the final ladder.

        Parameters
        ----------
        state
            The ladders.
        n_sweeps
            Total number of sweeps.

        Returns
        -------
        Any
            The ladders, tuned; swaps and round trips are counted on the final levels only.
        """
        tuning = n_sweeps // 2
        return self.step(self._tune(state, tuning), n_sweeps - tuning)

    def _tune(self, state: Any, n_sweeps: int) -> Any:
        rounds = max(int(np.log2(max(n_sweeps, 1) / 16)), 0)
        for i in range(rounds):
            self.step(state, max(2, n_sweeps >> (rounds - i)))
            state = self.adapt(state)
        # Swaps and round trips count from here on, where the ladder stays as it is.
        state.forget()
        return state

    def _report(self, state: Ladders, beta: float) -> dict[str, Any]:
        rates, trips = state.swap_rates, state.round_trips
        return {
            "betas": beta * state.ladder,
            "swap_rates": rates,
            "target_swap_rate": self.swap_rate if self.n_levels is None else None,
            "barrier": float((1 - rates).sum()),
            "round_trips": trips,
            # The hottest pair is tried every other sweep.
            "round_trip_rate": trips / max(2 * int(state.proposed[0]), 1),
        }

    def _faults(self, state: Ladders, info: dict[str, Any]) -> list[str]:
        return disagreement(info) + blockades(state)


def blockades(chains: Ladders) -> list[str]:
    """What keeps states from travelling along the ladder, in words."""
    rates, proposed, trips = chains.swap_rates, chains.proposed.min(), chains.round_trips
    out = []
    if proposed > 100 and rates.min() < 0.02:
        out.append(f"lowest swap rate {rates.min():.2f}")
    # A round trip takes 4 (1 + barrier) sweeps at best, of each of the replicas.
    if proposed > 20 * (1 + float((1 - rates).sum())) and trips < chains.n_chains / 4:
        out.append(f"{trips} round trips of {chains.n_chains} ladders")
    return out
