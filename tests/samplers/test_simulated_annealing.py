import naive
import numpy as np
import pytest
from support.machines import peaked_ising

from scvi_qbm.ising import Ising
from scvi_qbm.samplers import engine, get_sampler
from scvi_qbm.samplers.conformance import check_sampler
from scvi_qbm.samplers.exact import all_energies
from scvi_qbm.samplers.simulated_annealing import annealing_betas, field_scale


@pytest.mark.parametrize("metropolis", [False, True])
@pytest.mark.parametrize("n", [1, 6, 32, 45])
@pytest.mark.parametrize("refresh", [3, 256])
def test_annealing_equals_its_slow_twin(n, refresh, metropolis, monkeypatch):
    """Every sweep at its own temperature, draw for draw, with and without refreshed fields."""
    monkeypatch.setattr(engine.chains, "REFRESH", refresh)
    model = peaked_ising(n, n, sd=1.5 / np.sqrt(n))
    betas = np.array([0.0, 0.2, 0.5, 0.9, 1.4, 2.0, 30.0])
    n_chains = 70  # two chunks
    chains = engine.start(model, np.ones(1), n_chains, np.random.SeedSequence(5))
    assert len(chains.spins) == 2
    spins = chains.states().astype(int)
    per_chunk = chains.lane_at.shape[1]
    lanes = [(chain, *divmod(chain, per_chunk)) for chain in (0, 1, 33, 35, 69)]
    rngs = {chain: naive.Xoshiro128Plus(chains.rng[c, :, r]) for chain, c, r in lanes}
    engine.anneal(chains, betas, metropolis=metropolis)
    for chain, chunk, lane in lanes:
        for beta in betas:
            naive.sweep(model.J, model.b, np.zeros(n), beta, spins[chain], rngs[chain], metropolis)
        np.testing.assert_array_equal(chains.states()[chain], spins[chain])
        energy = naive.energy(model.J, model.b, spins[chain])
        assert chains.energy[chunk, lane] == pytest.approx(energy, abs=1e-3)
    assert chains.sweeps == len(betas)
    assert chains.n_updates == len(betas) * 70 * n


