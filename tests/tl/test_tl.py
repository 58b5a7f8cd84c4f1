"""Results in the data, as scanpy's tools and plots expect them, and pictures of them."""

import inspect

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from support.models import fitted

import scvi_qbm
from scvi_qbm import pl, tl
from scvi_qbm.data.pbmc import PBMC_MARKERS
from scvi_qbm.tl.cells import DEFAULT_KEYS


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
    np.testing.assert_array_equal(analysed.obs["attractor"].astype(int), found.merged(1.5))
    change = model.get_gene_programs()
    kept = analysed.varm["programs"]
    np.testing.assert_array_equal(kept[change.index], change.T)
    strength = change.pow(2).sum(axis=1)
    assert list(kept.columns) == list(strength.sort_values(ascending=False).index)
    assert analysed.uns["qbm"]["couplings"]["pairs"].equals(model.get_couplings())


def test_parameters_are_kept_and_all_can_be_written(model, analysed, tmp_path):
    kept = analysed.uns["qbm"]
    assert kept["X_qbmvi"] == {"tool": "latent", "representation": "aligned"}
    assert kept["outlier_score"] == {"tool": "outliers", "score": "kl"}
    assert kept["free_energy"]["log_z"] == model.get_log_partition().value
    assert kept["attractor"]["depth"] == 1.5
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


def test_a_valley_has_one_name(model, pbmc, tmp_path):
    own = tl.attractors(model, depth=0, key_added="every", copy=True)
    names = own.obs["every"]
    rare = (names != "0").to_numpy()
    some = tl.attractors(model, pbmc[rare][::2].copy(), depth=0, copy=True)
    np.testing.assert_array_equal(some.obs["attractor"].astype(str), names[rare][::2].astype(str))
    assert "0" not in some.obs["attractor"].cat.categories
    assert some.uns["qbm"]["attractor"]["sizes"].sum() == some.n_obs
    # A query that is mapped onto the saved model, of cells that it alone has.
    model.save(tmp_path / "model")
    query = pbmc[rare].copy()
    query.obs["batch"] = "query"
    mapped = scvi_qbm.QBMVI.load_query_data(query, str(tmp_path / "model"))
    mapped.train(max_epochs=1, enable_progress_bar=False)
    tl.attractors(mapped, depth=0, key_added="every")
    np.testing.assert_array_equal(
        mapped.adata.uns["qbm"]["every"]["states"], own.uns["qbm"]["every"]["states"]
    )
    # Trained on, the machine is another one, and so are its minima.
    again = scvi_qbm.QBMVI.load(tmp_path / "model", pbmc.copy())
    again.train(max_epochs=1, enable_progress_bar=False)
    W, h = again.prior
    states = again.get_attractors().states.astype(float)
    uphill = (1 - 2 * states) * (h + states @ W)
    assert (uphill >= -1e-9).all()


def test_nothing_of_the_users_is_overwritten(model, analysed):
    before = analysed.obs["cell_type"].copy()
    with pytest.raises(ValueError, match=r"obs\['cell_type'\] is there already"):
        tl.attractors(model, analysed, key_added="cell_type")
    with pytest.raises(ValueError, match="result of tl.energy is there"):
        tl.attractors(model, analysed, key_added="free_energy")
    with pytest.raises(ValueError, match="tl.dpt did not write"):
        tl.dpt(analysed, 0, key_added="phase")
    with pytest.raises(ValueError, match="'X_umap'"):
        tl.latent(model, analysed, key_added="X_umap")
    pd.testing.assert_series_equal(analysed.obs["cell_type"], before)
    copy = tl.energy(model, analysed, copy=True)  # its own may be written again
    tl.energy(model, copy, key_added="height")
    tl.energy(model, copy, key_added="height")
    with pytest.raises(KeyError, match="No result of tl.attractors under 'height'"):
        pl.attractors(copy, "height")


def test_the_default_keys_are_those_of_the_signatures():
    for tool, (_, key) in DEFAULT_KEYS.items():
        assert inspect.signature(getattr(tl, tool)).parameters["key_added"].default == key
    writing = {
        t for t in tl.__all__ if "key_added" in inspect.signature(getattr(tl, t)).parameters
    }
    assert writing == set(DEFAULT_KEYS)


