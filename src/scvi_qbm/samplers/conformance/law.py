"""Does a sampler follow the law? Against enumeration, on peaked models of 8 spins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scvi_qbm.diagnostics import effective_beta, effective_sample_size, total_variation
from scvi_qbm.samplers.base import Sampler
from scvi_qbm.samplers.exact import all_energies, all_states, boltzmann_law

from .basics import Found, random_model, require

F64 = NDArray[np.float64]

# A right sampler fails with this probability a seed and moment.
_ALARM = 1e-4
_N_LAW = 4096


def check_law(sampler: Sampler, seed: int) -> Found:
    """The enumerated law on peaked models; of a heuristic, how far it is from it."""
    if sampler.law == "heuristic":
        model = random_model(8, seed)
        spins = sampler.sample(model, 1.0, _N_LAW, seed=seed).spins
        beta = effective_beta(model, spins)[0]
        raw, floor = total_variation(spins, boltzmann_law(model))
        text = f"effective beta {beta:.2f} for 1; total variation {raw:.2f} (floor {floor:.2f})"
        if np.isfinite(beta) and beta >= 0:
            own = total_variation(spins, boltzmann_law(model, beta))[0]
            text += f", {own:.2f} at its own beta"
        return Found(text, "noted")
    # One target at another temperature: some mistakes cancel at beta = 1.
    pvalues = [
        p
        for k, beta in enumerate((1.0, 1.0, 0.6))
        for p in law_pvalues(sampler, seed + k, beta=beta)
    ]
    require(
        min(pvalues) > _ALARM,
        f"smallest of {len(pvalues)} p-values is {min(pvalues):.1e}: another law, or chains too "
        "short for these rugged models (give more sweeps)",
    )
    return Found(f"smallest of {len(pvalues)} p-values {min(pvalues):.3f}")


def law_pvalues(
    sampler: Sampler, seed: int, n_samples: int = _N_LAW, beta: float = 1.0
) -> list[float]:
    """p-values of a sampler's states on a random peaked model of 8 spins.

    Of the chi-square test on states (thinned where they are correlated), then of the mean energy
    and three pair moments, their errors from the effective sample size. States come in rounds of
    ``info["n_chains"]`` independent chains, or, without that entry, as one chain (``mcmc``) or
    independently (others). An AssertionError where too few are independent to say anything.
    """
    model = random_model(8, seed)
    law = boltzmann_law(model, beta)
    # Four rounds, for the effective sample size.
    n_samples = max(n_samples, 4 * getattr(sampler, "n_chains", 0))
    out = sampler.sample(model, beta, n_samples, seed=seed)
    independent = sampler.law != "mcmc"
    n_chains = int(out.info.get("n_chains", n_samples if independent else 1))
    n_rounds = n_samples // n_chains
    sizes: list[float] = []

    def pvalue(values: F64, exact: float) -> float:
        series = values[: n_rounds * n_chains].reshape(-1, n_chains).T
        size = effective_sample_size(series) if n_rounds >= 4 else float(n_samples)
        sizes.append(size)
        error = values.std() / np.sqrt(size)
        return float(2 * stats.norm.sf(abs(values.mean() - exact) / error)) if error > 0 else 0.0

    states = all_states(8).astype(float)
    moments = [pvalue(out.energies, float(law @ all_energies(model)))]
    for i, j in ((0, 1), (2, 5), (6, 7)):
        exact = float(law @ (states[:, i] * states[:, j]))
        moments.append(pvalue((out.spins[:, i] * out.spins[:, j]).astype(float), exact))
    require(np.isfinite(sizes).any(), "all states are the same: the chains are frozen")
    thin = int(np.ceil(n_samples / np.nanmin(sizes) - 0.2)) if n_rounds >= 4 else 1
    require(
        n_samples // thin >= 500,
        f"only {np.nanmin(sizes):.0f} effective samples of {n_samples}: the test has no "
        "power. Give the sampler more sweeps between samples.",
    )
    kept = out.spins[: n_rounds * n_chains].reshape(n_rounds, n_chains, 8)[::thin]
    return [chi_square(kept.reshape(-1, 8), law), *moments]


def chi_square(spins: NDArray[np.int8], law: F64) -> float:
    """p-value of independent states against an enumerated law; rare states are pooled."""
    index = (spins > 0) @ (1 << np.arange(spins.shape[1]))
    observed = np.bincount(index, minlength=law.size).astype(float)
    expected = law * len(spins)
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5 and len(expected) > 1:
        observed, expected = observed[:-1], expected[:-1]
        expected *= observed.sum() / expected.sum()
    return float(stats.chisquare(observed, expected).pvalue)
