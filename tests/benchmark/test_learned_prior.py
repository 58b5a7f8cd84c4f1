"""Controls with a learned prior: exact densities, an unbiased bound, better than N(0, I)."""

import numpy as np
import pytest
import scvi
import torch
from anndata import AnnData
from torch.distributions import Normal

from scvi_qbm.benchmark.methods import METHODS
from scvi_qbm.benchmark.methods.learned_prior import (
    JointMixture,
    LearnedPriorTwin,
    VampPrior,
)
from scvi_qbm.benchmark.methods.vae import GaussianTwin
from scvi_qbm.data import pbmc68k

NAMES = ("gaussian_mixture", "gaussian_vamp")


def small(n=300, n_genes=40, seed=0):
    """Cells of three types."""
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 3, n)
    rates = rng.gamma(1.0, 3.0, (3, n_genes))
    adata = AnnData(rng.poisson(rates[types]).astype(np.float32) + np.eye(n, n_genes, dtype="f4"))
    adata.obs["batch"] = [f"b{i % 2}" for i in range(n)]
    return adata


def test_a_mixture_is_of_whole_codes():
    torch.manual_seed(0)
    means, scales, logits = torch.randn(3, 2), torch.rand(3, 2) + 0.5, torch.randn(3)
    z = torch.randn(4, 5, 2)
    weights = torch.softmax(logits, 0)
    slow = sum(
        weights[k] * torch.exp(Normal(means[k], scales[k]).log_prob(z).sum(-1)) for k in range(3)
    )
    found = JointMixture(means, scales, logits).log_prob(z)
    assert found.shape == (4, 5, 1)
    torch.testing.assert_close(found[..., 0].exp(), slow)
    # As a density of the plane it has mass 1; a product of mixtures would be another one.
    grid = torch.linspace(-8, 8, 400)
    plane = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)
    mass = JointMixture(means, scales, logits).log_prob(plane).exp().sum() * (16 / 399) ** 2
    assert mass == pytest.approx(1, abs=1e-3)


def test_one_standard_component_is_the_gaussian_twin():
    """The same weights: the bound from draws has the closed form's mean."""
    adata = small()
    losses, weights = {}, None
    for cls, prior in ((GaussianTwin, {}), (LearnedPriorTwin, {"prior": "mixture"})):
        scvi.settings.seed = 0
        cls.setup_anndata(adata, batch_key="batch")
        model = cls(adata, n_latent=4, n_hidden=16, gene_likelihood="nb", **prior)
        if weights is not None:
            model.module.load_state_dict(weights, strict=False)
            model.module.prior.means.data[:] = 0.0
        weights = model.module.state_dict()
        model.is_trained_ = True
        model.module.eval()
        values = []
        for draw in range(200):
            torch.manual_seed(draw)
            values.append(float(model.get_elbo()))
        torch.manual_seed(0)
        iwae = model.get_marginal_ll(n_mc_samples=200)
        losses[cls.__name__] = np.mean(values), np.std(values) / 200**0.5, float(iwae)
    (a, error_a, iwae_a), (b, error_b, iwae_b) = losses.values()
    assert abs(a - b) < 5 * np.hypot(error_a, error_b)
    assert iwae_a == pytest.approx(iwae_b, abs=0.3)


def test_pseudo_inputs_are_encoded_as_cells_are():
    adata = small()
    LearnedPriorTwin.setup_anndata(adata)
    model = LearnedPriorTwin(adata, n_latent=4, n_hidden=16, prior="vamp", gene_likelihood="nb")
    assert isinstance(model.module.prior, VampPrior)
    model.module.prior.inputs.data = torch.log1p(torch.from_numpy(adata.X[:64]))
    model.is_trained_ = True
    model.module.eval()
    mean, variance = model.get_latent_representation(return_dist=True)
    distribution = model.module.prior(model.module.z_encoder)
    np.testing.assert_allclose(distribution.means.detach(), mean[:64], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(distribution.scales.detach() ** 2, variance[:64], rtol=1e-4)
    model.module.train()
    before = {k: v.clone() for k, v in model.module.z_encoder.state_dict().items()}
    model.module.prior(model.module.z_encoder)
    assert model.module.z_encoder.training
    assert all(torch.equal(v, before[k]) for k, v in model.module.z_encoder.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_they_learn_and_are_methods(name):
    adata = pbmc68k()
    adata.X = adata.layers["counts"].copy()
    options = {"batch_key": None, "seed": 0, "max_epochs": 60}
    learned, fixed = METHODS[name].run(adata, **options), METHODS["gaussian"].run(adata, **options)
    assert learned.embedding.shape == (700, 64)
    assert METHODS[name].likelihood == METHODS["gaussian"].likelihood
    prior = learned.model.module.prior
    assert all(p.requires_grad for p in prior.parameters())
    # Types are cheap to code for a prior that knows where they are.
    assert learned.validation_elbo > fixed.validation_elbo


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_the_last_fit_follows_the_codes(prior):
    adata = small()
    scvi.settings.seed = 0
    LearnedPriorTwin.setup_anndata(adata)
    model = LearnedPriorTwin(adata, n_latent=4, n_hidden=16, prior=prior, gene_likelihood="nb")
    plan = {"lr": 5e-3, "n_epochs_kl_warmup": 10}
    model.train(max_epochs=20, plan_kwargs=plan, accelerator="cpu", enable_progress_bar=False)
    mean, variance = map(
        torch.from_numpy, model.get_latent_representation(return_dist=True, give_mean=False)
    )
    torch.manual_seed(0)
    z = mean + variance.sqrt() * torch.randn(20, *mean.shape)
    with torch.no_grad():
        learned = model.module.prior(model.module.z_encoder).log_prob(z).mean()
    assert learned > Normal(0.0, 1.0).log_prob(z).sum(-1).mean() + 0.1
    assert all(p.grad is None or not p.grad.any() for p in model.module.parameters())
