import numpy as np
import pytest
import torch
from support.machines import codes, fill

from scvi_qbm.logz import log_partition
from scvi_qbm.prior import BernoulliPrior, BoltzmannPrior, NegativePhase
from scvi_qbm.samplers.exact import all_states, boltzmann_distribution


@pytest.fixture
def machine():
    prior = fill(BoltzmannPrior(8).double())
    prior.log_z.fill_(log_partition(prior.ising(), method="exact").value)
    return prior


def test_energy_is_the_definition(machine):
    W, h = machine.parameters_numpy()
    np.testing.assert_allclose(W, W.T)
    assert (np.diag(W) == 0).all() and np.abs(W).max() > 0.5
    z = codes(8)
    expected = z.numpy() @ h + 0.5 * np.einsum("si,ij,sj->s", z, W, z)
    np.testing.assert_allclose(machine.energy(z).detach(), expected, atol=1e-12)
    np.testing.assert_allclose(machine.W.detach(), W)
    np.testing.assert_allclose(machine.ising().energy(all_states(8)), expected, atol=1e-12)


@pytest.mark.parametrize("kind", [BoltzmannPrior, BernoulliPrior])
def test_local_field_is_what_switching_a_unit_on_costs(kind):
    prior = fill(kind(6).double())
    z = codes(6)
    field = prior.local_field(z)
    for unit in range(6):
        on, off = z.clone(), z.clone()
        on[:, unit], off[:, unit] = 1, 0
        torch.testing.assert_close(field[:, unit], prior.energy(on) - prior.energy(off))
    assert not field.requires_grad


def test_evidence_recovers_the_likelihood_of_independent_observations():
    """Where q maximises the bound, its evidence is the likelihood's log-ratio."""
    prior = fill(BoltzmannPrior(8), sd=0.3).double()
    ratio = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = torch.zeros_like(ratio, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10)

    def negative_bound():
        optimiser.zero_grad()
        value = (prior.kl(logits) - (ratio * torch.sigmoid(logits)).sum(-1)).sum()
        value.backward()
        return value

    optimiser.step(negative_bound)
    evidence = logits.detach() + prior.local_field(torch.sigmoid(logits.detach()))
    torch.testing.assert_close(evidence, ratio, atol=1e-4, rtol=0)


def test_probabilities_sum_to_one(machine):
    assert machine.log_prob(codes(8)).exp().sum().item() == pytest.approx(1.0)


def test_kl_and_its_gradient_equal_enumeration(machine):
    """The closed form against the sum over all codes, and its gradient in the logits."""
    torch.manual_seed(0)
    logits = (2 * torch.randn(5, 8, dtype=torch.float64)).requires_grad_()
    machine.kl(logits).sum().backward()
    closed = logits.grad.clone()

    other = logits.detach().clone().requires_grad_()
    z = codes(8)[None]
    log_q = (
        z * other.sigmoid()[:, None].log() + (1 - z) * (1 - other.sigmoid()[:, None]).log()
    ).sum(-1)
    kl = (log_q.exp() * (log_q - machine.log_prob(z).detach())).sum(-1)
    kl.sum().backward()
    torch.testing.assert_close(machine.kl(logits), kl)
    torch.testing.assert_close(closed, other.grad)
    assert machine.h.grad is None, "the KL term must not move the prior: surrogate() does"


def test_surrogate_gradient_equals_enumeration(machine):
    """E(q) - <E>_p: averaged over many draws of the negative phase."""
    torch.manual_seed(0)
    phase = NegativePhase(machine, "exact")
    q = torch.rand(6, 8, dtype=torch.float64)
    n_draws = 300
    grads = []
    for _ in range(n_draws):
        machine.zero_grad()
        machine.surrogate(q, phase.collect()).backward()
        grads.append((machine.h.grad.clone(), machine.W_upper.grad.clone()))
    distribution = torch.from_numpy(boltzmann_distribution(machine.ising()))
    z = codes(8)
    exact_h = q.mean(0) - distribution @ z
    exact_W = torch.einsum("sl,sm->lm", q, q) / 6 - torch.einsum("s,sl,sm->lm", distribution, z, z)
    size = n_draws * 256
    h, W = (torch.stack(parts).mean(0) for parts in zip(*grads, strict=True))
    assert (h - exact_h).abs().max() < 5 * 0.5 / np.sqrt(size)
    upper = torch.triu(torch.ones(8, 8), 1).bool()
    assert (W - exact_W)[upper].abs().max() < 5 * 0.5 / np.sqrt(size)
    assert (W[~upper] == 0).all()
    assert exact_h.abs().max() > 0.1  # the test would see a wrong sign


def test_bernoulli_twin_is_exact():
    prior = fill(BernoulliPrior(6).double())
    q = torch.rand(4, 6, dtype=torch.float64)
    value = prior.surrogate(q)
    value.backward()
    exact = prior.energy(q).mean().item() + prior.log_z.item()
    assert value.item() == pytest.approx(exact)
    torch.testing.assert_close(prior.h.grad, q.mean(0) - torch.sigmoid(-prior.h.detach()))
    assert prior.log_prob(codes(6)).exp().sum().item() == pytest.approx(1.0)
    logits = torch.logit(q)
    p = torch.sigmoid(-prior.h)
    kl = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    torch.testing.assert_close(prior.kl(logits), kl.sum(-1))


def test_bad_options():
    with pytest.raises(ValueError, match="at least 2"):
        BoltzmannPrior(1)
