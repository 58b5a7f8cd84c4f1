"""The conformance kit: is this a sampler, and does it keep its ``guarantee``?

For ours and for everyone's: ``check_sampler(MySampler(...))`` in a test, or
``scvi-qbm samplers check NAME`` in a shell.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from scvi_qbm.ising import Ising
from scvi_qbm.samplers.base import BudgetSpent, ChainSampler, Sampler
from scvi_qbm.samplers.registry import conformance_options, get_sampler
from scvi_qbm.samplers.simulated_annealing import SimulatedAnnealing

from . import basics, distribution

__all__ = ["CheckResult", "SamplerReport", "check_sampler"]

_SPENT = "the budget is spent"
_FEW_CHAINS = 64

CHECKS: dict[str, basics.Check] = {
    "interface": basics.check_interface,
    "signs": basics.check_signs,
    "seeds": basics.check_seeds,
    "every entry": basics.check_every_entry,
    "distinct reads": basics.check_distinct_reads,
    "global random state": basics.check_global_state,
    "low energies": basics.check_low_energies,
    "one spin": basics.check_one_spin,
    "free spins": basics.check_free_spins,
    "cold and frozen": basics.check_cold_and_frozen,
    "chains": basics.check_chains,
    "chain distribution": distribution.check_chain_distribution,
    "distribution": distribution.check_distribution,
    "small calls": distribution.check_small_calls,
}


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
    sampler, guarantee
        The sampler's name and its ``guarantee``.
    results
        One :class:`CheckResult` a check.
    asked
        Of a dry run: what all checks together ask for.
    """

    sampler: str
    guarantee: str
    results: list[CheckResult] = field(default_factory=list)
    asked: str = ""

    @property
    def passed(self) -> bool:
        """Whether no check failed, and none was left out for want of budget."""
        return all(r.outcome != "failed" and r.detail != _SPENT for r in self.results)

    def __str__(self) -> str:
        failed = any(result.outcome == "failed" for result in self.results)
        verdict = "DOES NOT CONFORM" if failed else "conforms" if self.passed else "NOT DECIDED"
        if self.asked:
            verdict = "asks for"
        width = max(len(result.name) for result in self.results)
        rows = [f"{r.outcome:<8}{r.name:<{width}}  {r.detail}".rstrip() for r in self.results]
        total = [f"in all {self.asked}"] if self.asked else []
        return "\n".join([f"{self.sampler} ({self.guarantee}): {verdict}", *rows, *total])


