import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvi_qbm.benchmark.metrics import neighbors, trajectory
from scvi_qbm.benchmark.metrics.groups import Reference
from scvi_qbm.benchmark.scores import GROUPS, METRICS, prepare_reference, score_embedding

pytestmark = pytest.mark.filterwarnings("ignore")

TRAJECTORY = {"trajectory", "trajectory_every", "diffusion_eigenvalue"}
DESCRIPTIONS = {
    "n_clusters",
    "resolution",
    "ari_at_1",
    "n_clusters_at_1",
    "diffusion_eigenvalue",
} | {f"xgb_{name}_sd" for name in ("accuracy", "precision", "recall", "f1")}
NEEDS_BATCH = {
    "bras", "ilisi", "kbet", "graph_connectivity", "pcr", "pcr_within", "scib_batch", "scib_total",
    "lobo_accuracy", "lobo_f1",
}  # fmt: skip
FINE = {"nmi_fine", "ari_fine", "ami_fine", "fmi_fine", "knn_f1_fine"}


@pytest.fixture(scope="module")
def adata():
    """A tree of four types (two of them halves of one) in two batches, counts in a layer."""
    rng = np.random.default_rng(0)
    n, genes = 360, 150
    fine = np.repeat(["s1", "s2", "mid", "L", "R"], n // 5)
    coarse = np.where(np.char.startswith(fine, "s"), "stem", fine)
    programs = rng.gamma(2.0, 1.0, size=(4, genes))
    path = {"s1": [1, 0, 0, 0], "s2": [0.6, 0.4, 0, 0], "mid": [0, 1, 0, 0],
            "L": [0, 0.3, 1, 0], "R": [0, 0.3, 0, 1]}  # fmt: skip
    batch = rng.choice(["p", "q"], n)
    rates = np.array([path[f] for f in fine]) @ programs
    rates *= np.where(batch == "p", 1.0, rng.gamma(8.0, 1 / 8, size=(genes, 1))).T
    counts = rng.poisson(rates * 2).astype(np.float32)
    adata = AnnData(np.zeros_like(counts), layers={"counts": sparse.csr_matrix(counts)})
    adata.obs["batch"], adata.obs["type"], adata.obs["fine"] = batch, coarse, fine
    adata.obs["type"] = adata.obs["type"].astype("category")
    return adata


@pytest.fixture(scope="module")
def reference(adata):
    return prepare_reference(
        adata, layer="counts", batch_key="batch", label_key="type", fine_label_key="fine",
        root_key="fine", root_label="s1",
    )  # fmt: skip


@pytest.fixture(scope="module")
def space(adata):
    """What a good method would find: types on a tree, no batches."""
    rng = np.random.default_rng(1)
    at = {"s1": [-2, 0, 0], "s2": [-1, 0, 0], "mid": [0, 0, 0], "L": [1, 1, 0], "R": [1, -1, 0]}
    centres = np.array([at[f] for f in adata.obs["fine"]]) * 1.5
    return (centres + rng.normal(size=centres.shape) * 0.45).astype(np.float32)


@pytest.fixture(scope="module")
def scored(space, reference):
    for package in ("scib_metrics", "igraph", "xgboost"):
        pytest.importorskip(package)
    return score_embedding(space, reference)


def test_the_reference(adata, reference):
    assert reference.unintegrated.shape == (360, 50)
    assert set(reference.labels) == {"stem", "mid", "L", "R"} and len(reference.fine_labels) == 360
    assert reference.scgraph.batches == ("p", "q") and not reference.scgraph.pooled
    pseudotime = pd.Series(reference.pseudotime).groupby(reference.labels).mean()
    assert pseudotime["stem"] < pseudotime["mid"] < min(pseudotime["L"], pseudotime["R"])
    assert adata.X.sum() == 0 and "X_pca" not in adata.obsm and "log1p" not in adata.uns
    # Principal components of log counts per 10,000, not of counts: depth has no say.
    deep = adata.copy()
    deep.layers["counts"] = sparse.diags(np.resize([1.0, 7.0], 360)) @ deep.layers["counts"]
    again = prepare_reference(deep, layer="counts", batch_key=None, label_key=None)
    ours, theirs = again.unintegrated[:, :5], reference.unintegrated[:, :5]
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-2)
    assert again.labels is None and again.batch is None and again.scgraph is None


def test_every_column_is_there_and_finite(scored):
    scores, artifacts = scored
    assert scores["errors"] == ""
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    times = {f"seconds_{group}" for group in (*GROUPS, "neighbors")}
    assert set(scores) == {m.name for m in METRICS} | DESCRIPTIONS | times | {"errors"}
    numbers = {k: v for k, v in scores.items() if k != "errors"}
    assert all(np.isfinite(v) for v in numbers.values()), numbers
    assert all(0 <= scores[m.name] <= 1 for m in METRICS if not m.name.startswith("scgraph"))
    assert artifacts["umap"].shape == (360, 2) and artifacts["umap"].dtype == np.float32
    assert artifacts["confusion"].sum() == 360
    assert artifacts["confusion_labels"].tolist() == ["L", "R", "mid", "stem"]
    assert artifacts["pseudotime"].shape == (360,)


