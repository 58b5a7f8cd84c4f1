"""Does a sampler follow the Boltzmann distribution? By enumeration, on peaked models."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scvi_qbm.diagnostics import effective_beta, effective_sample_size, total_variation
from scvi_qbm.ising import Ising
from scvi_qbm.samplers.base import ChainSampler, Sampler
from scvi_qbm.samplers.exact import all_energies, all_states, boltzmann_distribution

from .basics import Found, random_model, require

F64 = NDArray[np.float64]

# A right sampler fails with this probability a seed and moment.
_ALARM = 1e-4
# Of the second look, which is for other seeds and not for what is too small to be chance.
_AGAIN, _OTHER, _NO_CHANCE = 1e-3, 7919, 1e-9
_N_LAW = 4096
_N_NOTED = 1024
_N_JUDGED = 16_384
# The same distributions at these temperatures: the energies are divided by what multiplies them.
_BETAS = (1.0, 0.25, 4.0)
# States on either side from which on a share is taken for normal.
_NORMAL = 25
_SMALL, _FEWEST, _N_SMALL = 128, 32, 2048


def peaked_model(n_spins: int, seed: int, beta: float) -> Ising:
    """A random model that is as peaked at every ``beta``."""
    return random_model(n_spins, seed).scaled(1 / beta)


def _temperature(sampler: Sampler, seed: int) -> str:
    """What a wrong temperature looks like; "" if the sampler cannot be asked."""
    with contextlib.suppress(Exception):
        model = random_model(8, seed)
        beta, se = effective_beta(model, sampler.sample(model, 1.0, _N_NOTED, seed=seed).spins)
        return f"; effective beta {beta:.3g} +- {se:.1g} (1 is right)"
    return ""


class _Unlikely(AssertionError):
    """A p-value is below the alarm."""

    def __init__(self, message: str, p: float) -> None:
        super().__init__(message)
        self.p = p


def _confirmed(check: Callable[..., Found]) -> Callable[[Sampler, int], Found]:
    """A small p-value is chance now and then: look again, at other models and states."""

    @functools.wraps(check)
    def checked(sampler: Sampler, seed: int) -> Found:
        try:
            return check(sampler, seed)
        except AssertionError as error:
            found = None
            if getattr(error, "p", 1.0) > _NO_CHANCE:
                with contextlib.suppress(AssertionError):
                    found = check(sampler, seed + _OTHER, _AGAIN)
            if found is None:
                raise AssertionError(f"{error}{_temperature(sampler, seed)}") from None
            return Found(f"{found.detail}; a first look was worse: {error}")

    return checked


@_confirmed
def check_distribution(sampler: Sampler, seed: int, alarm: float = _ALARM) -> Found:
    """The enumerated distribution on peaked models; of a heuristic, how far it is from it."""
    if sampler.guarantee == "heuristic":
        model = random_model(8, seed)
        spins = sampler.sample(model, 1.0, _N_NOTED, seed=seed).spins
        beta = effective_beta(model, spins)[0]
        raw, floor = total_variation(spins, boltzmann_distribution(model))
        text = f"effective beta {beta:.2f} for 1; total variation {raw:.2f} (floor {floor:.2f})"
        if np.isfinite(beta) and beta >= 0:
            own = total_variation(spins, boltzmann_distribution(model, beta))[0]
            text += f", {own:.2f} at its own beta"
        for asked in _BETAS[1:]:
            model = peaked_model(8, seed, asked)
            spins = sampler.sample(model, asked, _N_NOTED // 4, seed=seed).spins
            text += f"; effective beta {effective_beta(model, spins)[0]:.2f} for {asked:g}"
        return Found(text, "noted")
    found = (
        distribution_pvalues(sampler, seed + k, _N_JUDGED, beta) for k, beta in enumerate(_BETAS)
    )
    return judged(found, alarm)


@_confirmed
def check_small_calls(sampler: Sampler, seed: int, alarm: float = _ALARM) -> Found:
    """Few reads of 16 spins at a time follow the distribution as many do."""
    if sampler.guarantee == "heuristic":
        return Found("a heuristic", "skipped")
    n_chains = getattr(sampler, "n_chains", 0)
    if sampler.guarantee == "mcmc" and not n_chains:
        return Found("no attribute n_chains says how many states are independent", "skipped")
    if sampler.guarantee == "mcmc" and n_chains < _FEWEST:
        return Found(f"fewer than {_FEWEST} chains", "skipped")
    n_reads = min(_SMALL, n_chains) if sampler.guarantee == "mcmc" else _SMALL
    # Couplings with which single-spin updates still mix at 16 spins, whatever the seed.
    model, entropy = random_model(16, seed, sd=0.4), np.random.SeedSequence(seed)
    spins = [
        sampler.sample(model, 1.0, n_reads, seed=int(call)).spins
        for call in entropy.generate_state(_N_SMALL // n_reads)
    ]
    return judged([pvalues(np.concatenate(spins), None, model, 1.0)], alarm)


@_confirmed
def check_chain_distribution(sampler: Sampler, seed: int, alarm: float = _ALARM) -> Found:
    """The distribution along training's calls: ``init``, ``retarget``, ``adapt``, ``step``."""
    if not isinstance(sampler, ChainSampler):
        return Found("not a ChainSampler", "skipped")
    n_rounds = max(4, -(-_N_JUDGED // sampler.n_chains))
    n_first = max(1, getattr(sampler, "n_burn_in", 0) // sampler.n_sweeps)
    found = []
    for k, (start, beta) in enumerate([(1.0, 1.0), (0.5, 4.0)]):
        model = peaked_model(8, seed + k, beta)
        state = sampler.init(model if start == beta else random_model(8, seed + 2), start, seed)
        if start != beta:
            state = sampler.retarget(sampler.step(state), model, beta)
        for _ in range(n_first):
            state = sampler.adapt(sampler.step(state))
        kept = []
        for _ in range(n_rounds):
            state = sampler.step(state)
            kept.append(np.array(sampler.spins(state)))
        found.append(pvalues(np.concatenate(kept), sampler.n_chains, model, beta))
    return judged(found, alarm)


def judged(found: Iterable[dict[str, float]], alarm: float) -> Found:
    """The smallest p-value of all, which fails at ``alarm`` and below."""
    every = [(p, name) for of_model in found for name, p in of_model.items()]
    smallest, name = min(every)
    if smallest <= alarm:
        raise _Unlikely(
            f"smallest of {len(every)} p-values is {smallest:.1e}, of the {name}: not Boltzmann, "
            "or chains too short for these rugged models (give more sweeps)",
            smallest,
        )
    return Found(f"smallest of {len(every)} p-values {smallest:.3f} (fails at {alarm:g})")


def distribution_pvalues(
    sampler: Sampler, seed: int, n_samples: int = _N_LAW, beta: float = 1.0
) -> dict[str, float]:
    """p-values, see :func:`pvalues`, of a sampler's states on a random peaked model of 8 spins.

    States come in rounds of ``info["n_chains"]`` independent chains, or, without that entry, as
    one chain (``mcmc``) or independently (others).
    """
    model = peaked_model(8, seed, beta)
    # Four rounds, for the effective sample size.
    n_samples = max(n_samples, 4 * getattr(sampler, "n_chains", 0))
    out = sampler.sample(model, beta, n_samples, seed=seed)
    n_chains = out.info.get("n_chains", 1 if sampler.guarantee == "mcmc" else None)
    return pvalues(out.spins, n_chains, model, beta)


def pvalues(
    spins: NDArray[np.int8], n_chains: int | None, model: Ising, beta: float
) -> dict[str, float]:
    """p-values of states against the enumerated distribution, by what they test.

    Of the mean energy, of what fields and couplings contribute to it (a scale of either shows
    there), of three pair moments, of the ground state's share, of the energies' order, and of the
    chi-square test on states where there are 8 spins (thinned where they are correlated).
    Errors are from the effective sample size. States come in rounds of ``n_chains``, or are
    independent (None). An AssertionError where too few are independent to say anything.
    """
    n_samples, n_spins = spins.shape
    n_chains = n_chains or n_samples
    n_rounds = n_samples // n_chains
    distribution, states = boltzmann_distribution(model, beta), all_states(n_spins).astype(float)
    seen = spins[: n_rounds * n_chains].astype(float)
    sizes: list[float] = []

    def size_of(values: F64) -> float:
        series = values.reshape(n_rounds, n_chains).T
        return effective_sample_size(series) if n_rounds >= 4 else float(len(values))

    def pvalue(values: F64, exact: F64) -> float:
        """Of the mean of a quantity, whose values in all states are ``exact``."""
        sizes.append(size_of(values))
        mean = float(distribution @ exact)
        error = np.sqrt(distribution @ (exact - mean) ** 2 / sizes[-1])
        return float(2 * stats.norm.sf(abs(values.mean() - mean) / error)) if error > 0 else 0.0

    def pvalue_of_share(values: NDArray[np.bool_], share: float) -> float:
        """Counts of what is rare are not normal."""
        sizes.append(size_of(values.astype(float)))
        n = max(round(sizes[-1]), 1) if np.isfinite(sizes[-1]) else 1
        return float(stats.binomtest(round(float(values.mean()) * n), n, share).pvalue)

    energies = all_energies(model)
    found = {
        "energy": pvalue(model.energy(seen), energies),
        "fields' part": pvalue(seen @ model.b, states @ model.b),
        "couplings' part": pvalue(_couplings_part(model, seen), _couplings_part(model, states)),
    }
    for i, j in ((0, 1), (2, 5), (6, 7)):
        agree = float(distribution @ (states[:, i] == states[:, j]))
        if min(agree, 1 - agree) * n_samples > _NORMAL:
            found[f"pair {i}, {j}"] = pvalue_of_share(seen[:, i] == seen[:, j], agree)
    require(np.isfinite(sizes).any(), "all states are the same: the chains are frozen")
    least = float(np.nanmin(sizes))
    thin = int(np.ceil(len(seen) / least - 0.2)) if n_rounds >= 4 else 1
    require(
        n_samples // thin >= 500,
        f"only {least:.0f} effective samples of {n_samples}: the test has no power. Give the "
        "sampler more sweeps between samples.",
    )
    ground = energies <= energies.min() + 1e-9
    at_ground = model.energy(seen) <= energies.min() + 1e-9
    share = float(distribution[ground].sum())
    if min(share, 1 - share) * least > _NORMAL:
        found["ground state"] = pvalue_of_share(at_ground, share)
    if n_rounds == 1 or n_rounds >= 8:
        found["order"] = _pvalue_of_order(model.energy(seen), n_rounds, n_chains)
    if n_spins == 8:
        kept = spins[: n_rounds * n_chains].reshape(n_rounds, n_chains, 8)[::thin]
        found["frequencies"] = chi_square(kept.reshape(-1, 8), distribution)
    return found


def _couplings_part(model: Ising, states: F64) -> F64:
    out: F64 = ((states @ model.J) * states).sum(axis=1)
    return out


def _pvalue_of_order(energies: F64, n_rounds: int, n_chains: int) -> float:
    """Whether the first half has other energies than the second."""
    halves = np.array_split(energies, 2)
    if n_rounds > 1:
        rounds = energies.reshape(n_rounds, n_chains)
        halves = [rounds[: n_rounds // 2].ravel(), rounds[n_rounds // 2 :].ravel()]
    sizes = [
        effective_sample_size(h.reshape(-1, n_chains).T) if n_rounds > 1 else float(len(h))
        for h in halves
    ]
    error = np.sqrt(sum(h.var() / size for h, size in zip(halves, sizes, strict=True)))
    gap = halves[0].mean() - halves[1].mean()
    return float(2 * stats.norm.sf(abs(gap) / error)) if error > 0 else 1.0


def chi_square(spins: NDArray[np.int8], distribution: F64) -> float:
    """p-value of independent states against an enumerated distribution; rare states are pooled."""
    index = (spins > 0) @ (1 << np.arange(spins.shape[1]))
    observed = np.bincount(index, minlength=distribution.size).astype(float)
    expected = distribution * len(spins)
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5 and len(expected) > 1:
        observed, expected = observed[:-1], expected[:-1]
        expected *= observed.sum() / expected.sum()
    return float(stats.chisquare(observed, expected).pvalue)
