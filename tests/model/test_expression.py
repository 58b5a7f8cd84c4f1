"""What scvi-tools' expression methods say for a binary latent and every likelihood."""

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import sparse

import scvi_qbm

LIKELIHOODS = ("nb", "zinb", "poisson", "normal")


MODELS = {}


def fitted(pbmc, likelihood="nb", relaxation="spike_exponential", epochs=3, **kwargs):
    """Trained once for all tests that ask for the same: they leave it as it is."""
    key = likelihood, relaxation, epochs, *kwargs.items()
    if key not in MODELS:
        MODELS[key] = trained(pbmc, likelihood, relaxation, epochs, **kwargs)
    return MODELS[key]


def trained(pbmc, likelihood, relaxation, epochs, **kwargs):
    scvi.settings.seed = 0
    adata = pbmc[:300].copy()
    layer = "counts"
    if likelihood == "normal":
        counts = adata.layers["counts"]
        scale = 1e4 / np.asarray(counts.sum(1))
        adata.layers["log"] = sparse.csr_matrix(counts.multiply(scale)).log1p()
        layer = "log"
    scvi_qbm.QBMVI.setup_anndata(adata, layer=layer, batch_key="batch", labels_key="cell_type")
    model = scvi_qbm.QBMVI(
        adata, n_latent=8, n_hidden=32, gene_likelihood=likelihood, relaxation=relaxation, **kwargs
    )
    model.train(max_epochs=epochs, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module", params=LIKELIHOODS)
def model(request, pbmc):
    return fitted(pbmc, request.param)


def test_likelihood_parameters(model):
    names = {
        "nb": {"mean", "dispersions"},
        "zinb": {"mean", "dispersions", "dropout"},
        "poisson": {"mean"},
        "normal": {"mean", "scale"},
    }[model.module.gene_likelihood]
    one = model.get_likelihood_parameters(indices=[3, 1])
    assert set(one) == names and all(v.shape == (2, 765) for v in one.values())
    many = model.get_likelihood_parameters(indices=[3, 1], n_samples=5)
    assert all(v.shape == (5, 2, 765) for v in many.values())
    assert (many["mean"].std(0) > 0).any()
    mean = model.get_likelihood_parameters(indices=[3, 1], n_samples=5, give_mean=True)
    assert all(v.shape == (2, 765) for v in mean.values())
    if "dispersions" in names:
        theta = model.module.px_r.exp().detach().numpy()
        np.testing.assert_allclose(one["dispersions"], np.stack([theta, theta]), rtol=1e-6)
    with pytest.raises(ValueError, match="n_samples"):
        model.get_likelihood_parameters(n_samples=0)


def test_feature_correlations(model):
    out = model.get_feature_correlation_matrix(
        indices=np.arange(50), n_samples=3, correlation_type="pearson", transform_batch=["a", "b"]
    )
    assert isinstance(out, pd.DataFrame) and out.shape == (765, 765)
    finite = out.to_numpy()[np.isfinite(out)]
    assert np.abs(finite).max() < 1 + 1e-6


def test_a_cluster_may_be_given_as_a_number(model):
    model.adata.obs["cluster"] = np.where(np.arange(model.adata.n_obs) % 2, "1", "0")
    torch.manual_seed(0)
    one = model.differential_expression(groupby="cluster", group1=0, group2=1, silent=True)
    torch.manual_seed(0)
    other = model.differential_expression(groupby="cluster", group1="0", group2="1", silent=True)
    assert set(one["comparison"]) == {"0 vs 1"}
    assert set(one.index) == set(other.index)
    del model.adata.obs["cluster"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"groupby": "donor"}, "'donor' is not in adata.obs"),
        ({"groupby": "batch", "group1": "z"}, "No cells of group 'z'.*'a'"),
        ({"groupby": "batch", "group1": ["a", "z"]}, "No cells of group 'z'"),
        ({"groupby": "batch", "group1": "a", "group2": "z"}, "No cells of group 'z'"),
        ({"groupby": "one"}, "one group only, 'x'"),
    ],
)
def test_groups_without_cells(model, groups, message):
    model.adata.obs["one"] = "x"
    with pytest.raises((KeyError, ValueError), match=message):
        model.differential_expression(**groups, silent=True)
    del model.adata.obs["one"]


