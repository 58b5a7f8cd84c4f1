"""Gaussian codes under a Boltzmann mixture: the bound, its gradients, and the model on top."""

import numpy as np
import pytest
import torch
from torch.distributions import MixtureSameFamily, Normal

import scvi_qbm
from scvi_qbm.logz import log_partition
from scvi_qbm.mixture import BoltzmannMixture, GaussianCode
from scvi_qbm.prior import BernoulliPrior, BoltzmannPrior
from scvi_qbm.samplers.exact import all_states

N = 8


def machine(kind=BoltzmannPrior, sd=0.4):
    """A prior with random parameters and its exact log Z."""
    generator = torch.Generator().manual_seed(0)
    prior = kind(N).double()
    with torch.no_grad():
        prior.h.copy_(torch.randn(N, generator=generator, dtype=torch.float64) * sd)
        if kind is BoltzmannPrior:
            values = torch.randn(N, N, generator=generator, dtype=torch.float64) * sd
            prior.W_upper.copy_(values)
    prior.log_z.fill_(log_partition(prior.ising(), method="exact").value)
    return prior


def mixture():
    generator = torch.Generator().manual_seed(1)
    out = BoltzmannMixture(N).double()
    with torch.no_grad():
        for parameter in out.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
    return out


def enumerated(prior, components, zeta):
    """The mixture's log-density, by all 2^n codes."""
    z = torch.from_numpy((all_states(N) + 1) / 2).double()
    off, on = components.log_likelihoods(zeta)
    joint = prior.log_prob(z) + on @ z.T + off @ (1 - z).T
    return torch.logsumexp(joint, -1)


def test_bound_is_below_the_enumerated_density_and_near_it():
    prior, components = machine(), mixture()
    zeta = torch.randn(200, N, dtype=torch.float64) * 1.5
    bound, q = components.log_prob(prior, zeta)
    gap = enumerated(prior, components, zeta) - bound
    assert gap.min() >= -1e-10
    assert 0 < gap.mean() < 0.15
    # No other factorised law does better: q is the best, up to the passes that are left.
    for shift in (0.2, -0.2):
        logits = torch.logit(q) + shift
        other = torch.sigmoid(logits)
        off, on = components.log_likelihoods(zeta)
        entropy = torch.distributions.Bernoulli(other).entropy().sum(-1)
        value = (other * on + (1 - other) * off).sum(-1) + entropy
        value = value - prior.energy(other) - prior.log_z
        assert (value < bound + 1e-3).all()


def test_independent_units_make_the_bound_exact():
    prior, components = machine(BernoulliPrior), mixture()
    zeta = torch.randn(50, N, dtype=torch.float64)
    bound, q = components.log_prob(prior, zeta)
    torch.testing.assert_close(bound, enumerated(prior, components, zeta))
    (gradient,) = torch.autograd.grad(bound.sum(), components.loc, retain_graph=True)
    exact = enumerated(prior, components, zeta).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(exact, components.loc)[0])
    on = torch.sigmoid(-prior.h)
    weights = torch.distributions.Categorical(torch.stack([1 - on, on], -1))
    laws = Normal(components.loc.T, components.log_scale.T.exp())
    torch.testing.assert_close(bound, MixtureSameFamily(weights, laws).log_prob(zeta).sum(-1))


