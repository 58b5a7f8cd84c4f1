import numpy as np
import pytest
import scvi

import scvi_qbm

pytest.importorskip("huggingface_hub", reason="the hub extra is not installed")

from scvi_qbm.hub import model_card, pull, push


@pytest.fixture(scope="module")
def model(pbmc):
    scvi.settings.seed = 0
    adata = pbmc.copy()
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = scvi_qbm.QBMVI(adata, n_latent=8, n_hidden=16)
    model.train(max_epochs=3, enable_progress_bar=False)
    return model


def test_there_and_back(model, tmp_path):
    push(model, tmp_path / "hub", license="cc-by-4.0", description="Seven hundred cells.")
    loaded = pull(tmp_path / "hub")
    assert loaded.metadata.model_parent_module == "scvi_qbm"
    assert loaded.metadata.model_cls_name == "QBMVI"
    assert isinstance(loaded.model, scvi_qbm.QBMVI)
    np.testing.assert_array_equal(
        loaded.model.get_latent_representation(), model.get_latent_representation()
    )
    assert loaded.adata.shape == (700, 765)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        push(model, tmp_path / "hub", license="cc-by-4.0")
    push(model, tmp_path / "hub", license="mit", overwrite=True)
    assert pull(tmp_path / "hub").model_card.data.license == "mit"


def test_a_model_with_labels(pbmc, tmp_path):
    scvi.settings.seed = 0
    adata = pbmc.copy()
    adata.obs["known"] = adata.obs["cell_type"].astype(str)
    adata.obs.loc[adata.obs_names[::2], "known"] = "?"
    scvi_qbm.QBMANVI.setup_anndata(adata, "known", "?", layer="counts")
    model = scvi_qbm.QBMANVI(adata, n_latent=8, n_hidden=16)
    model.train(max_epochs=3, enable_progress_bar=False)
    push(model, tmp_path / "hub", license="mit")
    loaded = pull(tmp_path / "hub")
    assert loaded.metadata.model_cls_name == "QBMANVI"
    assert "QBMANVI.setup_anndata(adata, labels_key='known'" in loaded.model_card.text
    np.testing.assert_array_equal(loaded.model.predict(), model.predict())


def test_minified_and_without_data(model, pbmc, tmp_path):
    push(model, tmp_path / "bare", license="mit", save_anndata=False)
    assert not (tmp_path / "bare" / "adata.h5ad").exists()
    hub = pull(tmp_path / "bare")
    hub.load_model(adata=pbmc.copy())
    assert hub.model.get_latent_representation().shape == (700, 8)


def test_card_says_what_is_inside(model):
    card = model_card(model, license="cc-by-4.0", description="Blood.", references="Us, 2026.")
    log_z = model.get_log_partition()
    for text in (
        "model_cls_name:QBMVI", "Blood.", "Us, 2026.", "| n_latent | 8 |", "| n_cells | 700 |",
        "layer='counts', batch_key='batch'", f"{log_z.value:.2f}", "| epochs | 3 |",
    ):  # fmt: skip
        assert text in card
    with pytest.raises(ValueError, match="licence"):
        model_card(model, license="")


def test_other_files_are_left_alone(model, tmp_path):
    (tmp_path / "adata.h5ad").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="not empty"):
        push(model, tmp_path, license="mit")
    assert [p.name for p in tmp_path.iterdir()] == ["adata.h5ad"]
    assert (tmp_path / "adata.h5ad").read_bytes() == b"mine"


def test_untrained_models_stay_at_home(pbmc, tmp_path):
    adata = pbmc.copy()
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts")
    with pytest.raises(ValueError, match="not trained"):
        push(scvi_qbm.QBMVI(adata), tmp_path / "hub", license="mit")
    assert not (tmp_path / "hub").exists()
