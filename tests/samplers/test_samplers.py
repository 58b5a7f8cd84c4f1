import inspect
import warnings

import numpy as np
import pytest
from scipy import stats
from support.machines import peaked_ising

from scvi_qbm.diagnostics import total_variation
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import Sampler, get_sampler, registry
from scvi_qbm.samplers.conformance import check_sampler
from scvi_qbm.samplers.conformance.distribution import distribution_pvalues
from scvi_qbm.samplers.exact import all_energies, boltzmann_distribution

BUILT_IN = sorted(registry._BUILT_IN)
CLASSES = {name: registry._load(name) for name in BUILT_IN}
BOLTZMANN = [name for name in BUILT_IN if CLASSES[name].guarantee != "heuristic"]
THREADED = [
    name for name in BUILT_IN if "n_threads" in inspect.signature(CLASSES[name]).parameters
]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Reads of .* same state:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:All bqm biases are zero:UserWarning")
@pytest.mark.parametrize("name", BUILT_IN)
def test_conformance(name):
    """The public kit on all that the registry lists: a new sampler is tested by its line there."""
    try:
        report = check_sampler(name, strict=False)
    except ImportError as error:
        if "scvi-qbm[" not in str(error):  # a broken module of ours is no missing extra
            raise
        pytest.skip(str(error))
    assert report.passed, str(report)
    guarantee = (
        "exact" if name == "gauged" else CLASSES[name].guarantee
    )  # that of the sampler it is given
    assert (report.sampler, report.guarantee) == (name, guarantee)
    assert {r.name: r.outcome for r in report.results}["distribution"] == (
        "noted" if guarantee == "heuristic" else "passed"
    )


def test_which_samplers_promise_a_distribution():
    assert BOLTZMANN == ["corrected", "exact", "gibbs", "parallel_tempering", "torch_tempering"]


@pytest.mark.parametrize("beta", [0.9, 1.1])
def test_law_test_has_power(beta):
    """The same test rejects a sampler whose temperature is 10 % off."""

    class Wrong(CLASSES["exact"]):
        def _sample(self, ising, _, n_samples, entropy):
            return super()._sample(ising, beta, n_samples, entropy)

    assert min(min(distribution_pvalues(Wrong(), seed).values()) for seed in (1, 2, 3)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", BOLTZMANN)
def test_pvalues_are_uniform(name):
    """200 repetitions with fresh seeds: chi-square p-values follow the uniform distribution."""
    sampler = get_sampler(name, **CLASSES[name].conformance)
    first = int(np.random.SeedSequence().generate_state(1)[0] >> 1)
    print(f"{name}: seeds from {first}")
    pvalues = [distribution_pvalues(sampler, first + i)["frequencies"] for i in range(200)]
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("name", THREADED)
def test_results_do_not_depend_on_threads(name):
    wanted = {"n_chains": 150, "n_burn_in": 20, "n_steps": 150, "sampler": "simulated_annealing"}
    known = inspect.signature(CLASSES[name]).parameters
    options = {key: value for key, value in wanted.items() if key in known}
    model = peaked_ising(20, 0)
    one, two = (
        get_sampler(name, **options, n_threads=threads).sample(model, n_samples=300, seed=4)
        for threads in (1, 2)
    )
    np.testing.assert_array_equal(one.spins, two.spins)
    assert len(np.unique(one.spins, axis=0)) > 1


def test_there_are_threaded_samplers():
    assert {"gibbs", "parallel_tempering", "simulated_annealing", "cim", "corrected"} <= set(
        THREADED
    )


def test_sample_set():
    model = peaked_ising(6, 0)
    out = get_sampler("exact").sample(model, beta=0.7, n_samples=333, seed=1)
    assert out.energies.dtype == np.float64 and len(out) == 333
    np.testing.assert_array_equal(out.binary, (out.spins + 1) // 2)
    assert out.binary.dtype == np.int8 and set(np.unique(out.binary)) == {0, 1}
    assert out.info["sampler"] == "exact" and out.info["beta"] == 0.7


@pytest.mark.parametrize("name", ["gibbs", "parallel_tempering"])
def test_chains_report_their_work(name):
    sampler = get_sampler(name, n_chains=8, n_sweeps=3, n_burn_in=5)
    info = sampler.sample(peaked_ising(6, 0, sd=0.1), n_samples=80, seed=1).info
    assert info["n_chains"] == 8 and info["n_sweeps"] == 3 and info["n_burn_in"] == 5
    assert info["n_updates"] >= (5 + 10 * 3) * 8 * 6
    assert np.isfinite(info["rhat_energy"]) and 0 < info["ess_energy"] <= 80


def test_tempering_finds_the_ground_state():
    model = peaked_ising(8, 5)
    sampler = get_sampler("parallel_tempering", **CLASSES["parallel_tempering"].conformance)
    cold = sampler.sample(model, beta=30.0, n_samples=200, seed=0)
    np.testing.assert_allclose(cold.energies, all_energies(model).min(), atol=1e-6)


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
    with pytest.warns(RuntimeWarning, match=r"lowest swap rate 0\.0\d, \d round trips of 32"):
        fixed = get_sampler("parallel_tempering", n_levels=2).sample(model, n_samples=100, seed=0)
    assert len(fixed.info["betas"]) == 2


def test_tempering_records_its_levels():
    model = peaked_ising(8, 2)
    options = {"n_chains": 16, "n_sweeps": 10}
    plain = get_sampler("parallel_tempering", **options).sample(model, 0.7, 4000, seed=0)
    assert "level_energies" not in plain.info
    sampler = get_sampler("parallel_tempering", record_levels=True, **options)
    out = sampler.sample(model, 0.7, 4000, seed=0)
    np.testing.assert_array_equal(out.spins, plain.spins)
    betas, tempered, flow = (out.info[key] for key in ("betas", "level_energies", "flow"))
    assert tempered.shape == (250, 16, len(betas))
    # The last level's are the energies of the states handed out.
    expected = 0.7 * (out.energies - model.offset)
    np.testing.assert_allclose(tempered[:, :, -1].ravel(), expected, atol=1e-4)
    for level, beta in enumerate(betas):
        distribution, energies = (
            boltzmann_distribution(model, beta),
            0.7 * (all_energies(model) - model.offset),
        )
        mean = distribution @ energies
        sd = np.sqrt(distribution @ (energies - mean) ** 2)
        assert abs(tempered[:, :, level].mean() - mean) < 5 * sd / np.sqrt(1000)
    assert flow[0] == 1 and flow[-1] == 0 and ((0 < flow[1:-1]) & (flow[1:-1] < 1)).all()
    # Sweeps on the final ladder: half the burn-in, and those between samples.
    assert out.info["round_trip_rate"] == pytest.approx(
        out.info["round_trips"] / (16 * (500 + 2500))
    )
    assert out.info["target_swap_rate"] == 0.5


def test_tempering_from_the_models_own_fields():
    model = peaked_ising(8, 3, field_sd=2.0)
    sampler = get_sampler("parallel_tempering", reference="fields", n_sweeps=10)
    out = sampler.sample(model, n_samples=6000, seed=0)
    distance, floor = total_variation(out.spins, boltzmann_distribution(model))
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
        ({"n_samples": 2.5}, TypeError, "whole number"),
    ],
)
def test_bad_requests(kwargs, error, message):
    with pytest.raises(error, match=message):
        get_sampler("exact").sample(peaked_ising(3, 0), **kwargs)


