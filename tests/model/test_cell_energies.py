"""Energies of cells, attractors, couplings and gene programs of a trained model."""

import matplotlib
import numpy as np
import pytest
import scvi
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
    assert programs.shape == (16, 765) and np.isfinite(programs.to_numpy()).all()
    np.testing.assert_array_equal(programs, model.get_gene_programs(n_cells=64))
    # Among cells that differ in the unit, its top genes differ the same way.
    q = model.get_latent_representation(representation="probabilities")
    unit = (programs.pow(2).sum(axis=1) * q.var(0)).argmax()
    top = programs.iloc[unit].sort_values()
    expression = model.get_normalized_expression()
    on, off = expression[q[:, unit] > 0.5].mean(), expression[q[:, unit] <= 0.5].mean()
    change = np.log2(on / off)
    assert change[top.index[-20:]].mean() > change[top.index[:20]].mean() + 0.3


def test_units_that_do_nothing_have_no_program(pbmc):
    scvi.settings.seed = 0
    adata = pbmc.copy()
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts")
    model = scvi_qbm.QBMVI(adata, n_latent=4, n_hidden=16)
    model.is_trained_ = True
    first = model.module.decoder.px_decoder.fc_layers[0][0].weight
    first.data[:, 2] = 0
    programs = model.get_gene_programs(n_cells=16)
    assert np.abs(programs.iloc[2]).max() < 1e-6 < np.abs(programs.iloc[1]).max()


def test_pictures(model):
    out = model.get_attractors()
    frame = model.get_energy()
    ax = pl.energy_landscape(model.get_latent_representation()[:, :2], frame["free_energy"])
    assert len(ax.collections) == 1
    ax = pl.attractor_tree(out.tree)
    assert ax.get_ylabel().endswith("(nats)")
    pl.coupling_matrix(-model.prior.W)
    ax = pl.gene_programs(model.get_gene_programs(n_cells=16))
    assert len(ax.get_yticklabels()) == 16
    ax = pl.generation_quality({"QBMVI": {"zeros": 0.1}, "SCVI": {"zeros": 0.2}})
    assert len(ax.patches) == 2
    with pytest.raises(ValueError, match="Wanted"):
        pl.energy_landscape(np.zeros((3, 3)), np.zeros(3))
