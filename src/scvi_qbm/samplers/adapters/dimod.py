"""D-Wave's Ocean and openjij as our samplers.

dimod writes an energy as ``+h s + J s s``, :class:`~scvi_qbm.ising.Ising` as ``-b s - s J s / 2``.
The signs turn here, and the energies that come back with the states are compared with our own.
Only this file and ``to_dimod.py`` import dimod, dwave and openjij, when something is built.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from scvi_qbm._numbers import one_of, positive_int
from scvi_qbm.ising import Ising
from scvi_qbm.samplers.base import Guarantee, Sampler

from .calls import Answer, Calls, key
from .reads import audit, audit_distribution, energy_scale, is_cold

__all__ = ["DWaveAnnealing", "Dimod", "OpenJijAnnealing"]

_PROBES, _PROBE_READS = 3, 16
# Fraction of broken chains above which states are mostly repaired ones.
_BROKEN = 0.25


def require(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module!r} cannot be imported ({error}). dimod, dwave-samplers and openjij come "
            "with pip install 'scvi-qbm[dimod]'."
        ) from error


def _from_string(target: str) -> Any:
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise ValueError(f"`sampler` must look like 'module:Class', got {target!r}.")
    made = getattr(require(module), attribute, None)
    if made is None:
        raise ValueError(f"Module {module!r} has no {attribute!r}.")
    return made()


class Dimod(Sampler):
    """Any ``dimod.Sampler``: simulated annealing, tabu, composites, D-Wave's machines.

    The states are what that sampler makes of the energies; nothing is promised about their
    distribution.

    Parameters
    ----------
    sampler
        A ``dimod.Sampler`` instance, or ``"module:Class"``, which is called without arguments.
    scale_beta
        Hand over energies multiplied by beta, so that a sampler at its inverse temperature 1
        aims at ours. If false, beta is not used at all.
    parameters
        Passed to every call of ``sampler.sample``; ``num_reads`` and ``seed`` are set here.
    one_read_per_call
        Ask for reads singly, each with its own seed. Some samplers repeat one read
        ``num_reads`` times when they are given a seed. That is detected, and answered in the
        same way after a warning; with this option it costs neither the warning nor the probes.
    timeout, retries, budget, directory, replay
        As :class:`~scvi_qbm.samplers.adapters.solve.SolveAdapter`: seconds to wait for a call,
        times to repeat it, calls in all, the folder that keeps every answer, and whether
        to draw from that folder only.

    Notes
    -----
    ``info`` has ``n_calls`` (probes included), ``seeded``, whether the sampler takes a seed (if
    it does not, our ``seed`` cannot make it repeat itself), and what all reads of machines are
    looked at for, with a warning: ``n_distinct``, ``deduplicated``, ``repeated``,
    ``effective_beta`` and its error ``effective_beta_se``. Of an embedded model
    ``chain_break_fraction`` is the mean over reads; above a quarter it draws a warning.

    A sampler may return fewer reads than asked (it is called again) or more (a random subset is
    kept; seeds decide which).

    Raises
    ------
    ImportError
        If a package is missing.
    TypeError
        If ``sampler`` is neither a ``dimod.Sampler`` nor a string.
    ValueError
        If the string has no colon, or ``parameters`` sets ``num_reads`` or ``seed``.
    TimeoutError
        From :meth:`sample`: no answer within ``timeout``, after the last retry.
    RuntimeError
        From :meth:`sample`: no reads, other variables than the model's, energies that are not
        those of the states, ``budget`` used up, or reads to be replayed that are not there.
    """

    name: ClassVar[str] = "dimod"
    guarantee: ClassVar[Guarantee] = "heuristic"
    touches_global_state: ClassVar[bool] = True
    conformance: ClassVar[dict[str, Any]] = {
        "sampler": "dwave.samplers:SimulatedAnnealingSampler",
    }

    def __init__(
        self,
        sampler: Any,
        scale_beta: bool = True,
        parameters: Mapping[str, Any] | None = None,
        one_read_per_call: bool = False,
        timeout: float | None = None,
        retries: int = 0,
        budget: int | None = None,
        directory: str | os.PathLike[str] | None = None,
        replay: bool = False,
    ) -> None:
        self.calls = Calls(timeout, retries, budget, directory, replay)
        self._told: set[str] = set()
        dimod = require("dimod")
        child = _from_string(sampler) if isinstance(sampler, str) else sampler
        if not isinstance(child, dimod.Sampler):
            raise TypeError(
                f"`sampler` must be an instance of dimod.Sampler or 'module:Class', got {child!r}."
            )
        self.child = child
        self.scale_beta = bool(scale_beta)
        self.parameters = dict(parameters or {})
        self.one_read_per_call = bool(one_read_per_call)
        taken = sorted({"num_reads", "seed"} & set(self.parameters))
        if taken:
            raise ValueError(
                f"`parameters` cannot set {' or '.join(taken)}: sample(n_samples, seed) does that."
            )
        # openjij takes a seed that its `parameters` do not list; composites list what their
        # signatures do not name.
        known = {*child.parameters, *inspect.signature(child.sample).parameters}
        self._seeded, self._counts = "seed" in known, "num_reads" in known

    def _build(self, ising: Ising) -> Any:
        """The model as the child takes it, spins labelled 0 to n - 1; zero couplings left out."""
        return require("dimod").BinaryQuadraticModel(
            -ising.b, np.triu(-ising.J, 1), ising.offset, "SPIN"
        )

    def _arguments(self, n_spins: int, n_reads: int, seed: int) -> dict[str, Any]:
        arguments = dict(self.parameters)
        if self._counts:
            arguments["num_reads"] = n_reads
        if self._seeded:
            arguments["seed"] = seed
        return arguments

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        target = ising.scaled(beta) if self.scale_beta else ising
        model = self._build(target)
        who = f"{type(self.child).__name__} (a dimod sampler)"
        rng = np.random.default_rng(entropy)
        first_seed = int(rng.integers(2**31))
        answers: list[Answer] = []
        given = sorted(self.parameters.items())

        def read(n_reads: int) -> NDArray[np.int8]:
            n_calls = len(answers)
            # An odd stride visits every 31-bit number once: no seed comes twice.
            seed = (first_seed + n_calls * 0x9E3779B1) % 2**31
            name = key(entropy, target.J, target.b, n_reads, n_calls, given)
            answers.append(self._answer(who, name, target, model, n_reads, seed))
            return answers[-1].reads

        singly = self.one_read_per_call
        states: list[NDArray[np.int8]] = []
        missing = n_samples
        while missing > 0:
            new = read(1 if singly else missing)
            if self._seeded and not states and not singly and _repeats(new, read):
                warnings.warn(
                    f"{type(self.child).__name__} repeats one read within a call that has a "
                    "seed; asking for reads one by one (one_read_per_call=True).",
                    RuntimeWarning,
                    stacklevel=3,
                )
                singly, new = True, new[:1]
            if len(new) > missing:
                new = new[np.sort(rng.choice(len(new), missing, replace=False))]
            states.append(new)
            missing -= len(new)
        spins = np.concatenate(states)
        report = audit(states, who, self._told, ancilla=False, cold=is_cold(target, spins))
        report |= audit_distribution(target, spins, who, self._told)
        report |= _chain_breaks(answers, who)
        n_kept = sum(answer.kept for answer in answers)
        counts = {"n_calls": len(answers), "n_kept": n_kept, "seeded": self._seeded}
        return spins, {**counts, **report}

    def cancel(self) -> None:
        """End the waiting for the sampler."""
        self.calls.cancel()

    def _answer(
        self, who: str, name: str, target: Ising, model: Any, n_reads: int, seed: int
    ) -> Answer:
        # openjij seeds numpy's global generator with the seed; nobody else's draws should move.
        # An unseeded sampler may live on that generator, which must then go on.
        before = np.random.get_state() if self._seeded else None
        try:
            matrix = np.column_stack([target.J, target.b])
            return self.calls.ask(
                who, name, matrix, lambda: self._read(target, model, n_reads, seed, who)
            )
        finally:
            if before is not None:
                np.random.set_state(before)

    def _read(self, target: Ising, model: Any, n_reads: int, seed: int, who: str) -> Answer:
        """States of one call, their energies checked, one row an occurrence."""
        answer = self.child.sample(model, **self._arguments(target.n_spins, n_reads, seed))
        if not hasattr(answer, "record"):
            raise TypeError(f"{who} returned a {type(answer).__name__}, not a dimod.SampleSet.")
        record, order = answer.record, list(answer.variables)
        counts = np.asarray(record.num_occurrences, dtype=np.int64)
        if counts.sum() == 0:
            raise RuntimeError(f"{who} returned no reads.")
        n = target.n_spins
        if set(order) != set(range(n)):
            raise RuntimeError(
                f"{who} returned other variables ({len(order)}) than the model's 0 to {n - 1}."
            )
        column = {label: i for i, label in enumerate(order)}
        spins: NDArray[np.int8] = np.asarray(record.sample)[:, [column[i] for i in range(n)]]
        spins = spins.astype(np.int8)
        if answer.vartype.name == "BINARY":
            spins = (2 * spins - 1).astype(np.int8)
        error = np.abs(target.energy(spins) - np.asarray(record.energy, dtype=np.float64))
        if not (error <= 1e-9 + 1e-6 * energy_scale(target)).all():
            raise RuntimeError(
                f"{who} reports energies that are not those of its states (off by up to "
                f"{error.max():.3g}): the sign of the energies or the order of the variables "
                "differs from dimod's."
            )
        told = {}
        if "chain_break_fraction" in (record.dtype.names or ()):
            broken = np.average(record.chain_break_fraction, weights=counts)
            told["chain_break_fraction"] = float(broken)
        return Answer(np.repeat(spins, counts, axis=0), told)

    def keep_draws(self, directory: Path) -> None:
        self.calls.directory = self.calls.directory or directory


def _chain_breaks(answers: list[Answer], who: str) -> dict[str, float]:
    """Of an embedded model: mean fraction of its chains whose physical spins disagree."""
    name = "chain_break_fraction"
    found = [answer.told[name] for answer in answers if name in answer.told]
    if not found:
        return {}
    broken = float(np.mean(found))
    if broken > _BROKEN:
        warnings.warn(
            f"{who}: {broken:.0%} of the chains are broken, so majority votes decide what the "
            "states are. Raise `chain_strength` in `parameters`, or use fewer units.",
            RuntimeWarning,
            stacklevel=4,
        )
    return {name: broken}


def _repeats(states: NDArray[np.int8], read: Callable[[int], NDArray[np.int8]]) -> bool:
    """Whether equal reads are due to the seed, not to a model so cold that all reads are equal.

    Calls that each repeat a single state, but different calls different states, do not come from
    independent reads: with 16 reads a probe and at least 2 before it, fewer than 1 time in 500.
    """
    if len(states) < 2 or (states != states[0]).any():
        return False
    for _ in range(_PROBES):
        probe = read(_PROBE_READS)
        if len(probe) < 2 or (probe != probe[0]).any():
            return False
        if (probe[0] != states[0]).any():
            return True
    return False


def _hot_to_cold(beta_range: tuple[float, float], zero_allowed: bool) -> tuple[float, float]:
    hot, cold = (float(beta) for beta in beta_range)
    if not (0 <= hot <= cold < np.inf) or (hot == 0 and not zero_allowed):
        raise ValueError(
            "`beta_range` must be (hot, cold) with 0 < hot <= cold, hot = 0 only on a linear "
            f"schedule; got {beta_range}."
        )
    return hot, cold


class _Local(Dimod):
    """Programs of this process: what they answer costs nothing, and is not kept."""

    def keep_draws(self, directory: Path) -> None:
        pass


class DWaveAnnealing(_Local):
    """D-Wave's simulated annealing, by default ending at the inverse temperature asked for.

    Left to itself, the package chooses temperatures that minimise. Ending at 1, with heat-bath
    moves in random order, reads are near the Boltzmann distribution where annealing is slow
    enough; how near is not known of a given model, hence the guarantee ``heuristic``.

    Parameters
    ----------
    n_sweeps
        Sweeps of one anneal; each read is one anneal.
    beta_range
        First and last inverse temperature, relative to the beta asked for.
    schedule
        ``"geometric"`` or ``"linear"`` in the inverse temperature.
    proposal
        ``"Gibbs"`` (heat bath) or ``"Metropolis"``.
    randomize_order
        Pick the spin to update at random; in order otherwise, which is faster.

    Raises
    ------
    ImportError
        If dimod or dwave-samplers is missing.
    ValueError
        If an option is unknown or out of range.

    References
    ----------
    ``dwave.samplers.SimulatedAnnealingSampler``, dwave-samplers 1.8.
    """

    name: ClassVar[str] = "dwave_annealing"
    conformance: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        n_sweeps: int = 1000,
        beta_range: tuple[float, float] = (0.1, 1.0),
        schedule: Literal["geometric", "linear"] = "geometric",
        proposal: Literal["Gibbs", "Metropolis"] = "Gibbs",
        randomize_order: bool = True,
    ) -> None:
        one_of(schedule, ("geometric", "linear"), "schedule")
        parameters = {
            "num_sweeps": positive_int(n_sweeps, "n_sweeps"),
            "beta_range": _hot_to_cold(beta_range, schedule == "linear"),
            "beta_schedule_type": schedule,
            "proposal_acceptance_criteria": one_of(proposal, ("Gibbs", "Metropolis"), "proposal"),
            "randomize_order": bool(randomize_order),
        }
        super().__init__("dwave.samplers:SimulatedAnnealingSampler", parameters=parameters)


class OpenJijAnnealing(_Local):
    """openjij's simulated annealing (Metropolis), ending at the inverse temperature asked for.

    Under a seed openjij repeats one read ``num_reads`` times, so reads are asked for one by one,
    each with a seed of its own; a dense model built once keeps that cheap. Its seeded initial
    states share many spins whatever the seed, so they are drawn here.

    Parameters
    ----------
    n_sweeps
        Sweeps of one anneal; each read is one anneal.
    beta_range
        First and last inverse temperature, relative to the beta asked for, geometric between.

    Raises
    ------
    ImportError
        If dimod or openjij is missing.
    ValueError
        If an option is out of range.

    References
    ----------
    ``openjij.SASampler``, openjij 0.12.
    """

    name: ClassVar[str] = "openjij_annealing"
    conformance: ClassVar[dict[str, Any]] = {"n_sweeps": 300}

    def __init__(self, n_sweeps: int = 1000, beta_range: tuple[float, float] = (0.1, 1.0)) -> None:
        hot, cold = _hot_to_cold(beta_range, zero_allowed=False)
        parameters = {
            "num_sweeps": positive_int(n_sweeps, "n_sweeps"),
            "beta_min": hot,
            "beta_max": cold,
            "sparse": False,
        }
        super().__init__("openjij:SASampler", parameters=parameters, one_read_per_call=True)

    def _build(self, ising: Ising) -> Any:
        # Given a dimod model openjij turns it into dicts at every call, 0.6 s for 1,024 spins.
        return require("openjij").BinaryQuadraticModel.from_numpy_matrix(
            np.triu(-ising.J, 1) - np.diag(ising.b), vartype="SPIN", offset=ising.offset
        )

    def _arguments(self, n_spins: int, n_reads: int, seed: int) -> dict[str, Any]:
        coins = np.random.default_rng(seed).integers(0, 2, n_spins)
        return {
            **super()._arguments(n_spins, n_reads, seed),
            "initial_state": (2 * coins - 1).tolist(),
        }
