import warnings

import numpy as np
import pytest
from support.machines import (
    core_and_crowd,
    edwards_anderson,
    log_z_of_core_and_crowd,
    log_z_of_strip,
    peaked_ising,
)

from scvi_qbm.ising import Ising
from scvi_qbm.logz import bar, log_partition, mean_field
from scvi_qbm.samplers.exact import all_states


def test_exact_is_the_sum_over_states():
    model = peaked_ising(6, 0)
    expected = np.log(np.exp(-0.8 * model.energy(all_states(6))).sum())
    assert log_partition(model, 0.8, method="exact") == (pytest.approx(expected), 0.0)


@pytest.mark.parametrize("method", ["bar", "ais", "exact"])
def test_independent_spins(method):
    b = np.linspace(-1.5, 1.5, 20)
    model = Ising(np.zeros((20, 20)), b, offset=3.0)
    value, se = log_partition(model, 1.3, method=method, seed=0)
    expected = np.logaddexp(1.3 * b, -1.3 * b).sum() - 1.3 * 3.0
    assert abs(value - expected) < max(3 * se, 1e-9)
    assert se < 0.05


@pytest.mark.parametrize("method", ["bar", "ais"])
def test_within_three_standard_errors_of_enumeration(method):
    """Twenty peaked machines, coupling sd from 0.3 to 1.

    One in 20 beyond 3 is allowed for: another processor rounds, and so draws, differently.
    """
    z = []
    for seed in range(20):
        model = peaked_ising(16, seed, sd=0.3 + 0.7 * seed / 19)
        value, se = log_partition(model, method=method, seed=seed)
        assert 0 < se < 0.1
        z.append((value - log_partition(model, method="exact").value) / se)
    assert np.sort(np.abs(z))[-2] < 3 and np.abs(z).max() < 4.5
    assert np.sqrt(np.mean(np.square(z))) < 1.5


@pytest.mark.long
@pytest.mark.parametrize("beta", [pytest.param(1.0, marks=pytest.mark.slow), 1.5])
def test_bar_and_ais_agree_at_256_spins(beta):
    rng = np.random.default_rng(3)
    upper = np.triu(rng.normal(size=(256, 256)) / 16, 1)
    model = Ising(upper + upper.T, np.zeros(256))
    bar_value, bar_se = log_partition(model, beta, method="bar", seed=1)
    ais_value, ais_se = log_partition(model, beta, method="ais", seed=2)
    assert max(bar_se, ais_se) < 0.1
    assert abs(bar_value - ais_value) < 3 * np.hypot(bar_se, ais_se)


@pytest.mark.slow
def test_bar_error_bars_are_honest():
    """z-scores over 60 repetitions have unit spread, and AIS's are no wilder than twice that."""
    model = peaked_ising(14, 1, sd=0.8)
    exact = log_partition(model, method="exact").value
    for method, limit in (("bar", 1.3), ("ais", 2.0)):
        runs = [log_partition(model, method=method, seed=s, n_sweeps=500) for s in range(60)]
        z = np.array([(run.value - exact) / run.standard_error for run in runs])
        assert 0.75 < np.sqrt((z**2).mean()) < limit


def test_bar_on_gaussian_energies():
    """Two levels whose energies are normal with known log ratio (Crooks)."""
    rng = np.random.default_rng(0)
    sigma, shift = 1.5, 4.0
    at_zero = rng.normal(shift, sigma, size=(4000, 20))
    at_one = rng.normal(shift - sigma**2, sigma, size=(4000, 20))
    log_ratio, error = bar(np.stack([at_zero, at_one], axis=2), np.array([0.0, 1.0]))
    assert log_ratio == pytest.approx(-shift + sigma**2 / 2, abs=4 * error)
    assert error < 0.02


def test_bar_error_knows_of_autocorrelation():
    """Repeating every draw ten times must not shrink the error bar."""
    rng = np.random.default_rng(0)
    trace = np.stack([rng.normal(2, 1, (50, 32)), rng.normal(1, 1, (50, 32))], axis=2)
    ladder = np.array([0.0, 1.0])
    _, once = bar(trace, ladder)
    _, repeated = bar(np.repeat(trace, 10, axis=0), ladder)
    assert repeated == pytest.approx(once, rel=1e-6)


