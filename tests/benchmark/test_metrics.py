import ast
import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import normalized_mutual_info_score

import scvi_qbm.benchmark.metrics
from scvi_qbm.benchmark.metrics.classify import (
    knn_probe,
    leave_one_batch_out,
    logistic_probe,
    xgboost_scores,
)
from scvi_qbm.benchmark.metrics.clustering import RESOLUTIONS, LeidenSweep, leiden_sweep
from scvi_qbm.benchmark.metrics.disentanglement import disentanglement_scores
from scvi_qbm.benchmark.metrics.neighbors import (
    check_embedding,
    knn_label_entropy,
    nearest_neighbors,
    subgraph,
    umap_coordinates,
)
from scvi_qbm.benchmark.metrics.scgraph import ScGraphReference, scgraph_reference, scgraph_scores
from scvi_qbm.benchmark.metrics.scib import (
    batch_silhouette,
    batch_variance,
    scib_scores,
    unique_rows,
)
from scvi_qbm.benchmark.metrics.trajectory import (
    reference_pseudotime,
    trajectory_conservation,
)


def separated(n_types=3, n=60, distance=8.0, n_dims=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(list("abcdefgh")[:n_types], n)
    centres = np.eye(n_types, n_dims) * distance
    return rng.normal(size=(len(labels), n_dims)) + np.repeat(centres, n, axis=0), labels


class Near:
    """Neighbours by hand, with the part of scib-metrics' interface that the entropy reads."""

    def __init__(self, indices):
        self.indices = np.asarray(indices)
        self.n_samples, self.n_neighbors = self.indices.shape

    def subset_neighbors(self, n):
        return Near(self.indices[:, :n])


def test_separated_and_shuffled_types():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 60)
    x = rng.normal(size=(180, 4)) + 8 * (labels[:, None] == np.array(["a", "b", "c", "d"]))
    scores = knn_probe(x, labels)
    assert scores.accuracy == 1.0 and scores.macro_f1 == 1.0 and scores.n_cells == 180
    shuffled = knn_probe(x, rng.permutation(labels))
    assert 0.2 < shuffled.accuracy < 0.5 and shuffled.accuracy_sd > 0


@pytest.mark.parametrize("probe", [knn_probe, logistic_probe])
def test_small_types_are_left_out(probe):
    rng = np.random.default_rng(0)
    labels = np.array(["a"] * 50 + ["b"] * 50 + ["c"] * 4)
    assert probe(rng.normal(size=(104, 2)), labels).n_cells == 100


@pytest.mark.parametrize("probe", [knn_probe, logistic_probe, xgboost_scores])
def test_bad_input(probe):
    if probe is xgboost_scores:
        pytest.importorskip("xgboost")
    with pytest.raises(ValueError, match="3 cells"):
        probe(np.zeros((3, 2)), ["a", "b"])
    with pytest.raises(ValueError, match="Fewer than 2"):
        probe(np.zeros((20, 2)), ["a"] * 20)


def test_logistic_sees_lines_and_knn_sees_rings():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 400)
    labels = np.repeat(["in", "out"], 200)
    x = np.stack([np.cos(angle), np.sin(angle)], 1) * np.where(labels == "in", 1, 3)[:, None]
    assert knn_probe(x, labels).accuracy == 1.0
    assert logistic_probe(x, labels).accuracy < 0.7
    line = np.stack([np.where(labels == "in", 0.0, 5.0) + rng.normal(size=400), 1e3 * x[:, 0]], 1)
    assert logistic_probe(line, labels).accuracy > 0.97  # standardised
    assert knn_probe(line, labels).accuracy < 0.9


