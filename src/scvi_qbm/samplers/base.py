"""What a sampler is: the protocol, its result, and what it guarantees."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from scvi_qbm._numbers import as_seed, positive_int
from scvi_qbm.ising import Ising

__all__ = ["BudgetSpent", "ChainSampler", "Guarantee", "SampleSet", "Sampler"]

_LARGEST = 1e37

#: What a sampler guarantees of its states, see :attr:`Sampler.guarantee`.
Guarantee = Literal["exact", "mcmc", "heuristic"]


class BudgetSpent(RuntimeError):
    """An Ising machine was called as often as its ``budget`` allows."""


@dataclass
class SampleSet:
    """States drawn from an Ising model.

    Parameters
    ----------
    spins
        int8 array of shape ``(n_samples, n_spins)``, entries -1 and +1.
    energies
        float64 array of shape ``(n_samples,)``: ``ising.energy(spins)``, not multiplied by beta.
    info
        What the sampler reports of its run. Always ``sampler``, ``guarantee``, ``beta``; Markov
        chains add ``n_updates`` (attempted spin updates), ``n_chains``, ``n_sweeps``,
        ``n_burn_in``, and the diagnostics ``rhat_energy``, ``rhat_overlap`` (of the overlap with
        the best state seen), ``rhat_limit`` (what both should stay below) and ``ess_energy``. Of
        a run shorter than half its burn-in, R-hat is that of states of both, evenly spaced.
    """

    spins: NDArray[np.int8]
    energies: NDArray[np.float64]
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.spins.shape[0])

    @property
    def binary(self) -> NDArray[np.int8]:
        """The states as 0 and 1, ``(spins + 1) / 2``."""
        return ((self.spins + 1) // 2).astype(np.int8)


class Sampler(abc.ABC):
    """Draws states of an :class:`~scvi_qbm.ising.Ising` model.

    A sampler is one class: it sets ``name`` and ``guarantee`` and implements :meth:`_sample`. The
    public :meth:`sample` checks what goes in and what comes out, and computes the energies, so
    that a sign error in a back end cannot pass unseen.
    """

    name: ClassVar[str]
    #: ``"exact"`` draws independently from the Boltzmann distribution; ``"mcmc"`` converges to it;
    #: ``"heuristic"`` finds low energies and promises nothing about frequencies.
    guarantee: ClassVar[Guarantee]
    #: Options with which ``check_sampler`` makes it: enough work a sample for peaked targets.
    conformance: ClassVar[dict[str, Any]] = {}
    #: Reseeds a generator that belongs to the whole process, so it must not run beside others.
    touches_global_state: ClassVar[bool] = False

    def cancel(self) -> None:  # noqa: B027 - most have nothing to end
        """End what is under way in another thread or process; does nothing by default."""

    def keep_draws(self, directory: Path) -> None:  # noqa: B027 - most draw for nothing
        """Keep what a machine answers in a folder, unless it keeps it elsewhere.

        Does nothing by default. Training calls it with a folder beside its checkpoint, so that a
        run that is resumed does not pay for a draw twice.

        Parameters
        ----------
        directory
            Made when the first answer comes.
        """

    def sample(
        self,
        ising: Ising,
        beta: float = 1.0,
        n_samples: int = 1000,
        seed: int | None = None,
    ) -> SampleSet:
        r"""Draw states from :math:`p(s) \propto e^{-\beta E(s)}`, or as ``guarantee`` says.

        Parameters
        ----------
        ising
            The model.
        beta
            Inverse temperature, >= 0, in units of 1 / energy.
        n_samples
            Number of states to return, >= 1.
        seed
            Same seed, same machine, same states. ``None`` draws fresh entropy.

        Returns
        -------
        SampleSet
            ``n_samples`` states with their energies, int8 and float64.

        Raises
        ------
        TypeError
            If ``ising`` is not an :class:`~scvi_qbm.ising.Ising`, or ``n_samples`` or ``seed`` is
            no whole number.
        ValueError
            If ``beta`` is negative, not finite or too large for single precision, ``n_samples``
            < 1, or ``seed`` < 0.
        RuntimeError
            If a back end returns states of the wrong shape, or entries other than -1 and +1.
        """
        if not isinstance(ising, Ising):
            raise TypeError(
                f"`ising` must be a scvi_qbm.ising.Ising, got {type(ising).__name__}; build one "
                "with Ising(J, b) or Ising.from_boltzmann(W, h)."
            )
        beta = float(beta)
        if not (np.isfinite(beta) and beta >= 0):
            raise ValueError(f"`beta` must be finite and >= 0, got {beta}.")
        largest = float((np.abs(ising.J).sum(axis=1) + np.abs(ising.b)).max())
        if not beta * largest < _LARGEST:
            raise ValueError(
                f"beta times the largest possible field is {beta * largest:.1e}: too large for "
                "single precision. Above 1e3 it makes no difference: spins are frozen."
            )
        n_samples = positive_int(n_samples, "n_samples")
        entropy = np.random.SeedSequence(as_seed(seed))
        found = self._sample(ising, beta, n_samples, entropy)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
            raise TypeError(f"_sample of {self.name!r} must return (spins, info), info a dict.")
        spins, info = found
        wrong = np.asarray(spins)[np.abs(spins) != 1]
        if wrong.size:
            raise RuntimeError(
                f"Sampler {self.name!r} returned entries such as {wrong[0]}: states have -1 and "
                "+1 only."
            )
        spins = np.ascontiguousarray(spins, dtype=np.int8)
        if spins.shape != (n_samples, ising.n_spins):
            raise RuntimeError(
                f"Sampler {self.name!r} returned states of shape {spins.shape}, expected "
                f"({n_samples}, {ising.n_spins})."
            )
        info = {"sampler": self.name, "guarantee": self.guarantee, "beta": beta, **info}
        return SampleSet(spins, ising.energy(spins), info)

    @abc.abstractmethod
    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        """Draw ``n_samples`` states; arguments are valid. Returns ``(spins, info)``."""


class ChainSampler(Sampler):
    """A Markov-chain sampler whose chains can be kept between calls, as training does.

    ``init`` starts chains, ``step`` advances them (in place, and returns them), ``retarget``
    moves them to another model of the same size, ``spins`` reads them.
    """

    guarantee: ClassVar[Guarantee] = "mcmc"
    n_chains: int
    n_sweeps: int

    @abc.abstractmethod
    def init(self, ising: Ising, beta: float = 1.0, seed: int | None = None) -> Any:
        """Start ``n_chains`` chains at random states.

        Parameters
        ----------
        ising
            The model.
        beta
            Inverse temperature, in units of 1 / energy.
        seed
            Same seed, same chains. ``None`` draws fresh entropy.

        Returns
        -------
        Any
            The chains, in a form of the sampler's own.
        """

    @abc.abstractmethod
    def step(self, state: Any, n_sweeps: int | None = None) -> Any:
        """Advance every chain.

        Parameters
        ----------
        state
            The chains; they may be advanced in place.
        n_sweeps
            Sweeps, each of which updates every spin once; the sampler's own ``n_sweeps`` by
            default.

        Returns
        -------
        Any
            The advanced chains, to be used from here on.
        """

    @abc.abstractmethod
    def retarget(self, state: Any, ising: Ising, beta: float = 1.0) -> Any:
        """Point the chains at another model of the same size, keeping their states.

        Parameters
        ----------
        state
            The chains; they may be changed in place.
        ising
            The model to go on with, of as many spins.
        beta
            Inverse temperature, in units of 1 / energy.

        Returns
        -------
        Any
            The chains, to be used from here on.

        Raises
        ------
        ValueError
            If the model has another number of spins.
        """

    def adapt(self, state: Any) -> Any:
        """Tune the sampler to what its chains have seen; called between steps, may do nothing.

        Parameters
        ----------
        state
            The chains; they may be changed in place.

        Returns
        -------
        Any
            The chains, to be used from here on.
        """
        return state

    @abc.abstractmethod
    def spins(self, state: Any) -> NDArray[np.int8]:
        """States of the chains at the target temperature.

        Parameters
        ----------
        state
            The chains.

        Returns
        -------
        numpy.ndarray
            int8 ``(n_chains, n_spins)``, -1 and +1.
        """
