"""Minified, queried, saved, loaded, reordered: data that come and go."""

import numpy as np
import pytest
import scvi
import torch
from scvi.data import synthetic_iid

import scvi_qbm

COUNTS = "latent_posterior_parameters_with_counts"


def fitted(adata, epochs=5, layer="counts", **kwargs):
    scvi.settings.seed = 0
    adata = adata.copy()
    scvi_qbm.QBMVI.setup_anndata(adata, layer=layer, batch_key="batch", labels_key="cell_type")
    model = scvi_qbm.QBMVI(adata, **({"n_latent": 12, "n_hidden": 32} | kwargs))
    model.train(max_epochs=epochs, enable_progress_bar=False)
    return model


def with_moments(model):
    mean, variance = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = mean, variance
    return model


@pytest.fixture(scope="module")
def saved_model(pbmc, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    with_moments(fitted(pbmc, epochs=12)).save(path, save_anndata=True)
    return path


@pytest.fixture
def model(saved_model):
    """A fresh copy for every test: most change it."""
    return scvi_qbm.QBMVI.load(saved_model)


@pytest.mark.parametrize("kind", ["latent_posterior_parameters", COUNTS])
def test_minified_latents_are_the_same_to_the_bit(model, kind, tmp_path):
    before = {
        r: model.get_latent_representation(representation=r)
        for r in ("probabilities", "binary", "zeta")
    }
    aligned = model.get_latent_representation()
    logits = model.get_latent_representation(representation="logits")
    energy = model.get_energy()
    attractors = model.get_attractors()
    scvi.settings.seed = 3
    expression = model.get_normalized_expression(n_samples=100)
    model.minify_adata(kind)
    assert model.minified_data_type == kind
    left = model.adata_manager.get_from_registry("X").nnz
    assert (left > 0) == (kind == COUNTS)
    for representation, there in before.items():
        now = model.get_latent_representation(representation=representation)
        np.testing.assert_array_equal(now, there)
    np.testing.assert_allclose(model.get_latent_representation(), aligned, atol=1e-3)
    np.testing.assert_allclose(
        model.get_latent_representation(representation="logits"), logits, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(model.get_energy(), energy, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(model.get_attractors().labels, attractors.labels)
    scvi.settings.seed = 3
    again = model.get_normalized_expression(n_samples=100)
    # Other draws of the same codes: cells resemble themselves more than each other.
    genes = expression.std().nlargest(50).index
    a, b = (np.log(x[genes]).sub(np.log(x[genes]).mean()) for x in (expression, again))
    likeness = np.corrcoef(a, b)[:700, 700:]
    assert np.median(np.diag(likeness)) > 0.8
    assert (likeness.argmax(1) == np.arange(700)).mean() > 0.3
    assert model.generate(20, seed=0).shape == (20, 765)
    model.save(tmp_path / "mini", save_anndata=True)
    loaded = scvi_qbm.QBMVI.load(tmp_path / "mini")
    np.testing.assert_allclose(loaded.get_latent_representation(), aligned, atol=1e-3)
    if kind == COUNTS:
        assert np.isfinite(float(loaded.get_elbo())) and np.isfinite(
            loaded.get_marginal_ll(n_mc_samples=5)
        )
        with pytest.warns(UserWarning, match="minified: latents"):
            loaded.train(max_epochs=1, enable_progress_bar=False)
    else:
        with pytest.raises(ValueError, match="get_elbo.*minified"):
            loaded.get_elbo()
        with pytest.raises(ValueError, match="needs counts"):
            loaded.get_outlier_scores(score="elbo")
        assert len(loaded.get_outlier_scores()) == 700


def test_certain_units_keep_their_log_odds():
    """A float32 probability is 1 from log-odds of 17 on; its variance is not yet 0."""
    from scvi_qbm.relaxations import SpikeExponential

    logits = torch.tensor([-60.0, -30.0, -17.0, -1.0, 0.0, 1.0, 17.0, 30.0, 60.0])
    distribution = SpikeExponential(logits)
    back = SpikeExponential.from_moments(distribution.loc, distribution.scale.square())
    torch.testing.assert_close(back.logits, logits, rtol=1e-5, atol=1e-5)
    assert (back.probs == distribution.probs).all()
    assert (back.expand((2, 9)).probs == distribution.probs).all()
    zero = SpikeExponential.from_moments(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0]))
    assert torch.isfinite(zero.logits).all() and zero.logits[0] < -80 and zero.logits[1] > 80


def test_minifying_twice_or_with_other_moments(model, pbmc):
    with pytest.raises(KeyError, match="'qzm' is not in adata.obsm"):
        model.minify_adata(use_latent_qzm_key="qzm")
    model.adata.obsm["gaussian"] = np.ones((700, 12), dtype=np.float32)
    with pytest.raises(ValueError, match=r"p \(1 - p\) of binary units"):
        model.minify_adata(use_latent_qzv_key="gaussian")
    model.adata.obsm["short"] = np.zeros((700, 3))
    with pytest.raises(ValueError, match=r"shape \(700, 12\)"):
        model.minify_adata(use_latent_qzm_key="short", use_latent_qzv_key="short")
    sizes = np.asarray(model.adata.layers["counts"].sum(1)).ravel()
    model.minify_adata()
    with pytest.raises(ValueError, match="minified already"):
        model.minify_adata()
    np.testing.assert_array_equal(model.adata.obs["observed_lib_size"], sizes)
    model.get_normalized_expression(library_size="latent")


def test_latent_library_cannot_be_minified(pbmc):
    model = with_moments(fitted(pbmc, use_observed_lib_size=False, epochs=1))
    with pytest.raises(ValueError, match="observed library size"):
        model.minify_adata()


def test_genes_in_another_order_are_refused(model, pbmc):
    order = np.random.default_rng(0).permutation(pbmc.n_vars)
    shuffled = pbmc[:, order].copy()
    with pytest.raises(ValueError, match="another order"):
        model.get_latent_representation(shuffled)
    with pytest.raises(ValueError, match="another order"):
        scvi_qbm.QBMVI.load_query_data(shuffled, model)
    renamed = shuffled.copy()
    renamed.var_names = ["renamed", *shuffled.var_names[1:]]
    with pytest.raises(ValueError, match="another order"):
        model.get_latent_representation(renamed)
    foreign = pbmc[:50].copy()
    foreign.var_names = [f"other_{i}" for i in range(765)]
    with pytest.warns(UserWarning, match="765 genes of adata are not among"):
        model.get_latent_representation(foreign)
    back = shuffled[:, model.get_var_names()].copy()
    np.testing.assert_array_equal(
        model.get_latent_representation(back), model.get_latent_representation()
    )
    scvi_qbm.QBMVI.prepare_query_anndata(shuffled, model)
    np.testing.assert_array_equal(
        model.get_latent_representation(shuffled), model.get_latent_representation()
    )


def test_new_data_that_do_not_fit_say_what_to_do(model, pbmc):
    query = pbmc[:20].copy()
    query.obs["batch"] = "new"
    with pytest.raises(ValueError, match=r"Category new .* not seen .*load_query_data"):
        model.get_latent_representation(query)
    with pytest.raises(ValueError, match=r"700 genes, the model 765. .*get_var_names"):
        model.get_latent_representation(pbmc[:20, :700].copy())


@pytest.mark.parametrize("saved", [True, False], ids=["path", "model"])
def test_query_with_missing_genes_new_batch_and_new_labels(model, pbmc, tmp_path, saved):
    query = pbmc[:200, 40:].copy()
    query.obs["batch"] = "new"
    query.obs["cell_type"] = "never seen"
    reference = model
    if saved:
        model.save(tmp_path / "reference")
        reference = str(tmp_path / "reference")
    with pytest.raises(ValueError, match="725 genes, the reference 765, of which 40 are missing"):
        scvi_qbm.QBMVI.load_query_data(query, reference)
    scvi_qbm.QBMVI.prepare_query_anndata(query, reference)
    mapped = scvi_qbm.QBMVI.load_query_data(query, reference)
    mapped.train(max_epochs=3, enable_progress_bar=False)
    for ours, theirs in zip(mapped.prior, model.prior, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert mapped.get_log_partition() == model.get_log_partition()
    assert mapped.module.n_batch == 4 and mapped.module.n_labels == model.module.n_labels + 1
    assert mapped.get_latent_representation().shape == (200, 12)
    # The reference's cells are where they were.
    np.testing.assert_allclose(
        mapped.get_latent_representation(_unregistered(pbmc[:50])),
        model.get_latent_representation(indices=np.arange(50)),
        atol=1e-5,
    )


def _unregistered(view):
    out = view.copy()
    out.obs["batch"] = out.obs["batch"].astype(str)
    return out


def test_other_classes_are_refused(pbmc, tmp_path):
    adata = pbmc.copy()
    scvi.model.SCVI.setup_anndata(adata, layer="counts", batch_key="batch")
    gaussian = scvi.model.SCVI(adata, n_latent=4)
    gaussian.train(max_epochs=1, enable_progress_bar=False)
    gaussian.save(tmp_path / "scvi", save_anndata=True)
    with pytest.raises(ValueError, match="different class"):
        scvi_qbm.QBMVI.load(tmp_path / "scvi")
    with pytest.raises(ValueError, match="different class"):
        scvi_qbm.QBMVI.load_query_data(pbmc.copy(), str(tmp_path / "scvi"))
    model = fitted(pbmc, epochs=1)
    model.save(tmp_path / "qbmvi")
    with pytest.raises(ValueError, match="different class"):
        scvi.model.SCVI.load(tmp_path / "qbmvi", adata=pbmc.copy())
    with pytest.raises(ValueError, match="var"):
        scvi_qbm.QBMVI.load(tmp_path / "qbmvi", adata=pbmc[:, :50].copy())


def test_other_batches_are_refused_outside_query_mapping(model, pbmc):
    other = pbmc[:50].copy()
    other.obs["batch"] = "elsewhere"
    with pytest.raises(ValueError, match="elsewhere"):
        model.get_latent_representation(other)


def test_synthetic_data_of_scvi(tmp_path):
    adata = synthetic_iid()
    scvi_qbm.QBMVI.setup_anndata(adata, batch_key="batch")
    with pytest.raises(ValueError, match="adata or registry"):
        scvi_qbm.QBMVI()
    with pytest.warns(UserWarning, match="var_activation"):
        scvi_qbm.QBMVI(adata, var_activation=torch.nn.Softplus())
