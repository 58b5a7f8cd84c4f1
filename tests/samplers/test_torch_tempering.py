"""``torch_tempering``: against enumeration, and training with a negative phase in tensors."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from support.machines import peaked_ising

from scvi_qbm.ising import Ising
from scvi_qbm.samplers import get_sampler
from scvi_qbm.samplers.conformance.distribution import chi_square
from scvi_qbm.samplers.engine import torch_chains, torch_kernels
from scvi_qbm.samplers.exact import all_energies, all_states, boltzmann_distribution

CPU = torch.device("cpu")
LADDER = np.array([0.0, 0.35, 0.6, 1.0])


def seeded(seed):
    return torch_chains.generator_on(CPU, np.random.SeedSequence(seed))


def level_distributions(model, base, ladder=LADDER):
    """Enumerated distribution of every level of the path, and the energies U that it tempers."""
    states = all_states(model.n_spins)
    U = -0.5 * ((states @ model.J) * states).sum(1) - states @ (model.b - base)
    weights = np.exp(states @ base - np.array(ladder)[:, None] * U)
    return weights / weights.sum(1, keepdims=True), U


def at_equilibrium(model, base, n_chains, seed=0, ladder=LADDER, block=None):
    """Ladders whose levels hold independent draws from their distributions."""
    distributions, _ = level_distributions(model, base, ladder)
    rng = np.random.default_rng(seed)
    drawn = [
        rng.choice(len(distribution), size=n_chains, p=distribution)
        for distribution in distributions
    ]
    spins = all_states(model.n_spins)[np.stack(drawn, axis=1).ravel()].T
    chains = torch_chains.start(model, ladder, n_chains, seeded(seed), base)
    chains.spins.copy_(torch.from_numpy(spins))
    if block is not None:
        chains.set_block(block)
    return chains


def pvalues(chains, model, base):
    distributions, _ = level_distributions(model, base, chains.ladder)
    states = (chains.states(level).numpy() for level in range(chains.n_levels))
    return [
        chi_square(s, distribution) for s, distribution in zip(states, distributions, strict=True)
    ]


@pytest.mark.parametrize("block", [1, 2, 4, 8, 32])
def test_sweeps_and_swaps_leave_the_distribution_invariant(block):
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
    distributions, U = level_distributions(model, base)
    np.testing.assert_array_equal(chains.proposed, 3 * 20_000)
    for k in range(len(LADDER) - 1):
        step = (LADDER[k] - LADDER[k + 1]) * (U[:, None] - U[None, :])
        exact = distributions[k] @ np.minimum(1, np.exp(step)) @ distributions[k + 1]
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
def test_retarget_and_adapt_lead_to_the_new_distribution(reference):
    sampler = get_sampler("torch_tempering", n_chains=10_000, reference=reference)
    old, new = peaked_ising(6, 0), peaked_ising(6, 5, sd=0.8, field_sd=1.0)
    state = sampler.step(sampler.init(old, seed=1), 10)
    n_levels = state.n_levels
    state = sampler.retarget(state, new, beta=1.3)
    state.n_means.zero_()  # those of the old model would take a while to fade
    for _ in range(6):
        state = sampler.adapt(sampler.step(state, 16))
    assert state.n_levels != n_levels
    assert chi_square(sampler.spins(state), boltzmann_distribution(new, 1.3)) > 1e-4
    # An adaptation moves levels and reference, and no state of the target.
    before = sampler.spins(sampler.step(state, 2))
    np.testing.assert_array_equal(sampler.spins(sampler.adapt(state)), before)
    if reference == "magnetisation":
        means = boltzmann_distribution(new, 1.3) @ all_states(6)
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


def test_a_new_ladder_of_as_many_levels_has_the_distribution():
    """The sweeps after it, by what was captured before, are those of the new levels."""
    model = peaked_ising(6, 0)
    sampler = get_sampler("torch_tempering", n_chains=10_000, n_levels=4, device="cpu")
    state = sampler.step(sampler.init(model, seed=1), 4)
    advance, ladder = state.advance, state.ladder.copy()
    state = state.relevel(ladder**2)
    state = sampler.step(state, 40)
    assert state.advance is advance and np.abs(state.ladder - ladder).max() > 0.1
    assert chi_square(sampler.spins(state), boltzmann_distribution(model, 1.0)) > 1e-4
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


def test_no_cuda_graph_means_plain_calls():
    if torch.cuda.is_available():
        pytest.skip("here a graph is made")
    with pytest.warns(RuntimeWarning, match="No CUDA graph"):
        assert torch_kernels.captured(plain, torch.device("cuda:0"), seeded(0), ()) is plain


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


def test_a_model_that_is_not_finite_is_not_sampled_in_silence():
    sampler = get_sampler("torch_tempering", n_chains=4)
    state = sampler.step(sampler.init(peaked_ising(5, 0), seed=0), 4)
    sampler.retarget_tensors(state, torch.full((5, 5), np.nan), torch.zeros(5))
    with pytest.raises(ValueError, match="not finite"):
        sampler.adapt(sampler.step(state, 4))


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
