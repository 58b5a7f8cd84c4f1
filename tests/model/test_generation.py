import numpy as np
import pytest
import scvi
from scipy import sparse

import scvi_qbm
from scvi_qbm.benchmark.metrics.generation import generation_scores, log_normalise, two_sample_auc


def fitted(pbmc, epochs=60, layer="counts", setup=None, **kwargs):
    scvi.settings.seed = 0
    adata = pbmc.copy()
    scvi_qbm.QBMVI.setup_anndata(adata, layer=layer, batch_key="batch", **(setup or {}))
    model = scvi_qbm.QBMVI(adata, **({"n_latent": 10, "n_hidden": 64} | kwargs))
    model.train(max_epochs=epochs, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def model(pbmc):
    return fitted(pbmc)


@pytest.fixture(scope="module")
def exact(model):
    return model.sample_prior(200_000, "exact", seed=2)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [("exact", {}), ("parallel_tempering", {}), ("gibbs", {}), ("cim", {"n_steps": 300})],
)
def test_prior_codes_have_the_moments_of_the_machine(model, exact, sampler, options):
    codes = model.sample_prior(4000, sampler, options, seed=1)
    assert codes.shape == (4000, 10) and codes.dtype == np.int8
    error = np.abs(codes.mean(0) - exact.mean(0)) / exact.std(0).clip(1e-2)
    assert error.max() < 0.1  # 6 standard errors of 4,000 independent draws
    np.testing.assert_array_equal(codes, model.sample_prior(4000, sampler, options, seed=1))


def test_prior_follows_the_seed_of_scvi(model):
    scvi.settings.seed = 5
    one = model.sample_prior(20)
    assert (one != model.sample_prior(20)).any()
    scvi.settings.seed = 5
    np.testing.assert_array_equal(one, model.sample_prior(20))


def test_generated_cells(model, pbmc):
    made = model.generate(300, batch="b", seed=3)
    assert made.shape == (300, 765) and sparse.issparse(made.X)
    assert (made.obs["batch"] == "b").all() and list(made.var_names) == list(pbmc.var_names)
    x = made.X.toarray()
    np.testing.assert_array_equal(x, np.rint(x))
    W, h = model.prior
    z = made.obsm["code"].astype(float)
    energy = z @ h + 0.5 * ((z @ W) * z).sum(1)
    np.testing.assert_allclose(made.obs["energy"], energy, atol=1e-3)
    again = model.generate(300, batch="b", seed=3)
    np.testing.assert_array_equal(x, again.X.toarray())
    assert set(model.generate(100, seed=1).obs["batch"]) == {"a", "b", "c"}
    deep = model.generate(300, library_size=20_000, seed=3).X.sum(1)
    assert abs(np.mean(deep) / 20_000 - 1) < 0.05


def test_generated_cells_are_nearer_to_real_ones_than_shuffled_genes(pbmc):
    """Right marginals are not enough: the codes carry the correlations."""
    model = fitted(pbmc, epochs=120, n_latent=48, n_hidden=128)
    real = pbmc.layers["counts"].toarray()
    made = model.generate(700, seed=0).X.toarray()
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(column) for column in real.T], axis=1)
    scores = generation_scores(real, made)
    worse = generation_scores(real, shuffled)
    assert scores["correlation"] < worse["correlation"]
    assert scores["auc_boosting"] < worse["auc_boosting"] - 0.02
    halves = generation_scores(real[::2], real[1::2])
    assert abs(halves["auc_boosting"] - 0.5) < 0.1 and abs(halves["auc_logistic"] - 0.5) < 0.1
    assert scores["marginal"] < 0.3


@pytest.mark.parametrize("likelihood", ["zinb", "poisson", "normal"])
def test_every_likelihood_generates(pbmc, likelihood):
    adata = pbmc.copy()
    adata.layers["counts"] = adata.layers["counts"].log1p() if likelihood == "normal" else (
        adata.layers["counts"]
    )  # fmt: skip
    model = fitted(adata, epochs=1, gene_likelihood=likelihood)
    assert np.isfinite(model.generate(20).X.toarray()).all()
    if likelihood == "normal":
        with pytest.raises(ValueError, match="library_size"):
            model.generate(20, library_size=1000)


def test_covariates_and_latent_library(pbmc):
    setup = {
        "categorical_covariate_keys": ["phase"],
        "continuous_covariate_keys": ["percent"],
        "labels_key": "cell_type",
    }
    model = fitted(pbmc, epochs=1, setup=setup, use_observed_lib_size=False)
    made = model.generate(50)
    assert {"batch", "phase", "percent", "energy"} <= set(made.obs)
    with pytest.raises(ValueError, match="library_size"):
        model.generate(20, library_size=1000)


def test_a_covariate_twice_and_one_called_energy(pbmc, tmp_path):
    model = fitted(pbmc, epochs=1, setup={"categorical_covariate_keys": ["batch"]})
    model.generate(10).write_h5ad(tmp_path / "made.h5ad")
    adata = pbmc.copy()
    adata.obs["energy"] = 1.0
    model = fitted(adata, epochs=1, setup={"continuous_covariate_keys": ["energy"]})
    with pytest.raises(ValueError, match="'energy': rename"):
        model.generate(10)


def test_generated_genes_that_never_vary_count_against_the_model(pbmc):
    real = pbmc.layers["counts"].toarray()
    dead = real[::-1].copy()
    dead[:, 50:] = 1
    assert (
        generation_scores(real, dead)["correlation"]
        > generation_scores(real, real[::-1])["correlation"] + 0.02
    )
    with pytest.raises(ValueError, match="two genes"):
        generation_scores(np.ones((20, 5)), real[:20, :5])


def test_bad_requests(model):
    with pytest.raises(ValueError, match="No cells of batch 'z'.*'a'"):
        model.generate(5, batch="z")
    with pytest.raises(ValueError, match="n_samples"):
        model.sample_prior(0)
    with pytest.raises(ValueError, match="library_size"):
        model.generate(5, library_size=0)
    with pytest.raises(ValueError, match="Unknown sampler"):
        model.generate(5, sampler="qpu")


def test_two_samples_of_one_law_cannot_be_told_apart():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 600, 5))
    for classifier in ("boosting", "logistic"):
        assert abs(two_sample_auc(x, y, classifier=classifier) - 0.5) < 0.06
        assert two_sample_auc(x, y + 1, classifier=classifier) > 0.8
    with pytest.raises(ValueError, match="boosting, logistic"):
        two_sample_auc(x, y, classifier="svm")
    with pytest.raises(ValueError, match="features"):
        two_sample_auc(x, y[:, :3])
    with pytest.raises(ValueError, match="ten cells"):
        two_sample_auc(x[:5], y)


def test_log_normalise_matches_scanpy(pbmc):
    import scanpy as sc

    other = pbmc.copy()
    other.X = other.layers["counts"].copy()
    sc.pp.normalize_total(other, target_sum=1e4)
    sc.pp.log1p(other)
    np.testing.assert_allclose(
        log_normalise(pbmc.layers["counts"]), other.X.toarray(), rtol=1e-5, atol=1e-6
    )
    assert (log_normalise(np.zeros((2, 3))) == 0).all()
