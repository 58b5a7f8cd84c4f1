"""Our metrics against the packages whose numbers they claim to be."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData, read_h5ad
from scipy import sparse
from sklearn.metrics import silhouette_samples

from scvi_qbm.benchmark.metrics.clustering import leiden_sweep
from scvi_qbm.benchmark.metrics.neighbors import nearest_neighbors, subgraph
from scvi_qbm.benchmark.metrics.scgraph import scgraph_reference, scgraph_scores
from scvi_qbm.benchmark.metrics.scib import (
    batch_silhouette,
    batch_variance,
    scib_scores,
)
from scvi_qbm.benchmark.metrics.trajectory import reference_pseudotime, trajectory_conservation

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def clusters():
    """Overlapping types of uneven sizes, one in a single batch, one tiny."""
    rng = np.random.default_rng(1)
    sizes = {"a": 150, "b": 120, "c": 90, "d": 40, "e": 6}
    labels = np.repeat(list(sizes), list(sizes.values()))
    batch = rng.choice(["x", "y", "z"], size=len(labels), p=[0.5, 0.3, 0.2])
    batch[labels == "d"] = "x"
    centres = dict(zip(sizes, rng.normal(size=(5, 8)) * 1.2, strict=True))
    shifts = dict(zip("xyz", rng.normal(size=(3, 8)) * 0.4, strict=True))
    noise = rng.normal(size=(len(labels), 8))
    x = np.array([centres[t] + shifts[b] for t, b in zip(labels, batch, strict=True)]) + noise
    before = x + np.array([3 * shifts[b] for b in batch])
    return x.astype(np.float32), labels, batch, before


@pytest.fixture(scope="module")
def neighbors(clusters):
    pytest.importorskip("scib_metrics")
    return nearest_neighbors(clusters[0])


@pytest.fixture(scope="module")
def benchmarker(clusters):
    benchmark = pytest.importorskip("scib_metrics.benchmark")
    x, labels, batch, before = clusters
    adata = AnnData(np.zeros((len(x), 1), np.float32))
    adata.obs["labels"], adata.obs["batch"] = labels, batch
    adata.obsm["X"], adata.obsm["before"] = x.copy(), before
    bench = benchmark.Benchmarker(
        adata, "batch", "labels", ["X"],
        pre_integrated_embedding_obsm_key="before", progress_bar=False,
    )  # fmt: skip
    bench.benchmark()
    return bench.get_results(min_max_scale=False, clean_names=False).loc["X"].astype(float)


@pytest.mark.slow
def test_an_exact_search_finds_what_pynndescent_does(neighbors, clusters, monkeypatch):
    monkeypatch.setattr("scvi_qbm.benchmark.metrics.neighbors._EXACT", 0)
    by_pynndescent = nearest_neighbors(clusters[0])
    pairs = zip(neighbors.indices, by_pynndescent.indices, strict=True)
    assert np.mean([len(np.intersect1d(*pair)) / 90 for pair in pairs]) > 0.999
    np.testing.assert_allclose(
        neighbors.distances[:, 1], by_pynndescent.distances[:, 1], rtol=1e-4
    )


BENCHMARKER_NAMES = {
    "isolated_labels": "isolated_labels",
    "nmi_kmeans": "nmi_ari_cluster_labels_kmeans_nmi",
    "ari_kmeans": "nmi_ari_cluster_labels_kmeans_ari",
    "silhouette_label": "silhouette_label",
    "clisi": "clisi_knn",
    "bras": "bras",
    "ilisi": "ilisi_knn",
    "kbet": "kbet_per_label",
    "graph_connectivity": "graph_connectivity",
    "pcr": "pcr_comparison",
    "scib_bio": "Bio conservation",
    "scib_batch": "Batch correction",
    "scib_total": "Total",
}


# scib-metrics 0.5.10 on `clusters`; its compilation takes minutes, so the live run is a slow test.
RECORDED = {
    "isolated_labels": 0.5607272,
    "nmi_kmeans": 0.6692236,
    "ari_kmeans": 0.6602388,
    "silhouette_label": 0.6099150,
    "clisi": 0.9713013,
    "bras": 0.8141069,
    "ilisi": 0.5678585,
    "kbet": 0.8470370,
    "graph_connectivity": 0.8962222,
    "pcr": 0.9172306,
    "scib_bio": 0.6942812,
    "scib_batch": 0.8084911,
    "scib_total": 0.7399651,
}


def test_scib_scores_equal_recorded_ones(clusters, neighbors):
    x, labels, batch, before = clusters
    ours = scib_scores(x, batch, labels, before, neighbors=neighbors)
    assert ours.pop("unique_rows") == 1.0
    assert ours.pop("pcr_within") > ours["pcr"] - 0.05  # of our own; no composition here
    assert ours == pytest.approx(RECORDED, abs=1e-4)


@pytest.mark.slow
def test_scib_scores_equal_the_benchmarker(clusters, neighbors, benchmarker):
    x, labels, batch, before = clusters
    ours = scib_scores(x, batch, labels, before, neighbors=neighbors)
    theirs = {name: benchmarker[key] for name, key in BENCHMARKER_NAMES.items()}
    assert len(benchmarker) == len(theirs)
    assert {k: ours[k] for k in theirs} == pytest.approx(theirs, abs=2e-5)
    # The fixture must not be so easy that wrong code would agree.
    assert all(0.02 < value < 0.999 for value in theirs.values())


def test_the_batch_silhouette_equals_scikit_learn(clusters):
    x, _, batch, _ = clusters
    two = batch != "z"
    x, batch = x[two].astype(float), batch[two]
    one = np.full(len(x), "a")
    # With two batches "all others" is the nearest other: the classic silhouette.
    classic = np.abs(silhouette_samples(x, batch, metric="cosine")).mean()
    assert batch_silhouette(x, one, batch) == pytest.approx(1 - classic, abs=1e-7)


@pytest.mark.slow
def test_batch_variance_is_that_of_principal_component_regression(clusters):
    utils = pytest.importorskip("scib_metrics.utils")
    x, _, batch, _ = clusters
    theirs = utils.principal_component_regression(x, batch, categorical=True)
    assert batch_variance(x, batch) == pytest.approx(theirs, rel=1e-5)


def test_leiden_equals_scib_metrics(clusters, neighbors):
    import scib_metrics

    labels = clusters[1]
    near = subgraph(neighbors, 15)
    theirs = scib_metrics.nmi_ari_cluster_labels_leiden(near, labels)
    ours = leiden_sweep(near, resolutions=[0.2 * i for i in range(1, 11)]).score(labels)
    assert (ours.nmi, ours.ari) == pytest.approx((theirs["nmi"], theirs["ari"]), abs=1e-12)
    assert 0.1 < ours.nmi < 0.99 and ours.table["nmi"].nunique() > 3


@pytest.fixture(scope="module")
def expression():
    """Log counts of six types in four batches: one batch too small, types that are missing."""
    rng = np.random.default_rng(2)
    labels = rng.choice(list("abcdef"), size=640, p=[0.3, 0.25, 0.2, 0.15, 0.09, 0.01])
    batch = rng.choice(["p", "q", "r", "s"], size=640, p=[0.4, 0.3, 0.2, 0.1])
    labels[(batch == "q") & (labels == "b")] = "a"
    labels[(batch == "r") & (labels == "c")] = "d"
    genes = rng.gamma(0.4, 1.0, size=(6, 300)), rng.gamma(4.0, 0.25, size=(4, 300))
    rates = genes[0][np.searchsorted(list("abcdef"), labels)]
    rates = rates * genes[1][np.searchsorted(["p", "q", "r", "s"], batch)]
    adata = AnnData(sparse.csr_matrix(rng.poisson(2 * rates).astype(np.float32)))
    adata.obs["labels"], adata.obs["batch"] = labels, batch
    adata.obs = adata.obs.astype(str)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    assert (pd.Series(labels).value_counts() < 10).sum() == 1
    assert sorted(pd.Series(batch).value_counts() < 100) == [False] * 3 + [True]
    return adata


def test_scgraph_equals_the_package(expression, tmp_path, capsys):
    package = pytest.importorskip("scgraph")
    if not hasattr(package, "scGraph"):
        pytest.skip("this `scgraph` is not scgraph-eval")
    rng = np.random.default_rng(3)
    adata = expression.copy()
    pca = sc.pp.pca(adata.X, n_comps=12)
    adata.obsm["pca"] = pca
    adata.obsm["wide"] = pca + rng.normal(size=pca.shape) * pca.std() * 2
    adata.obsm["plane"] = pca[:, 2:4]
    path = tmp_path / "data.h5ad"
    adata.write_h5ad(path)
    theirs = package.scGraph(str(path), "batch", "labels", only_umap=False).main()
    labels, batch = adata.obs["labels"], adata.obs["batch"]
    reference = scgraph_reference(adata.X, batch, labels)
    assert not reference.pooled and reference.batches == ("p", "q", "r")
    assert reference.labels == tuple("abcde")
    for key in ("pca", "wide", "plane"):
        ours = scgraph_scores(adata.obsm[key], labels, reference)
        np.testing.assert_allclose(ours, theirs.loc[key].to_numpy(float), atol=1e-6)
    assert len(np.unique(theirs.round(3))) == 9


def scib_trajectory(x, pseudotime, labels, batch=None):
    scib = pytest.importorskip("scib")
    if int(pd.__version__.split(".")[0]) >= 3:
        pytest.skip("scib 1.1.7 fills in place through a chain, which pandas 3 ignores")
    names = np.arange(len(x)).astype(str)
    obs = pd.DataFrame({"labels": labels, "batch": batch if batch is not None else "b"}, names)
    obs["batch"] = obs["batch"].astype("category")
    before, after = AnnData(obs=obs.copy()), AnnData(x.astype(np.float32), obs=obs.copy())
    before.obs["dpt_pseudotime"] = pseudotime
    sc.pp.neighbors(after, use_rep="X")
    score = scib.metrics.trajectory_conservation(
        before, after, "labels", batch_key=None if batch is None else "batch"
    )
    return score, after.obsp["connectivities"]


def compare_trajectories(space, labels, start, batch, noise):
    pseudotime = reference_pseudotime(space, labels, start)
    pseudotime[::17] = np.nan
    rng = np.random.default_rng(0)
    x = space + rng.normal(size=space.shape) * noise * space.std()
    x[:20] += 200  # a component of its own
    scores = []
    for groups in (None, batch):
        theirs, graph = scib_trajectory(x, pseudotime, labels, groups)
        ours = trajectory_conservation(graph, pseudotime, labels, batch=groups)
        assert ours.score == pytest.approx(theirs, abs=1e-6)
        assert np.isnan(ours.pseudotime[::17]).all()
        scores.append(ours.score)
    assert scores[0] != scores[1] and 0.4 < scores[0] < 0.999
    searched = trajectory_conservation(x, pseudotime, labels)
    assert searched.score == pytest.approx(scores[0], abs=1e-6)


def branching(n=500, seed=4):
    """Cells along a stem that splits in two, ordered by ``t``."""
    rng = np.random.default_rng(seed)
    t, side = rng.random(n), rng.choice([-1.0, 1.0], n)
    x = np.stack([t, side * np.maximum(t - 0.5, 0), np.zeros(n)], 1) * 10
    labels = np.where(t < 0.2, "stem", np.where(t < 0.5, "middle", np.where(side > 0, "L", "R")))
    return x + rng.normal(size=x.shape) * 0.2, labels, t


def test_trajectory_equals_scib_on_branches():
    x, labels, _ = branching()
    batch = np.random.default_rng(5).choice(["x", "y"], len(x))
    compare_trajectories(x, labels, "stem", batch, noise=0.2)


def test_trajectory_equals_scib_on_real_cells(shared_data):
    adata = read_h5ad(shared_data / "paul15_myeloid.h5ad")[::2].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        space = sc.pp.pca(adata.X, n_comps=20)
    batch = adata.obs["batch"].isin(sorted(adata.obs["batch"].unique())[:8]).to_numpy().astype(str)
    compare_trajectories(space, adata.obs["cell_type"].to_numpy(), "MEP", batch, noise=0.3)
