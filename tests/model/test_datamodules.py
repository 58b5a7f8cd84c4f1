"""Data that come from elsewhere: data modules, collections of AnnDatas, plain data loaders."""

import numpy as np
import pytest
import scvi
import torch
from anndata import AnnData
from anndata.experimental import AnnCollection
from scvi.dataloaders import CollectionAdapter
from support.models import FAST, DataModule, fitted

import scvi_qbm

SMALL = {"n_latent": 12, "n_hidden": 32}


@pytest.fixture(scope="module")
def categories(pbmc):
    adata = pbmc.copy()
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    return adata


@pytest.mark.parametrize(
    ("style", "likelihood", "covariates"),
    [
        ("lamin", "nb", ()),
        ("census", "nb", ["phase"]),
        ("lamin", "nb", ["phase", "cell_type"]),
        ("lamin", "normal", ()),
        ("census", "poisson", ()),
    ],
)
def test_datamodule(categories, style, likelihood, covariates, tmp_path):
    scvi.settings.seed = 0
    layer = None if likelihood == "normal" else "counts"
    module = DataModule(categories, layer, style=style, covariates=covariates, held_out=70)
    model = scvi_qbm.QBMVI(
        registry=module.registry, gene_likelihood=likelihood, encode_covariates=True, **SMALL
    )
    model.train(
        datamodule=module, max_epochs=12, check_val_every_n_epoch=1, enable_progress_bar=False
    )
    elbo = model.history["elbo_validation"].to_numpy(float).ravel()
    assert len(elbo) == 12 and elbo[-1] < elbo[0]
    assert np.abs(model.prior.W).max() > 1e-3
    assert model._alignment_["n_fitted"] == module.n_batch
    assert module.n_batch == 1 or model._alignment_["shifts"].abs().max() > 0

    def results(model):
        torch.manual_seed(0)
        loader = module.inference_dataloader()
        return (
            model.get_latent_representation(dataloader=loader),
            float(model.get_elbo(dataloader=loader)),
            model.get_normalized_expression(dataloader=loader),
            model.get_likelihood_parameters(dataloader=loader)["mean"],
            float(model.get_marginal_ll(dataloader=loader, n_mc_samples=4)),
        )

    before = results(model)
    assert before[0].shape == (700, 12) and np.ptp(before[0]) > 0.1
    assert before[2].shape == before[3].shape == categories.shape
    assert before[1] < before[4] < before[1] + 60

    model.save(tmp_path / "model", save_anndata=False, datamodule=module)
    loaded = scvi_qbm.QBMVI.load(tmp_path / "model", adata=False)
    for one, other in zip(before, results(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    assert loaded.get_log_partition() == model.get_log_partition()


def test_datamodule_agrees_with_anndata(categories):
    """The same cells through either door."""
    model = fitted(categories, setup={"batch_key": "batch"}, train={"max_epochs": 10})
    loader = DataModule(categories, "counts").inference_dataloader()
    np.testing.assert_allclose(
        model.get_latent_representation(dataloader=loader),
        model.get_latent_representation(),
        atol=1e-5,
    )


@pytest.mark.parametrize("place", [0, -1])
def test_labels_of_a_datamodule(categories, place, tmp_path):
    """scvi-tools' modules number the unlabelled category last, or where it comes first."""
    adata = categories.copy()
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    hidden = np.random.default_rng(0).random(adata.n_obs) < 0.5
    adata.obs["known"] = np.where(hidden, "Unknown", truth)
    names = sorted(set(truth))
    names.insert(place % (len(names) + 1), "Unknown")
    module = DataModule(adata, "counts", held_out=70, labels_key="known", names=names)
    scvi.settings.seed = 0
    model = scvi_qbm.QBMANVI(registry=module.registry, **SMALL)
    model.train(datamodule=module, max_epochs=12, enable_progress_bar=False)

    def results(model):
        torch.manual_seed(0)
        loader = module.inference_dataloader()
        return model.predict(dataloader=loader), float(model.get_elbo(dataloader=loader))

    found, elbo = results(model)
    assert (found == truth)[hidden].mean() > 0.6 and "Unknown" not in found
    model.save(tmp_path / "model", save_anndata=False, datamodule=module)
    again, elbo_again = results(scvi_qbm.QBMANVI.load(tmp_path / "model", adata=False))
    np.testing.assert_array_equal(again, found)
    assert elbo_again == elbo


def test_a_datamodule_without_labels(categories):
    with pytest.raises(ValueError, match="There are no labels"):
        scvi_qbm.QBMANVI(registry=DataModule(categories, "counts").registry)


def test_early_stopping_with_a_datamodule(categories):
    """Off by default, since nothing tells whether cells are held out; on where asked for."""
    module = DataModule(categories, "counts", held_out=70)
    model = scvi_qbm.QBMVI(registry=module.registry, **SMALL)
    plan = {"lr": 0.0, "n_epochs_kl_warmup": None}
    model.train(
        datamodule=module,
        max_epochs=40,
        early_stopping=True,
        early_stopping_patience=2,
        plan_kwargs=plan,
        enable_progress_bar=False,
    )
    assert model.trainer.current_epoch < 40


def test_neither_data_nor_registry():
    with pytest.raises(ValueError, match="adata or registry must be provided"):
        scvi_qbm.QBMVI(adata=None)


def test_latent_library_needs_the_data(categories):
    module = DataModule(categories, "counts")
    with pytest.raises(ValueError, match="mean library size"):
        scvi_qbm.QBMVI(registry=module.registry, use_observed_lib_size=False)


def test_collection_of_anndatas(pbmc, tmp_path):
    parts = [pbmc[:300].copy(), pbmc[300:].copy()]
    collection = CollectionAdapter(
        AnnCollection(parts, join_vars="inner", join_obs="inner", label="dataset")
    )
    scvi.settings.seed = 0
    scvi_qbm.QBMVI.setup_anndata(collection, layer="counts", batch_key="dataset")
    model = scvi_qbm.QBMVI(collection, **SMALL)
    model.train(**(FAST | {"max_epochs": 12}))
    elbo = model.history["elbo_validation"].to_numpy(float).ravel()
    assert elbo[-1] < elbo[0]
    latent = model.get_latent_representation()
    assert latent.shape == (700, 12) and np.isfinite(float(model.get_elbo()))
    model.save(tmp_path / "model", save_anndata=False)
    loaded = scvi_qbm.QBMVI.load(tmp_path / "model", adata=collection)
    np.testing.assert_array_equal(loaded.get_latent_representation(), latent)


def test_a_collection_without_layers(pbmc):
    part = AnnData(pbmc.layers["counts"], obs=pbmc.obs[["batch"]].copy())
    collection = CollectionAdapter(AnnCollection([part], join_obs="inner"))
    with pytest.raises(KeyError, match="layers only"):
        scvi_qbm.QBMVI.setup_anndata(collection, batch_key="batch")


def test_a_collection_with_bad_values(pbmc):
    bad = pbmc[300:].copy()
    bad.layers["counts"] = bad.layers["counts"].copy()
    bad.layers["counts"].data[-1] = 0.5
    collection = CollectionAdapter(
        AnnCollection([pbmc[:300].copy(), bad], join_vars="inner", label="dataset")
    )
    scvi_qbm.QBMVI.setup_anndata(collection, layer="counts", batch_key="dataset")
    with pytest.warns(UserWarning, match="not integers"):
        scvi_qbm.QBMVI(collection, **SMALL)


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_plain_dataloader(categories, likelihood):
    layer = None if likelihood == "normal" else "counts"
    setup = {"batch_key": "batch", "labels_key": "cell_type"}
    model = fitted(
        categories, layer=layer, setup=setup, gene_likelihood=likelihood, train={"max_epochs": 10}
    )

    def both(method, **kwargs):
        loader = model._make_data_loader(model.adata, batch_size=100)
        out = []
        for source in ({"dataloader": loader}, {"batch_size": 100}):
            torch.manual_seed(0)
            out.append(getattr(model, method)(**source, **kwargs))
        return out

    for method, kwargs in (
        ("get_latent_representation", {}),
        ("get_latent_representation", {"representation": "logits"}),
        ("get_latent_representation", {"give_mean": False}),
        ("get_elbo", {}),
        ("get_marginal_ll", {"n_mc_samples": 4, "n_mc_samples_per_pass": 2}),
        ("get_reconstruction_error", {}),
        ("get_normalized_expression", {"n_samples": 2}),
        ("get_likelihood_parameters", {"n_samples": 2}),
    ):
        ours, theirs = both(method, **kwargs)
        if not isinstance(ours, dict):
            ours, theirs = {"value": ours}, {"value": theirs}
        assert set(ours) == set(theirs)
        for name, value in ours.items():
            np.testing.assert_array_equal(value, np.asarray(theirs[name]), err_msg=method)
    with pytest.raises(ValueError, match="dataloader"):
        model.get_latent_representation(
            model.adata, dataloader=model._make_data_loader(model.adata)
        )
