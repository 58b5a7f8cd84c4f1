import warnings

import numpy as np
import pytest
from support.machines import peaked_ising

from scvi_qbm.diagnostics import total_variation
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import Sampler, get_sampler
from scvi_qbm.samplers.conformance.distribution import distribution_pvalues
from scvi_qbm.samplers.corrected import Corrected
from scvi_qbm.samplers.exact import Exact, boltzmann_distribution


class Thermostat(Exact):
    """Boltzmann at ``factor`` times the beta asked for, or at ``fixed``; keeps a diary."""

    name, guarantee = "thermostat", "heuristic"

    def __init__(self, factor=1.0, fixed=None):
        self.factor, self.fixed, self.asked = factor, fixed, []

    def _sample(self, ising, beta, n_samples, entropy):
        self.asked.append((ising, beta))
        own = self.factor * beta if self.fixed is None else self.fixed
        spins, _ = super()._sample(ising, own, n_samples, entropy)
        return spins, {"call": len(self.asked)}


class Constant(Sampler):
    """One state, whatever it is asked for."""

    name, guarantee = "constant", "heuristic"

    def __init__(self, state):
        self.state = np.asarray(state, dtype=np.int8)

    def _sample(self, ising, beta, n_samples, entropy):
        return np.tile(self.state[: ising.n_spins], (n_samples, 1)), {}


MODEL = peaked_ising(8, 2, sd=0.4)


