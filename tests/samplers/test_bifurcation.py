import sys

import numpy as np
import pytest
from support.machines import peaked_ising

from scvi_qbm.ising import Ising
from scvi_qbm.samplers.adapters.bifurcation import SimulatedBifurcation
from scvi_qbm.samplers.exact import all_energies

sb = pytest.importorskip("simulated_bifurcation", reason="needs scvi-qbm[bifurcation]")


@pytest.fixture(params=[("ballistic", False), ("discrete", False), ("ballistic", True)])
def sampler(request):
    mode, heated = request.param
    return SimulatedBifurcation(mode=mode, heated=heated, max_steps=500)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("field_sd", [0.0, 0.4, 2.0])
def test_ground_state(sampler, seed, field_sd):
    """A flipped sign of couplings or fields would end at the highest energies."""
    model = peaked_ising(12, seed, field_sd=field_sd)
    energies = all_energies(model)
    out = sampler.sample(model, n_samples=100, seed=seed)
    assert out.energies.min() == pytest.approx(energies.min())
    assert out.energies.mean() < np.quantile(energies, 0.01)


def test_interface(sampler):
    model = peaked_ising(9, 0)
    out = sampler.sample(model, beta=0.7, n_samples=33, seed=1)
    assert out.spins.shape == (33, 9) and out.spins.dtype == np.int8
    np.testing.assert_allclose(out.energies, model.energy(out.spins))
    assert out.info["guarantee"] == "heuristic" and out.info["n_steps"] == 500
    assert out.info["n_distinct"] == len(np.unique(out.spins, axis=0))


def test_all_agents_come_back_not_the_best(sampler):
    out = sampler.sample(peaked_ising(60, 0), n_samples=50, seed=0)
    assert out.info["n_distinct"] > 1 and np.ptp(out.energies) > 0


def test_seeds(sampler):
    model = peaked_ising(40, 0)
    first, again, other = (
        sampler.sample(model, n_samples=20, seed=seed).spins for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_beta_plays_no_part():
    model = peaked_ising(20, 0)
    cold, warm = (
        SimulatedBifurcation().sample(model, beta, 10, seed=0).spins for beta in (5.0, 0.1)
    )
    np.testing.assert_array_equal(cold, warm)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_scale_of_the_energies_plays_no_part(scale):
    """float32 would lose 1e-30 squared and overflow at 1e30 squared."""
    model = peaked_ising(12, 0)
    out = SimulatedBifurcation().sample(model.scaled(scale), n_samples=50, seed=0)
    assert out.energies.min() == pytest.approx(scale * all_energies(model).min(), rel=1e-9)


def test_one_spin_and_no_couplings():
    up = Ising(np.zeros((1, 1)), np.array([0.5]))
    assert (SimulatedBifurcation().sample(up, n_samples=20, seed=0).spins == 1).all()
    fields = Ising(np.zeros((3, 3)), np.array([1.0, -2.0, 3.0]))
    spins = SimulatedBifurcation().sample(fields, n_samples=20, seed=0).spins
    assert (spins == [1, -1, 1]).all()
    free = Ising(np.zeros((5, 5)), np.zeros(5), offset=2.0)
    out = SimulatedBifurcation().sample(free, n_samples=2000, seed=0)
    assert np.abs(out.spins.mean(axis=0)).max() < 5 / np.sqrt(2000)
    np.testing.assert_array_equal(out.energies, 2.0)


def test_the_processs_state_stays():
    import torch

    torch.manual_seed(3)
    before = torch.get_rng_state()
    constants = sb.get_env()
    SimulatedBifurcation(time_step=0.2, max_steps=50).sample(
        peaked_ising(6, 0), n_samples=5, seed=0
    )
    assert (torch.get_rng_state() == before).all()
    assert sb.get_env() == constants


def test_torchs_default_type_plays_no_part():
    import torch

    model = peaked_ising(12, 0)
    expected = SimulatedBifurcation().sample(model, n_samples=20, seed=0).spins
    torch.set_default_dtype(torch.float64)
    try:
        spins = SimulatedBifurcation().sample(model, n_samples=20, seed=0).spins
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(spins, expected)


def test_the_ramp_is_the_pressure_not_the_steps():
    model = peaked_ising(60, 1)
    assert SimulatedBifurcation(max_steps=400).pressure_slope == pytest.approx(1 / 40)
    cut, whole = (
        SimulatedBifurcation(max_steps=20, pressure_slope=slope).sample(
            model, n_samples=50, seed=0
        )
        for slope in (0.01, None)
    )
    assert whole.energies.mean() < cut.energies.mean()


def test_wrong_energies_are_caught(monkeypatch):
    class Flipped(sb.Ising):
        def __init__(self, J, h=None, **options):
            super().__init__(J, -h, **options)

    monkeypatch.setattr(sb, "Ising", Flipped)
    with pytest.raises(RuntimeError, match="conventions have changed"):
        SimulatedBifurcation(max_steps=50).sample(peaked_ising(6, 0), n_samples=5, seed=0)


def test_interrupt_is_not_swallowed(monkeypatch):
    from simulated_bifurcation.optimizer import SymplecticIntegrator

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(SymplecticIntegrator, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SimulatedBifurcation(max_steps=50).sample(peaked_ising(6, 0), n_samples=5, seed=0)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "simulated_bifurcation", None)
    with pytest.raises(ImportError, match=r"scvi-qbm\[bifurcation\]"):
        SimulatedBifurcation()


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "adiabatic"},
        {"max_steps": 0},
        {"time_step": 0.0},
        {"pressure_slope": -1.0},
        {"heat_coefficient": np.nan},
    ],
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SimulatedBifurcation(**options)
