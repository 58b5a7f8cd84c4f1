"""The negative phase: its samples, log Z along the way, and what becomes of it when it moves."""

import contextlib
import copy
import multiprocessing
import pickle
import warnings

import numpy as np
import pytest
import torch
from support.machines import Stuck, codes, fill, phase_of, saved

from scvi_qbm import get_sampler
from scvi_qbm.logz import log_partition
from scvi_qbm.prior import BoltzmannPrior, NegativePhase
from scvi_qbm.prior.draws import DeviceDraws, HostDraws
from scvi_qbm.samplers.exact import boltzmann_distribution

# One draws on the host, the other in tensors.
TEMPERING = ("parallel_tempering", "torch_tempering")


def step(phase, q, optimiser):
    optimiser.zero_grad()
    phase.prior.surrogate(q, phase.collect()).backward()
    optimiser.step()


def data_of(n, seed=3):
    """Codes drawn from a machine's exact distribution."""
    distribution = boltzmann_distribution(fill(BoltzmannPrior(n), seed=seed).ising())
    return codes(n).float()[
        torch.multinomial(torch.from_numpy(distribution), 4000, replacement=True)
    ]


@pytest.mark.long
@pytest.mark.parametrize("sampler", [*TEMPERING, "gibbs", "exact"])
def test_training_finds_the_moments(sampler):
    """Fit a machine to codes of another one: moments come out right, log Z is carried along."""
    torch.manual_seed(0)
    data, z = data_of(6), codes(6).float()
    phase = phase_of(6, sampler, sd=0)
    prior = phase.prior
    optimiser = torch.optim.Adam(prior.parameters(), lr=0.02)
    reports = []
    for k in range(1, 801):
        step(phase, data, optimiser)
        if k == 400:  # from here on the noise of single steps averages out
            optimiser.param_groups[0]["lr"] = 0.005
        if k % 200 == 0:
            reports.append(phase.refresh_log_z())
    fitted = torch.from_numpy(boltzmann_distribution(prior.ising())).float()
    assert ((fitted @ z) - data.mean(0)).abs().max() < 0.05
    second = torch.einsum("s,sl,sm->lm", fitted, z, z) - data.T @ data / 4000
    assert second.abs().max() < 0.05
    exact = log_partition(prior.ising(), method="exact").value
    assert float(prior.log_z) == pytest.approx(exact, abs=max(4 * reports[-1].log_z_se, 1e-3))
    assert abs(exact - 6 * np.log(2)) > 0.4
    for report in reports:
        assert report.chains_mix and report.n_steps == 200
        assert abs(report.log_z_drift) < 1.0
    final = phase.refresh_log_z(final=True)
    assert float(prior.log_z) == pytest.approx(exact, abs=max(4 * final.log_z_se, 1e-3))


def test_surrogate_gradient_equals_enumeration_in_tensors():
    """E(q) - <E>_p over many draws; for the host's samplers see test_prior."""
    torch.manual_seed(0)
    phase = phase_of(6, "torch_tempering", {"n_chains": 256, "n_sweeps": 10})
    prior, q = phase.prior, torch.rand(6, 6)
    grads = []
    for _ in range(150):
        prior.zero_grad()
        prior.surrogate(q, phase.collect()).backward()
        grads.append((prior.h.grad.clone(), prior.W_upper.grad.clone()))
    distribution = torch.from_numpy(boltzmann_distribution(prior.ising())).float()
    z = codes(6).float()
    exact_W = torch.einsum("sl,sm->lm", q, q) / 6 - torch.einsum("s,sl,sm->lm", distribution, z, z)
    h, W = (torch.stack(parts[30:]).mean(0) for parts in zip(*grads, strict=True))
    # 120 draws of 256 chains, of which one in ten may count as independent.
    tolerance = 5 * 0.5 / np.sqrt(120 * 256 / 10)
    exact_h = q.mean(0) - distribution @ z
    assert (h - exact_h).abs().max() < tolerance < exact_h.abs().max() / 2
    upper = torch.ones(6, 6).triu(1).bool()
    assert (W - exact_W)[upper].abs().max() < tolerance and (W[~upper] == 0).all()


@pytest.mark.parametrize("sampler", TEMPERING)
@pytest.mark.parametrize("moved", ["h", "W_upper"])
def test_log_z_is_carried_along_each_parameter(sampler, moved):
    torch.manual_seed(0)
    phase = phase_of(8, sampler, {"n_chains": 512}, sd=0.4)
    prior = phase.prior
    phase.collect()
    start = log_partition(prior.ising(), method="exact").value
    prior.log_z.fill_(start)
    with torch.no_grad():
        for _ in range(50):
            getattr(prior, moved).sub_(0.02)
            phase.collect()
    exact = log_partition(prior.ising(), method="exact").value
    assert exact > start + 2
    assert float(prior.log_z) == pytest.approx(exact, abs=0.25)


