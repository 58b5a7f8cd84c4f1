"""Ising machines in this process: anything with ``solve(matrix)``, or a queue of tasks."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scvi_qbm._numbers import positive_int
from scvi_qbm.ising import Ising
from scvi_qbm.samplers.base import Guarantee, Sampler
from scvi_qbm.samplers.registry import import_attribute

from .calls import Answer, Calls, Queued, key
from .kaiwu.worker import checked_reads, heat_bath
from .quantise import quantise
from .reads import machine_matrix, states

__all__ = ["SolveAdapter"]

F64 = NDArray[np.float64]
Spins = NDArray[np.int8]


class SolveAdapter(Sampler):
    """Reads of any object with ``solve(matrix)``, such as a ``kaiwu.core.IsingSolver``.

    ``solve`` gets a float64 matrix of shape (n + 1, n + 1) and returns states of -1 and +1,
    shape (reads, n + 1), that are low in ``-s'Ms``; it is called until there are enough. A machine
    with a queue has ``submit(matrix)``, which returns the name of a task, and ``fetch(task)``,
    which returns its states, or ``None`` while they are not there.

    Parameters
    ----------
    solver
        The object, or a function of the matrix, or ``"module:attribute"``: imported, and called
        unless it is a solver itself. May be left out with ``replay``.
    n_bits
        Round the matrix to signed integers of so many bits (:func:`~.quantise.quantise`) before
        it is handed over; ``info["quantisation"]`` says what that cost. The temperature of the
        integers is the report's ``gain`` times that of the matrix. ``None`` does not round.
    scale_beta
        Multiply the matrix by beta, for solvers that work at temperature 1. Without it the
        solver's own temperature decides, whatever beta is.
    max_solves
        Calls of ``solve`` for one sample at most.
    timeout
        Seconds to wait for the answer to a call; ``None`` waits for ever. A call that is given up
        goes on in the background; its answer is kept if it comes while the process lives.
    retries
        Times a failed or overdue call is repeated, after 1, 2, 4, ... 60 seconds. A task in a
        queue is not submitted again, but waited for again.
    budget
        Calls in all, failed ones included; with a ``directory`` those of earlier processes count.
    directory
        Folder in which the answer to every call is kept, a file each, with the reads as they
        came. Equal calls (model, seed, number of samples) are answered from it. In training
        ``checkpoint_dir/draws`` unless given: a run that is resumed pays for no draw twice.
    replay
        Answer from ``directory`` only, without the machine.
    poll_interval
        Seconds between two calls of ``fetch``.

    Raises
    ------
    TypeError
        If ``solver`` has neither ``solve`` nor ``submit`` and ``fetch``, and is no function.
    ImportError
        If a string names what cannot be imported.
    ValueError
        If a string is not ``"module:attribute"``, or an option is out of range. From ``sample``:
        no solver was given.
    TimeoutError
        From ``sample``: no answer within ``timeout``, after the last retry.
    RuntimeError
        From ``sample``: too few reads in ``max_solves`` calls, reads that are no states of the
        model, ``budget`` used up, or reads to be replayed that are not there.

    Notes
    -----
    A solver is seeded only through a keyword ``seed`` or ``rand_seed`` of ``solve`` or ``submit``,
    a new integer at each call: an attribute of that name may have been read long before. Otherwise
    ``info["seeded"]`` is False and a seed repeats the reads only where they are kept.
    ``info["n_kept"]`` counts the calls answered from ``directory``; ``info["scale_beta"]`` says
    whether beta reached the solver, and ``info["effective_beta"]``, with its error, which one its
    reads look like, in units of the beta asked for.
    """

    name: ClassVar[str] = "solve"
    guarantee: ClassVar[Guarantee] = "heuristic"
    conformance: ClassVar[dict[str, Any]] = {"solver": f"{__name__}:HeatBath"}

    def __init__(
        self,
        solver: Any = None,
        n_bits: int | None = None,
        scale_beta: bool = True,
        max_solves: int = 1000,
        timeout: float | None = None,
        retries: int = 0,
        budget: int | None = None,
        directory: str | os.PathLike[str] | None = None,
        replay: bool = False,
        poll_interval: float = 1.0,
    ) -> None:
        self.solver = _solver(solver)
        self.calls = Calls(timeout, retries, budget, directory, replay, poll_interval)
        self.n_bits = n_bits if n_bits is None else positive_int(n_bits, "n_bits", 2)
        self.scale_beta = scale_beta
        self.max_solves = positive_int(max_solves, "max_solves")
        self._told: set[str] = set()

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[Spins, dict[str, Any]]:
        if self.solver is None and not self.calls.replay:
            raise ValueError("Sampler 'solve' needs a solver: get_sampler('solve', solver=...).")
        who = f"solver {getattr(self.solver, '__name__', type(self.solver).__name__)}"
        scale = beta if self.scale_beta else 1.0
        matrix = machine_matrix(ising, scale)
        rounded = None if self.n_bits is None else quantise(matrix, self.n_bits)
        handed = matrix if rounded is None else rounded.matrix.astype(np.float64)
        keyword = _keyword(self.solver, "seed", "rand_seed")
        told = {}
        if rounded is not None and _keyword(self.solver, "temperature"):
            told["temperature"] = rounded.gain
        elif rounded is not None and self.scale_beta and "temperature" not in self._told:
            self._told.add("temperature")
            warnings.warn(
                f"{who} gets integers of {self.n_bits} bits, which are the same at every "
                "temperature, and its solve() takes no keyword `temperature`: its states have a "
                "temperature of their own. See docs/kaiwu.md, pitfalls.",
                RuntimeWarning,
                stacklevel=3,
            )
        rng = np.random.default_rng(entropy)
        blocks: list[Spins] = []
        n_kept = 0
        while sum(map(len, blocks)) < n_samples:
            if len(blocks) == self.max_solves:
                raise RuntimeError(
                    f"{who} gave {sum(map(len, blocks))} of {n_samples} reads in {len(blocks)} "
                    "calls; raise `max_solves`."
                )
            seed = int(rng.integers(2**31))  # drawn in any case: a replay has no solver to ask
            told |= {} if keyword is None else {keyword: seed}
            call = self._call(handed, told, who)
            name = key(entropy, handed, rounded and rounded.gain, n_samples, len(blocks))
            answer = self.calls.ask(None if self.solver is None else who, name, handed, call)
            n_kept += answer.kept
            blocks.append(checked_reads(answer.reads, ising.n_spins + 1, who))
        spins, report = states(blocks, matrix, ising, scale, n_samples, rng, who, self._told)
        return spins, {
            "n_solves": len(blocks),
            "n_kept": n_kept,
            "seeded": keyword is not None,
            "scale_beta": self.scale_beta and (rounded is None or bool(told)),
            "quantisation": None if rounded is None else rounded.as_dict(),
            **report,
        }

    def _call(self, handed: F64, told: dict[str, Any], who: str) -> Callable[[], Answer] | Queued:
        solver, told = self.solver, dict(told)

        def answer(reads: Any) -> Answer:
            return Answer(checked_reads(reads, len(handed), who))

        if not _has_queue(solver):
            return lambda: answer(solver.solve(handed.copy(), **told))

        def fetch(task: str) -> Answer | None:
            reads = solver.fetch(task)
            return None if reads is None else answer(reads)

        return Queued(lambda: solver.submit(handed.copy(), **told), fetch)

    def cancel(self) -> None:
        """End the waiting for the machine; what it answers later is kept, if there is a folder."""
        self.calls.cancel()

    def keep_draws(self, directory: Path) -> None:
        self.calls.directory = self.calls.directory or directory


def _solver(solver: Any) -> Any:
    if isinstance(solver, str):
        if ":" not in solver:
            raise ValueError(f"`solver` must look like 'module:attribute', got {solver!r}.")
        solver = import_attribute(solver)
        if isinstance(solver, type) or (inspect.isroutine(solver) and _makes_object(solver)):
            solver = solver()
    if inspect.isroutine(solver):
        return SimpleNamespace(solve=solver, __name__=solver.__name__)
    works = callable(getattr(solver, "solve", None)) or _has_queue(solver)
    if solver is not None and (isinstance(solver, type) or not works):
        raise TypeError(
            "`solver` must be a function of a matrix, or an object with solve(matrix) or with "
            f"submit(matrix) and fetch(task), got {solver!r}."
            + (" Make an object of this class." if isinstance(solver, type) else "")
        )
    return solver


def _makes_object(function: Any) -> bool:
    """Whether it needs no argument, so that it is not the machine itself, which gets a matrix."""
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):  # an argument is missing; compiled without a signature
        return False
    return True


def _has_queue(solver: Any) -> bool:
    return all(callable(getattr(solver, name, None)) for name in ("submit", "fetch"))


def _keyword(solver: Any, *names: str) -> str | None:
    try:
        asked = solver.submit if _has_queue(solver) else solver.solve
        known = inspect.signature(asked).parameters
    except (AttributeError, TypeError, ValueError):  # none, or compiled without a signature
        return None
    return next((name for name in names if name in known), None)


class HeatBath:
    """The smallest solver: 500 Gibbs chains of 100 sweeps at temperature 1."""

    def solve(self, matrix: F64, seed: int) -> Spins:
        """States of shape (500, n + 1)."""
        reads: Spins = heat_bath(matrix, 1.0, 500, 100, seed)
        return reads
