"""Results in the data, as scanpy's tools and plots expect them, and pictures of them."""

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
from support.models import fitted

import scvi_qbm
from scvi_qbm import pl, tl


@pytest.fixture(scope="module")
def model(pbmc):
    setup = {"batch_key": "batch"}
    return fitted(pbmc, setup=setup, train={"max_epochs": 30}, n_latent=16, n_hidden=64)


@pytest.fixture(scope="module")
def analysed(model):
    adata = model.adata.copy()
    for tool in (tl.latent, tl.energy, tl.outliers, tl.attractors, tl.programs, tl.couplings):
        assert tool(model, adata) is None
    sc.pp.neighbors(adata, use_rep="X_qbmvi")
    sc.tl.umap(adata)
    return adata


def test_results_are_the_methods(model, analysed):
    np.testing.assert_array_equal(analysed.obsm["X_qbmvi"], model.get_latent_representation())
    np.testing.assert_array_equal(analysed.obs["free_energy"], model.get_energy()["free_energy"])
    np.testing.assert_array_equal(analysed.obs["outlier_score"], model.get_outlier_scores())
    found = model.get_attractors()
    np.testing.assert_array_equal(analysed.obs["attractor"].astype(int), found.merged(1.0))
    change = model.get_gene_programs()
    kept = analysed.varm["programs"]
    np.testing.assert_array_equal(kept[change.index], change.T)
    strength = change.pow(2).sum(axis=1)
    assert list(kept.columns) == list(strength.sort_values(ascending=False).index)
    assert analysed.uns["qbm"]["couplings"]["pairs"].equals(model.get_couplings())


def test_parameters_are_kept_and_all_can_be_written(model, analysed, tmp_path):
    kept = analysed.uns["qbm"]
    assert kept["X_qbmvi"] == {"representation": "aligned"}
    assert kept["outlier_score"] == {"score": "kl"}
    assert kept["free_energy"]["log_z"] == model.get_log_partition().value
    assert kept["attractor"]["depth"] == 1.0
    analysed.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    for name, value in kept["attractor"].items():
        np.testing.assert_array_equal(read.uns["qbm"]["attractor"][name], value)
    assert read.obs["attractor"].dtype == "category"
    for picture in (pl.energy, pl.attractors, pl.programs, pl.coupling_matrix, pl.coupling_graph):
        picture(read)


def test_attractors(model, analysed):
    kept = analysed.uns["qbm"]["attractor"]
    labels = analysed.obs["attractor"]
    assert list(labels.cat.categories) == [str(i) for i in range(labels.nunique())]
    assert labels.value_counts(sort=False).is_monotonic_decreasing
    sizes = np.bincount(kept["group"], kept["sizes"])
    np.testing.assert_array_equal(labels.value_counts(sort=False), sizes)
    every = tl.attractors(model, model.adata, depth=0, key_added="every", copy=True)
    assert every.obs["every"].nunique() >= labels.nunique() and "every" not in model.adata.obs
    one = tl.attractors(model, model.adata, depth=1e6, copy=True)
    assert one.obs["attractor"].nunique() == 1
    sc.tl.rank_genes_groups(analysed, "attractor", layer=None, method="t-test")  # scanpy takes it
    with pytest.raises(ValueError, match="depth"):
        tl.attractors(model, depth=-1)


def test_programs_name_genes_that_are_expressed(model, analysed):
    kept = analysed.uns["qbm"]["programs"]
    share = np.asarray((analysed.layers["counts"] > 0).mean(0)).ravel()
    change = analysed.varm["programs"]
    left_out = change.isna().to_numpy()
    assert (left_out == left_out[:, :1]).all()
    np.testing.assert_array_equal(left_out[:, 0], share < 0.01)
    some = tl.programs(model, analysed, min_share=0.2, n_genes=4, copy=True)
    named = some.uns["qbm"]["programs"]["up"]
    assert named.shape == (16, 4)
    assert (share[analysed.var_names.get_indexer(named.to_numpy().ravel())] >= 0.2).all()
    unit = kept["up"].index[0]
    assert kept["up"].loc[unit].iloc[0] == change[unit].idxmax()
    assert kept["down"].loc[unit].iloc[0] == change[unit].idxmin()
    on = model.get_latent_representation(representation="binary").mean(0)
    for name, value in kept["on"]["share"].items():
        assert value == pytest.approx(on[int(name.removeprefix("unit_"))])
    with pytest.raises(ValueError, match="n_genes"):
        tl.programs(model, n_genes=0)
    with pytest.raises(ValueError, match="min_share"):
        tl.programs(model, min_share=1)


def test_other_cells_and_copies(model, pbmc):
    new = pbmc[:50].copy()
    out = tl.energy(model, new, key_added="height", copy=True)
    assert "height" not in new.obs and len(out.obs["height"]) == 50
    assert set(out.uns["qbm"]) == {"height"}
    tl.latent(model, out, representation="evidence", key_added="X_evidence")
    assert set(out.uns["qbm"]) == {"height", "X_evidence"}


def test_the_model_comes_first(model):
    with pytest.raises(TypeError, match="model comes first"):
        tl.energy(model.adata, model)


