import numpy as np
import pytest
from support.machines import peaked_ising

from scvi_qbm.diagnostics import (
    effective_beta,
    effective_sample_size,
    split_rhat,
    total_variation,
)
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import get_sampler
from scvi_qbm.samplers.exact import all_energies, all_states


def ar1(rho, n_chains=16, n_draws=4000, seed=0):
    rng = np.random.default_rng(seed)
    x = np.empty((n_chains, n_draws))
    x[:, 0] = rng.normal(size=n_chains)
    for t in range(1, n_draws):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=n_chains)
    return x


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_ess_of_an_autoregression(rho):
    x = ar1(rho)
    exact = x.size * (1 - rho) / (1 + rho)
    assert effective_sample_size(x) == pytest.approx(exact, rel=0.12)


def test_ess_of_chains_that_disagree_is_small():
    x = ar1(0.0) + np.arange(16)[:, None]
    assert effective_sample_size(x) < 100
    assert split_rhat(x) > 2


def test_rhat_of_agreement_and_of_a_trend():
    assert split_rhat(ar1(0.5)) == pytest.approx(1.0, abs=0.01)
    assert split_rhat(ar1(0.0) + np.linspace(0, 5, 4000)) > 1.3


def test_frozen_chains_say_nothing():
    x = np.full((4, 100), 3.3)
    assert np.isnan(split_rhat(x)) and np.isnan(effective_sample_size(x))
    assert split_rhat(x + np.arange(4)[:, None]) == np.inf


def test_too_few_draws():
    with pytest.raises(ValueError, match="at least 4 draws"):
        split_rhat(np.zeros((3, 2)))


@pytest.mark.parametrize("n_samples", [50, 2000, 100_000])
def test_total_variation_floor(n_samples):
    rng = np.random.default_rng(0)
    distribution = rng.dirichlet(np.full(64, 0.5))
    distances, floor = [], 0.0
    for _ in range(60):
        index = rng.choice(64, size=n_samples, p=distribution)
        spins = 2 * ((index[:, None] >> np.arange(6)) & 1) - 1
        distance, floor = total_variation(spins, distribution)
        distances.append(distance)
    assert floor == pytest.approx(np.mean(distances), rel=0.12)


def test_total_variation_of_the_wrong_distribution():
    distribution = np.zeros(4)
    distribution[0] = 1.0
    assert total_variation(np.ones((10, 2)), distribution)[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="3 spins"):
        total_variation(np.ones((10, 3)), distribution)


@pytest.mark.parametrize("beta", [0.2, 0.5, 1.0, 2.0])
def test_effective_beta_of_boltzmann_samples(beta):
    """Right on average, and its standard error is that of its repetitions."""
    model = peaked_ising(8, 1, sd=0.5)
    exact = get_sampler("exact")
    z = []
    for seed in range(60):
        estimate, error = effective_beta(model, exact.sample(model, beta, 1000, seed=seed).spins)
        assert estimate == pytest.approx(beta, rel=0.25)
        z.append((estimate - beta) / error)
    assert abs(np.mean(z)) < 4 / np.sqrt(60)
    assert 0.7 < np.std(z) < 1.35


def test_effective_beta_is_consistent():
    model = peaked_ising(10, 2, sd=0.5)
    spins = get_sampler("exact").sample(model, 0.8, 200_000, seed=0).spins
    estimate, error = effective_beta(model, spins)
    assert error < 0.005 and abs(estimate - 0.8) < 4 * error


def test_effective_beta_solves_its_equation():
    model = peaked_ising(7, 3)
    spins = np.random.default_rng(0).choice([-1, 1], size=(40, 7))
    beta, _ = effective_beta(model, spins)
    gains = spins * model.local_fields(spins)
    slope = (gains**2 / np.cosh(beta * gains) ** 2).sum()
    assert abs((gains * (1 - np.tanh(beta * gains))).sum()) < 1e-8 * slope


@pytest.mark.parametrize("scale", [1e-6, 0.1, 10.0, 1e6])
def test_effective_beta_is_in_units_of_one_over_energy(scale):
    model = peaked_ising(8, 1, sd=0.5)
    spins = get_sampler("exact").sample(model, 1.3, 500, seed=0).spins
    beta, error = effective_beta(model, spins)
    scaled = Ising(scale * model.J, scale * model.b, offset=5.0)
    assert effective_beta(scaled, spins) == pytest.approx((beta / scale, error / scale), rel=1e-6)


def test_effective_beta_of_states_that_avoid_low_energies():
    model = peaked_ising(8, 1, sd=0.5)
    upside_down = Ising(-model.J, -model.b)
    spins = get_sampler("exact").sample(upside_down, 0.7, 4000, seed=0).spins
    beta, error = effective_beta(model, spins)
    assert abs(beta + 0.7) < 4 * error < 0.2


def test_effective_beta_of_coins_is_zero():
    model = peaked_ising(8, 1)
    spins = np.random.default_rng(0).choice([-1, 1], size=(5000, 8))
    beta, error = effective_beta(model, spins)
    assert abs(beta) < 4 * error


def test_effective_beta_at_the_ends():
    model = peaked_ising(8, 1)
    states, energies = all_states(8), all_energies(model)
    for pick, expected in ((np.argmin, np.inf), (np.argmax, -np.inf)):
        beta, error = effective_beta(model, states[pick(energies)])
        assert beta == expected and np.isnan(error)
    nothing = Ising(np.zeros((3, 3)), np.zeros(3))
    assert np.isnan(effective_beta(nothing, np.ones((4, 3)))).all()
    # All but one state in a minimum: finite, large, and found.
    many = np.repeat(states[[np.argmin(energies)]], 10_000, axis=0)
    many[0, 0] *= -1
    beta, _ = effective_beta(model, many)
    assert 1 < beta < np.inf


def test_effective_beta_of_the_wrong_shape():
    with pytest.raises(ValueError, match="8"):
        effective_beta(peaked_ising(8, 1), np.ones((10, 7)))
