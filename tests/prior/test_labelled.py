"""Labels as units: probabilities, bounds, gradients and fits against enumeration."""

import numpy as np
import pytest
import torch
from support.machines import codes

from scvi_qbm.logz import log_partition
from scvi_qbm.prior import LabelledPrior, NegativePhase, fit_labels, fit_prior
from scvi_qbm.samplers.exact import all_states, boltzmann_distribution

N = 6
ONE = torch.eye(4)
# Two coarse labels; the first has two fine ones, the second none.
LEVELS = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0]]).float()


@pytest.fixture(params=[ONE, LEVELS], ids=["one level", "two levels"])
def prior(request):
    rng = torch.Generator().manual_seed(0)
    prior = LabelledPrior(N, request.param).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
        prior.repulsion.fill_(1.5)  # states with two labels count
    prior.log_z.fill_(log_partition(prior.ising(), method="exact").value)
    return prior


def joint(prior):
    """log p(z, y) of all codes and configurations, by the energy of the whole machine."""
    W, h = (torch.from_numpy(x) for x in prior.parameters_numpy())
    z, S = codes(N), prior.configurations
    states = torch.cat([z.repeat_interleave(len(S), 0), S.repeat(len(z), 1)], 1)
    energy = states @ h + 0.5 * ((states @ W) * states).sum(1)
    return (-energy - prior.log_z).reshape(len(z), len(S))


