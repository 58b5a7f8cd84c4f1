"""``torch_tempering``: its law by enumeration, and training whose negative phase is in tensors."""

import contextlib
import copy
import io
import pickle
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from support.machines import codes, fill, peaked_ising
from torch.utils._python_dispatch import TorchDispatchMode

from scvi_qbm.ising import Ising
from scvi_qbm.logz import log_partition
from scvi_qbm.module import QBMVAE
from scvi_qbm.prior import BoltzmannPrior
from scvi_qbm.prior._device import DeviceNegativePhase
from scvi_qbm.samplers import get_sampler
from scvi_qbm.samplers.conformance.law import chi_square
from scvi_qbm.samplers.engine import torch_chains, torch_kernels
from scvi_qbm.samplers.exact import all_energies, all_states, boltzmann_law

CPU = torch.device("cpu")
LADDER = np.array([0.0, 0.35, 0.6, 1.0])


def seeded(seed):
    return torch_chains.generator_on(CPU, np.random.SeedSequence(seed))


def level_laws(model, base, ladder=LADDER):
    """Enumerated law of every level of the path, and the energies U that it tempers."""
    states = all_states(model.n_spins)
    U = -0.5 * ((states @ model.J) * states).sum(1) - states @ (model.b - base)
    weights = np.exp(states @ base - np.array(ladder)[:, None] * U)
    return weights / weights.sum(1, keepdims=True), U


def at_equilibrium(model, base, n_chains, seed=0, ladder=LADDER, block=None):
    """Ladders whose levels hold independent draws from their laws."""
    laws, _ = level_laws(model, base, ladder)
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(len(law), size=n_chains, p=law) for law in laws]
    spins = all_states(model.n_spins)[np.stack(drawn, axis=1).ravel()].T
    chains = torch_chains.start(model, ladder, n_chains, seeded(seed), base)
    chains.spins.copy_(torch.from_numpy(spins))
    if block is not None:
        chains.set_block(block)
    return chains


def pvalues(chains, model, base):
    laws, _ = level_laws(model, base, chains.ladder)
    states = (chains.states(level).numpy() for level in range(chains.n_levels))
    return [chi_square(s, law) for s, law in zip(states, laws, strict=True)]


@pytest.mark.parametrize("block", [1, 2, 4, 8, 32])
def test_sweeps_and_swaps_leave_the_law_invariant(block):
    """At every level, with strong couplings, a base field, and a last block that is not full."""
    model = peaked_ising(7, 4, sd=0.9, field_sd=0.8)
    base = np.random.default_rng(3).normal(size=7) * 0.6
    chains = at_equilibrium(model, base, 20_000, block=block)
    before = chains.states().clone()
    torch_chains.run(chains, 4)
    assert 0.02 < (chains.states() != before).float().mean() < 0.6
    assert min(pvalues(chains, model, base)) > 1e-4


@pytest.mark.parametrize("wrong", [0.9, 1.1])
def test_that_test_has_power(wrong):
    model, base = peaked_ising(7, 4, sd=0.9, field_sd=0.8), np.zeros(7)
    chains = at_equilibrium(model, base, 20_000, block=4)
    chains.retarget(wrong * chains.J, chains.b)
    torch_chains.run(chains, 4)
    assert min(pvalues(chains, model, base)) < 1e-4


def test_a_block_of_one_spin_is_the_heat_bath():
    """Flip probabilities of each spin in turn, from one state."""
    model = peaked_ising(3, 1, sd=1.0)
    base = np.array([0.2, -0.1, 0.3])
    chains = torch_chains.start(model, np.array([0.5, 1.0]), 50_000, seeded(0), base)
    chains.set_block(1)
    chains.spins.copy_(torch.tensor([1.0, -1.0, 1.0])[:, None])
    chains.sweep()
    for lam, after in ((0.5, chains.spins[:, ::2]), (1.0, chains.spins[:, 1::2])):
        state = torch.tensor([1.0, -1.0, 1.0]).repeat(50_000, 1)
        for i in range(3):
            field = state @ torch.tensor(model.J[i]).float() + model.b[i] - base[i]
            up = torch.sigmoid(2 * (base[i] + lam * field))
            assert abs((after[i] > 0).float().mean() - up.mean()) < 5 * 0.5 / np.sqrt(50_000)
            state[:, i] = after[i]