def test_xgboost_scores_count_every_cell_once():
    pytest.importorskip("xgboost")
    x, labels = separated(n=40, distance=3.0)
    labels = np.append(labels, ["rare"] * 9)
    x = np.vstack([x, np.zeros((9, 4))])
    scores = xgboost_scores(x, labels, n_estimators=10)
    assert list(scores.labels) == ["a", "b", "c"]
    assert scores.confusion.sum(1).tolist() == [40, 40, 40]
    accuracy = np.trace(scores.confusion) / 120
    assert scores.accuracy == pytest.approx(accuracy) and 0.8 < accuracy < 1
    # Folds are stratified and types equally large: macro recall is accuracy.
    assert scores.recall == pytest.approx(accuracy)
    assert scores.accuracy_sd > 0 and scores.precision != scores.recall
    assert scores.f1 < max(scores.precision, scores.recall)
    again = xgboost_scores(x, labels, n_estimators=10)
    assert again[:8] == scores[:8]


def test_leaving_a_batch_out_sees_a_batch_effect():
    x, labels = separated(n=60)
    rng = np.random.default_rng(1)
    batch = rng.choice(["p", "q", "r"], len(x))
    mixed = leave_one_batch_out(x, labels, batch)
    assert mixed.accuracy == 1.0 and mixed.macro_f1 == 1.0 and mixed.n_batches == 3
    moved = x.copy()
    moved[batch == "q"] = moved[batch == "q"][:, [1, 2, 0, 3]]  # types trade places in one batch
    scores = leave_one_batch_out(moved, labels, batch)
    assert scores.accuracy < 0.5 < knn_probe(moved, labels).accuracy


def test_leaving_a_batch_out_leaves_unknown_types_out():
    x, labels = separated(n=40)
    batch = np.where(labels == "c", "own", np.resize(["p", "q"], len(x)))
    scores = leave_one_batch_out(x, labels, batch)
    assert scores.n_batches == 2 and scores.accuracy == 1.0
    alone = leave_one_batch_out(x, labels, np.full(len(x), "p"))
    assert np.isnan(alone.accuracy) and np.isnan(alone.macro_f1) and alone.n_batches == 0
    with pytest.raises(ValueError, match="3 in `batch`"):
        leave_one_batch_out(x, labels, ["p"] * 3)


def test_batches_count_the_same_whatever_their_size():
    x, labels = separated(n_types=2, n=200)
    batch = np.where(np.arange(400) % 200 < 10, "small", np.resize(["p", "q"], 400))
    x[batch == "small"] = x[batch == "small"][::-1]  # types trade places there
    scores = leave_one_batch_out(x, labels, batch)
    assert scores.accuracy == pytest.approx((1 + 1 + 0) / 3, abs=0.01)


def test_label_entropy_by_hand():
    near = Near([[0, 1, 2], [1, 0, 2], [2, 3, 0], [3, 2, 1]])
    labels = ["a", "a", "b", "b"]
    # Neighbours' labels, without the cell itself: ab, ab, ba, ba.
    assert knn_label_entropy(near, labels, n_neighbors=2) == pytest.approx(0.0)
    assert knn_label_entropy(near, labels, n_neighbors=1) == 1.0
    three = ["a", "a", "b", "c"]
    # ab, ab, ca, ba: ln 2 each, of at most ln 3.
    value = knn_label_entropy(near, three, n_neighbors=2)
    assert value == pytest.approx(1 - np.log(2) / np.log(3))
    with pytest.raises(ValueError, match="4 cells in `neighbors`, 2 in `labels`"):
        knn_label_entropy(near, ["a", "b"])
    with pytest.raises(ValueError, match="two distinct"):
        knn_label_entropy(near, ["a"] * 4)


def test_label_entropy_of_pure_mixed_and_turned_embeddings():
    pytest.importorskip("scib_metrics")
    x, labels = separated(n=50)
    assert knn_label_entropy(x, labels) > 0.99
    shuffled = np.random.default_rng(0).permutation(labels)
    assert knn_label_entropy(x, shuffled) < 0.15
    x, labels = separated(n=50, distance=2.0)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    value = knn_label_entropy(x, labels)
    assert 0.2 < value < 0.95
    assert knn_label_entropy(3.0 * x @ turn + 1, labels) == pytest.approx(value, abs=1e-3)


