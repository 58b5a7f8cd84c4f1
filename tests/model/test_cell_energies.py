"""Energies of cells, attractors, couplings and gene programs of a trained model."""

import matplotlib
import numpy as np
import pytest
import scvi
import torch
from sklearn.metrics import adjusted_rand_score

import scvi_qbm
from scvi_qbm import pl

matplotlib.use("agg")


@pytest.fixture(scope="module")
def model(pbmc):
    scvi.settings.seed = 0
    adata = pbmc.copy()
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = scvi_qbm.QBMVI(adata, n_latent=16, n_hidden=64)
    model.train(max_epochs=80, enable_progress_bar=False)
    return model


def test_energies(model):
    frame = model.get_energy()
    assert list(frame.index) == list(model.adata.obs_names)
    q = model.get_latent_representation(representation="probabilities").astype(float)
    W, h = model.prior
    energy = q @ h + 0.5 * ((q @ W) * q).sum(1)
    np.testing.assert_allclose(frame["energy"], energy, atol=1e-3)
    p = q.clip(1e-12, 1 - 1e-12)
    entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p)).sum(1)
    np.testing.assert_allclose(frame["entropy"], entropy, atol=1e-3)
    np.testing.assert_allclose(frame["free_energy"], energy - entropy, atol=1e-3)
    log_z = model.get_log_partition().value
    np.testing.assert_allclose(frame["kl"], frame["free_energy"] + log_z, atol=1e-3)
    assert (frame["kl"] > -1e-3).all()
    z = (q > 0.5).astype(float)
    np.testing.assert_allclose(frame["map_energy"], z @ h + 0.5 * ((z @ W) * z).sum(1), atol=1e-3)
    some = model.get_energy(indices=[5, 2])
    np.testing.assert_allclose(some, frame.iloc[[5, 2]], atol=1e-3)
    assert list(some.index) == list(frame.index[[5, 2]])


def test_outlier_scores_add_up(model):
    scores = {}
    for name in ("elbo", "kl", "reconstruction"):
        scvi.settings.seed = 4
        scores[name] = model.get_outlier_scores(score=name)
    np.testing.assert_allclose(
        scores["elbo"], scores["kl"] + scores["reconstruction"], rtol=1e-4, atol=1e-2
    )
    np.testing.assert_allclose(scores["kl"], model.get_energy()["kl"], atol=1e-3)
    with pytest.raises(ValueError, match="elbo, kl, reconstruction"):
        model.get_outlier_scores(score="distance")


def test_noise_is_stranger_than_cells(model, pbmc):
    """Genes shuffled among themselves, depth kept."""
    noise = pbmc.copy()
    rng = np.random.default_rng(0)
    counts = noise.layers["counts"].toarray()
    noise.layers["counts"] = type(noise.layers["counts"])(
        np.stack([rng.permutation(row) for row in counts])
    )
    real = model.get_outlier_scores(score="elbo").to_numpy()
    fake = model.get_outlier_scores(noise, score="elbo").to_numpy()
    assert np.mean(fake[:, None] > real[None, :]) > 0.9


def test_attractors_follow_cell_types(model):
    out = model.get_attractors()
    codes = model.get_latent_representation(representation="binary")
    assert out.labels.shape == (700,) and out.sizes.sum() == 700
    assert (np.diff(out.sizes) <= 0).all()
    W, h = model.prior
    minimum = out.states[out.labels].astype(float)
    lower = minimum @ h + 0.5 * ((minimum @ W) * minimum).sum(1)
    before = codes @ h + 0.5 * ((codes @ W) * codes).sum(1)
    assert (lower <= before + 1e-4).all()
    types = model.adata.obs["cell_type"]
    shuffled = np.random.default_rng(0).permutation(out.labels)
    assert adjusted_rand_score(types, out.labels) > 0.05 + adjusted_rand_score(types, shuffled)
    assert len(np.unique(out.merged(1e6))) == 1