def test_schedules():
    np.testing.assert_allclose(annealing_betas(0.1, 10.0, 3), [0.1, 1.0, 10.0])
    np.testing.assert_allclose(annealing_betas(0.0, 4.0, 5, "linear"), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(annealing_betas(0.1, 3.0, 1), [3.0])
    # A geometric line cannot start at zero.
    np.testing.assert_allclose(annealing_betas(0.0, 4.0, 5), [0, 1, 2, 3, 4])


@pytest.mark.parametrize("schedule", ["geometric", "linear"])
@pytest.mark.parametrize("beta", [0.01, 1.0, 7.0])
def test_the_schedule_ends_at_the_target(schedule, beta):
    model = peaked_ising(9, 0)
    sampler = get_sampler("simulated_annealing", n_sweeps=50, schedule=schedule)
    betas = sampler.betas(model, beta)
    assert len(betas) == 50 and betas[-1] == pytest.approx(beta)
    assert (np.diff(betas) >= 0).all() and betas[0] <= 0.2 / field_scale(model) + 1e-12
    if schedule == "geometric" and beta > 0.01:
        np.testing.assert_allclose(np.diff(np.log(betas)), np.log(betas[1] / betas[0]))
    info = sampler.sample(model, beta, 3, seed=0).info
    assert info["beta_range"] == pytest.approx((betas[0], beta))
    assert info["n_sweeps"] == 50 and info["n_updates"] == 50 * 3 * 9


def test_to_the_ground_whatever_beta():
    model = peaked_ising(9, 0)
    sampler = get_sampler("simulated_annealing", n_sweeps=50, end="ground")
    betas = sampler.betas(model, 0.3)
    np.testing.assert_array_equal(betas, sampler.betas(model, 5.0))
    scale = field_scale(model)
    assert betas[-3] < 10 / scale < 1e3 / scale < betas[-2] == betas[-1]
    # Energies times ten, temperatures times ten.
    np.testing.assert_allclose(sampler.betas(Ising(10 * model.J, 10 * model.b)), betas / 10)
    # Frozen states are local minima.
    spins = sampler.sample(peaked_ising(60, 1), 0.3, 50, seed=0).spins
    assert (spins * peaked_ising(60, 1).local_fields(spins) > 0).all()


@pytest.mark.parametrize("acceptance", ["heat_bath", "metropolis"])
@pytest.mark.parametrize("seed", range(4))
def test_finds_ground_states(seed, acceptance):
    model = peaked_ising(16, seed)
    ground = all_energies(model).min()
    sampler = get_sampler("simulated_annealing", n_sweeps=500, end="ground", acceptance=acceptance)
    out = sampler.sample(model, n_samples=64, seed=0)
    assert out.energies.min() == pytest.approx(ground)
    assert (out.energies < ground + 1e-9).mean() > 0.3


def test_metropolis_conforms_too():
    assert check_sampler("simulated_annealing", options={"acceptance": "metropolis"}).passed


def test_slower_cooling_ends_lower():
    model = peaked_ising(100, 0, sd=0.1)
    quick, slow = (
        get_sampler("simulated_annealing", n_sweeps=n, end="ground")
        .sample(model, n_samples=200, seed=0)
        .energies
        for n in (10, 400)
    )
    error = np.hypot(quick.std(), slow.std()) / np.sqrt(200)
    assert quick.mean() - slow.mean() > 5 * error


@pytest.mark.parametrize("end", ["target", "ground"])
def test_beta_range_overrides(end):
    model = peaked_ising(9, 0)
    sampler = get_sampler("simulated_annealing", n_sweeps=20, beta_range=(0.05, 0.4), end=end)
    for beta in (0.0, 1.0, 9.0):
        betas = sampler.betas(model, beta)
        assert (betas[0], betas[-1]) == pytest.approx((0.05, 0.4))
    options = {"n_sweeps": 3, "beta_range": (0.0, 0.4), "schedule": "linear"}
    from_zero = get_sampler("simulated_annealing", **options)
    np.testing.assert_allclose(from_zero.betas(model), [0, 0.2, 0.4])


@pytest.mark.parametrize("acceptance", ["heat_bath", "metropolis"])
def test_at_one_temperature_it_is_a_markov_chain(acceptance):
    model = peaked_ising(9, 0, sd=0.2)
    sampler = get_sampler(
        "simulated_annealing", n_sweeps=100, beta_range=(0.5, 0.5), acceptance=acceptance
    )
    out = sampler.sample(model, beta=9.0, n_samples=8192, seed=0)
    energies = all_energies(model)
    distribution = np.exp(-0.5 * (energies - energies.min()))
    distribution /= distribution.sum()
    mean = distribution @ energies
    error = np.sqrt(distribution @ (energies - mean) ** 2 / 8192)
    assert abs(out.energies.mean() - mean) < 4.5 * error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_sweeps": 0}, "n_sweeps"),
        ({"end": "melt"}, "'target', 'ground'"),
        ({"schedule": "cosine"}, "'geometric', 'linear'"),
        ({"acceptance": "glauber"}, "'heat_bath', 'metropolis'"),
        ({"beta_range": (1.0, 0.5)}, "beta_range"),
        ({"beta_range": (-0.1, 0.5)}, "beta_range"),
        ({"beta_range": (0.1, np.inf)}, "beta_range"),
        ({"beta_range": (np.nan, 1.0)}, "beta_range"),
        ({"n_threads": 0}, "n_threads"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        get_sampler("simulated_annealing", **options)


def test_a_model_without_energies():
    out = get_sampler("simulated_annealing", end="ground", n_sweeps=5).sample(
        Ising(np.zeros((4, 4)), np.zeros(4)), n_samples=200, seed=0
    )
    assert len(np.unique(out.spins, axis=0)) == 16