def test_energy_picture(analysed):
    ax = pl.energy(analysed)
    (dots,) = [c for c in ax.collections if len(c.get_offsets()) == 700]
    colours = dots.get_array()
    assert (np.diff(colours) >= 0).all()  # the highest on top
    assert dots.norm.vmin == pytest.approx(np.percentile(analysed.obs["free_energy"], 1))
    pl.energy(analysed, show=False, title="mine")
    given = plt.subplots()[1]
    assert pl.energy(analysed, ax=given) is given


def test_attractor_picture(analysed):
    n_minima = len(analysed.uns["qbm"]["attractor"]["group"])
    ax = pl.attractors(analysed)
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert len(names) == min(n_minima, 60) and ax.get_ylabel().endswith("(nats)")
    labelled = pl.attractors(analysed, labels_key="cell_type")
    named = {text.get_text() for text in labelled.get_xticklabels()}
    first = analysed.obs["cell_type"][analysed.obs["attractor"] == "0"].mode().iloc[0]
    assert f"0 {first}" in named
    analysed.obs["unknown"] = np.where(analysed.obs["attractor"] == "0", None, "x")
    unnamed = pl.attractors(analysed, labels_key="unknown").get_xticklabels()
    assert "0 " in {text.get_text() for text in unnamed}


def test_program_picture(analysed):
    ax = pl.programs(analysed, n_units=5, n_genes=2)
    units = [text.get_text() for text in ax.get_yticklabels()]
    assert units == list(analysed.uns["qbm"]["programs"]["up"].index[:5])
    assert 2 <= len(ax.get_xticklabels()) <= 10


@pytest.mark.parametrize(
    ("picture", "tool"),
    [
        (pl.energy, "energy"),
        (pl.attractors, "attractors"),
        (pl.programs, "programs"),
        (pl.coupling_matrix, "couplings"),
        (pl.coupling_graph, "couplings"),
    ],
)
def test_pictures_say_what_comes_first(picture, tool, pbmc, analysed):
    with pytest.raises(KeyError, match=rf"scvi_qbm.tl.{tool}\(model, adata\)"):
        picture(pbmc)
    with pytest.raises(TypeError, match="AnnData"):
        picture(analysed.obsm["X_umap"])
    with pytest.raises(TypeError, match="not a dict"):
        picture({})
    if tool == "energy":
        with pytest.raises(KeyError, match="No embedding 'tsne'.*X_umap"):
            picture(analysed, basis="tsne")
    if tool == "attractors":
        with pytest.raises(KeyError, match="'donor' is not in adata.obs"):
            picture(analysed, labels_key="donor")


# Azimuth's markers of the types of its human PBMC reference, level 1 (platelets: level 2).
# Hao et al. (2021), Cell 184, 3573; azimuth.hubmapconsortium.org.
MARKERS = {
    "B": "CD79A RALGPS2 CD79B MS4A1 BANK1 CD74 TNFRSF13C HLA-DQA1 IGHM MEF2C",
    "NK": "NKG7 KLRD1 TYROBP GNLY FCER1G PRF1 CD247 KLRF1 CST7 GZMB",
    "monocyte": "CTSS FCN1 NEAT1 LYZ PSAP S100A9 AIF1 MNDA SERPINA1 TYROBP",
    "CD8 T": "CD8B CD8A CD3D TMSB10 HCST CD3G LINC02446 CTSW CD3E TRAC",
    "DC": "CD74 HLA-DPA1 HLA-DPB1 HLA-DQA1 CCDC88A HLA-DRA HLA-DMA CST3 HLA-DQB1 HLA-DRB1",
    "platelet": "GNG11 PPBP NRGN PF4 CAVIN2 TUBB1 HIST1H2AC PRKAR2B CLU F13A1",
}


def most_markers(adata, shuffle=False):
    """For each type, its markers among the top five genes of one unit, in one direction."""
    kept = adata.uns["qbm"]["programs"]
    genes = adata.var_names.to_numpy()
    other = dict(zip(genes, np.random.default_rng(0).permutation(genes), strict=True))
    rows = [row[:5] for side in ("up", "down") for row in kept[side].to_numpy()]
    tops = [{other[g] if shuffle else g for g in row} for row in rows]
    return {name: max(len(set(genes.split()) & top) for top in tops)
            for name, genes in MARKERS.items()}  # fmt: skip


@pytest.mark.long
def test_units_have_markers_of_cell_types(pbmc):
    plain = pbmc.copy()
    model = fitted(plain, train={"max_epochs": None}, n_latent=None, n_hidden=None)
    tl.programs(model)
    found = most_markers(model.adata)
    del found["platelet"]  # no such cells there
    assert min(found.values()) >= 2 and sum(found.values()) >= 14, found
    assert sum(most_markers(model.adata, shuffle=True).values()) < 10  # what chance gives


@pytest.mark.long
def test_units_have_markers_of_cell_types_across_batches(shared_data):
    adata = anndata.read_h5ad(shared_data / "pbmc_10x_3techs.h5ad")
    model = fitted(
        adata, layer=None, setup={"batch_key": "batch"}, train={"max_epochs": None},
        n_latent=None, n_hidden=None,
    )  # fmt: skip
    tl.programs(model)
    found = most_markers(model.adata)
    assert found.pop("platelet") >= 1  # seven cells
    assert min(found.values()) >= 2 and sum(found.values()) >= 15, found


def test_tools_are_attributes_of_the_package():
    assert scvi_qbm.tl is tl and scvi_qbm.pl is pl
