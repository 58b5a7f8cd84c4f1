import re
from types import SimpleNamespace

import numpy as np
import pytest

from scvi_qbm.ising import Ising
from scvi_qbm.samplers import get_sampler, registry
from scvi_qbm.samplers.base import SampleSet
from scvi_qbm.samplers.conformance import CHECKS, check_sampler, distribution
from scvi_qbm.samplers.conformance.distribution import chi_square, distribution_pvalues
from scvi_qbm.samplers.exact import Exact
from scvi_qbm.samplers.gibbs import Gibbs


def report_on(sampler, seed=1):
    report = check_sampler(sampler, strict=False, seed=seed)
    return report, {r.name: r.detail for r in report.results if r.outcome == "failed"}


class Broken(Exact):
    """Exact but for one fault."""

    name = "broken"

    def model(self, ising):
        return ising

    def draw(self, ising, beta, n_samples, entropy):
        return super()._sample(self.model(ising), beta, n_samples, entropy)

    def _sample(self, ising, beta, n_samples, entropy):
        return self.draw(ising, beta, n_samples, entropy)


class WrongSign(Broken):
    def model(self, ising):
        return Ising(-ising.J, -ising.b)


class WrongCouplingSign(Broken):
    def model(self, ising):
        return Ising(-ising.J, ising.b)


class NoFields(Broken):
    def model(self, ising):
        return Ising(ising.J, np.zeros_like(ising.b))


class NoCouplings(Broken):
    def model(self, ising):
        return Ising(np.zeros_like(ising.J), ising.b)


class OtherOrder(Broken):
    def _sample(self, *request):
        spins, info = self.draw(*request)
        return spins[:, ::-1], info


class Cooler(Broken):
    def _sample(self, ising, beta, n_samples, entropy):
        return self.draw(ising, 1.1 * beta, n_samples, entropy)


class Hotter(Broken):
    guarantee = "mcmc"

    def _sample(self, ising, beta, n_samples, entropy):
        spins, info = self.draw(ising, 0.9 * beta, n_samples, entropy)
        return spins, {**info, "n_chains": 64}


class BetaSquared(Broken):
    def _sample(self, ising, beta, n_samples, entropy):
        return self.draw(ising, beta**2, n_samples, entropy)


class IgnoresBeta(Broken):
    def _sample(self, ising, beta, n_samples, entropy):
        return self.draw(ising, 1.0, n_samples, entropy)


class OneRead(Broken):
    def _sample(self, *request):
        spins, info = self.draw(*request)
        return np.repeat(spins[:1], len(spins), axis=0), info


class EveryReadTwice(Broken):
    def _sample(self, *request):
        spins, info = self.draw(*request)
        return np.repeat(spins, 2, axis=0)[: len(spins)], info


class IgnoresTheSeed(Broken):
    def _sample(self, ising, beta, n_samples, _):
        # Other draws in every call, yet the same in every run of this test.
        self.calls = getattr(self, "calls", 0) + 1
        return self.draw(ising, beta, n_samples, np.random.SeedSequence((9, self.calls)))


class OneSeed(Broken):
    def _sample(self, ising, beta, n_samples, _):
        return self.draw(ising, beta, n_samples, np.random.SeedSequence(3))


class SameWithoutASeed(Broken):
    def _sample(self, ising, beta, n_samples, entropy):
        seed = 3 if entropy.entropy.bit_length() > 64 else entropy.entropy
        return self.draw(ising, beta, n_samples, np.random.SeedSequence(seed))


class GlobalGenerator(Broken):
    def _sample(self, *request):
        np.random.random()
        return self.draw(*request)


class ZeroAndOne(Broken):
    def _sample(self, *request):
        spins, info = self.draw(*request)
        return (spins + 1) // 2, info


class TooFew(Broken):
    def _sample(self, *request):
        spins, info = self.draw(*request)
        return spins[:-1], info


class Transposed(Broken):
    def _sample(self, *request):
        spins, info = self.draw(*request)
        return spins.T, info


class Raises(Broken):
    def _sample(self, *request):
        raise ZeroDivisionError("no atoms left")


class WrongEnergies(Broken):
    def sample(self, *request, **options):
        out = super().sample(*request, **options)
        return SampleSet(out.spins, -out.energies, out.info)


class NoSuchGuarantee(Broken):
    guarantee = "boltzmann"


