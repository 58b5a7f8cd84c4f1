import dataclasses
import math

import naive_cim as naive
import numpy as np
import pytest
from support.machines import peaked_ising

from scvi_qbm.diagnostics import effective_beta
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import cim, get_sampler
from scvi_qbm.samplers.cim_base import normalisation, ramp
from scvi_qbm.samplers.exact import all_energies

MACHINES = ["cim", "cim_cac", "cim_cfc", "cim_gaussian", "cim_sfc"]
OPTIMISERS = [name for name in MACHINES if name != "cim"]


def sk(n, seed):
    """Sherrington and Kirkpatrick's model."""
    upper = np.triu(np.random.default_rng(seed).normal(size=(n, n)) / np.sqrt(n), 1)
    return Ising(upper + upper.T, np.zeros(n))


def moebius_ladder(n):
    """Maximum cut of a ring of n spins, each also linked to the one opposite."""
    J = np.zeros((n, n))
    for i in range(n):
        for k in (1, n // 2):
            J[i, (i + k) % n] = J[(i + k) % n, i] = -1.0
    return Ising(J, np.zeros(n))


def alone(x):
    return np.zeros_like(x)


def silent(shape):
    return lambda: np.zeros(shape, dtype=np.float32)


def evolve(machine, couple, noise, n_steps, t=None):
    """Run a machine; ``t`` holds it at one point of the run's ramps."""
    for step in range(n_steps):
        machine._step(step / n_steps if t is None else t, couple, noise)
    return machine


# --- the steps equal their slow twins ----------------------------------------------------------

N, REPLICAS = 5, 4
CASES = {
    "MeanFieldCIM": {"dt": 0.05, "gain": (-0.5, 2.0), "sigma": 0.4},
    "AmplitudeCorrectedCIM": {"dt": 0.075, "gain": (-1.5, 0.3), "rate": 0.3, "target": (1.0, 3.0)},
    "ChaoticFeedbackCIM": {"dt": 0.1, "gain": (-2.0, 0.2), "rate": 0.15, "target": (0.8, 1.4)},
    "SeparatedFeedbackCIM": {
        "dt": 0.1,
        "gain": (-2.0, 0.5),
        "k": 0.2,
        "rate": (0.3, 0.1),
        "slope": (1.0, 3.0),
    },
    "GaussianStateCIM": {"dt": 0.02, "gain": (-1.0, 1.5), "g": 0.2, "j": 0.7},
}
TWINS = {
    "MeanFieldCIM": naive.mean_field,
    "AmplitudeCorrectedCIM": naive.amplitude_corrected,
    "ChaoticFeedbackCIM": naive.chaotic_feedback,
    "SeparatedFeedbackCIM": naive.separated_feedback,
    "GaussianStateCIM": naive.gaussian_state,
}


def made(name, constants):
    """A machine; what is no option of it is set from outside."""
    cls = getattr(cim, name)
    known = {field.name for field in dataclasses.fields(cls)}
    machine = cls(**{key: value for key, value in constants.items() if key in known})
    for key in set(constants) - known:
        setattr(machine, key, constants[key])
    return machine


@pytest.mark.parametrize("spread", [0.3, 20.0])
@pytest.mark.parametrize("name", CASES)
def test_steps_equal_their_slow_twin(name, spread):
    """Amplitudes and second variables, draw for draw; a wide spread also meets every bound."""
    options = CASES[name]
    machine = made(name, options)
    rng = np.random.default_rng(3)
    J = (0.8 * peaked_ising(N, 1).J).astype(np.float32)
    b = rng.normal(size=(N, 1)).astype(np.float32)
    machine._start(lambda: rng.normal(size=(N, REPLICAS)).astype(np.float32))
    machine.x[:] = spread * rng.normal(size=machine.x.shape)
    second = next((v for v in ("e", "s") if hasattr(machine, v)), None)
    if second is not None:
        getattr(machine, second)[:] = rng.uniform(0.1, 2.0, size=machine.x.shape)
    kept = {v: getattr(machine, v).astype(float).T.tolist() for v in ("x", second) if v}

    def inject(x):
        return [sum(float(J[i, k]) * x[k] for k in range(N)) + float(b[i, 0]) for i in range(N)]

    n_steps, times = 8, [0.0, 0.05, 0.3, 0.6, 0.89, 0.95, 0.97, 0.99]
    draws = rng.normal(size=(n_steps, N, REPLICAS)).astype(np.float32)
    for step, t in enumerate(times):
        machine._step(t, lambda x: J @ x + b, lambda step=step: draws[step].copy())
        for replica in range(REPLICAS):
            before = [kept[v][replica] for v in ("x", second) if v]
            noisy = (
                [draws[step, :, replica].tolist()]
                if name in ("MeanFieldCIM", "GaussianStateCIM")
                else []
            )
            after = TWINS[name](*before, inject, t, *noisy, **options)
            after = [after] if second is None else list(after)
            for v, values in zip((v for v in ("x", second) if v), after, strict=True):
                # float32 against float64, and differences of near-equal terms.
                np.testing.assert_allclose(
                    getattr(machine, v)[:, replica], values, rtol=2e-5, atol=2e-5
                )
                kept[v][replica] = getattr(machine, v)[:, replica].astype(float).tolist()


def test_starts():
    noise = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for name in CASES:
        machine = made(name, {})
        machine._start(noise.copy)
        start = 0.0 if name == "GaussianStateCIM" else 0.02
        np.testing.assert_allclose(machine.x, start * noise, rtol=1e-6)
        if hasattr(machine, "e"):
            assert (machine.e == (0.0 if name == "SeparatedFeedbackCIM" else 1.0)).all()
    assert (machine.s == 0.5).all() if name == "GaussianStateCIM" else True


def test_ramp():
    assert [ramp(t, -1.0, 2.0) for t in (0.0, 0.45, 0.9, 0.95, 1.0)] == [-1, 0.5, 2, 2, 2]
    assert ramp(0.5, 1.0, 3.0, 1.0) == 2.0


def test_normalisation():
    """A mean local field of order one, and the literature's number on the Moebius ladder."""
    assert normalisation(moebius_ladder(16).J, np.zeros(16)) == pytest.approx(math.sqrt(2 / 3))
    assert normalisation(np.zeros((3, 3)), np.zeros(3)) == 1.0
    model = peaked_ising(9, 0)
    whole = model.to_ancilla()
    assert normalisation(model.J, model.b) == pytest.approx(math.sqrt(2 * 9 / (whole**2).sum()))


# --- physics -----------------------------------------------------------------------------------


def normals(shape, seed=0):
    rng = np.random.default_rng(seed)
    return lambda: rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("gain", [-0.5, -2.0])
def test_below_threshold_amplitudes_are_an_ornstein_uhlenbeck_process(gain):
    shape = (40, 500)
    machine = cim.MeanFieldCIM(dt=0.02, gain=(gain, gain), sigma=0.05)
    noise = normals(shape)
    machine._start(noise)
    evolve(machine, alone, noise, int(5 / abs(gain) / 0.02))
    expected = 0.05**2 / (2 * abs(gain)) / (1 - abs(gain) * 0.02 / 2)  # of the Euler scheme
    assert machine.x.var() == pytest.approx(expected, rel=0.04)
    now = machine.x.copy()
    lag = 0.5 / abs(gain)
    evolve(machine, alone, noise, int(lag / 0.02))
    correlation = (now * machine.x).mean() / machine.x.var()
    assert correlation == pytest.approx(math.exp(-0.5), abs=0.05)


def test_above_threshold_amplitudes_sit_at_the_root_of_the_gain():
    machine = cim.MeanFieldCIM(gain=(1.7, 1.7), sigma=0.0)
    machine._start(normals((3, 50)))
    evolve(machine, alone, silent((3, 50)), 2000)
    np.testing.assert_allclose(np.abs(machine.x), math.sqrt(1.7), rtol=1e-4)
    assert len(np.unique(np.sign(machine.x))) == 2


def test_the_pump_is_ramped_through_threshold():
    machine = cim.MeanFieldCIM(gain=(-1.0, 1.0), sigma=0.01)
    noise = normals((4, 200))
    machine._start(noise)
    heights = []
    for step in range(4000):
        machine._step(step / 4000, alone, noise)
        if step % 400 == 399:
            heights.append(np.sqrt((machine.x**2).mean()))
    assert max(heights[:4]) < 0.05  # below threshold until 45 % of the run
    assert heights[-1] == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", CASES)
def test_two_coupled_oscillators(name, sign):
    J = 0.5 * sign * np.array([[0, 1], [1, 0]], dtype=np.float32)
    machine = made(name, {"sigma": 0.3} if name == "MeanFieldCIM" else {})
    noise = normals((2, 100))
    machine._start(noise)
    evolve(machine, lambda x: J @ x, noise, 2000)
    assert (np.sign(machine.x[0]) == sign * np.sign(machine.x[1])).mean() > 0.97
    assert 20 < (machine.x[0] > 0).sum() < 80


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_corrected_amplitudes_are_held_at_the_target(alpha):
    n = 8
    J = ((1 - np.eye(n)) / n).astype(np.float32)
    machine = made("AmplitudeCorrectedCIM", {"gain": (-1.0, -1.0), "target": (alpha, alpha)})
    machine._start(normals((n, 20)))
    evolve(machine, lambda x: J @ x, silent((n, 20)), 4000)
    np.testing.assert_allclose(machine.x**2, alpha, rtol=1e-3)
    assert (np.sign(machine.x) == np.sign(machine.x[0])).all()


def test_chaotic_feedback_holds_the_injected_field_at_the_target():
    n = 8
    J = ((1 - np.eye(n)) / n).astype(np.float32)
    machine = made("ChaoticFeedbackCIM", {"gain": (-1.0, -1.0), "target": (0.8, 0.8)})
    machine._start(normals((n, 20)))
    evolve(machine, lambda x: J @ x, silent((n, 20)), 4000)
    np.testing.assert_allclose((machine.e * (J @ machine.x)) ** 2, 0.8, rtol=1e-3)


def test_vacuum_stays_vacuum_without_a_pump():
    """Nothing comes in, nothing is learned by measuring: net gain -(1 + j) at pump 0."""
    j = 0.7
    machine = cim.GaussianStateCIM(gain=(-1 - j, -1 - j), j=j)
    noise = normals((3, 10))
    machine._start(noise)
    evolve(machine, alone, noise, 500)
    np.testing.assert_allclose(machine.s, 0.5, atol=1e-6)
    np.testing.assert_array_equal(machine.x, 0)


@pytest.mark.parametrize("gain", [-1.8, -1.0, -0.3])
def test_variance_below_threshold_is_the_root_of_its_equation(gain):
    """Pumped pulses are noisier than vacuum, and x, ~ g, hardly matters."""
    j = 1.0
    machine = cim.GaussianStateCIM(gain=(gain, gain), g=1e-4, j=j)
    noise = normals((3, 10))
    machine._start(noise)
    evolve(machine, alone, noise, 2000)
    # 2 r s - 2 j (s - 1/2)^2 + 1 + j = 0
    roots = np.roots([-2 * j, 2 * gain + 2 * j, 1 + j / 2])
    np.testing.assert_allclose(machine.s, roots.max(), rtol=1e-4)
    assert roots.max() > 0.5 and roots.min() < 0


def test_gaussian_amplitude_saturates_where_the_gain_does():
    machine = cim.GaussianStateCIM(gain=(0.8, 0.8), g=0.01)
    noise = normals((3, 200))
    machine._start(noise)
    evolve(machine, alone, noise, 2500)
    assert np.abs(np.abs(machine.x) - math.sqrt(0.8)).max() < 0.1
    assert 0.3 < (machine.x > 0).mean() < 0.7


# --- the samplers ------------------------------------------------------------------------------


@pytest.mark.parametrize("with_field", [False, True])
@pytest.mark.parametrize("name", MACHINES)
def test_scale_does_not_matter(name, with_field):
    """Energies times 16 (a power of two, exact in floats) give the same states."""
    model = peaked_ising(10, 3, field_sd=0.5 * with_field)
    large = Ising(16 * model.J, 16 * model.b)
    machine = get_sampler(name, n_steps=300)
    first = machine.sample(model, 1.0, 40, seed=2)
    second = machine.sample(large, 1.0 / 16 if name == "cim" else 1.0, 40, seed=2)
    np.testing.assert_array_equal(first.spins, second.spins)
    if name != "cim":
        ten = machine.sample(Ising(10 * model.J, 10 * model.b), n_samples=40, seed=2)
        assert (first.spins == ten.spins).mean() > 0.95  # rounded otherwise


@pytest.mark.parametrize("name", OPTIMISERS)
def test_beta_plays_no_part_in_optimisers(name):
    model = peaked_ising(10, 3)
    machine = get_sampler(name, n_steps=300)
    cold, hot = (machine.sample(model, beta, 40, seed=2).spins for beta in (5.0, 0.1))
    np.testing.assert_array_equal(cold, hot)


@pytest.mark.parametrize("fields", ["ancilla", "scaled"])
@pytest.mark.parametrize("name", MACHINES)
def test_fields_are_obeyed(name, fields):
    machine = get_sampler(name, fields=fields)
    one = machine.sample(Ising(np.zeros((1, 1)), np.array([-1.0])), 4.0, 64, seed=0).spins
    assert (one == -1).mean() > 0.95
    signs = np.array([1, -1, 1, -1, -1])
    spins = machine.sample(Ising(np.zeros((5, 5)), 1.0 * signs), 4.0, 64, seed=0).spins
    assert (spins == signs).mean() > 0.95
    # Fields against couplings: a ferromagnet whose weaker field loses.
    model = Ising(0.3 * (1 - np.eye(5)), np.array([0.5, 0.5, 0.5, -0.2, 0.5]))
    assert (machine.sample(model, 4.0, 64, seed=0).spins == 1).mean() > 0.9


@pytest.mark.parametrize("fields", ["ancilla", "scaled"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ground_states_with_fields(fields, seed):
    model = peaked_ising(10, seed, field_sd=0.8)
    ground = all_energies(model).min()
    out = get_sampler("cim_cac", fields=fields).sample(model, n_samples=64, seed=0)
    assert out.energies.min() == pytest.approx(ground)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("make", [sk, peaked_ising])
def test_noise_is_matched_to_beta(make, beta):
    model = make(14, 1)
    out = get_sampler("cim").sample(model, beta, 1024, seed=0)
    assert effective_beta(model, out.spins)[0] == pytest.approx(beta, rel=0.25)
    weakened = out.info["coupling_strength"] < normalisation(model.J, model.b)
    assert weakened == (out.info["sigma"] == pytest.approx(1.5))
    assert out.info["sigma"] <= 1.5 + 1e-12


def test_both_sides_of_the_cap_on_noise_were_tested():
    strengths = {
        beta: get_sampler("cim", n_steps=1).sample(peaked_ising(14, 1), beta, 1).info["sigma"]
        for beta in (0.5, 2.0)
    }
    assert strengths[0.5] == pytest.approx(1.5) and strengths[2.0] < 1.4


def test_at_infinite_temperature_spins_are_free():
    model = peaked_ising(8, 0, sd=2.0, field_sd=2.0)
    spins = get_sampler("cim", n_steps=400).sample(model, 0.0, 2048, seed=0).spins.astype(float)
    moments = np.concatenate([spins.mean(axis=0), np.corrcoef(spins.T)[np.triu_indices(8, 1)]])
    assert np.abs(moments).max() < 4.5 / math.sqrt(2048)


def test_given_noise_overrides_beta():
    model = peaked_ising(8, 0)
    machine = get_sampler("cim", sigma=0.2, n_steps=300)
    first, second = (machine.sample(model, beta, 20, seed=0) for beta in (0.5, 3.0))
    np.testing.assert_array_equal(first.spins, second.spins)
    assert first.info["sigma"] == 0.2


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("with_field", [False, True])
def test_trajectories(name, with_field):
    model = peaked_ising(6, 0, field_sd=0.5 * with_field)
    n_oscillators = 7 if with_field else 6
    options = {"sigma": 0.05} if name == "cim" else {}
    machine = get_sampler(name, n_steps=1000, trajectories=70, **options)
    out = machine.sample(model, n_samples=90, seed=1)
    x, times, gains = (out.info[key] for key in ("trajectories", "times", "gains"))
    assert x.dtype == np.float32 and x.shape == (70, 200, n_oscillators)
    np.testing.assert_allclose(np.diff(times), 5 * machine.dt)
    assert times[0] == 0 and gains.shape == times.shape
    assert gains[0] == machine.gain[0] and gains[-1] == machine.gain[1]
    np.testing.assert_allclose(gains[90], machine.gain[0] + np.diff(machine.gain)[0] / 2)
    assert np.abs(x[:, 0]).max() < 0.1 < np.abs(x[:, -1]).mean()
    assert len(np.unique(x[:, 1, 0])) == 70
    signs = np.where(x[:, -1] >= 0, 1, -1)
    read = signs[:, :6] * signs[:, 6:] if with_field else signs
    # The last record is a few steps before the end: late changes of sign are rare.
    assert (read == out.spins[:70]).mean() > 0.97
    unseen = get_sampler(name, n_steps=1000, **options).sample(model, n_samples=90, seed=1)
    np.testing.assert_array_equal(unseen.spins, out.spins)
    assert "trajectories" not in unseen.info


def test_no_more_trajectories_than_samples():
    out = get_sampler("cim", n_steps=50, trajectories=9).sample(peaked_ising(4, 0), n_samples=3)
    assert out.info["trajectories"].shape == (3, 50, 5)


@pytest.mark.parametrize("name", MACHINES)
def test_a_run_does_not_depend_on_how_many_others_there_are(name):
    model = peaked_ising(9, 0)
    machine = get_sampler(name, n_steps=200)
    few, many = (machine.sample(model, n_samples=n, seed=5).spins for n in (10, 100))
    np.testing.assert_array_equal(few, many[:10])
    assert (many[:64][:36] != many[64:]).any()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cim", {"n_steps": 0}, "n_steps"),
        ("cim", {"dt": 0.0}, "dt"),
        ("cim", {"dt": np.nan}, "dt"),
        ("cim", {"gain": (0.0, np.inf)}, "gain"),
        ("cim", {"gain": (0.0, -1.0)}, "final gain is positive"),
        ("cim", {"sigma": -0.1}, "sigma"),
        ("cim", {"fields": "none"}, "'ancilla', 'scaled'"),
        ("cim", {"trajectories": -1}, "trajectories"),
        ("cim", {"n_threads": 0}, "n_threads"),
        ("cim_cac", {"rate": 0.0}, "rate"),
        ("cim_cfc", {"rate": -1.0}, "rate"),
        ("cim_sfc", {"k": 0.0}, "k"),
        ("cim_gaussian", {"g": 0.0}, "g"),
        ("cim_gaussian", {"j": -1.0}, "j"),
        *((name, {"dt": -1.0}, "dt") for name in OPTIMISERS),
        *((name, {"gain": (np.nan, 0.0)}, "gain") for name in OPTIMISERS),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        get_sampler(name, **options)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_amplitudes_that_overflow_are_not_read_out():
    with pytest.raises(FloatingPointError, match="smaller step `dt`"):
        get_sampler("cim_sfc", dt=100.0).sample(peaked_ising(5, 0), n_samples=3, seed=0)


@pytest.mark.parametrize(("name", "floor"), [("cim_cac", 0.7), ("cim_cfc", 0.7), ("cim_sfc", 0.9)])
def test_success_on_spin_glasses(name, floor):
    """Share of runs that end in a ground state, over five models of 14 spins."""
    found = []
    for seed in range(5):
        model = sk(14, seed)
        energies = get_sampler(name).sample(model, n_samples=128, seed=seed).energies
        found.append((energies < all_energies(model).min() + 1e-9).mean())
    assert np.mean(found) > floor


@pytest.mark.parametrize("name", ["cim", *OPTIMISERS])
def test_ground_states_of_the_moebius_ladder(name):
    model = moebius_ladder(16)
    energies = all_energies(model)
    assert energies.min() == -20.0  # the cut 3n/2 - 2 of 24 edges
    assert (
        energies < -19.5
    ).sum() == 16  # of them, a wall in the alternating pattern at each place
    out = get_sampler(name).sample(model, 10.0, 256, seed=0)
    ground = np.unique(out.spins[out.energies < -19.5], axis=0)
    assert (out.energies < -19.5).mean() > 0.3 and len(ground) == 16


def test_few_trajectories_of_many_runs():
    model = peaked_ising(6, 0)
    out = get_sampler("cim", n_steps=100, trajectories=3).sample(model, n_samples=200, seed=1)
    assert out.info["trajectories"].shape == (3, 100, 7)