def test_programs_by_cell_type(model, analysed):
    out = tl.programs(model, analysed, labels_key="cell_type", copy=True)
    on = out.uns["qbm"]["programs"]["on"]
    types = analysed.obs["cell_type"].value_counts()
    assert list(on.index[:1]) == ["all cells"] and set(on.index[1:]) == set(types.index)
    mean = (on.loc[types.index].mul(types, axis=0)).sum() / len(analysed)
    np.testing.assert_allclose(mean, on.loc["all cells"])
    with pytest.raises(KeyError, match="'donor'"):
        tl.programs(model, analysed, labels_key="donor")


def test_programs_say_how_many_genes_are_left_out(model, caplog):
    with caplog.at_level("INFO", logger="scvi.qbm"):
        out = tl.programs(model, copy=True)
    rare = int(out.varm["programs"].isna().all(axis=1).sum())
    assert f"{rare} of 765 genes are in fewer than 1.0% of the cells" in caplog.text
    assert rare > 0


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
    for name, value in kept["on"].loc["all cells"].items():
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
    with pytest.raises(TypeError, match="needs a QBMVI model, not a dict"):
        tl.latent({}, model.adata)
    with pytest.raises(TypeError, match="`adata` is a float. Give keys by name"):
        tl.attractors(model, 2.0)
    with pytest.raises(TypeError, match="cells alone, not a QBMVI"):
        tl.dpt(model, 0)
    with pytest.raises(TypeError, match="Pass model.history, not a QBMVI"):
        pl.training_curves(model)


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
    kept = analysed.uns["qbm"]["attractor"]
    group, energies = kept["group"], kept["energies"] - kept["energies"].min()
    ax = pl.attractors(analysed)
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert sorted(names, key=int) == [str(g) for g in range(group.max() + 1)]
    assert ax.get_ylabel().endswith("(nats)") and "1.5 nats" in ax.get_title()
    stems = np.concatenate([line.get_ydata()[[0, 3]] for line in ax.lines])
    lowest = [energies[group == g].min() for g in range(group.max() + 1)]
    assert set(np.round(lowest, 9)) <= set(np.round(stems, 9))  # each starts at its minimum
    labelled = pl.attractors(analysed, labels_key="cell_type")
    named = {text.get_text() for text in labelled.get_xticklabels()}
    types = analysed.obs["cell_type"][analysed.obs["attractor"] == "0"].value_counts(
        normalize=True
    )
    assert f"0 {types.index[0]} {types.iloc[0]:.0%}" in named
    analysed.obs["unknown"] = np.where(analysed.obs["attractor"] == "0", None, "x")
    unnamed = pl.attractors(analysed, labels_key="unknown").get_xticklabels()
    assert {"0", "1 x 100%"} <= {text.get_text() for text in unnamed}


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


def most_markers(adata, shuffle=False):
    """For each type, its markers among the top five genes of one unit, in one direction."""
    kept = adata.uns["qbm"]["programs"]
    genes = adata.var_names.to_numpy()
    other = dict(zip(genes, np.random.default_rng(0).permutation(genes), strict=True))
    rows = [row[:5] for side in ("up", "down") for row in kept[side].to_numpy()]
    tops = [{other[g] if shuffle else g for g in row} for row in rows]
    return {name: max(len(set(genes.split()) & top) for top in tops)
            for name, genes in PBMC_MARKERS.items()}  # fmt: skip


@pytest.mark.slow
def test_units_have_markers_of_cell_types(pbmc):
    plain = pbmc.copy()
    model = fitted(plain, train={"max_epochs": None}, n_latent=None, n_hidden=None)
    tl.programs(model)
    found = most_markers(model.adata)
    del found["Platelet"], found["CD4_T"]  # no such cells; few genes of their own
    assert min(found.values()) >= 2 and sum(found.values()) >= 14, found
    assert sum(most_markers(model.adata, shuffle=True).values()) < 10  # what chance gives


@pytest.mark.slow
def test_units_have_markers_of_cell_types_across_batches(shared_data):
    adata = anndata.read_h5ad(shared_data / "pbmc_10x_3techs.h5ad")
    model = fitted(
        adata, layer=None, setup={"batch_key": "batch"}, train={"max_epochs": None},
        n_latent=None, n_hidden=None,
    )  # fmt: skip
    tl.programs(model)
    found = most_markers(model.adata)
    assert found.pop("Platelet") >= 1  # seven cells
    del found["CD4_T"]
    assert min(found.values()) >= 2 and sum(found.values()) >= 15, found


def test_tools_are_attributes_of_the_package():
    assert scvi_qbm.tl is tl and scvi_qbm.pl is pl
