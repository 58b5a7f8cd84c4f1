import numpy as np
import pytest

from scvi_qbm.diagnostics import effective_sample_size, split_rhat, total_variation


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
    law = rng.dirichlet(np.full(64, 0.5))
    distances, floor = [], 0.0
    for _ in range(60):
        index = rng.choice(64, size=n_samples, p=law)
        spins = 2 * ((index[:, None] >> np.arange(6)) & 1) - 1
        distance, floor = total_variation(spins, law)
        distances.append(distance)
    assert floor == pytest.approx(np.mean(distances), rel=0.12)


def test_total_variation_of_the_wrong_law():
    law = np.zeros(4)
    law[0] = 1.0
    assert total_variation(np.ones((10, 2)), law)[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="3 spins"):
        total_variation(np.ones((10, 3)), law)
