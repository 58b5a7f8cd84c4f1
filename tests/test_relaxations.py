import numpy as np
import pytest
import torch

from scvi_qbm.relaxations import (
    BinaryRelaxation,
    SpikeExponential,
    TwoLevel,
    get_relaxation,
    list_relaxations,
    register_relaxation,
)

CASES = [
    (name, beta)
    for name, betas in {
        "spike_exponential": (0.5, 5.0),
        "overlapping_exponential": (2.0, 8.0),
    }.items()
    for beta in betas
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def make(request):
    name, beta = request.param
    return lambda logits: get_relaxation(name)(torch.as_tensor(logits).double(), beta)


def test_every_relaxation_is_tested_here():
    assert {name for name, _ in CASES} == set(list_relaxations())


def test_published_formula():
    """The paper's inverse CDF, written out."""
    rho = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    q = torch.tensor(0.7, dtype=torch.float64)
    dist = SpikeExponential(torch.logit(q), 0.5)
    expected = torch.log(torch.clamp(rho + q - 1, min=0) / q * (np.exp(0.5) - 1) + 1) / 0.5
    torch.testing.assert_close(dist.icdf(rho), expected)


def test_icdf_is_monotone_and_spans_the_unit_interval(make):
    dist = make([-30.0, -3.0, 0.0, 3.0, 30.0])
    rho = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None].expand(-1, 5)
    zeta = dist.icdf(rho)
    assert torch.isfinite(zeta).all() and zeta.min() >= 0 and zeta.max() <= 1 + 1e-12
    assert (zeta.diff(dim=0) >= -1e-12).all()
    torch.testing.assert_close(zeta[-1], torch.ones(5, dtype=torch.float64), atol=1e-6, rtol=0)


def test_log_prob_is_the_derivative_of_the_inverse_cdf(make):
    dist = make([0.4])
    rho = torch.linspace(0.5, 0.99, 200, dtype=torch.float64)[:, None].requires_grad_()
    zeta = dist.icdf(rho.detach())
    step = 1e-6
    slope = (dist.icdf(rho.detach() + step) - dist.icdf(rho.detach() - step)) / (2 * step)
    torch.testing.assert_close(dist.log_prob(zeta), -slope.log(), atol=1e-4, rtol=1e-4)


def test_moments_and_joint_draws(make):
    torch.manual_seed(0)
    dist = make([-1.0, 0.0, 2.0])
    n = 200_000
    z, joint = dist.sample_joint((n,))
    marginal = dist.rsample((n,))
    torch.testing.assert_close(z.mean(0), dist.loc, atol=0.006, rtol=0)
    torch.testing.assert_close(dist.scale**2, dist.loc * (1 - dist.loc))
    for draws in (joint, marginal):
        torch.testing.assert_close(draws.mean(0), dist.mean, atol=0.006, rtol=0)
        torch.testing.assert_close(draws.var(0), dist.variance, atol=0.006, rtol=0)
    for i in range(3):
        a, b = (np.sort(x[:, i].numpy()) for x in (joint, marginal))
        assert np.abs(a - b).mean() < 0.006


def test_gradient_is_that_of_the_inverse_cdf(make):
    logits = torch.tensor([-2.0, 0.3, 1.5], dtype=torch.float64, requires_grad=True)
    rho = torch.tensor([0.95, 0.6, 0.7], dtype=torch.float64)
    make(logits).icdf(rho).sum().backward()
    step = 1e-6
    finite = (make(logits.detach() + step).icdf(rho) - make(logits.detach() - step).icdf(rho)) / (
        2 * step
    )
    torch.testing.assert_close(logits.grad, finite, atol=1e-6, rtol=1e-5)
    assert (logits.grad > 0).all()


def test_extreme_logits_stay_finite(make):
    logits = torch.tensor([-80.0, -20.0, 20.0, 80.0], requires_grad=True)
    dist = type(make([0.0]))(logits, make([0.0]).beta.float().item())
    torch.manual_seed(0)
    zeta = dist.rsample((500,))
    zeta.sum().backward()
    assert torch.isfinite(zeta).all() and torch.isfinite(logits.grad).all()


def test_scvi_can_take_it_apart(make):
    """scvi-tools rebuilds a posterior from its arg_constraints."""
    from scvi.distributions._utils import subset_distribution

    dist = make(torch.randn(6, 3))
    part = subset_distribution(dist, torch.tensor([4, 1]))
    torch.testing.assert_close(part.mean, dist.mean[[4, 1]])
    assert dist.expand((2, 6, 3)).rsample().shape == (2, 6, 3)


def test_binary_log_prob_sums_to_one(make):
    dist = make([-1.0, 0.5])
    total = dist.binary_log_prob(torch.zeros(2)).exp() + dist.binary_log_prob(torch.ones(2)).exp()
    torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64))


def test_names(monkeypatch):
    with pytest.raises(ValueError, match="overlapping_exponential, spike_exponential"):
        get_relaxation("gumbel")
    with pytest.raises(ValueError, match="exists"):
        register_relaxation("spike_exponential", SpikeExponential)
    with pytest.raises(TypeError, match="BinaryRelaxation"):
        register_relaxation("x", torch.distributions.Normal)
    from scvi_qbm import relaxations

    monkeypatch.setattr(relaxations, "_RELAXATIONS", dict(relaxations._RELAXATIONS))
    register_relaxation("again", SpikeExponential)
    assert get_relaxation("again") is SpikeExponential
    assert issubclass(SpikeExponential, BinaryRelaxation)


def test_bad_beta():
    with pytest.raises(ValueError, match="beta"):
        SpikeExponential(torch.zeros(3), -1.0)


def test_settled_codes_are_the_means_given_the_bits(make):
    """Without the noise: the same z, two values of zeta, the same mean, less variance."""
    torch.manual_seed(0)
    noisy = make([-1.0, 0.0, 2.0])
    dist = noisy.settled()
    on, off = noisy.moments(1)
    assert isinstance(dist, TwoLevel) and torch.equal(dist.probs, noisy.probs)
    n = 100_000
    z, joint = dist.sample_joint((n,))
    torch.testing.assert_close(joint, z * on + (1 - z) * off)
    assert torch.equal(dist.sample_binary(joint), z)
    for draws in (joint, dist.rsample((n,))):
        assert ((draws == on) | (draws == off)).all()
        torch.testing.assert_close(draws.mean(0), noisy.mean, atol=0.006, rtol=0)
        torch.testing.assert_close(draws.var(0), dist.variance, atol=0.006, rtol=0)
    torch.testing.assert_close(dist.mean, noisy.mean)
    assert (dist.variance < noisy.variance).all()
    torch.testing.assert_close(dist.log_prob(joint), noisy.binary_log_prob(z))
    wide = dist.expand((5, 3))
    assert wide.sample_given(torch.ones(5, 3)).shape == wide.rsample().shape == (5, 3)
    assert torch.equal(wide.sample_given(torch.ones(5, 3)), on.expand(5, 3))


def test_settled_codes_of_minified_cells():
    """The probabilities that were kept, to the bit."""
    p = torch.tensor([1e-6, 0.3, 1.0])
    dist = SpikeExponential.from_moments(p, p * (1 - p)).settled()
    assert torch.equal(dist.probs, p) and torch.equal(dist.expand((2, 3)).probs[1], p)
    assert (dist.sample((100,))[:, 2] > 0).all()