class Coins(Broken):
    guarantee = "heuristic"

    def model(self, ising):
        return Ising(np.zeros_like(ising.J), np.zeros_like(ising.b))


@pytest.mark.parametrize(
    ("sampler", "check", "message"),
    [
        (WrongSign, "signs", "only 0% of spins follow their field"),
        (WrongCouplingSign, "signs", r"a coupling of \+1 is obeyed in 0% of states"),
        (NoFields, "signs", r"only \d\d% of spins follow their field"),
        (NoCouplings, "signs", r"a coupling of \+1 is obeyed in \d\d% of states"),
        (OtherOrder, "signs", "only 0% of spins follow their field"),
        (Cooler, "distribution", "smallest of 27 p-values is .*e[-+]"),
        (Hotter, "distribution", "smallest of 27 p-values is .*e[-+]"),
        (BetaSquared, "distribution", "smallest of 27 p-values is .*e[-+]"),
        (IgnoresBeta, "free spins", "mean spin 0.* of free spins"),
        (OneRead, "distinct reads", "1 distinct states among 200"),
        (EveryReadTwice, "distinct reads", "100 distinct states among 200"),
        (IgnoresTheSeed, "seeds", "the same seed gives other states"),
        (OneSeed, "seeds", "two calls give the same states"),
        (SameWithoutASeed, "seeds", "without a seed two calls give the same states"),
        (GlobalGenerator, "global random state", "numpy's global generator was used"),
        (ZeroAndOne, "interface", "RuntimeError: .* entries such as 0: states have -1"),
        (TooFew, "interface", r"RuntimeError: .* of shape \(96, 6\), expected \(97, 6\)"),
        (Transposed, "interface", r"RuntimeError: .* of shape \(6, 97\)"),
        (Raises, "interface", "ZeroDivisionError: no atoms left"),
        (WrongEnergies, "interface", "Not equal to tolerance"),
        (NoSuchGuarantee, "interface", "'boltzmann'"),
        (Coins, "low energies", "of the ground state's depth"),
    ],
)
def test_faults_are_found_where_they_are(sampler, check, message):
    report, failed = report_on(sampler())
    assert not report.passed and check in failed
    assert re.search(message, failed[check]), failed[check]


@pytest.mark.parametrize(
    ("sampler", "checks"),
    [
        (Cooler, {"distribution", "small calls"}),
        (Hotter, {"distribution"}),
        (IgnoresTheSeed, {"seeds"}),
        (SameWithoutASeed, {"seeds"}),
        (GlobalGenerator, {"global random state"}),
    ],
)
def test_one_fault_fails_one_check(sampler, checks):
    assert set(report_on(sampler())[1]) == checks


def test_the_unbroken_sampler_conforms():
    for seed in range(3):
        assert report_on(Broken(), seed)[0].passed


class Still(Gibbs):
    def step(self, state, n_sweeps=None):
        return state


class KeepsItsTarget(Gibbs):
    def retarget(self, state, ising, beta=1.0):
        if ising.n_spins != state.ising.n_spins:
            raise ValueError("another size")
        return state


class TakesAnySize(Gibbs):
    def retarget(self, state, ising, beta=1.0):
        if ising.n_spins == state.ising.n_spins:
            return super().retarget(state, ising, beta)
        return self.init(ising, beta)


class LosesChains(Gibbs):
    def spins(self, state):
        return super().spins(state)[:-1]


@pytest.mark.parametrize(
    ("chains", "message"),
    [
        (Still, "step() moves nothing"),
        (KeepsItsTarget, "retarget() does not change the target"),
        (TakesAnySize, "retarget() takes a model of another size"),
        (LosesChains, "shape (63, 7)"),
    ],
)
def test_broken_chains(chains, message):
    _, failed = report_on(chains(n_chains=64, n_sweeps=50, n_burn_in=50))
    assert message in failed["chains"]


# --- faults that are small, or hide where a kit does not look -----------------------------------


class SlightlyCold(Broken):
    def _sample(self, ising, beta, n_samples, entropy):
        return self.draw(ising, 1.02 * beta, n_samples, entropy)


class WeakFields(Broken):
    def model(self, ising):
        return Ising(ising.J, 0.95 * ising.b)