def test_couplings(model):
    W, _ = model.prior
    frame = model.get_couplings()
    assert len(frame) == 16 * 15 // 2 and frame["coupling"].abs().is_monotonic_decreasing
    first = frame.iloc[0]
    assert first["coupling"] == -W[int(first["unit_a"]), int(first["unit_b"])]
    strong = model.get_couplings(threshold=float(frame["coupling"].abs().median()))
    assert len(strong) == 60


def test_gene_programs_move_what_they_say(model):
    programs = model.get_gene_programs(n_cells=64)
    assert programs.shape == (16, 765)
    np.testing.assert_array_equal(programs, model.get_gene_programs(n_cells=64))
    # Among cells that differ in the unit, its top genes differ the same way.
    q = model.get_latent_representation(representation="probabilities")
    unit = (programs.pow(2).sum(axis=1) * q.var(0)).argmax()
    top = programs.iloc[unit].dropna().sort_values()
    expression = model.get_normalized_expression()
    on, off = expression[q[:, unit] > 0.5].mean(), expression[q[:, unit] <= 0.5].mean()
    change = np.log2(on / off)
    assert change[top.index[-20:]].mean() > change[top.index[:20]].mean() + 0.3


def test_gene_programs_equal_a_slow_twin(model):
    """One cell and one unit at a time."""
    cells, unit = np.r_[3, 400, 100:160], 5
    decoded = np.zeros(765)
    for cell in cells:
        (tensors,) = model._make_data_loader(model.adata, indices=[cell], batch_size=1)
        with torch.inference_mode():
            inference = model.module.inference(**model.module._get_inference_input(tensors))
            qz = inference["qz"]
            for level, sign in zip(qz.moments(1), (1, -1), strict=True):
                zeta = qz.mean.clone()
                zeta[0, unit] = level[0, unit]
                inputs = model.module._get_generative_input(tensors, inference | {"z": zeta})
                scale = model.module.generative(**inputs)["px"].scale
                decoded += sign * np.log1p(1e4 * scale.numpy()[0]) / len(cells)
    counts = model.adata.layers["counts"][cells].toarray().astype(float)
    cp10k = 1e4 * counts / counts.sum(1, keepdims=True)
    q = model.get_latent_representation(indices=cells, representation="probabilities")
    batch = model.adata.obs["batch"].to_numpy()[cells]
    observed, weights = np.zeros(765), 0
    for name in np.unique(batch):
        x, on = cp10k[batch == name], q[batch == name, unit].astype(float)
        mean_on, mean_off = (np.average(x, axis=0, weights=w) for w in (on, 1 - on))
        weight = on.sum() * (1 - on).sum() / len(on)
        observed += weight * (np.log(mean_on + 0.1) - np.log(mean_off + 0.1))
        weights += weight
    product = decoded * observed / weights
    expected = np.where(product > 0, np.sign(decoded) * np.sqrt(np.abs(product)), 0)
    found = model.get_gene_programs(indices=cells, min_share=0).iloc[unit]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert 0 < (expected == 0).sum() < 765
    rare = (counts > 0).mean(0) < 0.05
    found = model.get_gene_programs(indices=cells, min_share=0.05).iloc[unit]
    np.testing.assert_array_equal(found.isna(), rare)


def test_units_that_do_nothing_have_no_program(pbmc):
    scvi.settings.seed = 0
    adata = pbmc.copy()
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts")
    model = scvi_qbm.QBMVI(adata, n_latent=4, n_hidden=16)
    model.is_trained_ = True
    first = model.module.decoder.px_decoder.fc_layers[0][0].weight
    first.data[:, 2] = 0
    programs = model.get_gene_programs(n_cells=16, min_share=0)
    assert np.abs(programs.iloc[2]).max() < 1e-6 < np.abs(programs.iloc[1]).max()


def test_picture_of_generation():
    ax = pl.generation_quality({"QBMVI": {"zeros": 0.1}, "SCVI": {"zeros": 0.2}})
    assert len(ax.patches) == 2