def test_log_z_is_never_stale():
    torch.manual_seed(0)
    phase = phase_of(8, sd=0)
    phase.collect()
    fill(phase.prior, 4)
    assert float(phase.prior.log_z) == pytest.approx(8 * np.log(2), abs=1e-5)
    report = phase.refresh_log_z()
    exact = log_partition(phase.prior.ising(), method="exact").value
    assert report.log_z == pytest.approx(exact, abs=4 * report.log_z_se)
    assert float(phase.prior.log_z) == pytest.approx(report.log_z, abs=1e-5)


def test_report_shows_a_negative_phase_that_is_not_honest():
    torch.manual_seed(0)
    reports = {}
    for name, sampler in (("stuck", Stuck()), ("tempered", "parallel_tempering")):
        phase = phase_of(16, sampler, sd=0)
        optimiser = torch.optim.Adam(phase.prior.parameters(), lr=0.02)
        q = (torch.rand(200, 16) < torch.linspace(0.1, 0.9, 16)).float()
        phase.refresh_log_z()
        for _ in range(100):
            step(phase, q, optimiser)
        reports[name] = phase.refresh_log_z()
    assert reports["tempered"].chains_mix
    assert not reports["stuck"].chains_mix
    assert reports["stuck"].energy_gap > 5


@pytest.mark.parametrize("name", ["simulated_annealing", "cim"])
def test_heuristic_samplers_are_corrected(name):
    """Moments of the negative phase, temperatures and distance, against enumeration."""
    torch.manual_seed(0)
    phase = phase_of(8, name, {"n_threads": 1}, double=True)
    prior = phase.prior
    assert phase.sampler.name == "corrected" and phase.sampler.source.name == name
    q = torch.full((1, 8), 0.5, dtype=torch.float64)
    grads = []
    for _ in range(200):
        prior.zero_grad()
        prior.surrogate(q, phase.collect()).backward()
        grads.append(prior.h.grad.clone())
    report = phase.refresh_log_z()
    exact = 0.5 - torch.from_numpy(boltzmann_distribution(prior.ising())) @ codes(8)
    # 200 x 64 correlated states, and what is left of the heuristic's distribution: near, not
    # exact.
    assert (torch.stack(grads).mean(0) - exact).abs().max() < 0.05
    assert 0.5 < report.beta_drawn < 2 and abs(report.beta_corrected - 1) < 0.5
    assert report.distance < 3 * report.distance_floor and report.distance_floor < 0.1


def test_other_samplers_report_no_temperature():
    phase = phase_of(8, "gibbs")
    phase.collect()
    assert phase.refresh_log_z().beta_drawn is None


def test_an_unknown_sampler():
    with pytest.raises(ValueError, match="Available: .*exact, .*gibbs"):
        NegativePhase(BoltzmannPrior(8), "quantum")


@pytest.mark.parametrize("sampler", TEMPERING)
def test_samples_follow_torchs_seed(sampler):
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        phase = phase_of(12, sampler)
        draws.append(torch.stack([phase.collect() for _ in range(3)]))
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()
    assert set(draws[0].unique().tolist()) == {0.0, 1.0} and draws[0].shape == (3, 32, 12)


@pytest.mark.parametrize("sampler", TEMPERING)
def test_to_submit_ahead_changes_nothing(sampler):
    draws = []
    for ahead in (False, True):
        torch.manual_seed(0)
        phase = phase_of(12, sampler)
        for _ in range(3):
            if ahead:
                phase.submit()
            drawn = phase.collect()
            with torch.no_grad():
                phase.prior.W_upper.mul_(1.5)
        draws.append(drawn)
    assert (draws[0] == draws[1]).all()


@pytest.mark.parametrize("sampler", TEMPERING)
def test_restored_weights_bring_their_own_log_z(sampler):
    torch.manual_seed(0)
    phase = phase_of(8, sampler)
    phase.refresh_log_z(final=True)
    weights = {k: v.clone() for k, v in phase.prior.state_dict().items()}
    for _ in range(5):
        phase.collect()
        fill(phase.prior, seed=9)
    phase.prior.load_state_dict(weights)
    phase.collect()
    assert float(phase.prior.log_z) == pytest.approx(float(weights["log_z"]), abs=1e-6)
    assert phase.refresh_log_z().chains_mix


def test_diverged_parameters_say_so_at_once_on_the_host():
    phase = phase_of(8, sd=0)
    with torch.no_grad():
        phase.prior.h[2] = np.nan
    with pytest.raises(ValueError, match="training has diverged"):
        phase.submit()