class GroundStates(Broken):
    """Two reads in a hundred are the best of the call."""

    def _sample(self, ising, *request):
        spins, info = self.draw(ising, *request)
        spins[::50] = spins[ising.energy(spins).argmin()]
        return spins, info


class Sorted(Broken):
    def _sample(self, ising, *request):
        spins, info = self.draw(ising, *request)
        return spins[ising.energy(spins).argsort()], info


class RightUpTo12Spins(Broken):
    def model(self, ising):
        return ising if ising.n_spins <= 12 else Ising(0.9 * ising.J, ising.b)


class RightFrom1000Reads(Broken):
    def _sample(self, ising, beta, n_samples, entropy):
        return self.draw(ising, beta if n_samples >= 1000 else 0.9 * beta, n_samples, entropy)


class ClippedBeta(Broken):
    guarantee = "mcmc"

    def _sample(self, ising, beta, n_samples, entropy):
        spins, info = self.draw(ising, min(beta, 2.0), n_samples, entropy)
        return spins, {**info, "n_chains": 64}


class Heuristic(Broken):
    guarantee = "heuristic"


class NoFieldsAbove8Spins(Heuristic):
    def model(self, ising):
        return ising if ising.n_spins <= 8 else Ising(ising.J, np.zeros_like(ising.b))


class HalfOfTheCouplings(Heuristic):
    def model(self, ising):
        i, j = np.indices(ising.J.shape)
        return Ising(np.where((i + j) % 2, ising.J, 0.0), ising.b)


class ReadsTwice(EveryReadTwice):
    guarantee = "heuristic"


class FrozenSpin(Heuristic):
    def _sample(self, *request):
        spins, info = self.draw(*request)
        spins[:, -1] = 1
        return spins, info


class RandomBelowBeta2(Heuristic):
    def _sample(self, ising, beta, n_samples, entropy):
        return self.draw(ising, beta if beta >= 2 else 0.0, n_samples, entropy)


def of_J(change):
    """Chains that run with other couplings, while sample() is right."""

    class Chains(Gibbs):
        def init(self, ising, beta=1.0, seed=None):
            return super().init(Ising(change * ising.J, ising.b), beta, seed)

        def retarget(self, state, ising, beta=1.0):
            return super().retarget(state, Ising(change * ising.J, ising.b), beta)

    return Chains


class StaleCouplings(Gibbs):
    def retarget(self, state, ising, beta=1.0):
        if ising.n_spins == state.ising.n_spins:
            ising = Ising(state.ising.J, beta * ising.b)
        return super().retarget(state, ising)


class NoBeta(Gibbs):
    def init(self, ising, beta=1.0, seed=None):
        return super().init(ising, 1.0, seed)

    def retarget(self, state, ising, beta=1.0):
        return super().retarget(state, ising)


class IdenticalChains(Gibbs):
    def spins(self, state):
        return np.repeat(super().spins(state)[:1], self.n_chains, axis=0)


class InitIgnoresItsSeed(Gibbs):
    def init(self, ising, beta=1.0, seed=None):
        return super().init(ising, beta, 3)


class AllAtOnce(Gibbs):
    """Every spin is drawn given the old states of all others: another distribution."""

    def step(self, state, n_sweeps=None):
        rng = state.entropy.spawn(1)[0]
        rng = np.random.default_rng(rng)
        for _ in range(self.n_sweeps if n_sweeps is None else n_sweeps):
            fields = state.ising.local_fields(state.states())
            up = rng.random(fields.shape) < 1 / (1 + np.exp(-2 * fields))
            state.adopt(np.where(up, 1, -1).astype(np.int8))
        return state


CHAINS = {"n_chains": 2048, "n_sweeps": 40, "n_burn_in": 400}


