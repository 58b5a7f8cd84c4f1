"""The conformance kit: is this a sampler, and does it keep what its ``law`` promises?

For ours and for everyone's: ``check_sampler(MySampler(...))`` in a test, or
``scvi-qbm samplers check NAME`` in a shell.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scvi_qbm.diagnostics import effective_beta, effective_sample_size, total_variation
from scvi_qbm.ising import Ising
from scvi_qbm.samplers.base import ChainSampler, Sampler, SampleSet
from scvi_qbm.samplers.exact import all_energies, all_states, boltzmann_law
from scvi_qbm.samplers.registry import conformance_options, get_sampler

__all__ = ["CheckResult", "SamplerReport", "check_sampler", "chi_square", "law_pvalues"]

F64 = NDArray[np.float64]

#: A right sampler fails the law with this probability a seed and moment.
_ALARM = 1e-4
_N_LAW = 4096


@dataclass(frozen=True)
class CheckResult:
    """What one check of the conformance kit found.

    Parameters
    ----------
    name
        Name of the check.
    outcome
        ``"passed"``, ``"failed"``, ``"skipped"`` or ``"noted"`` (measured, not judged).
    detail
        What was measured, or why it failed or was skipped.
    """

    name: str
    outcome: str
    detail: str = ""


@dataclass
class SamplerReport:
    """What :func:`check_sampler` found.

    Parameters
    ----------
    sampler, law
        The sampler's name and the law that it states.
    results
        One :class:`CheckResult` a check.
    """

    sampler: str
    law: str
    results: list[CheckResult] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(result.outcome != "failed" for result in self.results)

    def __str__(self) -> str:
        verdict = "conforms" if self.passed else "DOES NOT CONFORM"
        width = max(len(result.name) for result in self.results)
        rows = [f"{r.outcome:<8}{r.name:<{width}}  {r.detail}".rstrip() for r in self.results]
        return "\n".join([f"{self.sampler} ({self.law}): {verdict}", *rows])


class _Skip(Exception):
    pass


class _Note(Exception):
    pass


def _require(condition: object, message: str) -> None:
    """``assert``, under ``python -O`` too."""
    if not condition:
        raise AssertionError(message)


def random_model(n_spins: int, seed: int, sd: float = 0.7, field_sd: float = 0.4) -> Ising:
    """Normal couplings and fields; peaked, so that a wrong law shows."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(size=(n_spins, n_spins)) * sd, 1)
    return Ising(upper + upper.T, rng.normal(size=n_spins) * field_sd, offset=rng.normal())


def chi_square(spins: NDArray[np.int8], law: F64) -> float:
    """p-value of independent states against an enumerated law.

    States expected fewer than 5 times are pooled.

    Parameters
    ----------
    spins
        int8 ``(n_samples, n_spins)``, independent.
    law
        ``(2**n_spins,)``, from :func:`~scvi_qbm.samplers.exact.boltzmann_law`.

    Returns
    -------
    float
        Uniform on [0, 1] if the states follow the law; near 0 if they do not.
    """
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


def law_pvalues(
    sampler: Sampler, seed: int, n_samples: int = _N_LAW, beta: float = 1.0
) -> list[float]:
    """p-values of a sampler's states on a random peaked model of 8 spins.

    Parameters
    ----------
    sampler
        Its states come in rounds of ``info["n_chains"]`` independent chains, or, without that
        entry, as one chain (``mcmc``) or independently (others).
    seed
        Seed of the model and of the sampler.
    n_samples
        Number of states, at least; four rounds of a chain sampler's chains.
    beta
        Inverse temperature.

    Returns
    -------
    list[float]
        Of the chi-square test on states (thinned where they are correlated), then of the mean
        energy and three pair moments, their errors from the effective sample size.

    Raises
    ------
    AssertionError
        If all states are the same, or too few are independent for the test to say anything.
    """
    model = random_model(8, seed)
    law = boltzmann_law(model, beta)
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
    _require(np.isfinite(sizes).any(), "all states are the same: the chains are frozen")
    thin = int(np.ceil(n_samples / np.nanmin(sizes) - 0.2)) if n_rounds >= 4 else 1
    if n_samples // thin < 500:
        raise AssertionError(
            f"only {np.nanmin(sizes):.0f} effective samples of {n_samples}: the test has no "
            "power. Give the sampler more sweeps between samples."
        )
    kept = out.spins[: n_rounds * n_chains].reshape(n_rounds, n_chains, 8)[::thin]
    return [chi_square(kept.reshape(-1, 8), law), *moments]