def test_differential_expression(model):
    groups = {"groupby": "cell_type", "group1": "CD14+ Monocyte", "group2": "CD19+ B"}
    weighting = {"n_mc_samples": 20, "max_cells": 16}
    for weights, options in (("uniform", {}), ("importance", weighting)):
        out = model.differential_expression(
            **groups, weights=weights, importance_weighting_kwargs=options, silent=True
        )
        assert out.shape[0] == 765 and out["proba_m1"].between(0, 1).all()
    with pytest.raises(ValueError, match="n_mc_samples"):
        model.differential_expression(
            groupby="cell_type", group1="CD19+ B", weights="importance",
            importance_weighting_kwargs={"n_mc_samples": 0},
        )  # fmt: skip


def test_outlier_cells_can_be_filtered(pbmc):
    model = fitted(pbmc)
    out = model.differential_expression(
        groupby="cell_type", group1="CD19+ B", filter_outlier_cells=True, silent=True
    )
    assert np.isfinite(out["bayes_factor"]).all()


def test_importance_weights_equal_a_slow_twin(pbmc):
    """Loops over samples, anchors and components, for both relaxations."""
    for relaxation in ("spike_exponential", "overlapping_exponential"):
        model = fitted(pbmc, relaxation=relaxation)
        cells = np.array([4, 9, 30])
        which = {"indices": cells, "representation": "probabilities"}
        q = model.get_latent_representation(**which).astype(float)
        logits = model.get_latent_representation(indices=cells, representation="logits")
        qz = model.module.z_encoder.posterior(torch.from_numpy(logits))
        scvi.settings.seed = 1
        zs = qz.sample((2,))
        px = _likelihood_at(model, zs, cells)
        kwargs = {"n_mc_samples": 4, "n_mc_samples_per_pass": 4}
        scvi.settings.seed = 2
        weights = model.get_importance_weights(None, cells, qz=qz, px=px, zs=zs, **kwargs)
        scvi.settings.seed = 2
        log_px = model.get_marginal_ll(indices=cells, return_mean=False, **kwargs).numpy()
        z = qz.sample_binary(zs).numpy().astype(float)
        x = model.adata.layers["counts"][cells].toarray()
        W, h = model.prior
        log_z = float(model.module.prior.log_z)
        expected = []
        for s in range(2):
            for i in range(3):
                code = z[s, i]
                log_pz = -(h @ code + code @ W @ code / 2) - log_z
                mixture = sum(np.prod(np.where(code > 0, q[m], 1 - q[m])) for m in range(3))
                total = 0.0
                for n in range(3):
                    mu = px.scale[s, i].numpy() * x[n].sum()
                    theta = px.theta[s, i].numpy()
                    distribution = scvi.distributions.NegativeBinomial(
                        mu=torch.from_numpy(mu), theta=torch.from_numpy(theta)
                    )
                    log_px_z = float(distribution.log_prob(torch.from_numpy(x[n])).sum())
                    total += np.exp(log_pz + log_px_z - log_px[n] - np.log(mixture))
                expected.append(total)
        expected = np.array(expected) / np.sum(expected)
        np.testing.assert_allclose(weights, expected, rtol=2e-3, atol=1e-6)


def _likelihood_at(model, zs, cells):
    loader = model._make_data_loader(adata=model.adata, indices=cells, batch_size=3)
    tensors = next(iter(loader))
    with torch.inference_mode():
        inference = model.module.inference(
            **model.module._get_inference_input(tensors), n_samples=2
        )
        inference["z"] = zs
        return model.module.generative(**model.module._get_generative_input(tensors, inference))[
            "px"
        ]


