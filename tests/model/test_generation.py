import numpy as np
import pytest
import scvi
from scipy import sparse

import scvi_qbm
from scvi_qbm.benchmark.metrics.generation import generation_scores, log_normalise, two_sample_auc
from scvi_qbm.landscape import find_attractors
from scvi_qbm.model._generation import _with_shares


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


def shares(made):
    return made.obs["batch"].value_counts(normalize=True).reindex(["a", "b", "c"]).to_numpy()


def test_batches_have_the_shares_asked_for(pbmc):
    """Though types and batches go together: all B cells in a, no monocyte there."""
    adata = pbmc.copy()
    types = adata.obs["cell_type"].astype(str)
    batch = np.where(types == "CD19+ B", "a", np.where(types == "CD14+ Monocyte", "b", "c"))
    adata.obs["batch"] = batch
    model = fitted(adata)
    error = 4 / np.sqrt(4 * 2000)
    of_data = shares(model.adata)
    np.testing.assert_allclose(shares(model.generate(2000, seed=0)), of_data, atol=error)
    wanted = {"a": 1, "b": 0, "c": 3}
    made = shares(model.generate(2000, batch=wanted, seed=0))
    np.testing.assert_allclose(np.nan_to_num(made), [0.25, 0, 0.75], atol=error)
    for wrong in ({"a": -1, "b": 2}, {"a": 0}, {"a": np.nan}):
        with pytest.raises(ValueError, match="Shares of batches"):
            model.generate(5, batch=wrong)
    with pytest.raises(ValueError, match="No cells of batch 'z'"):
        model.generate(5, batch={"a": 1, "z": 1})


def test_cells_go_to_the_batch_that_has_their_like():
    log_weights = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.5, 0.5], [1e-9, 1.0]]))
    out = _with_shares(log_weights, np.array([0.5, 0.5]))
    np.testing.assert_allclose(out.sum(1), 1)
    np.testing.assert_allclose(out.mean(0), 0.5, atol=2e-3)
    assert out[0, 0] == out[1, 0] > out[2, 0] > out[3, 0]
    # One scale a column, which is all that may change.
    odds = np.log(out[:, 0] / out[:, 1]) - (log_weights[:, 0] - log_weights[:, 1])
    np.testing.assert_allclose(odds, odds[0])


def test_round_trip(pbmc):
    """What is generated fits the model, and is embedded near the code that it came from."""
    setup = {
        "labels_key": "cell_type",
        "categorical_covariate_keys": ["phase"],
        "continuous_covariate_keys": ["percent"],
        "size_factor_key": "depth",
    }
    adata = pbmc.copy()
    adata.obs["depth"] = np.ravel(adata.layers["counts"].sum(1)).astype(np.float32)
    model = fitted(adata, epochs=120, setup=setup, n_latent=24)
    made = model.generate(500, seed=0)
    assert (made.layers["counts"] != made.X).nnz == 0
    assert {"batch", "cell_type", "phase", "percent", "depth"} <= set(made.obs)
    for method in ("get_latent_representation", "get_elbo", "get_energy", "get_outlier_scores",
                   "get_normalized_expression"):  # fmt: skip
        assert np.isfinite(np.asarray(getattr(model, method)(made))).all()
    assert np.isfinite(model.get_gene_programs(made, min_share=0)).all(axis=None)
    back = model.get_latent_representation(made, representation="binary")
    both = find_attractors((model.prior.W, model.prior.h), np.vstack([made.obsm["code"], back]))
    start, end = both.merged(1.5)[:500], both.merged(1.5)[500:]
    by_chance = np.mean(start == np.random.default_rng(0).permutation(end))
    assert np.mean(start == end) > by_chance + 0.2


@pytest.mark.slow
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
    with pytest.raises(TypeError, match="For several: {'a': 1, 'b': 1}"):
        model.generate(5, batch=["a", "b"])
    with pytest.raises(ValueError, match="n_samples"):
        model.sample_prior(0)
    with pytest.raises(ValueError, match="library_size"):
        model.generate(5, library_size=0)
    with pytest.raises(ValueError, match="Unknown sampler"):
        model.generate(5, sampler="qpu")


def test_two_samples_of_one_distribution_cannot_be_told_apart():
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