def check_sampler(
    sampler: str | Sampler,
    *,
    options: dict[str, Any] | None = None,
    seed: int = 1,
    strict: bool = True,
    max_calls: float = math.inf,
    max_reads: float = math.inf,
    max_seconds: float = math.inf,
    dry_run: bool = False,
) -> SamplerReport:
    """Run the conformance kit on a sampler.

    Interface, every field and coupling, seeds, distinct reads, extremes (one spin, no couplings,
    beta = 0, beta = 1e6, frozen spins), the chain protocol, and the distribution: ``exact`` and
    ``mcmc`` samplers are tested against enumeration on peaked targets, chains along the path that
    training takes too; the distance of a ``heuristic`` one is reported. What it can see:
    docs/add_a_sampler.md.

    Parameters
    ----------
    sampler
        A name of :func:`scvi_qbm.list_samplers`, or an instance.
    options
        Options of a sampler given by name; its class's ``conformance`` by default.
    seed
        Seed of the models and of the sampler.
    strict
        Raise if a check fails, or the budget is too small for all.
    max_calls, max_reads, max_seconds
        A budget. The call that would exceed it is not made, and what is left is skipped. Chains
        are limited by time alone.
    dry_run
        Ask the sampler nothing: report how many calls and reads each check would need, of how
        many spins and how large entries.

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
    meter = _Meter(max_calls, max_reads, max_seconds)
    stand_in = _stand_in(sampler) if dry_run else sampler
    meter.attach(stand_in)
    try:
        results = [
            _asked(name, check, stand_in, seed, meter)
            if dry_run
            else _run(name, check, sampler, seed, meter)
            for name, check in CHECKS.items()
        ]
    finally:
        del stand_in.sample
    report = SamplerReport(sampler.name, sampler.guarantee, results)
    if dry_run:
        return replace(report, asked=str(meter))
    if strict and not report.passed:
        raise AssertionError(str(report))
    return report


class _Spent(Exception):
    """The budget would be exceeded."""


class _Meter:
    """Counts what is asked of a sampler, and refuses more than the budget."""

    def __init__(self, *limits: float) -> None:
        self.limits, self.started = limits, time.monotonic()
        self.used, self.n_spins, self.largest = np.zeros(2, dtype=int), 0, 0.0

    def attach(self, sampler: Sampler) -> None:
        ask = sampler.sample

        def sample(
            ising: Ising, beta: float = 1.0, n_samples: int = 1000, seed: Any = None
        ) -> Any:
            self.count(ising, beta, n_samples)
            if not isinstance(sampler, ChainSampler):
                return ask(ising, beta, n_samples, seed)
            n_chains = sampler.n_chains  # thousands, for the p-values; not for a hundred reads
            sampler.n_chains = min(n_chains, max(n_samples, _FEW_CHAINS))
            try:
                return ask(ising, beta, n_samples, seed)
            finally:
                sampler.n_chains = n_chains

        sampler.sample = sample  # type: ignore[method-assign]

    def count(self, ising: Ising, beta: float, n_samples: int) -> None:
        used = self.used + (1, n_samples)
        if (used > self.limits[:2]).any():
            raise _Spent
        self.check_time()
        self.used = used
        self.n_spins = max(self.n_spins, ising.n_spins)
        entries = max(np.abs(ising.J).max(), np.abs(ising.b).max())
        self.largest = max(self.largest, beta * float(entries))

    def check_time(self) -> None:
        if time.monotonic() - self.started >= self.limits[2]:
            raise _Spent

    def __str__(self) -> str:
        return (
            f"{self.used[0]} calls, {self.used[1]} reads, up to {self.n_spins} spins, beta x "
            f"entries up to {self.largest:.3g}"
        )


def _stand_in(sampler: Sampler) -> Sampler:
    """A quick sampler that is asked what this one would be."""

    class StandIn(SimulatedAnnealing):
        guarantee = sampler.guarantee
        n_chains = getattr(sampler, "n_chains", 0)

    return StandIn(n_sweeps=50)


def _asked(
    name: str, check: basics.Check, sampler: Sampler, seed: int, meter: _Meter
) -> CheckResult:
    own = _Meter(*meter.limits)
    before = sampler.sample
    own.attach(sampler)
    with contextlib.suppress(Exception):
        inspect.unwrap(check)(sampler, seed)  # without a second look at small p-values
    sampler.sample = before  # type: ignore[method-assign]
    outcome, detail = ("noted", str(own)) if own.used[0] else ("skipped", "asks for no reads")
    return CheckResult(name, outcome, detail)


def _run(
    name: str, check: basics.Check, sampler: Sampler, seed: int, meter: _Meter
) -> CheckResult:
    try:
        meter.check_time()
        with warnings.catch_warnings():
            # Whether the distribution is right is what is found out here.
            warnings.filterwarnings("ignore", ".* has not mixed", RuntimeWarning)
            detail, outcome = check(sampler, seed)
    except (_Spent, BudgetSpent):
        detail, outcome = _SPENT, "skipped"
    except AssertionError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail, outcome = "; ".join(lines[:4]) or "assertion", "failed"
    except Exception as error:  # noqa: BLE001 - whatever it raises, the kit goes on
        detail, outcome = f"{type(error).__name__}: {error}", "failed"
    return CheckResult(name, outcome, detail)
