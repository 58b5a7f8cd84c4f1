"""Ising models with which samplers are measured, and their known ground states."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh

from scvi_qbm.ising import Ising


def sherrington_kirkpatrick(n_spins: int, seed: int, field_sd: float = 0.0) -> Ising:
    """Normal couplings of variance 1 / n (glass transition at beta = 1) and normal fields."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(size=(n_spins, n_spins)) / np.sqrt(n_spins), 1)
    return Ising(upper + upper.T, field_sd * rng.normal(size=n_spins))


def moebius_ladder(n_spins: int) -> Ising:
    """MaxCut on the Moebius ladder: couplings of -1 on a ring and to its far side."""
    if n_spins % 2 or n_spins < 6:
        raise ValueError(f"A Moebius ladder has an even number of spins >= 6, got {n_spins}.")
    J = np.zeros((n_spins, n_spins))
    i = np.arange(n_spins)
    for j in ((i + 1) % n_spins, (i + n_spins // 2) % n_spins):
        J[i, j] = J[j, i] = -1.0
    return Ising(J, np.zeros(n_spins))


def moebius_optimum(n_spins: int) -> float:
    """Ground-state energy of :func:`moebius_ladder`.

    The best cut has 3n/2 - 2 edges where 4 divides n, else all 3n/2.
    """
    edges = 3 * n_spins // 2
    cut = edges - 2 if n_spins % 4 == 0 else edges
    return float(edges - 2 * cut)


def planted(n_spins: int, alpha: float, seed: int) -> tuple[Ising, float]:
    """Wishart planted ensemble (Hamze et al. 2020): a dense model and its least energy.

    ``alpha`` patterns a spin: hardest below 1. With very few there are many ground states, with
    many the landscape is smooth.
    """
    rng = np.random.default_rng(seed)
    truth = rng.choice([-1.0, 1.0], size=n_spins)
    patterns = rng.normal(size=(n_spins, max(1, round(alpha * n_spins))))
    # Orthogonal to the planted state, which thus has the least possible energy.
    patterns -= np.outer(truth, truth @ patterns) / n_spins
    J = -patterns @ patterns.T / n_spins
    np.fill_diagonal(J, 0.0)
    model = Ising((J + J.T) / 2, np.zeros(n_spins))
    return model, float(model.energy(truth))


def spectral(ising: Ising, n_samples: int, seed: int) -> NDArray[np.int8]:
    """Signs of random vectors in the top eigenspace of J: linear algebra, no Ising machine."""
    values, vectors = eigsh(ising.J, k=min(6, ising.n_spins - 1), which="LA")
    top = vectors[:, values > values.max() - 1e-6 * np.abs(values).max()]
    weights = np.random.default_rng(seed).normal(size=(top.shape[1], n_samples))
    return np.where((top @ weights).T >= 0, 1, -1).astype(np.int8)