def _interface(sampler: Sampler, seed: int) -> str:
    model = random_model(6, seed)
    out = sampler.sample(model, 0.7, 97, seed=seed)
    _require(isinstance(out, SampleSet) and len(out) == 97, "97 samples were asked for")
    _require(out.spins.dtype == np.int8, f"spins are {out.spins.dtype}, not int8")
    _require((np.abs(out.spins) == 1).all(), "spins other than -1 and +1")
    np.testing.assert_allclose(out.energies, model.energy(out.spins), atol=1e-9)
    for key in ("sampler", "law", "beta"):
        _require(key in out.info, f"info lacks {key!r}")
    laws = ("exact", "mcmc", "heuristic")
    _require(out.info["law"] == sampler.law, f"info says {out.info['law']!r}, law {sampler.law!r}")
    _require(sampler.law in laws, f"law is {sampler.law!r}, not one of {laws}")
    return ""


def _signs(sampler: Sampler, seed: int) -> str:
    fields = np.array([3.0, -3.0, 3.0, -3.0])
    spins = sampler.sample(Ising(np.zeros((4, 4)), fields), 2.0, 100, seed=seed).spins
    agree = float((spins == np.sign(fields)).mean())
    _require(agree > 0.95, f"only {agree:.0%} of spins follow their field")
    for sign in (1, -1):
        pair = Ising(np.array([[0.0, sign], [sign, 0.0]]), np.zeros(2))
        spins = sampler.sample(pair, 4.0, 100, seed=seed).spins
        right = float((spins[:, 0] * spins[:, 1] == sign).mean())
        _require(right > 0.95, f"a coupling of {sign:+} is obeyed in {right:.0%} of states only")
    return ""