def test_rows_that_pynndescent_leaves_incomplete_are_searched_again(monkeypatch):
    """Above 1,000 cells; that both searches agree is said by test_metrics_oracles."""
    search = pytest.importorskip("scib_metrics.nearest_neighbors")
    x = np.random.default_rng(0).normal(size=(60, 5))
    exact = nearest_neighbors(x, 10)

    def incomplete(x, k, random_state, n_jobs):
        found = search.NeighborsResults(exact.indices.copy(), exact.distances.copy())
        found.indices[7, 3:], found.distances[7, 3:] = -1, np.inf
        return found

    monkeypatch.setattr("scvi_qbm.benchmark.metrics.neighbors._EXACT", 50)
    monkeypatch.setattr(search, "pynndescent", incomplete)
    found = nearest_neighbors(x, 10)
    np.testing.assert_array_equal(found.indices, exact.indices)
    np.testing.assert_allclose(found.distances, exact.distances, atol=1e-6)


def test_neighbours_are_capped_and_exact_where_cells_are_identical():
    pytest.importorskip("scib_metrics")
    x, _ = separated(n=10)
    found = nearest_neighbors(x)
    assert found.indices.shape == (30, 29)
    distances = np.linalg.norm(x[:, None] - x, axis=2)
    np.testing.assert_allclose(found.distances, np.sort(distances, 1)[:, :29], atol=1e-4)
    assert subgraph(found, 50).n_neighbors == 29 and subgraph(found, 7).n_neighbors == 7
    codes = np.repeat(np.eye(4), 60, axis=0)
    same = nearest_neighbors(codes, 40)
    assert same.indices.min() >= 0 and np.isfinite(same.distances).all()
    assert same.distances.max() == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(5), "cells x dimensions"),
        (np.zeros((5, 0)), "cells x dimensions"),
        (np.full((5, 2), np.nan), "not finite in 5 of 5"),
        (np.zeros((4, 2)), "4 rows in the embedding, 5 cells"),
    ],
)
def test_bad_embeddings(x, message):
    with pytest.raises(ValueError, match=message):
        check_embedding(x, 5)


def test_check_embedding_copies():
    x = np.zeros((3, 2), np.float32)
    check_embedding(x)[:] = 1
    assert x.sum() == 0
    with pytest.raises(ValueError, match="at least 3 cells"):
        nearest_neighbors(np.zeros((2, 2)))


def test_umap_keeps_clusters_and_repeats():
    pytest.importorskip("scib_metrics")
    x, labels = separated(n=40)
    plane = umap_coordinates(x)
    assert plane.shape == (120, 2) and plane.dtype == np.float32
    assert knn_probe(plane, labels).accuracy == 1.0
    np.testing.assert_array_equal(plane, umap_coordinates(x))


def test_bras_by_hand():
    # Batches at right angles: within distance 0, between 1, |silhouette| 1, BRAS 0.
    apart = np.repeat(np.eye(2), 5, axis=0)
    batch = np.repeat(["p", "q"], 5)
    assert batch_silhouette(apart, np.full(10, "t"), batch) == pytest.approx(0.0)
    # Both batches hold the same points: between is 1/2, within is 3/4 of 5 cells' pairs.
    same = np.tile(np.eye(2), (6, 1))
    mixed = batch_silhouette(same, np.full(12, "t"), np.repeat(["p", "q"], 6))
    assert mixed == pytest.approx(1 - (3 / 5 - 1 / 2) / (3 / 5))
    assert np.isnan(batch_silhouette(apart, batch, batch))