def test_diverged_parameters_say_so_in_tensors():
    phase = phase_of(8, "torch_tempering")
    prior = phase.prior
    phase.collect()
    weights = {k: v.clone() for k, v in prior.state_dict().items()}
    with torch.no_grad():
        prior.W_upper[0, 1] = np.nan
    with pytest.raises(ValueError, match="training has diverged"):
        for _ in range(50):
            phase.collect()
    fresh = phase_of(8, "torch_tempering", sd=0)
    with torch.no_grad():
        fresh.prior.h[2] = np.inf
    with pytest.raises(ValueError, match="training has diverged"):
        fresh.submit()
    for seen in (5, 50):  # weights that are finite again bring it back, found out or not
        prior.load_state_dict(weights)
        for _ in range(60):
            phase.collect()
        assert phase.refresh_log_z().chains_mix and np.isfinite(phase.draws.chains.ladder).all()
        with torch.no_grad():
            prior.W_upper[0, 1] = np.nan
        with contextlib.suppress(ValueError):
            for _ in range(seen):
                phase.collect()


def test_a_samplers_own_threads_are_left_alone():
    sampler = get_sampler("gibbs", n_threads=2)
    NegativePhase(BoltzmannPrior(8), sampler).collect()
    assert sampler.n_threads == 2
    assert phase_of(8, "gibbs").sampler.n_threads == 1


def _collect_in_child(phase, queue):
    queue.put(phase.collect().shape)


def test_training_works_in_a_forked_process():
    phase = phase_of(6)
    phase.collect()
    phase.submit()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_collect_in_child, args=(phase, queue))
    child.start()
    try:
        assert queue.get(timeout=60) == (32, 6)
    finally:
        child.terminate()


def test_it_can_be_pickled_in_the_middle_of_a_step():
    phase = phase_of(6)
    phase.submit()
    again = pickle.loads(pickle.dumps(phase))
    torch.testing.assert_close(again.prior.W, phase.prior.W)
    assert again.collect().shape == (32, 6)
    # The copy's own prior, not the original's, makes it forget.
    again.prior.load_state_dict(again.prior.state_dict())
    assert again.tracker.tracked is None and phase.tracker.tracked is None


def trained(sampler, n=24, steps=40, **options):
    torch.manual_seed(0)
    phase = phase_of(n, sampler, options, sd=0.4)
    for _ in range(steps):
        phase.collect()
    phase.refresh_log_z()
    phase.collect()
    return phase


@pytest.mark.parametrize("sampler", [*TEMPERING, "gibbs", "cim"])
def test_chains_go_on_where_they_were_saved(sampler, monkeypatch):
    options = {"n_steps": 100} if sampler == "cim" else {}
    phase = trained(sampler, **options)
    state = saved(phase.state())
    other = phase_of(24, sampler, options, sd=0)
    other.prior.load_state_dict(phase.prior.state_dict())
    other.load(state)
    copies = [other, copy.deepcopy(phase), pickle.loads(pickle.dumps(phase))]
    last, first = phase.draws.sampler.spins(phase.draws.chains).copy(), None
    for k in range(60):  # an adaptation of the ladder, a redraw of the heuristic among them
        torch.manual_seed(k)
        one = phase.collect()
        for again in copies:
            torch.manual_seed(k)
            assert (one == again.collect()).all()
        first = one if first is None else first
    for again in copies:
        assert float(phase.prior.log_z) == float(again.prior.log_z)
    torch.manual_seed(2)
    expected = phase.refresh_log_z()
    torch.manual_seed(2)
    assert other.refresh_log_z() == expected

    # Another rank has the same states, and goes on with other random numbers.
    apart = phase_of(24, sampler, options, sd=0)
    apart.prior.load_state_dict(phase.prior.state_dict())
    monkeypatch.setattr("scvi_qbm.prior.negative_phase._rank", lambda: 1)
    apart.load(state)
    np.testing.assert_array_equal(apart.draws.sampler.spins(apart.draws.chains), last)
    torch.manual_seed(0)
    assert (apart.collect() != first).float().mean() > 0.05
    with pytest.raises(ValueError, match="24 units, this model 5"):
        phase_of(5, sampler, options).load(state)


@pytest.mark.parametrize("sampler", TEMPERING)
def test_states_at_equilibrium_are_handed_over(sampler):
    phase = trained(sampler, n=16, steps=1)
    given = np.where(np.random.default_rng(0).random((5, 16)) < 0.5, 1, -1).astype(np.int8)
    phase.draws.anchor(given)
    np.testing.assert_array_equal(phase.draws.spins(), np.resize(given, (32, 16)))
    phase.refresh_log_z()
    reference = phase.tracker.reference.states()
    np.testing.assert_array_equal(phase.draws.spins(), reference)
    assert not phase.tracker.recent and phase.tracker.n_steps == 0