@pytest.mark.parametrize(
    ("sampler", "check"),
    [
        (SlightlyCold(), "distribution"),
        (WeakFields(), "distribution"),
        (GroundStates(), "distribution"),
        (Sorted(), "distribution"),
        (RightUpTo12Spins(), "small calls"),
        (RightFrom1000Reads(), "small calls"),
        (ClippedBeta(), "distribution"),
        (NoFieldsAbove8Spins(), "every entry"),
        (HalfOfTheCouplings(), "every entry"),
        (ReadsTwice(), "distinct reads"),
        (FrozenSpin(), "distinct reads"),
        (RandomBelowBeta2(), "low energies"),
        (of_J(-1)(**CHAINS), "chain distribution"),
        (of_J(0)(**CHAINS), "chain distribution"),
        (StaleCouplings(**CHAINS), "chain distribution"),
        (NoBeta(**CHAINS), "chain distribution"),
        (IdenticalChains(**CHAINS), "chains"),
        (InitIgnoresItsSeed(**CHAINS), "chains"),
        (AllAtOnce(**(CHAINS | {"n_sweeps": 10, "n_burn_in": 50})), "chain distribution"),
    ],
)
def test_hidden_faults(sampler, check):
    with pytest.raises(AssertionError):
        CHECKS[check](sampler, 1)


def test_what_the_kit_cannot_see():
    """Errors below what 16,384 reads tell: couplings in 8 bits, one read in 200 at the ground."""

    class EightBits(Broken):
        def model(self, ising):
            step = max(np.abs(ising.J).max() / 127, 1e-9)
            return Ising(np.rint(ising.J / step) * step, ising.b)

    assert report_on(EightBits())[0].passed


# --- what it asks for ---------------------------------------------------------------------------


def test_a_dry_run_asks_nothing():
    class Paid(Broken):
        guarantee = "heuristic"

        def _sample(self, *request):
            raise AssertionError("that was paid for")

    report = check_sampler(Paid(), dry_run=True)
    asked = {r.name: r.detail for r in report.results}
    assert {r.outcome for r in report.results} == {"noted", "skipped"}
    assert asked["every entry"] == "9 calls, 576 reads, up to 16 spins, beta x entries up to 6"
    assert "asks for" in str(report) and str(report).splitlines()[-1].startswith("in all ")


def test_a_budget_is_kept():
    class Counted(Broken):
        calls = reads = 0

        def _sample(self, ising, beta, n_samples, entropy):
            self.calls, self.reads = self.calls + 1, self.reads + n_samples
            return self.draw(ising, beta, n_samples, entropy)

    for limit, what in (({"max_calls": 12}, "calls"), ({"max_reads": 1000}, "reads")):
        sampler = Counted()
        report = check_sampler(sampler, **limit, strict=False)
        assert getattr(sampler, what) <= next(iter(limit.values()))
        outcomes = {r.name: r.outcome for r in report.results}
        assert outcomes["interface"] == "passed" and outcomes["distribution"] == "skipped"
        assert not report.passed and "NOT DECIDED" in str(report)
    assert "sample" not in vars(sampler)
    report = check_sampler(Counted(), max_seconds=0.0, strict=False)
    assert {r.outcome for r in report.results} == {"skipped"}


def test_a_spent_budget_of_the_machine_decides_nothing():
    sampler = get_sampler("solve", solver="scvi_qbm.samplers.adapters.solve:HeatBath", budget=2)
    report = check_sampler(sampler, strict=False)
    assert {r.outcome for r in report.results[2:]} == {"skipped"}
    assert not report.passed and "NOT DECIDED" in str(report)


def test_a_dry_run_counts_what_is_asked_for():
    sampler = get_sampler("gibbs", n_chains=64, n_sweeps=200)
    planned = check_sampler(sampler, dry_run=True).asked.split()
    meter = SimpleNamespace(calls=0, reads=0)
    ask = sampler.sample

    def counted(ising, beta=1.0, n_samples=1000, seed=None):
        meter.calls, meter.reads = meter.calls + 1, meter.reads + n_samples
        return ask(ising, beta, n_samples, seed)

    sampler.sample = counted
    assert check_sampler(sampler).passed
    assert [int(planned[0]), int(planned[2])] == [meter.calls, meter.reads]


def test_a_wrong_temperature_is_named():
    _, failed = report_on(Cooler())
    beta = float(failed["distribution"].partition("effective beta ")[2].split()[0])
    assert beta > 1.05


def test_correlated_draws_need_more_sweeps():
    """One chain that hardly moves is not called wrong: there is nothing to test it by."""
    _, failed = report_on(get_sampler("gibbs", n_chains=1, n_sweeps=1))
    assert (
        "effective samples" in failed["distribution"] and "more sweeps" in failed["distribution"]
    )