def test_matrix_instead_of_model():
    with pytest.raises(TypeError, match=r"Ising\(J, b\)"):
        get_sampler("exact").sample(np.zeros((3, 3)))


@pytest.mark.parametrize("name", BUILT_IN)
def test_nobody_bypasses_the_checks_on_requests(name):
    assert CLASSES[name].sample is Sampler.sample


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


def test_bad_values_say_what_is_wrong():
    with pytest.raises(ValueError, match="single precision"):
        get_sampler("gibbs").sample(peaked_ising(4, 0), beta=1e40)
    with pytest.raises(ValueError, match="cannot start at 0"):
        get_sampler("simulated_annealing", beta_range=(0, 2))
    with pytest.raises(ValueError, match="pair"):
        get_sampler("cim", gain=1.0)


@pytest.mark.parametrize("name", ["gibbs", "parallel_tempering"])
def test_small_fields_beside_large_couplings(name):
    """Single precision loses them: P(up) was .507 for .731."""
    pair = Ising(np.array([[0, 1e7], [1e7, 0]]), np.array([0.3, 0.2]))
    with pytest.warns(RuntimeWarning, match=r"differences below .* nats are lost"):
        get_sampler(name, n_chains=64).sample(pair, n_samples=640, seed=0)
    with pytest.warns(RuntimeWarning, match="lost"):
        get_sampler(name).init(pair, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_sampler(name).init(Ising(1e7 * np.array([[0, 1], [1, 0]]), np.zeros(2)), seed=0)
        get_sampler(name).init(Ising(pair.J / 1e4, pair.b), seed=0)


def test_gibbs_warns_where_its_chains_stay():
    """A magnet of 64 spins: nearly all weight is up, and chains that began down stay there."""
    n = 64
    magnet = Ising((np.ones((n, n)) - np.eye(n)) / n, np.full(n, 0.02))
    for n_samples in (64, 2048):  # of a single round, too
        with pytest.warns(RuntimeWarning, match=r"'gibbs' has not mixed.*parallel_tempering"):
            out = get_sampler("gibbs").sample(magnet, 3.0, n_samples, seed=0)
        assert out.info["rhat_overlap"] > 1.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = get_sampler("parallel_tempering").sample(magnet, 3.0, 64, seed=0)
        assert (out.spins.sum(axis=1) > 0).mean() > 0.95
        for seed in range(20):  # no false alarms
            get_sampler("gibbs").sample(magnet, 0.5, 64, seed=seed)
            get_sampler("gibbs", n_chains=2).sample(magnet, 0.5, 64, seed=seed)


def test_states_are_not_rounded():
    class Floats(type(get_sampler("exact"))):
        name = "floats"

        def _sample(self, ising, beta, n_samples, entropy):
            spins, info = super()._sample(ising, beta, n_samples, entropy)
            return spins * 1.9, info

    with pytest.raises(RuntimeError, match="'floats' returned entries such as -?1.9"):
        Floats().sample(Ising(np.zeros((3, 3)), np.zeros(3)), n_samples=10, seed=0)