def test_library_size_does_not_change_the_weights(pbmc):
    model = fitted(pbmc)
    options = {
        "indices": np.arange(20), "n_samples_overall": 50, "weights": "importance",
        "n_mc_samples": 10, "return_numpy": True,
    }  # fmt: skip
    scvi.settings.seed = 1
    plain = model.get_normalized_expression(**options)
    scvi.settings.seed = 1
    scaled = model.get_normalized_expression(library_size=1e4, **options)
    np.testing.assert_allclose(scaled, 1e4 * plain, rtol=1e-5)


def test_masks_and_positions_mean_the_same_cells(pbmc):
    model = fitted(pbmc)
    mask = np.zeros(300, dtype=bool)
    mask[[4, 250, 251]] = True
    positions = np.flatnonzero(mask)
    by_mask = model.get_gene_programs(indices=mask)
    np.testing.assert_array_equal(by_mask, model.get_gene_programs(indices=positions))
    assert list(model.get_energy(indices=mask).index) == list(model.adata.obs_names[positions])
    model.get_normalized_expression(
        indices=mask, n_samples_overall=10, weights="importance", n_mc_samples=4, return_numpy=True
    )
    with pytest.raises(ValueError, match="300 cells"):
        model.get_gene_programs(indices=mask[:9])


def test_truncation_and_limits_of_the_weights(pbmc):
    model = fitted(pbmc, epochs=1)
    cells = np.arange(6)
    logits = torch.from_numpy(
        model.get_latent_representation(indices=cells, representation="logits")
    )
    qz = model.module.z_encoder.posterior(logits)
    zs = qz.sample((2,))
    px = _likelihood_at_all(model, zs, cells)
    kwargs = {"qz": qz, "px": px, "zs": zs, "n_mc_samples": 4, "max_cells": 4}
    weights = model.get_importance_weights(None, cells, truncation=True, **kwargs)
    assert weights.shape == (12,) and weights.min() > 0
    np.testing.assert_allclose(weights.sum(), 1)
    for name in ("max_cells", "n_mc_samples", "n_mc_samples_per_pass"):
        with pytest.raises(ValueError, match=name):
            model.get_importance_weights(None, cells, **(kwargs | {name: 0}))


def _likelihood_at_all(model, zs, cells):
    loader = model._make_data_loader(adata=model.adata, indices=cells, batch_size=len(cells))
    tensors = next(iter(loader))
    with torch.inference_mode():
        inference = model.module.inference(
            **model.module._get_inference_input(tensors), n_samples=len(zs)
        )
        inference["z"] = zs
        return model.module.generative(**model.module._get_generative_input(tensors, inference))[
            "px"
        ]


@pytest.mark.slow
def test_log_normalised_values_change_by_their_difference(pbmc):
    model = fitted(pbmc, "normal", epochs=50)
    out = model.differential_expression(
        groupby="cell_type", group1="CD14+ Monocyte", group2="CD19+ B", mode="change", silent=True
    )
    assert not [c for c in out if c.startswith("raw_normalized")]
    assert np.isfinite(out["lfc_mean"]).all()
    named = model.differential_expression(
        None, "cell_type", "CD14+ Monocyte", "CD19+ B", None, None, "change",
        change_fn="log-fold", silent=True,
    )  # fmt: skip
    assert np.isfinite(named["lfc_mean"]).all()
    out = out.loc[model.adata.var_names]
    types = model.adata.obs["cell_type"]
    x = model.adata.layers["log"]
    raw = np.asarray(x[(types == "CD14+ Monocyte").to_numpy()].mean(0)).ravel()
    raw = (raw - np.asarray(x[(types == "CD19+ B").to_numpy()].mean(0)).ravel()) / np.log(2)
    slope = np.polyfit(raw, out["lfc_mean"], 1)[0]
    assert np.corrcoef(out["lfc_mean"], raw)[0, 1] > 0.7 and 0.3 < slope < 1.5