def test_strict_raises_the_report():
    with pytest.raises(AssertionError) as caught:
        check_sampler(NoFields())
    text = str(caught.value)
    assert text.startswith("broken (exact): DOES NOT CONFORM\n")
    assert "\nfailed  signs" in text and "\npassed  interface" in text
    assert text == str(check_sampler(NoFields(), strict=False))


def test_the_report_of_a_good_sampler():
    report = check_sampler("exact")
    assert report.passed and str(report).startswith("exact (exact): conforms\n")
    assert {r.outcome for r in report.results} == {"passed", "skipped"}


def test_a_heuristic_is_measured_not_judged():
    class Cold(Cooler):
        guarantee = "heuristic"

    report = check_sampler(Cold())
    noted = {r.name: r.detail for r in report.results if r.outcome == "noted"}
    assert set(noted) == {"one spin", "distribution"}
    assert "effective beta 1.1" in noted["distribution"]


def test_a_back_end_without_seeds_says_so():
    class Unseeded(IgnoresTheSeed):
        def _sample(self, *request):
            spins, info = super()._sample(*request)
            return spins, {**info, "seeded": False}

    report = check_sampler(Unseeded())
    assert {r.name: r.outcome for r in report.results}["seeds"] == "skipped"


def test_the_seed_decides_nothing():
    assert check_sampler("gibbs", seed=0).passed


def test_options():
    options = {"n_chains": 512, "n_sweeps": 40, "n_burn_in": 3}
    _, short = report_on(get_sampler("gibbs", **options))
    assert "chain distribution" in short
    with pytest.raises(AssertionError, match="failed  chain distribution"):
        check_sampler("gibbs", options=options)
    with pytest.raises(TypeError, match="instance"):
        check_sampler(Exact(), options={"n_chains": 3})
    with pytest.raises(TypeError, match="no option 'n_sweep'"):
        check_sampler("gibbs", options={"n_sweep": 3})


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'metropolis'.*exact"):
        check_sampler("metropolis")


def test_a_registered_sampler_brings_its_options(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})

    class Needy(Exact):
        name = "needy"
        conformance = {"must": 1}

        def __init__(self, must):
            self.must = must

    registry.register_sampler("needy", Needy)
    assert check_sampler("needy").sampler == "needy"
    with pytest.raises(TypeError):
        check_sampler("needy", options={})


def test_chi_square_pools_rare_states():
    distribution = np.array([0.7, 0.2, 0.0999, 0.0001])
    rng = np.random.default_rng(0)
    pvalues = []
    for _ in range(300):
        index = rng.choice(4, size=2000, p=distribution)
        pvalues.append(chi_square(2 * ((index[:, None] >> np.arange(2)) & 1) - 1, distribution))
    assert 0.02 < np.mean(np.array(pvalues) < 0.05) < 0.09
    index = rng.choice(4, size=2000, p=distribution[[1, 0, 2, 3]])
    assert chi_square(2 * ((index[:, None] >> np.arange(2)) & 1) - 1, distribution) < 1e-10


def test_more_chains_than_samples_and_frozen_chains():
    from scvi_qbm.samplers.gibbs import Gibbs

    many = Gibbs(n_chains=5000, n_sweeps=40, n_burn_in=200)
    assert min(distribution_pvalues(many, 1).values()) > 1e-4
    frozen = Gibbs(n_chains=1, n_sweeps=1, n_burn_in=10)
    frozen._sample = lambda ising, beta, n, entropy: (np.ones((n, 8)), {"n_chains": 1})
    with pytest.raises(AssertionError, match="frozen"):
        distribution_pvalues(frozen, 1)


def test_a_small_p_value_is_looked_at_again():
    """Chance does not come twice; another distribution does."""
    looks = []

    def found(p_of_look):
        def check(sampler, seed, alarm=distribution._ALARM):
            looks.append(seed)
            return distribution.judged([{"energy": p_of_look[len(looks) - 1]}], alarm)

        looks.clear()
        return distribution._confirmed(check)(Exact(), 1)

    assert found([0.5]).detail.startswith("smallest of 1 p-values 0.500") and len(looks) == 1
    assert "a first look was worse" in found([1e-5, 0.02]).detail
    assert len(set(looks)) == 2
    with pytest.raises(AssertionError, match="1.0e-05"):
        found([1e-5, 5e-4])
    with pytest.raises(AssertionError, match="1.0e-12"):  # no chance
        found([1e-12, 0.5])
    assert len(looks) == 1