def test_it_is_one_machine(prior):
    """Energies of all states of the Ising model are those of the formula in the docstring."""
    states = torch.from_numpy((all_states(prior.n_units) + 1) // 2).double()
    z, y = states[:, :N], states[:, N:]
    together = prior.configurations.T @ prior.configurations
    V = prior.repulsion * (together == 0)
    energy = z @ prior.h + 0.5 * ((z @ prior.W) * z).sum(1) + y @ prior.a
    energy = energy + ((z @ prior.U) * y).sum(1) + 0.5 * ((y @ V) * y).sum(1)
    found = prior.ising().energy(all_states(prior.n_units))
    np.testing.assert_allclose(found, energy.detach(), atol=1e-10)
    assert not V.diagonal().any()


def test_sums_over_labels_are_exact(prior):
    log_p = joint(prior)
    z = codes(N)
    torch.testing.assert_close(prior.log_prob(z), log_p.logsumexp(1))
    torch.testing.assert_close(
        torch.softmax(prior.label_logits(z), -1), (log_p - log_p.logsumexp(1)[:, None]).exp()
    )
    allowed = torch.rand(len(z), log_p.shape[1], generator=torch.Generator().manual_seed(1)) < 0.5
    allowed[:, 0] = True
    some = log_p.masked_fill(~allowed, -torch.inf).logsumexp(1)
    torch.testing.assert_close(prior.log_prob(z, allowed=allowed), some)
    torch.testing.assert_close(prior.classification_loss(z, allowed), log_p.logsumexp(1) - some)


def enumerated(prior, logits, allowed):
    """KL(q(z) q(y) || p(z, y)) with the best q(y) among the allowed configurations."""
    z, log_p = codes(N), joint(prior).detach()
    q = torch.sigmoid(logits)
    log_q = z @ q.log().T + (1 - z) @ (1 - q).log().T
    expected = torch.einsum("zc,zk->ck", log_q.exp(), log_p)
    entropy = (log_q.exp() * log_q).sum(0)
    return entropy - expected.masked_fill(~allowed, -torch.inf).logsumexp(1)


def test_the_divergence_and_its_gradient_equal_enumeration(prior):
    n_configurations = len(prior.configurations)
    allowed = torch.eye(n_configurations).bool()
    allowed = torch.cat([allowed, torch.ones(2, n_configurations).bool(), ~allowed[:1]])
    rng = torch.Generator().manual_seed(2)
    logits = torch.randn(len(allowed), N, generator=rng, dtype=torch.float64).requires_grad_()
    closed, summed = prior.kl(logits, allowed=allowed), enumerated(prior, logits, allowed)
    torch.testing.assert_close(closed, summed)
    by = [torch.autograd.grad(x.sum(), logits)[0] for x in (closed, summed)]
    torch.testing.assert_close(*by)


def test_without_a_label_it_bounds_the_marginal(prior):
    """Above the true divergence KL(q(z) || p(z)), and equal where q is a single code."""
    free = torch.ones(20, len(prior.configurations)).bool()
    rng = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(20, N, generator=rng, dtype=torch.float64)
    q, z = torch.sigmoid(logits), codes(N)
    log_q = (z @ q.log().T + (1 - z) @ (1 - q).log().T).T
    true = (log_q.exp() * (log_q - prior.log_prob(z))).sum(1)
    slack = prior.kl(logits, allowed=free) - true
    assert (slack > -1e-12).all() and slack.max() > 0.01
    sharp = 40 * (z[:20] - 0.5)
    torch.testing.assert_close(prior.kl(sharp, allowed=free), -prior.log_prob(z[:20]))


def test_surrogate_gradient_equals_enumeration(prior):
    """d/dtheta of E_q[-log p(z, y)], the labels' own distribution at rest."""
    rng = torch.Generator().manual_seed(4)
    q = torch.rand(5, N, generator=rng, dtype=torch.float64)
    allowed = torch.ones(5, len(prior.configurations)).bool()
    allowed[0], allowed[0, 1] = False, True
    expected = prior.kl(torch.logit(q), allowed=allowed)  # without gradients
    energy = prior.energy(q, allowed=allowed).mean()
    W, h = prior.machine()
    states = torch.from_numpy((all_states(prior.n_units) + 1) // 2).double()
    log_z = (-states @ h - 0.5 * ((states @ W) * states).sum(1)).logsumexp(0)
    exact = torch.autograd.grad(energy + log_z, list(prior.parameters()), retain_graph=True)
    # As many states as the distribution says, so that there is no noise.
    distribution = torch.from_numpy(boltzmann_distribution(prior.ising()))
    counts = (distribution * 2_000_000).round().long()
    drawn = states.repeat_interleave(counts, 0)
    surrogate = prior.surrogate(q, drawn, allowed=allowed)
    found = torch.autograd.grad(surrogate, list(prior.parameters()))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(
            a, torch.triu(b, 1) if b.shape == (N, N) else b, atol=1e-3, rtol=0
        )
    assert not expected.requires_grad or prior.h.grad is None


def test_local_field_is_the_gradient_of_the_marginal_energy(prior):
    q = torch.rand(7, N, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(prior.energy(q).sum(), q)
    torch.testing.assert_close(prior.local_field(q.detach()), gradient)
    others = {name: value + 1 for name, value in prior.named_parameters()}
    assert not torch.allclose(prior.local_field(q.detach(), others), gradient)


def test_configurations_must_differ():
    with pytest.raises(ValueError, match="different rows of 0 and 1"):
        LabelledPrior(N, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def labelled(n_cells, seed, U, a):
    rng = np.random.default_rng(seed)
    q = torch.from_numpy(rng.random((n_cells, N))).float()
    p = torch.softmax(-(q @ U + a), 1)
    return q, torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed))[:, 0]


def test_the_labels_fit_is_that_of_scikit_learn():
    """On units of equal spread: the same optimum as a penalised logistic regression."""
    from sklearn.linear_model import LogisticRegression

    U, a = torch.randn(N, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(4)
    q, y = labelled(400, 0, U, a)
    prior, allowed = LabelledPrior(N, ONE), torch.nn.functional.one_hot(y, 4).bool()
    mean = torch.full((N,), 0.5)
    penalty = fit_labels(prior, q, allowed, mean)
    model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=2000)
    model.fit((q.double() - 0.5).numpy() / 0.5, y.numpy())
    p = torch.softmax(prior.label_logits(q), -1).detach()
    np.testing.assert_allclose(p, model.predict_proba((q.double() - 0.5).numpy() / 0.5), atol=3e-3)


def test_few_labels_give_weak_couplings():
    """The penalty falls with the number of labels, and labels that say nothing get none."""
    U = 6 * torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for n_cells in (12, 2000):
        q, y = labelled(n_cells, 3, U, torch.zeros(4))
        prior = LabelledPrior(N, ONE)
        found.append(
            fit_labels(prior, q, torch.nn.functional.one_hot(y, 4).bool(), torch.full((N,), 0.5))
        )
    assert found[0] > found[1]
    q, y = labelled(300, 5, torch.zeros(N, 4), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    prior = LabelledPrior(N, ONE)
    fit_labels(prior, q, torch.nn.functional.one_hot(y, 4).bool(), torch.full((N,), 0.5))
    p = torch.softmax(prior.label_logits(q), -1).detach()
    shares = torch.bincount(y, minlength=4) / len(y)
    assert (p - shares).abs().max() < 0.08


def test_coarse_labels_teach_their_own_level():
    """Cells with a coarse label only move it, and leave the fine ones' odds to cells that know."""
    U = torch.zeros(N, 4)
    U[0, 1] = -8.0  # the second coarse label goes with unit 0
    rng = torch.Generator().manual_seed(0)
    q = torch.rand(600, N, generator=rng)
    coarse = (q[:, 0] > 0.5).long()
    allowed = torch.tensor([[True, True, False], [False, False, True]])[coarse]
    fine = (torch.arange(600) < 40) & (coarse == 0)  # few know the fine label: by unit 1
    allowed[fine, 0] = q[fine, 1] > 0.5
    allowed[fine, 1] = q[fine, 1] <= 0.5
    prior = LabelledPrior(N, LEVELS)
    fit_labels(prior, q, allowed, torch.full((N,), 0.5))
    p = torch.softmax(prior.label_logits(q), -1).detach()
    assert ((p[:, 2] > 0.5) == (coarse == 1)).float().mean() > 0.97
    there = coarse == 0
    right = (p[there, 0] > p[there, 1]) == (q[there, 1] > 0.5)
    assert right.float().mean() > 0.85


def test_the_fit_keeps_the_machine_to_one_label_each(prior):
    """After it nearly all states have labels that go together, and log Z says so."""
    rng = torch.Generator().manual_seed(0)
    prior = LabelledPrior(N, prior.configurations)
    q = torch.rand(300, N, generator=rng)
    k = (q[:, 0] * len(prior.configurations)).long()
    allowed = torch.nn.functional.one_hot(k, len(prior.configurations)).bool()
    fit_labels(prior, q, allowed, q.mean(0))
    fit_prior(prior, NegativePhase(prior), q.mean(0), q.T @ q / len(q), lr=0.02, n_steps=200)
    prior.log_z.fill_(log_partition(prior.ising(), method="exact").value)
    with_labels = prior.log_prob(codes(N).float()).exp().sum().detach()
    assert 0.97 < float(with_labels) <= 1.0


def test_new_labels_leave_the_others_as_they_are():
    U = 6 * torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
    q, y = labelled(800, 3, U, torch.zeros(4))
    three, four = LabelledPrior(N, torch.eye(3)), LabelledPrior(N, ONE)
    old, mean = y < 3, torch.full((N,), 0.5)
    fit_labels(three, q[old], torch.nn.functional.one_hot(y[old], 3).bool(), mean)
    with torch.no_grad():
        four.a[:3], four.U[:, :3] = three.a, three.U
    fit_labels(four, q, torch.nn.functional.one_hot(y, 4).bool(), mean, n_fixed=3)
    torch.testing.assert_close(four.U[:, :3], three.U)
    shift = four.a[:3] - three.a
    torch.testing.assert_close(shift, shift[0].expand(3))  # it cancels
    p = torch.softmax(four.label_logits(q), -1).detach()
    assert (p.argmax(1) == y).float().mean() > 0.75
