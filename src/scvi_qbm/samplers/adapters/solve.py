"""Ising machines in this process: anything with ``solve(matrix)``."""

from __future__ import annotations

import inspect
from importlib import import_module
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scvi_qbm.ising import Ising
from scvi_qbm.samplers.base import Law, Sampler
from scvi_qbm.samplers.checks import positive_int

from .kaiwu.worker import checked_reads, heat_bath
from .quantise import quantise
from .reads import machine_matrix, states

__all__ = ["SolveAdapter"]

F64 = NDArray[np.float64]
Spins = NDArray[np.int8]


class SolveAdapter(Sampler):
    """Reads of any object with ``solve(matrix)``, such as a ``kaiwu.core.IsingSolver``.

    ``solve`` gets a float64 matrix of shape (n + 1, n + 1) and returns states of -1 and +1,
    shape (reads, n + 1), that are low in ``-s'Ms``; it is called until there are enough.

    Parameters
    ----------
    solver
        The object, or a function of the matrix, or ``"module:attribute"``: imported, and called
        unless it is a solver itself.
    n_bits
        Round the matrix to signed integers of so many bits (:func:`~.quantise.quantise`) before
        it is handed over; ``info["quantisation"]`` says what that cost. The temperature of the
        integers is the report's ``gain`` times that of the matrix. ``None`` does not round.
    scale_beta
        Multiply the matrix by beta, for solvers that work at temperature 1. Without it the
        solver's own temperature decides, whatever beta is.
    max_solves
        Calls of ``solve`` for one sample at most.

    Raises
    ------
    TypeError
        If ``solver`` has no ``solve`` and is no function.
    ValueError
        If a string is not ``"module:attribute"``, or an option is out of range. From ``sample``:
        no solver was given.
    RuntimeError
        From ``sample``: too few reads in ``max_solves`` calls, or reads that are no states of the
        model.

    Notes
    -----
    A solver is seeded only through a keyword ``seed`` or ``rand_seed`` of ``solve``, a new
    integer at each call: an attribute of that name may have been read long before. Otherwise
    ``info["seeded"]`` is False and a seed does not repeat the reads. ``info["scale_beta"]`` says
    whether beta reached the solver, and ``info["effective_beta"]``, with its error, which one its
    reads look like, in units of the beta asked for.
    """

    name: ClassVar[str] = "solve"
    law: ClassVar[Law] = "heuristic"
    conformance: ClassVar[dict[str, Any]] = {"solver": f"{__name__}:HeatBath"}

    def __init__(
        self,
        solver: Any = None,
        n_bits: int | None = None,
        scale_beta: bool = True,
        max_solves: int = 1000,
    ) -> None:
        self.solver = _solver(solver)
        self.n_bits = n_bits if n_bits is None else positive_int(n_bits, "n_bits", 2)
        self.scale_beta = scale_beta
        self.max_solves = positive_int(max_solves, "max_solves")

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[Spins, dict[str, Any]]:
        if self.solver is None:
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
        rng = np.random.default_rng(entropy)
        blocks: list[Spins] = []
        while sum(map(len, blocks)) < n_samples:
            if len(blocks) == self.max_solves:
                raise RuntimeError(
                    f"{who} gave {sum(map(len, blocks))} of {n_samples} reads in {len(blocks)} "
                    "calls; raise `max_solves`."
                )
            seed = {} if keyword is None else {keyword: int(rng.integers(2**31))}
            reads = self.solver.solve(handed.copy(), **seed, **told)
            blocks.append(checked_reads(reads, ising.n_spins + 1, who))
        spins, report = states(blocks, matrix, ising, scale, n_samples, rng, who)
        return spins, {
            "n_solves": len(blocks),
            "seeded": keyword is not None,
            "scale_beta": self.scale_beta and (rounded is None or bool(told)),
            "quantisation": None if rounded is None else rounded.as_dict(),
            **report,
        }


def _solver(solver: Any) -> Any:
    if isinstance(solver, str):
        module, colon, attribute = solver.partition(":")
        if not colon:
            raise ValueError(f"`solver` must look like 'module:attribute', got {solver!r}.")
        solver = getattr(import_module(module), attribute)
        if isinstance(solver, type) or not hasattr(solver, "solve"):
            solver = solver()
    if inspect.isroutine(solver):
        return SimpleNamespace(solve=solver, __name__=solver.__name__)
    if solver is not None and (
        isinstance(solver, type) or not callable(getattr(solver, "solve", None))
    ):
        raise TypeError(
            "`solver` must be a function of a matrix or an object with solve(matrix), got "
            f"{solver!r}."
        )
    return solver


def _keyword(solver: Any, *names: str) -> str | None:
    try:
        known = inspect.signature(solver.solve).parameters
    except (TypeError, ValueError):  # compiled without a signature
        return None
    return next((name for name in names if name in known), None)


class HeatBath:
    """The smallest solver: 500 Gibbs chains of 100 sweeps at temperature 1."""

    def solve(self, matrix: F64, seed: int) -> Spins:
        """States of shape (500, n + 1)."""
        reads: Spins = heat_bath(matrix, 1.0, 500, 100, seed)
        return reads