def test_batch_variance_within_types_is_a_partial_r_squared():
    """That of two regressions of every column, with and without the batch."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    batch = np.where(rng.random(300) < 0.2 * (labels + 1), "p", rng.choice(["q", "r"], 300))
    x = rng.normal(size=(300, 5)) * [3, 1, 1, 1, 1] + 2 * np.eye(4, 5)[labels]
    x += np.array([{"p": 0.0, "q": 0.5, "r": -0.5}[b] for b in batch])[:, None]

    def left(*designs):
        design = np.concatenate(designs, axis=1)
        return np.sum((x - design @ np.linalg.lstsq(design, x, rcond=None)[0]) ** 2)

    types, batches = np.eye(4)[labels], (batch[:, None] == np.unique(batch)).astype(float)
    one = np.ones((300, 1))
    expected = 1 - left(types, batches) / left(types)
    assert batch_variance(x, batch, labels) == pytest.approx(expected, rel=1e-9)
    assert batch_variance(x, batch) == pytest.approx(1 - left(one, batches) / left(one), rel=1e-9)


def test_the_composition_of_batches_is_no_variance_within_types():
    labels = np.repeat([0, 1], 100)
    batch = np.concatenate([np.tile(list("ppppq"), 20), np.tile(list("pqqqq"), 20)])
    perfect = np.eye(2)[labels] + 0.1 * np.random.default_rng(0).normal(size=(200, 2))
    assert batch_variance(perfect, batch) > 0.3
    assert batch_variance(perfect, batch, labels) < 0.02
    assert batch_variance(perfect, labels, labels) == pytest.approx(0, abs=1e-12)
    assert np.isnan(batch_variance(np.eye(2)[labels], batch, labels))


def test_unique_rows():
    assert unique_rows(np.array([[0.0, 1], [-0.0, 1], [1, 1], [0, 2]])) == 0.75


@pytest.fixture(scope="module")
def two_batches():
    rng = np.random.default_rng(0)
    x, labels = separated(n=60, distance=6.0)
    batch = rng.choice(["p", "q"], len(x))
    pushed = x + np.where(batch == "p", 0, 12)[:, None] * np.array([0, 0, 0, 1.0])
    return x, labels, batch, pushed


def test_scib_scores_order_embeddings_as_they_must(two_batches):
    pytest.importorskip("scib_metrics")
    x, labels, batch, pushed = two_batches
    good = scib_scores(x, batch, labels, pushed)
    apart = scib_scores(pushed, batch, labels, pushed)
    shuffled = scib_scores(np.random.default_rng(1).permutation(x), batch, labels, pushed)
    assert good["nmi_kmeans"] == 1.0 and good["ari_kmeans"] == 1.0
    for name in ("isolated_labels", "nmi_kmeans", "ari_kmeans", "silhouette_label", "clisi"):
        assert good[name] > shuffled[name] + 0.1, name
    for name in ("bras", "ilisi", "kbet", "pcr", "pcr_within"):
        assert good[name] > apart[name] + 0.1, name
    assert apart["pcr"] == 0.0 and good["pcr"] > 0.98
    assert good["graph_connectivity"] > 0.95 > shuffled["graph_connectivity"]
    assert good["scib_total"] == pytest.approx(0.6 * good["scib_bio"] + 0.4 * good["scib_batch"])
    assert good["unique_rows"] == 1.0


@pytest.mark.parametrize("batch", [None, np.full(180, "only")])
def test_scib_scores_without_batches(two_batches, batch):
    pytest.importorskip("scib_metrics")
    x, labels, _, pushed = two_batches
    scores = scib_scores(x, batch, labels, pushed)
    missing = {name for name, value in scores.items() if np.isnan(value)}
    assert missing == {
        "bras", "ilisi", "kbet", "graph_connectivity", "pcr", "pcr_within", "scib_batch",
        "scib_total",
    }  # fmt: skip
    assert 0.7 < scores["scib_bio"] <= 1


def test_scib_scores_of_hard_codes_do_not_crash(two_batches):
    pytest.importorskip("scib_metrics")
    x, labels, batch, pushed = two_batches
    scores = scib_scores(x > 3, batch, labels, pushed)
    assert scores["unique_rows"] < 0.1
    assert np.isfinite(scores["scib_total"])
    with pytest.raises(ValueError, match="180 cells in `embedding`, 2 in `batch`"):
        scib_scores(x, ["p", "q"], labels, pushed)
    with pytest.raises(ValueError, match="two distinct"):
        scib_scores(x, batch, np.full(180, "a"), pushed)


def test_leiden_sweep_scores_several_label_sets():
    pytest.importorskip("igraph")
    pytest.importorskip("scib_metrics")
    x, labels = separated(n_types=4, n=50, distance=7.0)
    coarse = np.where(np.isin(labels, ["a", "b"]), "ab", "cd")
    sweep = leiden_sweep(x)
    assert sweep.resolutions == RESOLUTIONS and sweep.clusters.shape == (21, 200)
    fine, rough = sweep.score(labels), sweep.score(coarse)
    assert fine.nmi == fine.ari == fine.fmi == pytest.approx(1.0) and fine.n_clusters == 4
    assert fine.ami == pytest.approx(1.0)
    assert rough.nmi == pytest.approx(rough.table["nmi"].max()) and rough.nmi < 0.9
    shuffled = sweep.score(np.random.default_rng(0).permutation(labels))
    assert abs(shuffled.ami) < 0.1 and shuffled.nmi < 0.15
    with pytest.raises(ValueError, match="200 cells, 2 in `labels`"):
        sweep.score(["a", "b"])
    with pytest.raises(ValueError, match="`resolutions` is empty"):
        leiden_sweep(x, resolutions=())


def test_cluster_scores_by_hand():
    y = list("aabb")
    sweep = LeidenSweep((0.1, 0.5, 1.0), np.array([[0, 0, 0, 0], [0, 0, 1, 2], [0, 1, 0, 1]]))
    best = sweep.score(y)
    assert (best.resolution, best.n_clusters) == (0.5, 3)
    assert best.nmi == pytest.approx(normalized_mutual_info_score(y, [0, 0, 1, 2]))
    # Entropies ln 2 and 1.5 ln 2, information ln 2: the arithmetic mean gives 1 / 1.25.
    assert best.nmi == pytest.approx(0.8)
    # Pairs: together in both 1, in clusters 1, in labels 2.
    assert best.fmi == pytest.approx(1 / np.sqrt(2))
    assert best.table["nmi"].tolist() == pytest.approx([0, 0.8, 0])


def test_disentanglement_by_hand():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c", "tiny"], [60, 60, 60, 4])
    noise = rng.normal(size=(len(labels), 4))
    own = np.c_[[labels == t for t in "abc"]].T.astype(float)
    before = np.random.get_state()[1].copy()
    found = disentanglement_scores(np.hstack([noise, own]), labels)
    assert (np.random.get_state()[1] == before).all()
    for name in ("lms_smi", "lms_spn", "msas_smi", "msas_spn"):
        assert found[name] == pytest.approx(1.0), name
    six = [v for k, v in found.items() if k != "disentanglement"]
    assert len(six) == 6 and found["disentanglement"] == pytest.approx(np.mean(six))
    # Said twice, no dimension leads; noise says nothing; two dimensions match two of three types.
    twice = disentanglement_scores(np.hstack([own, own]), labels)
    assert twice["msas_smi"] == pytest.approx(1.0) and twice["msgs_smi"] == pytest.approx(0.0)
    assert disentanglement_scores(noise, labels)["disentanglement"] < 0.2
    assert disentanglement_scores(own[:, :2], labels)["lms_smi"] < 0.8
    with pytest.raises(ValueError, match="10 cells"):
        disentanglement_scores(own[:64], labels[:64][::-1])


def test_scgraph_scores_by_hand():
    at = np.array([0.0, 1.0, 3.0, 7.0])
    distances = np.abs(at[:, None] - at)
    reference = ScGraphReference(distances / distances.max(0), tuple("abcd"), ("p",), False)
    labels = np.repeat(list("abcd"), 5)
    line = np.repeat(at, 5)[:, None]
    assert scgraph_scores(5 * line + 2, labels, reference) == pytest.approx((1.0, 1.0, 1.0))
    stretched = scgraph_scores(line**1.1, labels, reference)
    assert stretched.rank > stretched.corr and 0.9 < stretched.weighted < 1
    swapped = np.repeat([0.0, 7.0, 3.0, 1.0], 5)[:, None]
    assert scgraph_scores(swapped, labels, reference).weighted < 0.5
    with pytest.raises(ValueError, match="lacks: d"):
        scgraph_scores(line[:15], labels[:15], reference)
    with pytest.raises(ValueError, match="2 cells in `embedding`, 20"):
        scgraph_scores(line[:2], labels, reference)


def test_scgraph_trims_outliers():
    at = np.array([0.0, 1.0, 3.0])
    distances = np.abs(at[:, None] - at)
    reference = ScGraphReference(distances / distances.max(0), tuple("abc"), ("p",), False)
    x = np.repeat(at, 40)[:, None]
    x[[0, 1, 40, 80]] += 1000
    scores = scgraph_scores(x, np.repeat(list("abc"), 40), reference)
    assert scores == pytest.approx((1.0, 1.0, 1.0))


def test_scgraph_reference_says_when_it_pools():
    rng = np.random.default_rng(0)
    labels = np.repeat(list("abcd"), [40, 40, 40, 5])
    x = np.log1p(rng.poisson(rng.gamma(1, 2, (4, 60))[np.repeat(range(4), [40, 40, 40, 5])]))
    small = scgraph_reference(x, rng.choice(["p", "q"], 125), labels)
    none = scgraph_reference(sparse.csr_matrix(x.astype(float)), None, labels)
    for found in (small, none):
        assert found.pooled and found.batches == () and found.labels == ("a", "b", "c")
        np.testing.assert_allclose(np.diag(found.distances), 0)
        np.testing.assert_allclose(found.distances.max(0), 1)
    np.testing.assert_allclose(small.distances, none.distances, atol=1e-5)
    assert not scgraph_reference(x, np.full(125, "p"), labels).pooled
    with pytest.raises(ValueError, match="at least 3 types of 10 cells, there are 2"):
        scgraph_reference(x[:85], None, labels[:85][::-1])
    with pytest.raises(ValueError, match="125 cells, 3 in `labels`"):
        scgraph_reference(x, None, ["a"] * 3)


def line(n=300, seed=0, noise=0.2):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.random(n))
    x = np.stack([t * 10, np.sin(3 * t)], 1) + rng.normal(size=(n, 2)) * noise
    return x, np.where(t < 0.2, "start", np.where(t < 0.6, "middle", "end")), t


def test_pseudotime_follows_a_line_and_is_conserved():
    x, labels, t = line()
    pseudotime = reference_pseudotime(x, labels, "start")
    assert pd.Series(pseudotime).corr(pd.Series(t), "spearman") > 0.99
    back = reference_pseudotime(x, labels, "end")
    assert pd.Series(back).corr(pd.Series(t), "spearman") < -0.99
    assert trajectory_conservation(x, pseudotime, labels).score > 0.999
    found = trajectory_conservation(5 * x[:, ::-1], pseudotime, labels)
    assert found.score > 0.999 and found.pseudotime.shape == (300,)
    shuffled = np.random.default_rng(0).permutation(x)
    assert 0.2 < trajectory_conservation(shuffled, pseudotime, labels).score < 0.8


def test_pseudotime_warns_where_scanpy_is_wrong():
    x, labels, t = line(noise=0.02)
    with pytest.warns(UserWarning, match="above 0.9994"):
        pseudotime = reference_pseudotime(x, labels, "start")
    assert pd.Series(pseudotime).corr(pd.Series(t), "spearman") < 0.9
    x, labels, _ = line()
    with pytest.warns(UserWarning, match="comes before 'middle' on average"):
        reference_pseudotime(x, labels, "middle")


def test_every_component_finds_the_order_where_scanpy_does_not():
    x, labels, t = line(noise=0.02)
    cut = trajectory_conservation(x, t, labels)
    every = trajectory_conservation(x, t, labels, every_component=True)
    assert every.eigenvalue == cut.eigenvalue >= 0.9994
    assert cut.score < 0.95 < 0.999 < every.score
    x, labels, t = line()
    cut = trajectory_conservation(x, t, labels)
    every = trajectory_conservation(x, t, labels, every_component=True)
    assert cut.eigenvalue < 0.9994
    np.testing.assert_allclose(every.pseudotime, cut.pseudotime, atol=0.01)
    shuffled = np.random.default_rng(0).permutation(x)
    found = trajectory_conservation(shuffled, t, labels, every_component=True)
    assert 0.2 < found.score < 0.8


def test_pseudotime_of_batches_and_pieces():
    x, labels, t = line()
    batch = np.resize(["p", "q", "r"], 300)
    lonely = np.where((batch == "r") & (labels == "start"), "middle", labels)
    per_batch = reference_pseudotime(
        x + 50 * (batch == "q")[:, None], lonely, "start", batch=batch
    )
    assert np.isnan(per_batch[batch == "r"]).all() and np.isfinite(per_batch[batch != "r"]).all()
    score = trajectory_conservation(x, per_batch, lonely, batch=batch).score
    assert score > 0.99
    apart = x + 50 * (t > 0.7)[:, None]
    assert np.isnan(reference_pseudotime(apart, labels, "start")[t > 0.7]).all()
    # The start is not in the largest component of the embedding.
    gone = x + 50 * (labels == "start")[:, None]
    result = trajectory_conservation(gone, t, labels)
    assert result.score == 0.0 and np.isnan(result.pseudotime).all()


def test_bad_trajectories():
    x, labels, t = line()
    with pytest.raises(ValueError, match="No cell has the label 'nowhere'"):
        reference_pseudotime(x, labels, "nowhere")
    with pytest.raises(ValueError, match="300 cells, 2 in `labels`"):
        reference_pseudotime(x, ["a", "b"], "a")
    with pytest.raises(ValueError, match="No batch has a start cell"):
        reference_pseudotime(x, labels, "start", batch=np.arange(300))
    with pytest.raises(ValueError, match="300 cells in `embedding`, 5 in `pseudotime`"):
        trajectory_conservation(x, t[:5], labels)
    with pytest.raises(ValueError, match="2 cells have a pseudotime"):
        trajectory_conservation(x, np.where(np.arange(300) < 2, t, np.nan), labels)


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("scib_metrics", lambda x, y: nearest_neighbors(x)),
        ("igraph", lambda x, y: leiden_sweep(x)),
        ("xgboost", lambda x, y: xgboost_scores(x, y)),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, package, call):
    imported = importlib.import_module

    def refuse(name, *args):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}")
        return imported(name, *args)

    monkeypatch.setattr("scvi_qbm.benchmark.extras.import_module", refuse)
    with pytest.raises(ImportError, match=r'pip install "scvi-qbm\[benchmark\]"'):
        call(*separated())


def test_nothing_optional_is_imported_with_the_modules():
    optional = {"drvi", "scib_metrics", "scgraph", "xgboost", "igraph", "scib", "jax", "umap"}
    for path in Path(scvi_qbm.benchmark.metrics.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:  # the top level only
            names = [alias.name for alias in getattr(node, "names", [])]
            names.append(getattr(node, "module", None) or "")
            assert not optional & {name.split(".")[0] for name in names}, path.name