def test_same_seed_same_value():
    model = peaked_ising(10, 0)
    assert log_partition(model, seed=5, n_sweeps=100) == log_partition(model, seed=5, n_sweeps=100)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ({"method": "wang"}, ValueError, "bar, ais, exact"),
        ({"beta": -1}, ValueError, "beta"),
        ({"n_sweeps": 0}, ValueError, "n_sweeps"),
    ],
)
def test_bad_requests(args, error, message):
    with pytest.raises(error, match=message):
        log_partition(peaked_ising(3, 0), **args)
    with pytest.raises(TypeError, match="Ising"):
        log_partition(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="24 spins"):
        log_partition(peaked_ising(30, 0), method="exact")


def estimate(*args, **kwargs):
    """The estimate, and whether it warned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = log_partition(*args, **kwargs)
    assert (out.standard_error == np.inf) == bool(caught)
    for warning in caught:
        assert "may be too low, as its chains have not mixed" in str(warning.message)
    return out, bool(caught)


def test_the_exact_ways_are_exact():
    model = edwards_anderson(3, 4, 0)
    exact = log_partition(model, 1.3, method="exact").value
    assert log_z_of_strip(model, 3, 1.3) == pytest.approx(exact)
    exact = log_partition(core_and_crowd(5, 7), 2.0, method="exact").value
    assert log_z_of_core_and_crowd(2.0, 5, 7) == pytest.approx(exact)


@pytest.mark.parametrize("method", ["bar", "ais"])
@pytest.mark.parametrize("beta", [1.0, 1.2, 1.5, 2.0, 3.0])
def test_a_mode_that_ladders_miss(method, beta):
    """A change of phase of the first order on the way: right, or a warning."""
    (value, error), warned = estimate(core_and_crowd(), beta, method, seed=0)
    assert abs(value - log_z_of_core_and_crowd(beta)) < 4 * error
    assert warned or beta < 1.4 or (method == "ais" and beta == 1.5)
    if beta == 3.0:  # one state alone is worth more than all that the chains have seen
        assert value == pytest.approx(log_z_of_core_and_crowd(beta), abs=0.01)


@pytest.mark.parametrize(("beta", "hard"), [(1.0, False), (6.0, True)])
@pytest.mark.parametrize("method", ["bar", "ais"])
def test_a_spin_glass(method, beta, hard):
    model = edwards_anderson(14, 18, 0)
    (value, error), warned = estimate(model, beta, method, seed=0, n_sweeps=500)
    assert abs(value - log_z_of_strip(model, 14, beta)) < 4 * error
    assert warned == hard


def test_bounds_are_below_and_climb():
    for seed in range(5):
        model = peaked_ising(12, seed)
        starts = all_states(12)[::64].astype(np.int8)
        bounds, means = mean_field(model, starts)
        assert (bounds <= log_partition(model, method="exact").value).all()
        assert (bounds >= -model.energy(starts)).all()
        assert np.abs(means).max() <= 1
    free = Ising(np.zeros((3, 3)), np.array([0.5, -1.0, 2.0]), offset=1.0)
    exact = log_partition(free, method="exact").value
    assert mean_field(free, np.ones((1, 3), np.int8))[0] == pytest.approx(exact)


@pytest.mark.parametrize("method", ["bar", "ais"])
def test_no_alarm_where_there_is_one_mode(method):
    """Free spins, whose estimate has no error to speak of, and weak couplings."""
    for model in (Ising(np.zeros((12, 12)), np.zeros(12)), peaked_ising(12, 0, sd=0.05)):
        for beta in (0.0, 1.0):
            assert not estimate(model, beta, method, seed=0)[1]
    for seed in range(10):
        assert not estimate(peaked_ising(12, seed), 1.0, method, seed=seed)[1]
