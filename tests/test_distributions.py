"""Likelihoods: the same distribution as scvi-tools', whose formulas are the oracle."""

import numpy as np
import pytest
import scvi
import torch
from scvi.distributions import _negative_binomial as upstream
from scvi.distributions._utils import DistributionConcatenator, subset_distribution

from scvi_qbm import QBMVI
from scvi_qbm.data import simulate
from scvi_qbm.distributions import (
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
    count_terms,
    fast_counts,
)

N_CELLS, N_GENES = 5, 40
THEIRS = upstream.log_nb_positive, upstream.log_zinb_positive
THETA = {"a gene": (N_GENES,), "a cell and gene": (N_CELLS, N_GENES), "one": ()}


def counts(share=0.3, dtype=torch.float64):
    """Zeros, ones, large counts; a cell of zeros and one without."""
    generator = torch.Generator().manual_seed(0)
    shape = (N_CELLS, N_GENES)
    x = torch.poisson(torch.rand(shape, generator=generator) * 4, generator=generator)
    x = x * (torch.rand(shape, generator=generator) < share)
    x[0], x[1], x[2, :3] = 0, x[1] + 1, torch.tensor([1.0, 700.0, 20_000.0])
    return x.to(dtype)


def parameters(samples=(), theta=THETA["a gene"], seed=1):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    return draw(*samples, N_CELLS, N_GENES), draw(*theta), draw(*samples, N_CELLS, N_GENES)


def distribution(module, zero_inflated, raw):
    log_mu, log_theta, logits = raw
    kwargs = {"mu": log_mu.exp(), "theta": log_theta.exp(), "scale": log_mu.softmax(-1)}
    if zero_inflated:
        return module.ZeroInflatedNegativeBinomial(zi_logits=logits, **kwargs)
    return module.NegativeBinomial(**kwargs)


class Ours:
    NegativeBinomial, ZeroInflatedNegativeBinomial = NegativeBinomial, ZeroInflatedNegativeBinomial


@pytest.mark.parametrize("zero_inflated", [False, True])
@pytest.mark.parametrize("theta", THETA.values(), ids=THETA)
@pytest.mark.parametrize("samples", [(), (3,)])
def test_log_probabilities_and_gradients_are_upstreams(zero_inflated, theta, samples):
    x, weights = counts(), torch.rand(N_CELLS, N_GENES, dtype=torch.float64)
    found = []
    for module in (scvi.distributions, Ours):
        raw = parameters(samples, theta)
        value = distribution(module, zero_inflated, raw).log_prob(x)
        (value * weights).sum().backward()
        found.append([value.detach(), *(r.grad for r in raw if r.grad is not None)])
    theirs, ours = found
    assert len(theirs) == len(ours) == 3 + zero_inflated
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_count_terms_by_finite_differences():
    theta = torch.rand(N_GENES, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(lambda t: count_terms(counts(), t), theta.requires_grad_())


def test_zeros_cost_nothing_and_are_exactly_zero(monkeypatch):
    seen, lgamma = [], torch.lgamma
    monkeypatch.setattr(torch, "lgamma", lambda x: seen.append(x.numel()) or lgamma(x))
    x = counts()
    out = count_terms(x, torch.rand(N_GENES, dtype=torch.float64))
    assert seen == [int((x > 0).sum())] * 3
    assert (out[x == 0] == 0).all() and (out[x > 1] != 0).all()


@pytest.mark.parametrize("zero_inflated", [False, True])
def test_nan_is_not_hidden(zero_inflated):
    x = counts()
    x[3, 3] = float("nan")
    assert distribution(Ours, zero_inflated, parameters()).log_prob(x)[3, 3].isnan()


@pytest.mark.parametrize("zero_inflated", [False, True])
def test_laws_are_put_together_and_cut_as_scvi_tools_does(zero_inflated):
    whole = distribution(Ours, zero_inflated, parameters())
    part = subset_distribution(whole, torch.tensor([2, 4]), dim=0)
    assert type(part) is type(whole)
    torch.testing.assert_close(part.log_prob(counts()[[2, 4]]), whole.log_prob(counts())[[2, 4]])
    parts = DistributionConcatenator()
    for _ in range(2):
        parts.store_distribution(whole)
    both = parts.get_concatenated_distributions(axis=0)
    assert type(both) is type(whole)
    assert both.log_prob(counts().repeat(2, 1)).shape == (2 * N_CELLS, N_GENES)


def test_checks_are_upstreams():
    checked = NegativeBinomial(mu=torch.ones(2), theta=torch.ones(2), validate_args=True)
    with pytest.warns(UserWarning, match="support"):
        checked.log_prob(torch.tensor([0.5, 1.0]))


@pytest.fixture(scope="module")
def cells():
    return simulate(n_cells=120, n_genes=30, n_batches=2, seed=0)


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [("nb", NegativeBinomial), ("zinb", ZeroInflatedNegativeBinomial)],
)
def test_the_model_has_them(likelihood, expected, cells):
    QBMVI.setup_anndata(cells, layer="counts")
    model = QBMVI(cells, n_latent=8, gene_likelihood=likelihood)
    tensors = next(iter(model._make_data_loader(cells)))
    _, generative = model.module(tensors, compute_loss=False)
    assert type(generative["px"]) is expected


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_scvi_trains_to_the_same_numbers_within(likelihood, cells):
    def train():
        scvi.settings.seed = 0
        data = cells.copy()
        scvi.model.SCVI.setup_anndata(data, layer="counts")
        model = scvi.model.SCVI(data, gene_likelihood=likelihood, n_hidden=16, n_latent=4)
        model.train(max_epochs=3, enable_progress_bar=False, batch_size=32)
        return model.get_latent_representation(), model.history["elbo_train"].to_numpy()

    expected = train()
    with fast_counts():
        assert upstream.log_nb_positive is not THEIRS[0]
        found = train()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=2e-3, atol=2e-4)


def test_scvi_is_itself_again_afterwards():
    with pytest.raises(KeyError), fast_counts():
        assert upstream.log_zinb_positive is not THEIRS[1]
        raise KeyError
    assert (upstream.log_nb_positive, upstream.log_zinb_positive) == THEIRS