def test_swap_rates_are_those_of_enumeration():
    model = peaked_ising(6, 2, sd=0.7)
    base = np.full(6, 0.2)
    chains = at_equilibrium(model, base, 20_000)
    torch_chains.run(chains, 6)
    laws, U = level_laws(model, base)
    np.testing.assert_array_equal(chains.proposed, 3 * 20_000)
    for k in range(len(LADDER) - 1):
        step = (LADDER[k] - LADDER[k + 1]) * (U[:, None] - U[None, :])
        exact = laws[k] @ np.minimum(1, np.exp(step)) @ laws[k + 1]
        assert chains.swap_rates[k] == pytest.approx(exact, abs=0.01)
    chains.forget()
    assert np.isnan(chains.swap_rates).all() and chains.round_trips == 0


def test_round_trips_are_counted_as_on_the_host():
    """Without energies all swaps are accepted: the walk along the ladder has no chance in it."""
    free = Ising(np.zeros((4, 4)), np.zeros(4))
    counts = {}
    for name in ("parallel_tempering", "torch_tempering"):
        sampler = get_sampler(name, n_chains=3, n_levels=5)
        state = sampler.step(sampler.init(free, seed=0), 47)
        counts[name] = int(state.round_trips)
    assert counts["parallel_tempering"] == counts["torch_tempering"] > 10


def test_energies_differ_from_the_models_by_a_constant():
    model = peaked_ising(21, 0)
    base = np.random.default_rng(0).normal(size=21)
    chains = torch_chains.start(model, LADDER, 5, seeded(0), base)
    s = chains.spins.T.double().numpy()
    expected = model.energy(s) - model.offset + s @ base
    difference = chains.energies().double().numpy() - expected
    np.testing.assert_allclose(difference, difference.mean(), atol=1e-4)


@pytest.mark.parametrize(("n", "block"), [(64, 32), (70, 32), (9, 4), (5, 1)])
def test_shifts_make_blocks_positive_definite(n, block):
    J = torch.tensor(peaked_ising(n, 1, sd=0.5).J).float()
    blocks = torch_kernels.diagonal_blocks(J, block)
    shift = torch_kernels.shifts(blocks)
    needed = -torch.linalg.eigvalsh(blocks.double())[:, 0]
    assert (shift > needed).all()
    assert (shift < 1.15 * needed + 1e-5).all()  # and not much more: it is paid in mixing
    chains = torch_chains.start(Ising(J.numpy(), np.zeros(n)), LADDER, 2, seeded(0))
    chains.set_block(block)
    square = torch.block_diag(*(chains.root @ chains.root.mT))[:n, :n]
    inside = torch.block_diag(*torch.ones_like(blocks))[:n, :n].bool()
    torch.testing.assert_close(square[inside], chains.A[inside], atol=1e-5, rtol=1e-5)
    off_diagonal = ~torch.eye(n, dtype=torch.bool)
    assert (chains.A[off_diagonal] == J[off_diagonal]).all()


def test_strong_couplings_get_small_blocks():
    sizes = [
        torch_kernels.best_block(torch.tensor(peaked_ising(64, 0, sd=sd).J).float())
        for sd in (0.01, 0.2, 3.0)
    ]
    assert sizes[0] == 64 and sizes[0] > sizes[1] > sizes[2] == 1


