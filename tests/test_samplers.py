import numpy as np
import pytest
from conftest import peaked_ising
from scipy import stats

from scvi_qbm.diagnostics import effective_sample_size, total_variation
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import ChainSampler, Sampler, get_sampler, list_samplers
from scvi_qbm.samplers.exact import all_energies, all_states, boltzmann_law

# Enough sweeps between samples that draws are nearly independent; peaked targets need many.
CASES = {
    "exact": {},
    "gibbs": {"n_chains": 2048, "n_sweeps": 500, "n_burn_in": 1500},
    "parallel_tempering": {"n_chains": 64, "n_sweeps": 10, "n_burn_in": 300},
}


@pytest.fixture(params=sorted(CASES))
def sampler(request):
    return get_sampler(request.param, **CASES[request.param])


def test_every_built_in_sampler_is_tested_here():
    assert set(CASES) == {n for n in list_samplers() if get_sampler(n).law != "heuristic"}


def chi_square(spins, law):
    """p-value of states against a law; states expected fewer than 5 times are pooled."""
    index = (spins > 0) @ (1 << np.arange(spins.shape[1]))
    observed = np.bincount(index, minlength=law.size).astype(float)
    expected = law * len(spins)
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5:
        observed, expected = observed[:-1], expected[:-1] * len(spins) / expected[:-1].sum()
        expected *= observed.sum() / expected.sum()
    return stats.chisquare(observed, expected).pvalue