@pytest.mark.parametrize("factor", [0.12, 0.3, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("beta", [0.7, 1.0])
def test_learns_what_to_ask_for(factor, beta):
    """A source too hot or too cold by a known factor is soon asked for one over that."""
    corrected = Corrected(Thermostat(factor), n_chains=4000, n_sweeps=1, redraw_every=1)
    state = corrected.init(MODEL, beta, seed=0)
    assert state.beta_drawn == pytest.approx(factor, rel=0.1)
    assert state.requested == pytest.approx(state.beta_drawn**-0.5)
    errors = [abs(np.log(state.requested * factor))]
    for _ in range(6):
        corrected.step(state)
        errors.append(abs(np.log(state.requested * factor)))
    assert state.requested == pytest.approx(1 / factor, rel=0.1)
    assert state.beta_drawn == pytest.approx(1.0, abs=0.1)
    assert max(errors[1:]) <= max(errors[0], 0.1)


@pytest.mark.parametrize("fixed", [0.2, 3.0])
def test_a_source_that_does_not_listen_is_harmless(fixed):
    source = Thermostat(fixed=fixed)
    corrected = Corrected(source, n_chains=4000, n_sweeps=1, n_burn_in=200, redraw_every=1)
    state = corrected.init(MODEL, seed=0)
    for _ in range(20):
        corrected.step(state)
        assert 1e-3 <= state.requested <= 1e3
    assert state.requested == (1e3 if fixed < 1 else 1e-3)
    distance, floor = total_variation(corrected.spins(state), boltzmann_distribution(MODEL))
    assert distance < 1.3 * floor


def test_minima_ask_for_less_and_inverted_states_for_nothing():
    ferromagnet = Ising(1 - np.eye(6), np.zeros(6))
    for sign, beta, asked in ((1, np.inf, 0.125), (-1, -np.inf, 1.0)):
        corrected = Corrected(Constant(np.ones(6)), n_chains=10, redraw_every=1)
        state = corrected.init(Ising(sign * ferromagnet.J, ferromagnet.b), seed=0)
        for _ in range(3):
            corrected.step(state)
        assert state.beta_drawn == beta and state.requested == asked
    assert np.isfinite(state.beta_corrected)  # swept since
    state = Corrected(Thermostat(fixed=-0.5), n_chains=2000).init(MODEL, seed=0)
    assert state.beta_drawn == pytest.approx(-0.5, abs=0.1) and state.requested == 1.0


@pytest.mark.parametrize("seed", [1, 2])
def test_the_distribution_after_many_sweeps(seed):
    """From the worst start, one state: the distribution is Gibbs sampling's."""
    corrected = Corrected(Constant(np.ones(8)), n_chains=2048, n_sweeps=500, n_burn_in=1500)
    assert min(distribution_pvalues(corrected, seed).values()) > 1e-4


def test_without_sweeps_the_distribution_is_the_sources():
    corrected = Corrected(Thermostat(0.3), n_chains=4096, n_sweeps=1, n_burn_in=0)
    spins = corrected.sample(MODEL, n_samples=4096, seed=0).spins
    distance, floor = total_variation(spins, boltzmann_distribution(MODEL))
    assert distance > 2 * floor


def test_both_temperatures_are_reported():
    source = Thermostat(0.4)
    corrected = Corrected(source, n_chains=2000, n_sweeps=50)
    info = corrected.sample(MODEL, beta=0.8, n_samples=4000, seed=0).info
    assert info["beta_drawn"] == pytest.approx(0.4, abs=0.05)
    assert info["beta_corrected"] == pytest.approx(1.0, abs=0.07)
    assert info["requested_beta"] == 0.8
    assert info["draw"]["sampler"] == "thermostat" and info["draw"]["call"] == 1
    (asked,) = source.asked
    assert asked[1] == 1.0 and asked[0].J == pytest.approx(0.8 * MODEL.J)
    assert info["n_chains"] == 2000 and info["n_sweeps"] == 50 and info["n_burn_in"] == 50


def test_adapt_looks_at_the_chains_as_they_are():
    corrected = Corrected(Thermostat(0.3), n_chains=4000, n_burn_in=0, redraw_every=0)
    state = corrected.init(MODEL, seed=0)
    assert state.beta_corrected == pytest.approx(state.beta_drawn)
    state = corrected.adapt(corrected.step(state, 60))
    assert state.beta_corrected == pytest.approx(1.0, abs=0.07)
    assert state.beta_drawn == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(("every", "draws"), [(0, [1] * 7), (1, [1, 2, 3, 4, 5, 6, 7]),
                                              (3, [1, 1, 1, 2, 2, 2, 3])])  # fmt: skip
def test_redraws(every, draws):
    source = Thermostat()
    corrected = Corrected(source, n_chains=20, redraw_every=every)
    state = corrected.init(MODEL, seed=0)
    seen = []
    for _ in range(7):
        corrected.step(state)
        seen.append(len(source.asked))
    assert seen == draws and state.steps == 7


def test_redraws_are_fresh():
    """Each draw has a seed of its own, and the same ones again with the same seed."""
    corrected = Corrected(Thermostat(), n_chains=50, n_burn_in=0, redraw_every=1)

    def drawn(seed):
        state = corrected.init(MODEL, seed=seed)
        first = corrected.spins(state).copy()
        corrected.step(state, 0)  # of what was drawn at the start
        return first, corrected.spins(corrected.step(state, 0)).copy()

    one, two = drawn(3), drawn(3)
    assert (one[0] != one[1]).any()
    np.testing.assert_array_equal(one, two)
    assert (one[0] != drawn(4)[0]).any()


def test_retarget():
    source = Thermostat()
    corrected = Corrected(source, n_chains=2000, n_sweeps=30, redraw_every=3)
    state = corrected.init(MODEL, seed=0)
    other = peaked_ising(8, 5, sd=0.4)
    before = corrected.spins(state).copy()
    state = corrected.retarget(state, other, 0.5)
    np.testing.assert_array_equal(corrected.spins(state), before)
    for _ in range(3):
        corrected.step(state)
    assert len(source.asked) == 1  # kept, and swept at the new target
    distance, floor = total_variation(corrected.spins(state), boltzmann_distribution(other, 0.5))
    assert distance < 1.3 * floor
    corrected.step(state)
    np.testing.assert_allclose(source.asked[1][0].J, 0.5 * other.J)
    with pytest.raises(ValueError, match="start anew"):
        corrected.retarget(state, peaked_ising(7, 0))


def test_sources_by_name_and_bad_options():
    corrected = get_sampler(
        "corrected", sampler="simulated_annealing", sampler_options={"n_sweeps": 7}
    )
    assert corrected.source.n_sweeps == 7
    with pytest.raises(TypeError, match="no option 'sweeps'"):
        Corrected("simulated_annealing", {"sweeps": 3})
    with pytest.raises(ValueError, match="Unknown sampler"):
        Corrected("metropolis")
    for option in ("n_chains", "n_sweeps", "n_burn_in", "redraw_every", "n_threads"):
        with pytest.raises(ValueError, match=option):
            Corrected("simulated_annealing", **{option: -1})


def test_nearly_free_spins_teach_nothing():
    """Their temperature is noise; a right source must not be asked for another one."""
    model = peaked_ising(10, 0, sd=0.003, field_sd=0.0)
    asked = []
    for seed in range(20):
        state = Corrected("exact", n_chains=64, redraw_every=1).init(model, seed=seed)
        asked.append(state.requested)
    assert np.median(asked) == 1.0


def test_info_has_the_beta_that_was_asked_for():
    out = Corrected("exact", n_chains=500).sample(MODEL, 2.0, 500, seed=0)
    assert out.info["requested_beta"] == 2.0


def test_cancel_reaches_the_source():
    source = Constant(np.ones(6))
    source.cancel = lambda: setattr(source, "cancelled", True)
    Corrected(source).cancel()
    assert source.cancelled


@pytest.mark.parametrize("fixed", [-1.0, 0.0, 0.05])
def test_a_dead_machine_is_noticed(fixed):
    """Its states are thrown away by the sweeps, so nothing else would show it."""
    rng = np.random.default_rng(0)
    upper = np.triu(rng.normal(size=(12, 12)) * 0.4, 1)
    model = Ising(upper + upper.T, np.zeros(12))
    turned = Ising(-model.J, model.b)

    class Dead(Thermostat):
        def _sample(self, ising, beta, n_samples, entropy):
            return super()._sample(turned if fixed < 0 else ising, beta, n_samples, entropy)

    corrected = Corrected(Dead(fixed=abs(fixed)), n_chains=400, redraw_every=1)
    with pytest.warns(RuntimeWarning, match="(hardly better|worse) than random"):
        state = corrected.init(model, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corrected.step(state)  # once is enough
        for working in (0.3, 1.0, 5.0):
            Corrected(Thermostat(fixed=working), n_chains=400).init(model, seed=0)
        nearly_free = model.scaled(0.02)  # where nothing can be told
        Corrected(Thermostat(), n_chains=400).init(nearly_free, seed=0)


def test_what_is_left_of_a_machine():
    """All without sweeps, nothing after many, its side of two valleys for good."""
    rng = np.random.default_rng(0)
    weak = Ising(np.zeros((10, 10)), rng.normal(size=10))
    valleys = Ising(0.5 * (np.ones((10, 10)) - np.eye(10)), np.zeros(10))

    def share(model, state, **options):
        corrected = Corrected(Constant(state), n_chains=64, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chains = corrected.init(model, seed=0)
        before = chains.chains.states().copy()
        out = corrected.machine_share(chains)
        assert (chains.chains.states() == before).all()
        return out

    raw = {"n_sweeps": 0, "n_burn_in": 0, "redraw_every": 1}
    assert share(weak, np.ones(10), **raw) == 1
    assert share(weak, np.ones(10)) == 0  # one sweep of free spins forgets
    # Up for ever; of the random starts half are up as well, and half differ in every spin.
    assert share(valleys, np.ones(10)) == pytest.approx(1, abs=0.4)
    assert share(valleys, np.ones(10), n_burn_in=10_000, redraw_every=1) > 0.5


def test_states_that_keep_the_heuristics_valley_are_told():
    valleys = Ising(0.5 * (np.ones((10, 10)) - np.eye(10)), 0.05 * np.ones(10))
    halves = np.where(np.arange(64)[:, None] < 32, 1, -1) * np.ones(10, int)

    class Halves(Constant):
        def _sample(self, ising, beta, n_samples, entropy):
            return halves[:n_samples], {}

    with pytest.warns(RuntimeWarning, match="States keep what 'constant' prefers"):
        Corrected(Halves(np.ones(10))).sample(valleys, n_samples=640, seed=0)


def test_a_machine_may_decide():
    """Without sweeps training has the states as they came; samples are still swept."""
    corrected = Corrected(Thermostat(), n_chains=50, n_sweeps=0, n_burn_in=0, redraw_every=1)
    state = corrected.step(corrected.init(MODEL, seed=0))
    assert state.n_draws == 1
    np.testing.assert_array_equal(corrected.spins(state), state.reads)
    assert len(np.unique(corrected.sample(MODEL, n_samples=200, seed=0).spins, axis=0)) > 20
