"""Enumeration: the oracle for up to 24 spins."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scvi_qbm.ising import Ising

from .base import Guarantee, Sampler

__all__ = ["Exact", "all_energies", "all_states", "boltzmann_distribution"]

# For 128 MB of energies.
MAX_SPINS = 24


def all_energies(ising: Ising) -> NDArray[np.float64]:
    """Energies of all ``2**n_spins`` states; bit i of the index is spin i (1 for up).

    Parameters
    ----------
    ising
        A model of at most 24 spins (128 MB of energies).

    Returns
    -------
    numpy.ndarray
        float64 ``(2**n_spins,)``.

    Raises
    ------
    ValueError
        If the model has more than 24 spins.
    """
    n = ising.n_spins
    if n > MAX_SPINS:
        raise ValueError(
            f"Enumeration is limited to {MAX_SPINS} spins, the model has {n}; use "
            "get_sampler('parallel_tempering') or log_partition(method='bar')."
        )
    energies = np.full(1, ising.offset)
    for i in range(n):
        fields = np.full(1, ising.b[i])
        for j in range(i):
            fields = np.concatenate([fields - ising.J[i, j], fields + ising.J[i, j]])
        energies = np.concatenate([energies + fields, energies - fields])
    return energies


def all_states(n_spins: int) -> NDArray[np.int8]:
    """All states, in the order of :func:`all_energies`.

    Parameters
    ----------
    n_spins
        Number of spins; memory goes with ``n_spins * 2**n_spins`` bytes.

    Returns
    -------
    numpy.ndarray
        int8 ``(2**n_spins, n_spins)``, -1 and +1.
    """
    index = np.arange(2**n_spins)
    return (2 * ((index[:, None] >> np.arange(n_spins)) & 1) - 1).astype(np.int8)


def boltzmann_distribution(ising: Ising, beta: float = 1.0) -> NDArray[np.float64]:
    """Probabilities of all states, in the order of :func:`all_energies`.

    Parameters
    ----------
    ising
        A model of at most 24 spins.
    beta
        Inverse temperature, in units of 1 / energy.

    Returns
    -------
    numpy.ndarray
        float64 ``(2**n_spins,)``, sum 1.

    Raises
    ------
    ValueError
        If the model has more than 24 spins.
    """
    log_weights = -beta * all_energies(ising)
    log_weights -= log_weights.max()
    weights: NDArray[np.float64] = np.exp(log_weights)
    weights /= weights.sum()
    return weights


class Exact(Sampler):
    """Independent draws from the enumerated Boltzmann distribution, up to 24 spins."""

    name: ClassVar[str] = "exact"
    guarantee: ClassVar[Guarantee] = "exact"

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        cumulative = np.cumsum(boltzmann_distribution(ising, beta))
        draws = np.random.default_rng(entropy).random(n_samples) * cumulative[-1]
        index = np.searchsorted(cumulative, draws, side="right").clip(max=cumulative.size - 1)
        bits = (index[:, None] >> np.arange(ising.n_spins)) & 1
        return (2 * bits - 1).astype(np.int8), {}