@pytest.mark.parametrize("reference", ["uniform", "fields", "magnetisation"])
def test_retarget_and_adapt_lead_to_the_new_law(reference):
    sampler = get_sampler("torch_tempering", n_chains=10_000, reference=reference)
    old, new = peaked_ising(6, 0), peaked_ising(6, 5, sd=0.8, field_sd=1.0)
    state = sampler.step(sampler.init(old, seed=1), 10)
    n_levels = state.n_levels
    state = sampler.retarget(state, new, beta=1.3)
    state.n_means.zero_()  # those of the old model would take a while to fade
    for _ in range(6):
        state = sampler.adapt(sampler.step(state, 16))
    assert state.n_levels != n_levels
    assert chi_square(sampler.spins(state), boltzmann_law(new, 1.3)) > 1e-4
    # An adaptation moves levels and reference, and no state of the target.
    before = sampler.spins(sampler.step(state, 2))
    np.testing.assert_array_equal(sampler.spins(sampler.adapt(state)), before)
    if reference == "magnetisation":
        means = boltzmann_law(new, 1.3) @ all_states(6)
        np.testing.assert_allclose(np.tanh(state.base.cpu()), 0.95 * means, atol=0.1)


@pytest.mark.parametrize(
    ("ladder", "nearest"),
    [([0.0, 0.1, 0.5, 0.55, 0.9, 1.0], (0, 0, 2, 2, 3, 3)), ([0.0, 0.5, 0.55, 1.0], (0, 2, 2, 3))],
)
def test_relevel_takes_the_state_of_the_nearest_level(ladder, nearest):
    chains = at_equilibrium(peaked_ising(7, 0), np.full(7, 0.1), 50)
    torch_chains.run(chains, 3)
    states = [chains.states(level).clone() for level in range(4)]
    kept = {name: getattr(chains, name).clone() for name in ("J", "b", "base", "mean_spins")}
    places = {k: v.data_ptr() for k, v in vars(chains).items() if isinstance(v, torch.Tensor)}
    new = chains.relevel(np.array(ladder))
    for level, old in enumerate(nearest):
        torch.testing.assert_close(new.states(level), states[old], atol=0, rtol=0)
    np.testing.assert_allclose(new.lam.view(50, len(ladder))[7], new.ladder)
    for name, value in kept.items():
        torch.testing.assert_close(getattr(new, name), value, atol=0, rtol=0)
    assert not new.proposed.any() and not new.round_trips and not new.parity
    if len(ladder) == 4:  # a CUDA graph reads and writes these very places
        assert new is chains and places == {k: getattr(new, k).data_ptr() for k in places}


def test_a_new_ladder_of_as_many_levels_has_the_law():
    """The sweeps after it, by what was captured before, are those of the new levels."""
    model = peaked_ising(6, 0)
    sampler = get_sampler("torch_tempering", n_chains=10_000, n_levels=4, device="cpu")
    state = sampler.step(sampler.init(model, seed=1), 4)
    advance, ladder = state.advance, state.ladder.copy()
    state = state.relevel(ladder**2)
    state = sampler.step(state, 40)
    assert state.advance is advance and np.abs(state.ladder - ladder).max() > 0.1
    assert chi_square(sampler.spins(state), boltzmann_law(model, 1.0)) > 1e-4
    hot = state.states(0).numpy()
    assert np.abs(hot.mean(0)).max() < 5 / np.sqrt(len(hot))


def test_a_rehearsal_is_undone():
    chains = at_equilibrium(peaked_ising(7, 0), np.full(7, 0.1), 50)
    torch_chains.run(chains, 3)
    twin = torch_chains.unpack(torch_chains.pack(chains), chains.device)
    with torch_kernels.undone(chains.generator, chains.changing):
        for _ in range(3):
            chains.sweep()
            chains.swap()
        assert not torch.equal(chains.spins, twin.spins)
    for each in (chains, twin):
        torch_chains.run(each, 3)
    for name, value in vars(twin).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(chains, name), value, atol=0, rtol=0)


