"""Has a chain mixed, is its distribution right, and at which temperature? Numpy and scipy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import f

from scvi_qbm.ising import Ising

__all__ = ["effective_beta", "effective_sample_size", "split_rhat", "total_variation"]

F64 = NDArray[np.float64]


def _halves(draws: ArrayLike) -> F64:
    """The first and the last half of each chain, as chains."""
    chains: F64 = np.atleast_2d(np.asarray(draws, dtype=np.float64))
    if chains.ndim != 2 or chains.shape[1] < 4:
        raise ValueError(
            "`draws` must have shape (n_chains, n_draws) with at least 4 draws, got "
            f"{np.shape(draws)}."
        )
    half = chains.shape[1] // 2
    return np.concatenate([chains[:, :half], chains[:, -half:]])


def split_rhat(draws: ArrayLike) -> float:
    r"""Split :math:`\hat R` of a scalar: about 1 where chains agree, above 1.1 where they do not.

    Parameters
    ----------
    draws
        Shape ``(n_chains, n_draws)``, at least 4 draws.

    Returns
    -------
    float
        :math:`\hat R`; NaN if every value is the same (a frozen chain says nothing about mixing),
        infinite if chains are frozen at different values.

    Raises
    ------
    ValueError
        If ``draws`` has more than 2 axes or fewer than 4 draws.

    References
    ----------
    Gelman et al., Bayesian Data Analysis (2013), section 11.4.
    """
    halves = _halves(draws)
    n = halves.shape[1]
    within = float(halves.var(axis=1, ddof=1).mean())
    between = float(halves.mean(axis=1).var(ddof=1))
    rounding = (1e-12 * np.abs(halves).max()) ** 2
    if within <= rounding:
        return float("nan") if between <= rounding else float("inf")
    return float(np.sqrt((n - 1) / n + between / within))


def rhat_limit(n_chains: int, n_draws: int, least: float = 1.1) -> float:
    """What :func:`split_rhat` exceeds where chains disagree: ``least``, or more if draws are few.

    Independent normal draws exceed it once in 10,000 runs: then R-hat squared is
    ``(n - 1 + F) / n`` with ``F`` of Fisher's F distribution.

    Parameters
    ----------
    n_chains, n_draws
        Shape of the draws.
    least
        The limit for many draws.

    Returns
    -------
    float
        The limit.
    """
    m, n = 2 * n_chains, n_draws // 2
    return max(least, float(np.sqrt((n - 1 + f.isf(1e-4, m - 1, m * (n - 1))) / n)))


def effective_sample_size(draws: ArrayLike) -> float:
    """Number of independent draws that would estimate the mean as well.

    Geyer's initial positive sequence on the autocorrelation averaged over split chains.

    Parameters
    ----------
    draws
        Shape ``(n_chains, n_draws)``, at least 4 draws.

    Returns
    -------
    float
        The effective size, at most ``n_chains * n_draws``; NaN if every value is the same.

    Raises
    ------
    ValueError
        If ``draws`` has more than 2 axes or fewer than 4 draws.

    References
    ----------
    Geyer (1992); Vehtari et al. (2021), Bayesian Analysis 16, 667.
    """
    halves = _halves(draws)
    m, n = halves.shape
    centred = halves - halves.mean(axis=1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred, 2 * n, axis=1)) ** 2
    autocov = np.fft.irfft(spectrum, axis=1)[:, :n].mean(axis=0) / n
    within = autocov[0] * n / (n - 1)
    between = float(halves.mean(axis=1).var(ddof=1)) if m > 1 else 0.0
    total = within * (n - 1) / n + between
    if total <= (1e-12 * np.abs(halves).max()) ** 2:
        return float("nan")
    rho = 1 - (within - autocov * n / (n - 1)) / total
    rho[0] = 1.0
    pairs = rho[: n - n % 2].reshape(-1, 2).sum(axis=1)
    negative = np.nonzero(pairs < 0)[0]
    if negative.size:
        pairs = pairs[: negative[0]]
    pairs = np.minimum.accumulate(pairs)
    tau = max(2 * float(pairs.sum()) - 1, 1e-3)
    return float(min(m * n / tau, m * n))


def effective_beta(ising: Ising, spins: ArrayLike) -> tuple[float, float]:
    r"""Inverse temperature at which the states look most like Boltzmann samples.

    Maximum pseudo-likelihood: the root of :math:`\sum_{a,i} g_{ai} (1 - \tanh \beta g_{ai}) = 0`
    with :math:`g_i = s_i (J s + b)_i`. It needs no partition function; on Boltzmann samples it is
    consistent, on others it names the temperature to compare at, no more.

    Parameters
    ----------
    ising
        The model.
    spins
        States, shape ``(n_samples, n_spins)``, entries -1 and +1.

    Returns
    -------
    beta : float
        In units of the model's own. Infinite where no spin of any state would gain by a flip (all
        in local minima); negative where states avoid low energies; NaN where the model has
        neither couplings nor fields.
    standard_error : float
        Of beta, with states taken as independent; NaN where beta is not finite.

    Raises
    ------
    ValueError
        If shapes do not fit.

    References
    ----------
    Besag (1975), The Statistician 24, 179; Bhattacharya and Mukherjee (2018), Bernoulli 24, 493.
    """
    s: F64 = np.atleast_2d(np.asarray(spins, dtype=np.float64))
    gains = s * ising.local_fields(s)
    scale = float(np.abs(gains).max())
    if scale == 0:
        return float("nan"), float("nan")
    gains /= scale
    if gains.min() >= 0 or gains.max() <= 0:
        return (float("inf") if gains.min() >= 0 else float("-inf")), float("nan")
    # The derivative of a concave function: Newton, kept inside a shrinking bracket.
    low, high, beta = -1.0, 1.0, 0.0
    while _score(gains, high).sum() > 0:
        high *= 2
    while _score(gains, low).sum() < 0:
        low *= 2
    for _ in range(100):
        score = float(_score(gains, beta).sum())
        low, high = (beta, high) if score > 0 else (low, beta)
        new = beta + score / _slope(gains, beta)
        new = new if low < new < high else 0.5 * (low + high)
        if abs(new - beta) <= 1e-10 * max(1.0, abs(beta)):
            break
        beta = new
    per_state = _score(gains, beta).sum(axis=1)
    error = float(np.sqrt((per_state**2).sum())) / _slope(gains, beta)
    return beta / scale, error / scale


def _score(gains: F64, beta: float) -> F64:
    out: F64 = gains * (1 - np.tanh(beta * gains))
    return out


def _slope(gains: F64, beta: float) -> float:
    slope = float((gains**2 / np.cosh(np.clip(beta * gains, -300, 300)) ** 2).sum())
    return max(slope, 1e-300)


def total_variation(spins: ArrayLike, distribution: ArrayLike) -> tuple[float, float]:
    """Total variation between the states drawn and an enumerated distribution.

    Parameters
    ----------
    spins
        int8 ``(n_samples, n_spins)``.
    distribution
        Probabilities of all states, shape ``(2**n_spins,)``, from
        :func:`scvi_qbm.samplers.exact.boltzmann_distribution`.

    Returns
    -------
    distance : float
        From 0 (the same distribution) to 1.
    floor : float
        Its expectation under independent draws from ``distribution``: finite samples are never at
        distance zero.

    Raises
    ------
    ValueError
        If ``distribution`` has not one probability a state.
    """
    states = np.asarray(spins)
    probabilities = np.asarray(distribution, dtype=np.float64)
    n_samples, n_spins = states.shape
    if probabilities.shape != (2**n_spins,):
        raise ValueError(
            f"`distribution` must have shape ({2**n_spins},) for {n_spins} spins, got "
            f"{probabilities.shape}."
        )
    index = (states > 0) @ (1 << np.arange(n_spins))
    frequencies = np.bincount(index, minlength=2**n_spins) / n_samples
    distance = 0.5 * float(np.abs(frequencies - probabilities).sum())
    # E|X - np| of a binomial: its normal limit, and for rare states the Poisson one.
    expected = n_samples * probabilities
    normal = np.sqrt(2 / np.pi * n_samples * probabilities * (1 - probabilities))
    rare = 2 * expected * np.exp(-expected)
    floor = 0.5 * float(np.where(expected < 1, rare, normal).sum()) / n_samples
    return distance, floor