def law_pvalues(sampler, seed, n_samples=4096, beta=1.0):
    """Chi-square on states, and z of mean energy and of pair moments with ESS accounted for."""
    model = peaked_ising(8, seed, sd=0.7)
    law = boltzmann_law(model, beta)
    out = sampler.sample(model, beta, n_samples, seed=seed)
    chains = getattr(sampler, "n_chains", n_samples // 4)

    def z(values, exact):
        series = values[: n_samples // chains * chains].reshape(-1, chains).T
        size = effective_sample_size(series) if series.shape[1] >= 4 else n_samples
        return (values.mean() - exact) / (values.std() / np.sqrt(size))

    pvalues = [
        chi_square(out.spins, law),
        2 * stats.norm.sf(abs(z(out.energies, law @ all_energies(model)))),
    ]
    states = all_states(8).astype(float)
    for i, j in ((0, 1), (2, 5), (6, 7)):
        exact = law @ (states[:, i] * states[:, j])
        pvalues.append(
            2 * stats.norm.sf(abs(z((out.spins[:, i] * out.spins[:, j]).astype(float), exact)))
        )
    return pvalues


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_law(sampler, seed):
    assert min(law_pvalues(sampler, seed)) > 1e-4


@pytest.mark.parametrize("beta", [0.9, 1.1])
def test_law_test_has_power(beta):
    """The same test rejects a sampler whose temperature is 10 % off."""

    class Wrong(type(get_sampler("exact"))):
        def _sample(self, ising, _, n_samples, entropy):
            return super()._sample(ising, beta, n_samples, entropy)

    assert min(min(law_pvalues(Wrong(), seed)) for seed in (1, 2, 3)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_pvalues_are_uniform(name, request):
    """200 repetitions with fresh seeds: chi-square p-values follow the uniform law."""
    sampler = get_sampler(name, **CASES[name] | ({} if name == "exact" else {"n_sweeps": 40}))
    first = int(np.random.SeedSequence().generate_state(1)[0] >> 1)
    print(f"{name}: seeds from {first}")
    pvalues = [law_pvalues(sampler, first + i)[0] for i in range(200)]
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-3


def test_interface(sampler):
    model = peaked_ising(6, 0)
    out = sampler.sample(model, beta=0.7, n_samples=333, seed=1)
    assert isinstance(sampler, Sampler) and sampler.law in ("exact", "mcmc", "heuristic")
    assert out.spins.shape == (333, 6) and out.spins.dtype == np.int8 and len(out) == 333
    assert out.energies.dtype == np.float64
    np.testing.assert_allclose(out.energies, model.energy(out.spins))
    np.testing.assert_array_equal(out.binary, (out.spins + 1) // 2)
    assert out.info["sampler"] == sampler.name and out.info["beta"] == 0.7
    if isinstance(sampler, ChainSampler):
        assert out.info["n_updates"] > 0 and out.info["n_chains"] == sampler.n_chains


def test_seeds(sampler):
    model = peaked_ising(12, 0, sd=0.2)
    first, again, other = (sampler.sample(model, n_samples=256, seed=s).spins for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    fresh = sampler.sample(model, n_samples=256).spins, sampler.sample(model, n_samples=256).spins
    assert (fresh[0] != fresh[1]).any()


def test_reads_are_distinct(sampler):
    model = Ising(np.zeros((20, 20)), np.zeros(20))
    spins = sampler.sample(model, n_samples=500, seed=0).spins
    assert len(np.unique(spins, axis=0)) > 490


def test_one_spin(sampler):
    model = Ising(np.zeros((1, 1)), np.array([0.5]))
    spins = sampler.sample(model, n_samples=8000, seed=0).spins
    expected = np.tanh(0.5)
    assert abs(spins.mean() - expected) < 5 * np.sqrt((1 - expected**2) / 8000)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_free_spins(sampler, beta):
    model = peaked_ising(5, 0) if beta == 0 else Ising(np.zeros((5, 5)), np.zeros(5))
    spins = sampler.sample(model, beta, n_samples=8000, seed=3).spins
    assert np.abs(spins.mean(axis=0)).max() < 5 / np.sqrt(8000)


def test_cold_and_frozen(sampler):
    model = peaked_ising(8, 5)
    ground = all_energies(model).min()
    cold = sampler.sample(model, beta=30.0, n_samples=200, seed=0)
    if sampler.name != "gibbs":  # one-temperature chains may stay in a local minimum
        np.testing.assert_allclose(cold.energies, ground, atol=1e-6)
    frozen = Ising(np.zeros((4, 4)), np.array([60.0, -60.0, 60.0, -60.0]))
    spins = sampler.sample(frozen, n_samples=100, seed=0).spins
    assert (spins == [1, -1, 1, -1]).all()


@pytest.mark.parametrize("name", ["gibbs", "parallel_tempering"])
def test_results_do_not_depend_on_threads(name):
    model = peaked_ising(20, 0)
    one, two = (
        get_sampler(name, n_chains=150, n_burn_in=50, n_threads=t).sample(
            model, n_samples=300, seed=4
        )
        for t in (1, 2)
    )
    np.testing.assert_array_equal(one.spins, two.spins)


def test_tempering_crosses_a_barrier_that_gibbs_does_not():
    """A ferromagnet in two equal valleys, all chains started in one of them."""
    n = 16
    model = Ising(0.5 * (1 - np.eye(n)), np.zeros(n))
    fraction = {}
    for name in ("gibbs", "parallel_tempering"):
        sampler = get_sampler(name, n_chains=64)
        state = sampler.init(Ising(np.zeros((n, n)), np.full(n, 50.0)), seed=0)
        sampler.step(state, 5)
        state = sampler.retarget(state, model)
        for _ in range(30):
            state = sampler.adapt(sampler.step(state, 10))
        fraction[name] = (sampler.spins(state).sum(axis=1) > 0).mean()
    assert fraction["gibbs"] == 1.0
    assert 0.25 < fraction["parallel_tempering"] < 0.75


def test_tempering_reports_and_adapts():
    model = peaked_ising(64, 2, sd=0.25)
    info = get_sampler("parallel_tempering", n_chains=32).sample(model, n_samples=800, seed=0).info
    assert info["betas"][0] == 0 and info["betas"][-1] == 1
    assert (np.diff(info["betas"]) > 0).all()
    assert 0.35 < info["swap_rates"].min() and info["swap_rates"].max() < 0.75
    assert info["round_trips"] > 10 and info["rhat_energy"] < 1.05
    assert info["barrier"] == pytest.approx((1 - info["swap_rates"]).sum())
    fixed = get_sampler("parallel_tempering", n_levels=5).sample(model, n_samples=100, seed=0)
    assert len(fixed.info["betas"]) == 5


def test_tempering_from_the_models_own_fields():
    model = peaked_ising(8, 3, field_sd=2.0)
    sampler = get_sampler("parallel_tempering", reference="fields", n_sweeps=10)
    out = sampler.sample(model, n_samples=6000, seed=0)
    distance, floor = total_variation(out.spins, boltzmann_law(model))
    assert distance < 1.25 * floor


def test_tempering_warns_when_it_has_not_mixed():
    model = peaked_ising(128, 0, sd=1.0)
    sampler = get_sampler("parallel_tempering", n_burn_in=2, n_sweeps=1, n_chains=8)
    with pytest.warns(RuntimeWarning, match="has not mixed"):
        sampler.sample(model, n_samples=64, seed=0)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"beta": -1.0}, ValueError, "beta"),
        ({"beta": np.nan}, ValueError, "beta"),
        ({"n_samples": 0}, ValueError, "n_samples"),
        ({"n_samples": 2.5}, TypeError, "integer"),
    ],
)
def test_bad_requests(sampler, kwargs, error, message):
    with pytest.raises(error, match=message):
        sampler.sample(peaked_ising(3, 0), **kwargs)


def test_matrix_instead_of_model(sampler):
    with pytest.raises(TypeError, match=r"Ising\(J, b\)"):
        sampler.sample(np.zeros((3, 3)))


@pytest.mark.parametrize("option", ["n_chains", "n_sweeps", "n_threads"])
def test_bad_options(option):
    with pytest.raises(ValueError, match=option):
        get_sampler("gibbs", **{option: -1})
    with pytest.raises(ValueError, match="swap_rate"):
        get_sampler("parallel_tempering", swap_rate=1.0)
    with pytest.raises(ValueError, match="reference"):
        get_sampler("parallel_tempering", reference="zero")


def test_enumeration_is_limited():
    with pytest.raises(ValueError, match="24 spins"):
        get_sampler("exact").sample(peaked_ising(25, 0))


def test_chains_refuse_a_model_of_another_size():
    sampler = get_sampler("gibbs", n_chains=4)
    state = sampler.init(peaked_ising(5, 0), seed=0)
    with pytest.raises(ValueError, match="start anew"):
        sampler.retarget(state, peaked_ising(6, 0))


def test_wrong_shape_from_a_back_end_is_caught():
    class Broken(Sampler):
        name, law = "broken", "heuristic"

        def _sample(self, ising, beta, n_samples, entropy):
            return np.ones((n_samples, ising.n_spins + 1)), {}

    with pytest.raises(RuntimeError, match="broken"):
        Broken().sample(peaked_ising(3, 0))
