"""One script runs with SCVI and with QBMVI; docs/methods.md says what each method means."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scvi
from scvi.criticism import PosteriorPredictiveCheck

import scvi_qbm
from scvi_qbm.benchmark.metrics.classify import knn_probe

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
TESTS = Path(__file__).parents[1]


def script(Model, adata, query, folder):
    """An analysis as scvi-tools' tutorials have it; nothing in it knows which model it is."""
    Model.setup_anndata(adata, layer="counts", batch_key="batch", labels_key="cell_type")
    model = Model(adata, n_latent=12, n_hidden=64)
    model.train(max_epochs=25, early_stopping=True, enable_progress_bar=False)
    model.view_anndata_setup(hide_state_registries=True)
    assert model.is_trained and Model.__name__ in model.summary_string
    history = model.history["elbo_train"].to_numpy(float)
    assert history[-1] < history[0]

    adata.obsm["latent"] = model.get_latent_representation()
    assert knn_probe(adata.obsm["latent"], adata.obs["cell_type"]).accuracy > 0.6

    elbo = float(model.get_elbo())
    likelihood = model.get_marginal_ll(n_mc_samples=20)
    error = model.get_reconstruction_error()["reconstruction_loss"]
    # get_elbo returns the ELBO in some versions of scvi-tools and its negative in others.
    assert likelihood > -abs(elbo) - 5 and np.isfinite(float(error))

    normalised = model.get_normalized_expression(transform_batch=["a", "b"], library_size=1e4)
    assert isinstance(normalised, pd.DataFrame) and normalised.shape == adata.shape
    np.testing.assert_allclose(normalised.sum(1), 1e4, rtol=1e-3)
    few = model.get_normalized_expression(
        indices=np.arange(30), n_samples_overall=100, weights="importance",
        n_mc_samples=10, max_cells=8, return_numpy=True,
    )  # fmt: skip
    assert np.asarray(few).shape == (100, adata.n_vars)
    markers = model.differential_expression(groupby="cell_type", mode="change", silent=True)
    b_cells = markers[markers["group1"] == "CD19+ B"].sort_values("lfc_mean")
    assert {"CD79A", "CD79B"} <= set(b_cells.index[-80:])
    vanilla = model.differential_expression(
        idx1=np.arange(40), idx2=np.arange(40, 90), filter_outlier_cells=True, silent=True
    )
    assert len(vanilla) == adata.n_vars

    samples = model.posterior_predictive_sample(n_samples=2, indices=np.arange(10))
    assert samples.shape == (10, adata.n_vars, 2)
    adata.layers["dense"] = adata.layers["counts"].toarray()
    check = PosteriorPredictiveCheck(adata, {"model1": model}, count_layer_key="dense")
    check.zero_fraction()
    assert set(check.metrics["zero_fraction"]) == {"model1", "Raw"}
    assert model.get_feature_correlation_matrix(indices=np.arange(40), n_samples=2).shape[0] == (
        adata.n_vars
    )
    assert "mean" in model.get_likelihood_parameters(indices=np.arange(5))
    model.get_aggregated_posterior(indices=np.arange(20)).sample((3,))
    model.differential_abundance(sample_key="phase")
    assert adata.obsm["da_log_probs"].shape == (adata.n_obs, 3)

    model.save(f"{folder}/model", save_anndata=True, overwrite=True)
    loaded = Model.load(f"{folder}/model")
    np.testing.assert_array_equal(loaded.get_latent_representation(), adata.obsm["latent"])

    Model.prepare_query_anndata(query, f"{folder}/model")
    mapped = Model.load_query_data(query, f"{folder}/model")
    mapped.train(max_epochs=2, enable_progress_bar=False)
    assert mapped.get_latent_representation().shape == (query.n_obs, 12)

    mean, variance = loaded.get_latent_representation(return_dist=True)
    loaded.adata.obsm["X_latent_qzm"], loaded.adata.obsm["X_latent_qzv"] = mean, variance
    loaded.minify_adata()
    assert loaded.minified_data_type == "latent_posterior_parameters"
    np.testing.assert_allclose(loaded.get_latent_representation(), adata.obsm["latent"], atol=1e-3)
    assert loaded.get_normalized_expression(indices=[0]).shape == (1, adata.n_vars)


@pytest.mark.parametrize(
    "Model",
    [pytest.param(scvi.model.SCVI, marks=pytest.mark.slow), scvi_qbm.QBMVI],
    ids=["SCVI", "QBMVI"],
)
def test_the_same_script_runs(Model, pbmc, tmp_path):
    scvi.settings.seed = 0
    query = pbmc[:100, 50:].copy()
    query.obs["batch"] = "new"
    script(Model, pbmc.copy(), query, tmp_path)


def rows(model="QBMVI"):
    """Of the tables on its methods; those of QBMANVI have a section of their own."""
    before, heading, section = DOCS.read_text().partition("## What `QBMANVI` adds\n")
    section, _, after = section.partition("\n## ")
    assert heading
    text = section if model == "QBMANVI" else before + after
    table = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_every_public_method_has_its_row():
    named = [name for row in rows() for name in re.findall(r"`(\w+)`", row[0])]
    public = {name for name in dir(scvi_qbm.QBMVI) if not name.startswith("_")}
    missing = {name for name in dir(scvi.model.SCVI) if not name.startswith("_")} | public
    missing.discard("setup_annbatch")  # of scvi-tools 1.5 alone, below the table
    assert set(named) == missing and len(named) == len(set(named))
    named = [name for row in rows("QBMANVI") for name in re.findall(r"`(\w+)`", row[0])]
    own = {name for name in dir(scvi_qbm.QBMANVI) if not name.startswith("_")} - public
    assert own <= set(named) <= own | public and len(named) == len(set(named))


def test_every_row_names_a_test_that_exists():
    for row in rows() + rows("QBMANVI"):
        found = re.findall(r"`(test_\w+)\.(test_\w+)`", row[-1])
        assert found, f"no test for {row[0]}"
        for file, function in found:
            source = next(TESTS.rglob(f"{file}.py")).read_text()
            assert f"def {function}(" in source, f"{file}.{function} is not there"