def test_same_diagnostics_as_on_the_host():
    model = peaked_ising(24, 2, sd=0.35)
    infos = [
        get_sampler(name, n_chains=64).sample(model, 0.8, 6400, seed=0).info
        for name in ("parallel_tempering", "torch_tempering")
    ]
    ours, theirs = infos[1], infos[0]
    assert set(theirs) | {"device"} == set(ours)
    assert ours["barrier"] == pytest.approx(theirs["barrier"], rel=0.15)
    assert ours["round_trip_rate"] == pytest.approx(theirs["round_trip_rate"], rel=0.5)
    assert ours["rhat_energy"] < 1.05 and ours["ess_energy"] > 0.2 * theirs["ess_energy"]
    assert ours["n_updates"] >= 64 * 100 * 5 * 24
    assert ours["device"] == ("cuda" if torch.cuda.is_available() else "cpu")


def test_unmixed_chains_warn():
    sampler = get_sampler("torch_tempering", n_burn_in=2, n_sweeps=1, n_chains=8)
    with pytest.warns(RuntimeWarning, match="has not mixed"):
        sampler.sample(peaked_ising(128, 0, sd=1.0), n_samples=64, seed=0)


@contextlib.contextmanager
def no_host_round_trip(monkeypatch):
    """Fails on what would make the host wait for a device."""
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique"}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.name().removeprefix("aten::").split(".")[0]
            assert name not in waits, f"{name} waits for the device"
            return func(*args, **(kwargs or {}))

    def refuse(*args, **kwargs):
        raise AssertionError("a copy to the host")

    with monkeypatch.context() as patch, Watch():
        for name in ("cpu", "numpy", "tolist", "item", "__array__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, name, refuse)
        yield


def test_a_step_never_waits_for_the_device(monkeypatch):
    torch.manual_seed(0)
    prior = fill(BoltzmannPrior(40, "torch_tempering"), sd=0.1)
    optimiser = torch.optim.SGD(prior.parameters(), lr=0.01)
    q = torch.rand(20, 40)
    prior.refresh_log_z()
    for step in range(1, 61):
        adapts = step in (1, 8, 16, 32, 50)
        with warnings.catch_warnings() if adapts else no_host_round_trip(monkeypatch):
            prior.prefetch()
            prior.surrogate(q).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert 2 <= prior._device.chains.n_levels < 8 and prior._device.steps == 60


def test_the_watch_sees_a_wait(monkeypatch):
    x = torch.ones(1)
    waits = (x.item, x.cpu, x.numpy, x.tolist, x.nonzero)
    for name in [wait.__name__ for wait in waits]:
        with pytest.raises(AssertionError), no_host_round_trip(monkeypatch):
            getattr(x, name)()
    with pytest.raises(AssertionError), no_host_round_trip(monkeypatch):
        bool(x > 0)


def test_a_step_stays_on_one_device(monkeypatch):
    """Tensors without data: what is made elsewhere does not mix, and nothing can be read."""
    chains = torch_chains.start(peaked_ising(40, 0, sd=0.1), LADDER, 3, seeded(0))
    for name, value in vars(chains).items():
        if isinstance(value, torch.Tensor):
            setattr(chains, name, value.to("meta"))
    chains.generator = None
    for module in (
        "prior._device",
        "samplers.engine.torch_kernels",
    ):  # autocast knows no such device
        name = f"scvi_qbm.{module}.full_precision"
        monkeypatch.setattr(name, lambda _: contextlib.nullcontext())
    torch_chains.run(chains, 2)
    chains.retarget(chains.J * 2, chains.b)
    chains.follow_means(10)
    assert chains.states().device.type == chains.spins.device.type == "meta"
    phase = DeviceNegativePhase(get_sampler("torch_tempering"), torch.device("meta"))
    phase.chains = chains
    W, h, log_z = (torch.zeros(shape, device="meta") for shape in ((40, 40), (40,), ()))
    for _ in range(3):
        phase.prefetch(W, h, None, None)
        assert phase.collect(log_z).device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        chains.check()
    with pytest.raises(RuntimeError, match="device"):
        chains.retarget(chains.J + torch.zeros(40, 40), chains.b)


def test_no_cuda_graph_means_plain_calls():
    if torch.cuda.is_available():
        pytest.skip("here a graph is made")
    with pytest.warns(RuntimeWarning, match="No CUDA graph"):
        assert torch_kernels.captured(plain, torch.device("cuda:0"), seeded(0), ()) is plain


def test_the_networks_precision_is_not_ours():
    draws, chosen = [], torch.get_float32_matmul_precision()
    for precision, autocast in (("highest", False), ("medium", True)):
        torch.manual_seed(0)
        prior = fill(BoltzmannPrior(40, "torch_tempering"), sd=0.3)
        torch.set_float32_matmul_precision(precision)
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                for _ in range(3):
                    last = prior._collect()
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision(chosen)
        assert last.dtype == torch.float32
        draws.append((last, prior.log_z.clone(), torch.stack([*prior._device.recent])))
    for one, other in zip(*draws, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_nor_is_a_precision_chosen_through_the_newer_settings():
    """In a process of its own: the two ways do not mix."""
    script = """
import torch
from scvi_qbm.samplers.engine.torch_kernels import full_precision
matmuls = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
for matmul, chosen in zip(matmuls, ("tf32", "bf16")):
    matmul.fp32_precision = chosen
with full_precision(torch.device("cpu")):
    assert [matmul.fp32_precision for matmul in matmuls] == ["ieee", "ieee"]
assert [matmul.fp32_precision for matmul in matmuls] == ["tf32", "bf16"]
"""
    subprocess.run([sys.executable, "-c", script], check=True)


LIKELIHOODS = ("nb", "zinb", "poisson", "normal")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_step_of_the_whole_module_reads_no_value(likelihood, monkeypatch):
    """On tensors without data, which cannot be read; the draw has tests of its own above."""
    monkeypatch.setattr(BoltzmannPrior, "prefetch", lambda self: None)
    drawn = torch.zeros(32, 40, device="meta")
    monkeypatch.setattr(BoltzmannPrior, "_collect", lambda self: drawn)
    module = QBMVAE(30, 2, n_latent=40, n_hidden=16, gene_likelihood=likelihood)
    module.to("meta").train()
    tensors = {
        "X": torch.zeros(20, 30, device="meta"),
        "batch": torch.zeros(20, 1, dtype=torch.long, device="meta"),
        "labels": torch.zeros(20, 1, dtype=torch.long, device="meta"),
    }
    loss = module(tensors, loss_kwargs={"kl_weight": 0.5})[-1].loss
    loss.backward()
    for part in (module.z_encoder, module.decoder.px_scale_decoder, module.prior):
        assert all(p.grad.is_meta for p in part.parameters())


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
@pytest.mark.parametrize("n_levels", [2, 4])
def test_the_graph_does_what_the_calls_do(n_levels, monkeypatch):
    model, states = peaked_ising(40, 0, sd=0.1), []
    for graph in (True, False):
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("error")
            if not graph:
                patch.setattr(torch_kernels, "captured", plain)
            sampler = get_sampler("torch_tempering", n_levels=n_levels, device="cuda")
            chains = sampler.step(sampler.init(model, seed=0), 20)
            chains = sampler.step(sampler.adapt(chains), 20)
            states.append(chains.spins.cpu())
    torch.testing.assert_close(*states, atol=0, rtol=0)


def plain(advance, *_):
    return advance


@needs_cuda
def test_training_on_the_device_waits_for_nothing():
    torch.manual_seed(0)
    module = QBMVAE(30, 2, n_latent=40, n_hidden=16).cuda().train()
    tensors = {
        "X": torch.poisson(torch.rand(20, 30, device="cuda") * 4),
        "batch": torch.zeros(20, 1, dtype=torch.long, device="cuda"),
        "labels": torch.zeros(20, 1, dtype=torch.long, device="cuda"),
    }
    optimiser = torch.optim.Adam(module.parameters(), fused=True)
    for step in range(1, 49):
        waits = step <= 2 or step in (8, 16, 32)
        torch.cuda.set_sync_debug_mode("default" if waits else "error")
        try:
            module.prior.prefetch()
            module(tensors, loss_kwargs={"kl_weight": 0.5})[-1].loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert module.prior._device.chains.device.type == "cuda"


def test_surrogate_gradient_equals_enumeration():
    """E(q) - <E>_p over many draws, as the host's chains are tested."""
    torch.manual_seed(0)
    prior = fill(BoltzmannPrior(6, "torch_tempering", {"n_chains": 256, "n_sweeps": 10}))
    q = torch.rand(6, 6)
    grads = []
    for _ in range(150):
        prior.zero_grad()
        prior.surrogate(q).backward()
        grads.append((prior.h.grad.clone(), prior.W_upper.grad.clone()))
    law = torch.from_numpy(boltzmann_law(prior.ising())).float()
    z = codes(6).float()
    exact_W = torch.einsum("sl,sm->lm", q, q) / 6 - torch.einsum("s,sl,sm->lm", law, z, z)
    h, W = (torch.stack(parts[30:]).mean(0) for parts in zip(*grads, strict=True))
    # 120 draws of 256 chains, of which one in ten may count as independent.
    tolerance = 5 * 0.5 / np.sqrt(120 * 256 / 10)
    exact_h = q.mean(0) - law @ z
    assert (h - exact_h).abs().max() < tolerance < exact_h.abs().max() / 2
    upper = torch.ones(6, 6).triu(1).bool()
    assert (W - exact_W)[upper].abs().max() < tolerance and (W[~upper] == 0).all()


@pytest.mark.parametrize("sampler", ["parallel_tempering", "torch_tempering"])
def test_training_is_honest_and_log_z_is_followed(sampler):
    """Both negative phases fit a machine, and carry log Z from step to step to the exact one."""
    torch.manual_seed(0)
    target = fill(BoltzmannPrior(8, "exact"), seed=3)
    law, z = boltzmann_law(target.ising()), codes(8).float()
    data = z[torch.multinomial(torch.from_numpy(law), 4000, replacement=True)]
    prior = BoltzmannPrior(8, sampler)
    optimiser = torch.optim.Adam(prior.parameters(), lr=0.02)
    reports = []
    for step in range(1, 501):
        optimiser.zero_grad()
        prior.surrogate(data).backward()
        optimiser.step()
        if step % 100 == 0:
            reports.append(prior.refresh_log_z())
    exact = log_partition(prior.ising(), method="exact").value
    assert float(prior.log_z) == pytest.approx(exact, abs=max(4 * reports[-1].log_z_se, 1e-3))
    assert abs(exact - 8 * np.log(2)) > 0.4
    for report in reports:
        assert report.is_honest and report.n_steps == 100
        assert abs(report.log_z_drift) < 0.5 and abs(report.energy_gap) < 0.6
        assert 0 < report.energy_gap_se < 0.3
    fitted = torch.from_numpy(boltzmann_law(prior.ising())).float()
    assert ((fitted @ z) - data.mean(0)).abs().max() < 0.06


@pytest.mark.parametrize("moved", ["h", "W_upper"])
def test_log_z_is_carried_along_each_parameter(moved):
    torch.manual_seed(0)
    prior = fill(BoltzmannPrior(8, "torch_tempering", {"n_chains": 512}), sd=0.4)
    prior._collect()
    start = log_partition(prior.ising(), method="exact").value
    prior.log_z.fill_(start)
    with torch.no_grad():
        for _ in range(50):
            getattr(prior, moved).sub_(0.02)
            prior._collect()
    exact = log_partition(prior.ising(), method="exact").value
    assert exact > start + 2
    assert float(prior.log_z) == pytest.approx(exact, abs=0.25)


def test_states_at_equilibrium_are_handed_over():
    prior = fill(BoltzmannPrior(16, "torch_tempering"))
    prior._collect()
    phase = prior._device
    given = np.where(np.random.default_rng(0).random((5, 16)) < 0.5, 1, -1).astype(np.int8)
    assert phase.anchor(prior.W, prior.h, given) == 1
    np.testing.assert_array_equal(phase.spins(), np.resize(given, (32, 16)))
    assert not phase.energies() and phase.since == 0


def test_negative_samples_follow_torchs_seed():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        prior = fill(BoltzmannPrior(12, "torch_tempering"))
        draws.append(torch.stack([prior._collect() for _ in range(3)]))
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()
    assert set(draws[0].unique().tolist()) == {0.0, 1.0} and draws[0].shape == (3, 32, 12)


def _saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def trained(sampler="torch_tempering", n=8, steps=40):
    torch.manual_seed(0)
    prior = fill(BoltzmannPrior(n, sampler))
    for _ in range(steps):
        prior.surrogate(torch.rand(20, n))
    prior.refresh_log_z()
    prior.surrogate(torch.rand(20, n))
    return prior


def test_chains_go_on_where_they_were_saved(monkeypatch):
    prior = trained(n=24)
    state = _saved(prior.training_state())
    other = BoltzmannPrior(24, "torch_tempering")
    other.load_state_dict(prior.state_dict())
    other.load_training_state(state)
    assert prior._device.chains.n_levels > 2
    copies = [other, copy.deepcopy(prior), pickle.loads(pickle.dumps(prior))]
    last, first = prior._device.spins(), None
    for _ in range(60):  # an adaptation of the ladder among them
        one = prior._collect()
        for again in copies:
            assert (one == again._collect()).all()
        first = one if first is None else first
    for again in copies:
        assert float(prior.log_z) == float(again.log_z)
        ladders = (each._device.chains.ladder for each in (prior, again))
        np.testing.assert_array_equal(*ladders)
    torch.manual_seed(2)
    expected = prior.refresh_log_z()
    torch.manual_seed(2)
    assert other.refresh_log_z() == expected
    apart = BoltzmannPrior(24, "torch_tempering")
    apart.load_state_dict(prior.state_dict())
    monkeypatch.setattr("scvi_qbm.prior._boltzmann._rank", lambda: 1)
    apart.load_training_state(state)
    np.testing.assert_array_equal(apart._device.spins(), last)
    assert (apart._collect() != first).float().mean() > 0.05
    with pytest.raises(ValueError, match="24 units, this model 5"):
        BoltzmannPrior(5, "torch_tempering").load_training_state(state)


def test_states_go_from_device_to_host_and_back():
    """A ferromagnet whose chains are all in one of two valleys, which a few steps do not leave."""
    n = 12
    made = []
    for name in ("torch_tempering", "parallel_tempering"):
        prior = BoltzmannPrior(n, name, {"reference": "uniform", "n_levels": 2, "n_sweeps": 1})
        with torch.no_grad():
            prior.W_upper.fill_(-4.0)
            prior.h.fill_(2.0 * (n - 1))
        made.append(prior)
    device, host = made
    device._collect()
    device._device.anchor(device.W, device.h, np.ones((1, n), dtype=np.int8))
    host.load_training_state(_saved(device.training_state()))
    assert host._collect().mean() > 0.95 and host._device is None
    host.refresh_log_z()
    host._chains.spins[:] = -1
    device.load_training_state(_saved(host.training_state()))
    assert device._collect().mean() < 0.05
    # New chains from those states, whose ladder is tuned from the start.
    assert device._chains is None and device._device.steps == 1


def test_restored_weights_bring_their_own_log_z():
    prior = trained()
    saved = {k: v.clone() for k, v in prior.state_dict().items()}
    for _ in range(5):
        prior._collect()
        fill(prior, seed=9)
    prior.load_state_dict(saved)
    prior._collect()
    assert float(prior.log_z) == pytest.approx(float(saved["log_z"]), abs=1e-6)


def test_diverged_parameters_say_so():
    prior = trained(steps=0)
    saved = {k: v.clone() for k, v in prior.state_dict().items()}
    with torch.no_grad():
        prior.W_upper[0, 1] = np.nan
    with pytest.raises(ValueError, match="training has diverged"):
        for _ in range(50):
            prior._collect()
    fresh = BoltzmannPrior(8, "torch_tempering")
    with torch.no_grad():
        fresh.h[2] = np.inf
    with pytest.raises(ValueError, match="training has diverged"):
        fresh.prefetch()
    for seen in (5, 50):  # weights that are finite again bring it back, found out or not
        prior.load_state_dict(saved)
        for _ in range(60):
            prior._collect()
        assert prior.refresh_log_z().is_honest and np.isfinite(prior._device.chains.ladder).all()
        with torch.no_grad():
            prior.W_upper[0, 1] = np.nan
        with contextlib.suppress(ValueError):
            for _ in range(seen):
                prior._collect()


def test_a_model_that_is_not_finite_is_not_sampled_in_silence():
    sampler = get_sampler("torch_tempering", n_chains=4)
    state = sampler.step(sampler.init(peaked_ising(5, 0), seed=0), 4)
    sampler.retarget_tensors(state, torch.full((5, 5), np.nan), torch.zeros(5))
    with pytest.raises(ValueError, match="not finite"):
        sampler.adapt(sampler.step(state, 4))


def test_the_default_follows_the_parameters_to_an_accelerator():
    prior = BoltzmannPrior(200)
    assert prior._on_device() is None
    phase = prior.to("meta")._on_device()  # no accelerator here, but not the CPU either
    assert phase.device.type == "meta" and phase.sampler.name == "torch_tempering"
    ours, theirs = vars(prior.sampler), vars(phase.sampler)
    for option in ("n_chains", "n_sweeps", "n_levels", "swap_rate", "reference"):
        assert ours[option] == theirs[option]
    for sampler in ("gibbs", get_sampler("parallel_tempering")):
        assert BoltzmannPrior(8, sampler).to("meta")._on_device() is None


def test_a_device_that_cannot_leaves_it_to_the_host(monkeypatch):
    prior = fill(BoltzmannPrior(8))

    def lacking(*args):
        raise NotImplementedError("no such operation")

    phase = types.SimpleNamespace(prefetch=lacking, steps=0, device="abacus")
    monkeypatch.setattr(prior, "_on_device", lambda: phase if prior._follows_device else None)
    with pytest.warns(RuntimeWarning, match="from the host, as abacus cannot: no such operation"):
        assert prior._collect().shape == (32, 8)
    assert prior._collect().shape == (32, 8)


def test_ground_state():
    model = peaked_ising(8, 5)
    sampler = get_sampler("torch_tempering", n_chains=64, n_sweeps=10, n_burn_in=300)
    cold = sampler.sample(model, beta=30.0, n_samples=200, seed=0)
    np.testing.assert_allclose(cold.energies, all_energies(model).min(), atol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="`device` 'abacus'"):
        get_sampler("torch_tempering", device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' cannot be used"):
            get_sampler("torch_tempering", device="cuda")
    with pytest.raises(ValueError, match="reference"):
        get_sampler("torch_tempering", reference="zero")
    sampler = get_sampler("torch_tempering", n_chains=2)
    state = sampler.init(peaked_ising(5, 0), seed=0)
    with pytest.raises(ValueError, match="start anew"):
        sampler.retarget(state, peaked_ising(6, 0))