def test_scores_order_embeddings_as_they_must(space, reference, scored):
    good = scored[0]
    shuffled, _ = score_embedding(np.random.default_rng(2).permutation(space), reference)
    blind = {"ilisi", "kbet", "bras", "scib_batch", "pcr", "pcr_within"}
    blind |= {"unique_rows", "graph_connectivity"}
    # Between four types far apart UMAP's distances are chance, others on another processor.
    blind |= {"scgraph_umap", "scgraph_umap_rank", "scgraph_umap_corr"}
    for metric in METRICS:
        if metric.name not in blind:
            assert good[metric.name] > shuffled[metric.name] + 0.02, metric.name
    apart = space + 8 * (reference.batch == "p")[:, None]
    split, _ = score_embedding(apart, reference, groups=["scib"])
    for name in ("ilisi", "kbet", "bras", "scib_batch", "pcr", "pcr_within"):
        assert good[name] > split[name] + 0.05, name


def test_groups_are_computed_alone(space, reference, scored):
    scores, artifacts = score_embedding(space, reference, groups=["local", "clustering"])
    names = {m.name for m in METRICS if m.group in ("local", "clustering")}
    times = {"seconds_neighbors", "seconds_local", "seconds_clustering"}
    assert set(scores) == names | {
        "n_clusters",
        "resolution",
        "ari_at_1",
        "n_clusters_at_1",
    } | times | {"errors"}
    assert {n: scores[n] for n in names} == {n: scored[0][n] for n in names}
    assert artifacts == {}
    alone, _ = score_embedding(space, reference, groups=["local"], seed=1)
    assert alone["knn_label_entropy"] == pytest.approx(scores["knn_label_entropy"], abs=0.01)


def test_missing_knowledge_is_nan(space, reference):
    bare = Reference(reference.labels, None, None, reference.unintegrated)
    scores, artifacts = score_embedding(space, bare)
    missing = {k for k, v in scores.items() if k != "errors" and np.isnan(v)}
    scgraph = {m.name for m in METRICS if m.group == "scgraph"}
    assert missing == NEEDS_BATCH | FINE | scgraph | TRAJECTORY
    assert scores["errors"] == "" and set(artifacts) == {"umap", "confusion", "confusion_labels"}
    nothing, artifacts = score_embedding(space, Reference(None, None, None, bare.unintegrated))
    assert all(np.isnan(nothing[m.name]) for m in METRICS) and nothing["errors"] == ""
    assert set(artifacts) == {"umap"}


def test_a_group_that_fails_does_not_take_the_others(space, reference, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no\n luck")

    monkeypatch.setattr(neighbors, "knn_label_entropy", fail)
    monkeypatch.setattr(trajectory, "trajectory_conservation", fail)
    scores, _ = score_embedding(space, reference, groups=["local", "clustering", "trajectory"])
    assert scores["errors"] == "local: RuntimeError: no luck; trajectory: RuntimeError: no luck"
    assert np.isnan(scores["knn_label_entropy"]) and np.isnan(scores["trajectory"])
    assert scores["nmi"] > 0.5
    monkeypatch.setattr(neighbors, "nearest_neighbors", fail)
    scores, _ = score_embedding(space[:, :2], reference, groups=["clustering", "classify"])
    assert scores["errors"] == "neighbors: RuntimeError: no luck; clustering: no neighbours"
    assert np.isnan(scores["nmi"]) and scores["knn_accuracy"] > 0.5


def test_bad_embeddings_and_groups(space, reference):
    for bad, message in (
        (space[:5], "5 rows in the embedding, 360 cells"),
        (space[:, 0], "cells x dimensions"),
        (np.where(np.arange(360)[:, None] == 3, np.nan, space), "not finite in 1 of 360"),
    ):
        with pytest.raises(ValueError, match=message):
            score_embedding(bad, reference)
    with pytest.raises(ValueError, match=r"Unknown groups \['scIB'\]. Available: scib, clust"):
        score_embedding(space, reference, groups=["scIB"])


def test_bad_data(adata):
    keys = {"layer": "counts", "batch_key": "batch", "label_key": "type"}
    with pytest.raises(KeyError, match="no column 'none'"):
        prepare_reference(adata, **keys | {"label_key": "none"})
    with pytest.raises(KeyError, match="No layer 'raw'"):
        prepare_reference(adata, **keys | {"layer": "raw"})
    holes = adata.copy()
    holes.obs.loc[holes.obs_names[:3], "type"] = np.nan
    with pytest.raises(ValueError, match="has 3 missing values"):
        prepare_reference(holes, **keys)
    holes.layers["counts"].data[0] = -1
    with pytest.raises(ValueError, match="not negative"):
        prepare_reference(holes, **keys | {"label_key": None})
    with pytest.raises(ValueError, match="No cell has the label 'root'"):
        prepare_reference(adata, **keys, root_key="type", root_label="root")
