"""The conformance kit: is this a sampler, and does it keep what its ``law`` promises?

For ours and for everyone's: ``check_sampler(MySampler(...))`` in a test, or
``scvi-qbm samplers check NAME`` in a shell.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from scvi_qbm.samplers.base import Sampler
from scvi_qbm.samplers.registry import conformance_options, get_sampler

from . import basics, law

__all__ = ["CheckResult", "SamplerReport", "check_sampler"]

CHECKS: dict[str, basics.Check] = {
    "interface": basics.check_interface,
    "signs": basics.check_signs,
    "seeds": basics.check_seeds,
    "distinct reads": basics.check_distinct_reads,
    "global random state": basics.check_global_state,
    "low energies": basics.check_low_energies,
    "one spin": basics.check_one_spin,
    "free spins": basics.check_free_spins,
    "cold and frozen": basics.check_cold_and_frozen,
    "chains": basics.check_chains,
    "law": law.check_law,
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
    results = [_run(name, check, sampler, seed) for name, check in CHECKS.items()]
    report = SamplerReport(sampler.name, sampler.law, results)
    if strict and not report.passed:
        raise AssertionError(str(report))
    return report


def _run(name: str, check: basics.Check, sampler: Sampler, seed: int) -> CheckResult:
    try:
        with warnings.catch_warnings():
            # Whether the law is right is what is found out here.
            warnings.filterwarnings("ignore", ".* has not mixed", RuntimeWarning)
            detail, outcome = check(sampler, seed)
    except AssertionError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail, outcome = "; ".join(lines[:4]) or "assertion", "failed"
    except Exception as error:  # noqa: BLE001 - whatever it raises, the kit goes on
        detail, outcome = f"{type(error).__name__}: {error}", "failed"
    return CheckResult(name, outcome, detail)