def valley(sampler):
    """A ferromagnet with two deep valleys, which a few steps do not leave."""
    options = {"reference": "uniform", "n_levels": 2, "n_sweeps": 1}
    phase = phase_of(12, sampler, options, sd=0)
    with torch.no_grad():
        phase.prior.W_upper.fill_(-4.0)
        phase.prior.h.fill_(2.0 * 11)
    return phase


def test_states_go_from_device_to_host_and_back():
    device, host = valley("torch_tempering"), valley("parallel_tempering")
    device.collect()
    device.draws.anchor(np.ones((1, 12), dtype=np.int8))
    host.load(saved(device.state()))
    assert host.collect().mean() > 0.95 and isinstance(host.draws, HostDraws)
    host.draws.anchor(-np.ones((1, 12), dtype=np.int8))
    device.load(saved(host.state()))
    assert device.collect().mean() < 0.05
    # New chains from those states, whose ladder is tuned from the start.
    assert isinstance(device.draws, DeviceDraws) and device.draws.steps == 1


def test_the_default_follows_the_parameters_to_an_accelerator(monkeypatch):
    phase = phase_of(200, sd=0)
    assert isinstance(phase.draws, HostDraws)
    phase.prior.to("meta")  # no accelerator here, but not the CPU either
    monkeypatch.setattr(DeviceDraws, "submit", lambda *_: None)
    phase.submit()
    draws = phase.draws
    assert draws.device.type == "meta" and draws.sampler.name == "torch_tempering"
    ours, theirs = vars(phase.sampler), vars(draws.sampler)
    for option in ("n_chains", "n_sweeps", "n_levels", "swap_rate", "reference"):
        assert ours[option] == theirs[option]
    for sampler in ("gibbs", get_sampler("parallel_tempering")):
        stays = NegativePhase(BoltzmannPrior(8).to("meta"), sampler)
        assert isinstance(stays.draws, HostDraws)


def test_states_move_along_with_the_parameters(monkeypatch):
    """From the host to an accelerator, here the CPU under another name."""
    phase = valley("parallel_tempering")
    phase.collect()
    phase.draws.anchor(np.ones((1, 12), dtype=np.int8))
    phase.sampler = get_sampler("torch_tempering", n_levels=2, n_sweeps=1)
    assert phase.collect().mean() > 0.95 and isinstance(phase.draws, DeviceDraws)
    assert phase.draws.steps == 1 and phase.tracker.n_steps == 2


def test_a_device_that_cannot_leaves_it_to_the_host(monkeypatch):
    phase = phase_of(8)

    def lacking(*args):
        raise NotImplementedError("no such operation")

    first = HostDraws(phase.sampler)
    monkeypatch.setattr(first, "submit", lacking)
    phase.draws = first
    with pytest.warns(RuntimeWarning, match="from the host, as cpu cannot: no such operation"):
        assert phase.collect().shape == (32, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert phase.collect().shape == (32, 8)


class Machine(type(get_sampler("exact"))):
    """The exact distribution at ``factor`` times the temperature, of which it promises nothing."""

    name, guarantee = "machine", "heuristic"

    def __init__(self, factor):
        self.factor = factor

    def _sample(self, ising, beta, n_samples, entropy):
        return super()._sample(ising, self.factor * beta, n_samples, entropy)


@pytest.mark.parametrize("n", [8, 16])
def test_what_a_machine_contributed_is_reported(n):
    """Of states (8 units) and of energies (16): as near as chance allows, or far away."""
    options = {"redraw_every": 1, "n_burn_in": 0, "n_sweeps": 0, "n_chains": 500}
    reports = {}
    for factor in (1.0, 0.0):
        phase = phase_of(n, "corrected", {"sampler": Machine(factor), **options})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(3):
                phase.collect()
            reports[factor] = phase.refresh_log_z()
            assert phase.refresh_log_z().drawn_distance == reports[factor].drawn_distance
    right, noise = reports[1.0], reports[0.0]
    assert right.drawn_distance < 1.5 * right.drawn_floor
    assert noise.drawn_distance > 2 * noise.drawn_floor
    assert abs(right.beta_drawn - 1) < 4 * right.beta_drawn_se < 1
    assert abs(noise.beta_drawn) < 4 * noise.beta_drawn_se
    assert right.machine_share == 1 and right.n_draws == 3
    default = phase_of(n, Machine(1.0))
    default.collect()
    assert default.refresh_log_z().machine_share < 0.2