def test_library_size_means_nothing_to_normal(pbmc):
    model = fitted(pbmc, "normal", epochs=1)
    assert model.get_normalized_expression(indices=[0]).shape == (1, 765)
    with pytest.raises(ValueError, match="no library size"):
        model.get_normalized_expression(library_size=1e4)
    with pytest.raises(ValueError, match="no library size"):
        model.get_latent_library_size(give_mean=False)


def test_latent_library_size(pbmc):
    model = fitted(pbmc, use_observed_lib_size=False)
    sizes = model.get_latent_library_size()
    assert sizes.shape == (300, 1) and (sizes > 0).all()
    with pytest.raises(RuntimeError, match="give_mean"):
        fitted(pbmc, epochs=1).get_latent_library_size()


def test_abundance_finds_the_sample_of_each_type(pbmc):
    model = fitted(pbmc, epochs=40)
    adata = model.adata
    is_b = (adata.obs["cell_type"] == "CD19+ B").to_numpy()
    rng = np.random.default_rng(0)
    # Sample "rich" has nearly all the B cells.
    rich = np.where(is_b, rng.random(300) < 0.95, rng.random(300) < 0.3)
    adata.obs["sample"] = np.where(rich, "rich", "poor")
    model.differential_abundance(sample_key="sample", num_cells_posterior=80)
    log_probs = adata.obsm["da_log_probs"]
    assert list(log_probs.index) == list(adata.obs_names)
    difference = log_probs["rich"] - log_probs["poor"]
    assert difference[is_b].median() > difference[~is_b].median() + 0.5


def test_abundance_leaves_a_cell_out_of_its_own_sample(pbmc):
    model = fitted(pbmc, epochs=10)
    adata = model.adata
    adata.obs["sample"] = np.random.default_rng(1).choice(["u", "v"], 300)
    model.differential_abundance(sample_key="sample")
    log_probs = adata.obsm["da_log_probs"]
    own = np.where(adata.obs["sample"] == "u", log_probs["u"], log_probs["v"])
    other = np.where(adata.obs["sample"] == "u", log_probs["v"], log_probs["u"])
    # Random samples: no cell may be more at home in its own.
    assert abs(np.mean(own > other) - 0.5) < 0.1
    logits = model.get_latent_representation(representation="logits").astype(float)
    q = 1 / (1 + np.exp(-logits))
    members = np.setdiff1d(np.flatnonzero(adata.obs["sample"] == "u"), [0])
    terms = [q[0] @ np.log(q[m]) + (1 - q[0]) @ np.log1p(-q[m]) for m in members]
    np.testing.assert_allclose(
        log_probs["u"].iloc[0], np.logaddexp.reduce(terms) - np.log(len(members)), rtol=1e-4
    )
    few = adata[[0, 7, 200]].copy()
    model.differential_abundance(adata, few, sample_key="sample")
    np.testing.assert_allclose(few.obsm["da_log_probs"], log_probs.iloc[[0, 7, 200]], rtol=1e-5)
    with pytest.raises(KeyError, match="Available"):
        model.differential_abundance(sample_key="donor")
    adata.obs["sample"] = ["alone", None] + ["rest"] * 298
    with pytest.warns(UserWarning, match="1 cells have no 'sample'"):
        model.differential_abundance(sample_key="sample")
    log_probs = adata.obsm["da_log_probs"]
    assert set(log_probs) == {"alone", "rest"}
    assert np.isnan(log_probs["alone"].iloc[0]) and log_probs.isna().to_numpy().sum() == 1


def test_aggregated_posterior_is_the_mixture(pbmc):
    model = fitted(pbmc, epochs=5)
    distribution = model.get_aggregated_posterior(indices=np.arange(4))
    which = {"indices": np.arange(4), "representation": "probabilities"}
    q = model.get_latent_representation(**which).astype(float)
    code = np.array([0, 1] * 4)
    expected = np.log(np.mean(np.prod(np.where(code > 0, q, 1 - q), axis=1)))
    got = float(distribution.log_prob(torch.tensor(code, dtype=torch.float32)))
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert len(model.get_aggregated_posterior().mixture_distribution.probs) == 300