def test_gradients_are_those_of_the_bound():
    """The passes of mean field carry none, and need none where they have converged."""
    prior, components = machine(sd=0.2), mixture()
    zeta = torch.randn(4, N, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(components.log_prob(prior, zeta)[0].sum(), zeta)
    for cell, unit in ((0, 0), (1, 3), (3, 7)):
        step = torch.zeros_like(zeta)
        step[cell, unit] = 1e-4
        with torch.no_grad():
            up, down = (components.log_prob(prior, zeta + s)[0].sum() for s in (step, -step))
        assert float((up - down) / 2e-4) == pytest.approx(float(gradient[cell, unit]), abs=5e-3)


def test_equal_components_are_a_gaussian_prior():
    prior, components = machine(BernoulliPrior), BoltzmannMixture(N).double()
    with torch.no_grad():
        components.loc.zero_()
        components.log_scale.zero_()
    zeta = torch.randn(20, N, dtype=torch.float64)
    bound, _ = components.log_prob(prior, zeta)
    torch.testing.assert_close(bound, Normal(0.0, 1.0).log_prob(zeta).sum(-1))


def test_draws_given_units_have_their_moments():
    torch.manual_seed(0)
    components = mixture()
    z = torch.zeros(40_000, N, dtype=torch.float64)
    z[:, ::2] = 1
    draws = components.sample_given(z)
    k = z[0].long()
    loc = components.loc.detach()[k, torch.arange(N)]
    scale = components.log_scale.detach().exp()[k, torch.arange(N)]
    assert ((draws.mean(0) - loc).abs() < 5 * scale / 200).all()
    torch.testing.assert_close(draws.std(0), scale, rtol=0.03, atol=0)


def test_weights_average_to_one_where_the_posterior_is_wide():
    """E_q[p / q] = 1 for the exact density; the bound gives a little less."""
    torch.manual_seed(0)
    prior, components = machine(sd=0.2), mixture()
    wide = torch.full((1, N), 2.0, dtype=torch.float64)
    code = GaussianCode(torch.zeros_like(wide), wide, components, prior)
    zeta, log_weight = code.weighted_draw(prior, 200_000)
    exact = enumerated(prior, components, zeta[:2000, 0]) - code.log_prob(zeta[:2000, 0]).sum(-1)
    assert (exact - log_weight[:2000, 0]).min() > -1e-10
    assert 0.85 < float(log_weight.exp().mean()) < 1.03
    kl, q = code.divergence(prior, zeta)
    torch.testing.assert_close(kl, -log_weight)
    assert q.shape == zeta.shape
    with pytest.raises(RuntimeError, match="its prior"):
        _ = GaussianCode(code.loc, code.scale).logits


@pytest.fixture(scope="module")
def fitted(pbmc):
    import scvi

    scvi.settings.seed = 0
    adata = pbmc.copy()
    adata.obs["half"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = scvi_qbm.QBMVI(adata, n_latent=8, latent_distribution="normal")
    model.train(max_epochs=30, enable_progress_bar=False)
    return model


def test_model_learns_units_and_couplings(fitted):
    z = fitted.get_latent_representation()
    assert z.shape == (fitted.adata.n_obs, 8) and z.min() < 0
    np.testing.assert_array_equal(z, fitted.get_latent_representation(representation="zeta"))
    q = fitted.get_latent_representation(representation="probabilities")
    assert 0 <= q.min() and q.max() <= 1 and q.std() > 0.1
    assert abs(fitted.prior.W).max() > 0.05
    elbo = float(fitted.get_elbo())
    bound = fitted.get_marginal_ll(n_mc_samples=30, return_mean=True)
    assert elbo < bound < elbo + 100
    assert fitted.summary(silent=True)["model", "relaxation"] is None


def test_model_keeps_what_it_knows(fitted, tmp_path):
    z = fitted.get_latent_representation()
    fitted.save(tmp_path / "model")
    loaded = scvi_qbm.QBMVI.load(tmp_path / "model", fitted.adata)
    np.testing.assert_array_equal(loaded.get_latent_representation(), z)
    assert loaded.module.z_encoder._prior[0] is loaded.module.prior
    adata = fitted.adata.copy()
    small = scvi_qbm.QBMVI.load(tmp_path / "model", adata)
    mean, variance = small.get_latent_representation(return_dist=True)
    adata.obsm["X_latent_qzm"], adata.obsm["X_latent_qzv"] = mean, variance
    small.minify_adata()
    np.testing.assert_allclose(small.get_latent_representation(), z, atol=1e-6)


def test_the_rest_of_the_model_works_on_gaussian_codes(fitted):
    adata = fitted.adata
    z = fitted.get_latent_representation()
    density = fitted.get_aggregated_posterior().log_prob(torch.from_numpy(z[:5]))
    assert torch.isfinite(density).all()
    fitted.differential_abundance(adata, sample_key="half")
    scores = adata.obsm["da_log_probs"].to_numpy()
    mean, variance = fitted.get_latent_representation(return_dist=True)
    others = np.flatnonzero((adata.obs["half"] == "a").to_numpy())[:-1]
    last = np.flatnonzero((adata.obs["half"] == "a").to_numpy())[-1]
    law = Normal(torch.from_numpy(mean[others]), torch.from_numpy(variance[others]).sqrt())
    slow = torch.logsumexp(law.log_prob(torch.from_numpy(mean[last])).sum(-1).double(), 0)
    column = list(adata.obsm["da_log_probs"].columns).index("a")
    assert scores[last, column] == pytest.approx(float(slow) - np.log(len(others)), abs=1e-2)
    assert np.isfinite(fitted.get_energy().to_numpy()).all()
    assert fitted.get_gene_programs(n_cells=20).shape == (8, adata.n_vars)
    new = fitted.generate(30, seed=0)
    assert new.n_obs == 30 and new.X.min() >= 0 and new.X.sum() > 0
    cells = np.arange(6)
    inference = fitted.module.z_encoder.from_moments(*map(torch.from_numpy, (mean, variance)))
    log_pz, log_qz = inference.population(
        fitted.module.prior, torch.from_numpy(z[:4]), torch.from_numpy(cells)
    )
    assert log_pz.shape == (4,) and log_qz.shape == (4, 6)
    assert (log_qz.argmax(1) == torch.arange(4)).all()


def test_query_mapping_keeps_the_mixture(fitted, pbmc, tmp_path):
    fitted.save(tmp_path / "reference")
    query = pbmc[:100].copy()
    query.obs["batch"] = "new"
    mapped = scvi_qbm.QBMVI.load_query_data(query, str(tmp_path / "reference"))
    before = {k: v.clone() for k, v in mapped.module.z_encoder.mixture.state_dict().items()}
    mapped.train(max_epochs=2, enable_progress_bar=False)
    for name, value in mapped.module.z_encoder.mixture.state_dict().items():
        torch.testing.assert_close(value, before[name])
    assert mapped.get_latent_representation().shape == (100, 8)
