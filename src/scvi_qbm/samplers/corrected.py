"""Heuristic samplers made fit for training: redraw now and then, finish with Gibbs sweeps."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scvi_qbm._numbers import positive_int
from scvi_qbm.diagnostics import effective_beta
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import engine

from .base import Sampler
from .chain import LadderSampler, disagreement
from .registry import get_sampler

__all__ = ["Corrected"]

_SEEDS = 2**62
# Effective beta below which a machine has told nothing.
_RANDOM = 0.2
# Of the factor by which a machine is asked for another beta.
_BOUNDS = 1e-3, 1e3
# Steps after a draw for which its memory is followed.
_SHARE_STEPS = 200


@dataclass
class CorrectedState:
    """Chains between redraws: Gibbs chains at the ``target``, a model at inverse temperature 1.

    ``beta_drawn`` is the effective inverse temperature of the heuristic's last states, in units of
    the target's (1 is right), infinite if all were local minima; ``beta_corrected`` that after the
    Gibbs sweeps. ``requested`` is the factor, learned, by which the next draw will ask for another
    beta than the target's, ``drawn_with`` that of the last draw. ``reads`` are the states of that
    draw, for the model ``drawn_for``; ``n_draws`` counts them. Seeds come from ``entropy``.
    """

    chains: engine.Chains
    target: Ising
    entropy: np.random.Generator
    reads: NDArray[np.int8]
    drawn_for: Ising
    beta_drawn: float = float("nan")
    beta_drawn_se: float = float("nan")
    beta_corrected: float = float("nan")
    requested: float = 1.0
    drawn_with: float = 1.0
    steps: int = 0
    n_draws: int = 0
    info: dict[str, Any] = field(default_factory=dict)


class Corrected(LadderSampler):
    """States of a heuristic sampler, finished by Gibbs sweeps at the target temperature.

    A machine that minimises energies (CIM, annealers, dimod solvers, Kaiwu) finds valleys, with
    frequencies of its own and at a temperature of its own. Every ``redraw_every`` steps the
    chains are started afresh from its states; heat-bath sweeps then bring them towards the
    Boltzmann distribution: at once within a valley, not between valleys far apart, where the
    heuristic's frequencies stay. So the distribution is Boltzmann's in the limit of many sweeps
    only, and with ``redraw_every`` > 0 the chains never get there: between far valleys they keep,
    for good, what is left of the heuristic's bias after that many steps.

    The heuristic's effective temperature is estimated by pseudo-likelihood, and later draws are
    asked for with a beta that moves towards meeting it (within a thousand times). A machine
    that takes no notice of beta takes none of this either.

    Parameters
    ----------
    sampler
        Name or instance of the heuristic.
    sampler_options
        Its options, where it is given by name.
    n_chains
        Chains, that is states a draw.
    n_sweeps
        Gibbs sweeps a step, and between kept samples (there one at least). With 0, as with
        ``n_burn_in=0`` and ``redraw_every=1``, training has the machine's own states.
    n_burn_in
        Gibbs sweeps after each draw.
    redraw_every
        Steps between draws; 0 draws once.
    n_threads
        Threads of the sweeps; ``OMP_NUM_THREADS`` or all processors by default.

    Raises
    ------
    ValueError
        If an option is out of range, or the sampler unknown.

    Notes
    -----
    ``info`` reports ``beta_drawn`` and ``beta_corrected`` (effective inverse temperatures in units
    of the one asked for), ``requested_beta``, and the heuristic's own ``draw``.

    References
    ----------
    Raymond, Yarkoni and Andriyash (2016), Front. ICT 3, 23 (global warming: temperature by
    pseudo-likelihood, post-processing by Gibbs sweeps).
    """

    name: ClassVar[str] = "corrected"
    conformance: ClassVar[dict[str, Any]] = {
        "sampler": "simulated_annealing",
        "n_chains": 2048,
        "n_sweeps": 500,
        "n_burn_in": 500,
    }

    def __init__(
        self,
        sampler: str | Sampler = "cim",
        sampler_options: dict[str, Any] | None = None,
        n_chains: int = 64,
        n_sweeps: int = 10,
        n_burn_in: int = 50,
        redraw_every: int = 50,
        n_threads: int | None = None,
    ) -> None:
        super().__init__(n_chains, 1, n_burn_in, n_threads)
        self.n_sweeps = positive_int(n_sweeps, "n_sweeps", 0)
        self.source = get_sampler(sampler, **(sampler_options or {}))
        self.touches_global_state = self.source.touches_global_state  # type: ignore[misc]
        self.redraw_every = positive_int(redraw_every, "redraw_every", 0)
        self._warned = False

    def cancel(self) -> None:
        self.source.cancel()

    def keep_draws(self, directory: Path) -> None:
        self.source.keep_draws(directory)

    def machine_share(self, state: CorrectedState) -> float:
        """What is left, on the average between two draws, of the states that the machine drew.

        Chains from its states and chains from random spins are moved by the same random numbers;
        the share is the fraction of spins in which they still differ, over that at the start. A
        heat bath forgets: where the two have met, any machine would have given the same samples.

        Parameters
        ----------
        state
            The chains, which are not changed.

        Returns
        -------
        float
            1 where the machine's states are used as they came, 0 where the sweeps alone decide.
        """
        entropy = np.random.SeedSequence(state.n_draws)
        mine = engine.start(state.drawn_for, np.ones(1), len(state.reads), entropy)
        other = copy.deepcopy(mine)
        mine.adopt(state.reads)
        at_start = float((mine.states() != other.states()).mean())
        n_steps = min(self.redraw_every or _SHARE_STEPS, _SHARE_STEPS)
        left = []
        for k in range(n_steps):
            for chains in (mine, other):
                self._run(chains, self.n_sweeps + (0 if k else self.n_burn_in))
            left.append(float((mine.states() != other.states()).mean()))
            if left[-1] == 0:
                break
        return sum(left) / (n_steps * at_start) if at_start else 0.0

    def _start(
        self, target: Ising, entropy: np.random.SeedSequence, n_chains: int | None = None
    ) -> CorrectedState:
        chain_entropy, draw_entropy = entropy.spawn(2)
        chains = engine.start(target, np.ones(1), n_chains or self.n_chains, chain_entropy)
        entropy_of_draws = np.random.default_rng(draw_entropy)
        state = CorrectedState(chains, target, entropy_of_draws, chains.states(), target)
        self._draw(state)
        return state

    @engine.one_blas_thread()
    def _draw(self, state: CorrectedState) -> None:
        """Start the chains afresh from the heuristic's states, and learn its temperature."""
        seed = int(state.entropy.integers(_SEEDS))
        out = self.source.sample(state.target, state.requested, state.chains.n_chains, seed=seed)
        state.info, state.drawn_with = out.info, state.requested
        state.reads, state.drawn_for, state.n_draws = out.spins, state.target, state.n_draws + 1
        state.beta_drawn, error = effective_beta(state.target, out.spins)
        state.beta_drawn_se = error
        if state.beta_drawn + 3 * error < _RANDOM and not self._warned:
            self._warned = True
            worse = "worse than" if state.beta_drawn + 3 * error < 0 else "hardly better than"
            swept = self.n_sweeps or self.n_burn_in
            warnings.warn(
                f"States of {self.source.name!r} are {worse} random ones (effective beta "
                f"{state.beta_drawn:.2f} +- {error:.2f}; 1 is right): "
                + (
                    "what comes out is owed to the Gibbs sweeps that follow."
                    if swept
                    else "and no Gibbs sweeps repair them (n_sweeps=0)."
                ),
                RuntimeWarning,
                stacklevel=2,
            )
        # Half way on the log scale, and only where the estimate says something: nearly free
        # spins have no temperature. All in minima: much too cold.
        factor = 1.0
        if state.beta_drawn == np.inf:
            factor = 0.5
        elif state.beta_drawn > 0 and error < 0.25 * state.beta_drawn:
            factor = state.beta_drawn**-0.5
        state.requested = float(np.clip(state.requested * factor, *_BOUNDS))
        state.chains.adopt(out.spins)
        self._run(state.chains, self.n_burn_in)
        self.adapt(state)

    def step(self, state: CorrectedState, n_sweeps: int | None = None) -> CorrectedState:
        if self.redraw_every and state.steps and state.steps % self.redraw_every == 0:
            self._draw(state)
        state.steps += 1
        super().step(state.chains, n_sweeps)
        return state

    @engine.one_blas_thread()
    def adapt(self, state: CorrectedState) -> CorrectedState:
        """Estimate the temperature of the corrected states anew.

        Parameters
        ----------
        state
            The chains; only ``beta_corrected`` is changed.

        Returns
        -------
        CorrectedState
            The same state.
        """
        state.beta_corrected = effective_beta(state.target, state.chains.states())[0]
        return state

    def retarget(self, state: CorrectedState, ising: Ising, beta: float = 1.0) -> CorrectedState:
        state.target = ising.scaled(beta)
        state.chains.retarget(state.target)
        return state

    def spins(self, state: CorrectedState) -> NDArray[np.int8]:
        return state.chains.states()

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        state = self._start(ising.scaled(beta), entropy, min(self.n_chains, n_samples))
        kept, info = engine.collect(
            state.chains, n_samples, max(self.n_sweeps, 1), self.n_threads, levels=False
        )
        spins = kept.reshape(-1, ising.n_spins)[:n_samples]
        info |= engine.mixing(state.target, kept)
        if faults := disagreement(info):
            warnings.warn(
                f"Sampler {self.name!r} has not mixed: {', '.join(faults)}. States keep what "
                f"{self.source.name!r} prefers. Use more sweeps (n_burn_in, n_sweeps), or "
                "parallel_tempering.",
                RuntimeWarning,
                stacklevel=3,
            )
        return spins, {
            **info,
            "n_burn_in": self.n_burn_in,
            "beta_drawn": state.beta_drawn,
            "beta_corrected": effective_beta(state.target, spins)[0],
            "requested_beta": beta * state.drawn_with,
            "draw": state.info,
        }