def _many_minima(sampler: Sampler, n_spins: int, seed: int) -> Ising:
    """A model on which even a minimiser has reason to give different states."""
    if sampler.law != "heuristic":
        return random_model(n_spins, seed, sd=0.1, field_sd=0.1)
    return Ising(
        np.kron(np.eye(n_spins // 2), np.array([[0.0, 1.0], [1.0, 0.0]])), np.zeros(n_spins)
    )


def _seeds(sampler: Sampler, seed: int) -> str:
    model = _many_minima(sampler, 12, seed)
    first = sampler.sample(model, n_samples=64, seed=seed)
    fresh = [sampler.sample(model, n_samples=64).spins for _ in range(2)]
    _require((fresh[0] != fresh[1]).any(), "without a seed two calls give the same states")
    if first.info.get("seeded") is False:
        raise _Skip("the back end takes no seed, and info says so")
    again = sampler.sample(model, n_samples=64, seed=seed).spins
    other = sampler.sample(model, n_samples=64, seed=seed + 1).spins
    _require((first.spins == again).all(), "the same seed gives other states")
    _require((first.spins != other).any(), "another seed gives the same states")
    return ""


def _distinct(sampler: Sampler, seed: int) -> str:
    spins = sampler.sample(_many_minima(sampler, 20, seed), n_samples=200, seed=seed).spins
    distinct = len(np.unique(spins, axis=0))
    # Ten free pairs have 1,024 minima, of which 200 fair draws see 182.
    wanted = 100 if sampler.law == "heuristic" else 190
    _require(
        distinct >= wanted, f"{distinct} distinct states among 200 where nearly all should be"
    )
    return f"{distinct} of 200"


def _global_state(sampler: Sampler, seed: int) -> str:
    before = _numpy_state()
    sampler.sample(random_model(6, seed), n_samples=8, seed=seed)
    _require(before == _numpy_state(), "numpy's global generator was used")
    return ""


def _numpy_state() -> str:
    with np.printoptions(threshold=10**6):
        return str(np.random.get_state())


def _low_energies(sampler: Sampler, seed: int) -> str:
    model = random_model(12, seed)
    energies = all_energies(model)
    found = sampler.sample(model, 5.0, 64, seed=seed).energies.mean()
    depth = float((energies.mean() - found) / (energies.mean() - energies.min()))
    _require(depth > 0.7, f"at beta = 5 states reach {depth:.0%} of the ground state's depth")
    return f"{depth:.1%} of the ground state's depth at beta = 5"


def _one_spin(sampler: Sampler, seed: int) -> str:
    spins = sampler.sample(Ising(np.zeros((1, 1)), np.array([0.5])), 1.0, 4096, seed=seed).spins
    expected = float(np.tanh(0.5))
    z = (spins.mean() - expected) / np.sqrt((1 - expected**2) / 4096)
    if sampler.law == "heuristic":
        _require(spins.mean() > 0, "a single spin does not follow its field")
        raise _Note(f"mean {spins.mean():.3f}, Boltzmann's is {expected:.3f}")
    _require(abs(z) < 5, f"mean spin is {z:.1f} standard errors off")
    return ""


def _free_spins(sampler: Sampler, seed: int) -> str:
    zero = Ising(np.zeros((5, 5)), np.zeros(5))
    for model, beta in ((zero, 1.0), (random_model(5, seed), 0.0)):
        mean = sampler.sample(model, beta, 4096, seed=seed).spins.mean(axis=0)
        if sampler.law != "heuristic":
            largest = float(np.abs(mean).max())
            _require(largest < 5 / np.sqrt(4096), f"mean spin {largest:.3f} of free spins")
    return "zero couplings, beta = 0"


def _cold_and_frozen(sampler: Sampler, seed: int) -> str:
    fields = np.array([60.0, -60.0, 60.0, -60.0])
    spins = sampler.sample(Ising(np.zeros((4, 4)), fields), 1.0, 50, seed=seed).spins
    _require((spins == np.sign(fields)).all(), "spins in fields of 60 do not follow them")
    model = random_model(8, seed)
    for beta in (30.0, 1e6):
        with warnings.catch_warnings():
            # Frozen spins do not mix; a sampler may well say so.
            warnings.simplefilter("ignore", RuntimeWarning)
            out = sampler.sample(model, beta, 50, seed=seed)
        if sampler.law == "exact":
            ground = float(all_energies(model).min())
            _require(np.abs(out.energies - ground).max() < 1e-6, f"excited at beta = {beta:g}")
    return "fields of 60, beta = 30 and 1e6"


def _chains(sampler: Sampler, seed: int) -> str:
    if not isinstance(sampler, ChainSampler):
        raise _Skip("not a ChainSampler")
    model, other = random_model(7, seed), random_model(7, seed + 1)
    state = sampler.init(model, seed=seed)
    before = sampler.spins(state).copy()
    for _ in range(3):
        state = sampler.adapt(sampler.step(state))
    spins = sampler.spins(state)
    wanted = (sampler.n_chains, 7)
    _require(spins.shape == wanted, f"spins() has shape {spins.shape}, expected {wanted}")
    _require((np.abs(spins) == 1).all(), "spins() other than -1 and +1")
    _require((spins != before).any(), "step() moves nothing")
    state = sampler.step(sampler.retarget(state, other))
    _require(sampler.spins(state).shape == wanted, "retarget() changes the number of chains")
    strong = Ising(np.zeros((7, 7)), np.full(7, 20.0))
    state = sampler.step(sampler.retarget(state, strong))
    _require((sampler.spins(state) == 1).mean() > 0.99, "retarget() does not change the target")
    try:
        sampler.retarget(state, random_model(6, seed))
    except ValueError:
        return ""
    raise AssertionError("retarget() takes a model of another size")


def _law(sampler: Sampler, seed: int) -> str:
    if sampler.law == "heuristic":
        model = random_model(8, seed)
        spins = sampler.sample(model, 1.0, _N_LAW, seed=seed).spins
        beta = effective_beta(model, spins)[0]
        raw, floor = total_variation(spins, boltzmann_law(model))
        text = f"effective beta {beta:.2f} for 1; total variation {raw:.2f} (floor {floor:.2f})"
        if np.isfinite(beta) and beta >= 0:
            own = total_variation(spins, boltzmann_law(model, beta))[0]
            text += f", {own:.2f} at its own beta"
        raise _Note(text)
    # One target at another temperature: some mistakes cancel at beta = 1.
    pvalues = [
        p
        for k, beta in enumerate((1.0, 1.0, 0.6))
        for p in law_pvalues(sampler, seed + k, beta=beta)
    ]
    _require(
        min(pvalues) > _ALARM,
        f"smallest of {len(pvalues)} p-values is {min(pvalues):.1e}: another law, or chains too "
        "short for these rugged models (give more sweeps)",
    )
    return f"smallest of {len(pvalues)} p-values {min(pvalues):.3f}"


_CHECKS: dict[str, Callable[[Sampler, int], str]] = {
    "interface": _interface,
    "signs": _signs,
    "seeds": _seeds,
    "distinct reads": _distinct,
    "global random state": _global_state,
    "low energies": _low_energies,
    "one spin": _one_spin,
    "free spins": _free_spins,
    "cold and frozen": _cold_and_frozen,
    "chains": _chains,
    "law": _law,
}


def _run(sampler: Sampler, seed: int) -> Iterator[CheckResult]:
    for name, check in _CHECKS.items():
        try:
            yield CheckResult(name, "passed", check(sampler, seed))
        except _Skip as reason:
            yield CheckResult(name, "skipped", str(reason))
        except _Note as note:
            yield CheckResult(name, "noted", str(note))
        except AssertionError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            yield CheckResult(name, "failed", "; ".join(lines[:4]) or "assertion")
        except Exception as error:  # noqa: BLE001 - whatever it raises, the kit goes on
            yield CheckResult(name, "failed", f"{type(error).__name__}: {error}")


def check_sampler(
    sampler: str | Sampler,
    *,
    options: dict[str, Any] | None = None,
    seed: int = 1,
    strict: bool = True,
) -> SamplerReport:
    """Run the conformance kit on a sampler.

    Interface, signs of couplings and fields, seeds, distinct reads, extremes (one spin, no
    couplings, beta = 0, beta = 1e6, frozen spins), the chain protocol, and the law: ``exact`` and
    ``mcmc`` samplers are tested against enumeration on peaked targets, the distance of a
    ``heuristic`` one is reported.

    Parameters
    ----------
    sampler
        A name of :func:`scvi_qbm.list_samplers`, or an instance.
    options
        Options of a sampler given by name; its class's ``conformance`` by default.
    seed
        Seed of the models and of the sampler.
    strict
        Raise if a check fails.

    Returns
    -------
    SamplerReport
        To be printed.

    Raises
    ------
    AssertionError
        If ``strict`` and a check failed; the message is the report.
    TypeError
        If ``options`` come with an instance.
    ValueError
        If no sampler has that name.

    Examples
    --------
    >>> from scvi_qbm.samplers.conformance import check_sampler
    >>> check_sampler("exact").passed
    True
    """
    if isinstance(sampler, str):
        chosen = conformance_options(sampler) if options is None else options
        sampler = get_sampler(sampler, **chosen)
    elif options:
        raise TypeError("Options cannot be given with a sampler instance.")
    report = SamplerReport(sampler.name, sampler.law)
    report.results.extend(_run(sampler, seed))
    if strict and not report.passed:
        raise AssertionError(str(report))
    return report
