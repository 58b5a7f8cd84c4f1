import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvi_qbm.benchmark.pictures import (
    confusion_matrix,
    confusion_zoom,
    cost,
    embedding_grid,
    paired_differences,
    pseudotime_comparison,
    score_by_epoch,
    score_dots,
)
from scvi_qbm.benchmark.pictures.cells import confused_groups

METRICS = {"nmi": "NMI", "ari": "ARI", "elbo": "held-out ELBO (nats per cell)"}
METHODS = {"qbmvi": "QBMVI", "gaussian": "Gaussian twin of a rather long name", "pca": "PCA, $5"}
BLOCKS = {"qbmvi": "unsupervised", "gaussian": "unsupervised", "pca": "control"}


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def nothing_is_cut(figure):
    """All that is drawn lies within the figure, and no legend of the figure on a panel."""
    figure.canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    room = 0.02  # inches
    assert drawn.x0 > -room and drawn.y0 > -room, drawn
    assert drawn.x1 < width + room and drawn.y1 < height + room, (drawn, width, height)
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert not any(box.overlaps(ax.get_window_extent()) for ax in figure.axes if ax.axison)


def made_rows():
    rng = np.random.default_rng(0)
    rows = [
        {"method": m, "seed": s, "nmi": 0.8 + 0.01 * s, "ari": 0.5, "elbo": -1500.0 + s}
        for m in ("qbmvi", "gaussian")
        for s in range(3)
    ]
    rows.append({"method": "pca", "seed": 0, "nmi": 0.6, "ari": np.nan, "elbo": np.nan})
    frame = pd.DataFrame(rows)
    frame["seconds"] = rng.uniform(50, 60, len(frame)) * np.where(frame["method"] == "pca", 0.1, 1)
    frame["memory_mb"] = rng.uniform(1000, 1100, len(frame))
    return frame


def made_means():
    long = made_rows().melt(["method"], list(METRICS), "metric").dropna()
    means = long.groupby(["method", "metric"])["value"].mean().rename("mean").reset_index()
    bare = means["method"] == "pca"
    return means.assign(
        low=np.where(bare, np.nan, means["mean"] - 0.02), high=means["mean"] + 0.02
    )


def test_score_dots_shows_every_run_the_mean_and_the_interval():
    axes = score_dots(made_rows(), made_means(), METRICS, METHODS, BLOCKS, reference="qbmvi")
    assert [ax.get_title() for ax in axes][:2] == ["NMI", "ARI"]
    assert "nats" in axes[2].get_title() and "raw" in axes[0].figure.get_supxlabel()
    dots = [line for line in axes[0].lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [3, 3, 1]
    np.testing.assert_allclose(sorted(dots[0].get_xdata()), [0.80, 0.81, 0.82])
    diamonds = [line for line in axes[0].lines if line.get_marker() == "D"]
    assert [float(line.get_xdata()[0]) for line in diamonds] == pytest.approx([0.81, 0.81, 0.6])
    bars = [x for x in axes[0].lines if x.get_linestyle() == "-" and len(x.get_xdata()) == 2]
    ends = [list(line.get_xdata()) for line in bars if line.get_linewidth() == 1.4]
    assert ends == [pytest.approx([0.79, 0.83])] * 2  # none for a single run
    assert axes[0].get_ylim()[0] > axes[0].get_ylim()[1]  # the first method on top
    assert [t.get_text() for t in axes[0].get_yticklabels()][2] == r"PCA, \$5"
    nothing_is_cut(axes[0].figure)


def test_a_metric_without_values_has_no_panel():
    rows = made_rows().assign(trajectory=np.nan)
    titles = {"trajectory": "Trajectory", "absent": "Absent", **METRICS}
    assert len(score_dots(rows, made_means(), titles)) == 3
    with pytest.raises(ValueError, match="No metric"):
        score_dots(rows, made_means(), {"trajectory": "Trajectory"})
    with pytest.raises(ValueError, match="No method"):
        score_dots(rows, made_means(), METRICS, {})


def test_paired_differences_tells_clear_from_unclear_and_single():
    frame = pd.DataFrame(
        [
            {"method": "gaussian", "metric": "nmi", "mean": 0.1, "low": 0.05, "high": 0.15},
            {"method": "scvi", "metric": "nmi", "mean": 0.02, "low": -0.01, "high": 0.05},
            {"method": "pca", "metric": "nmi", "mean": 0.3, "low": np.nan, "high": np.nan},
            {"method": "wild", "metric": "nmi", "mean": 0.01, "low": -9.0, "high": 9.0},
        ]
    )
    (ax,) = paired_differences(frame, {"nmi": "NMI", "ari": "ARI"}, reference_label="QBMVI")
    points = [line for line in ax.lines if line.get_marker() in "ox"]
    assert [line.get_marker() for line in points] == ["o", "o", "x", "o"]
    assert points[1].get_markerfacecolor() == "white" != points[0].get_markerfacecolor()
    zero = ax.lines[0]
    assert list(zero.get_xdata()) == [0, 0]
    assert ax.get_xlim()[0] > -1 and ax.get_xlim()[1] > 0.3  # one wide interval hides nothing
    assert "QBMVI is better" in ax.figure.get_supxlabel()
    nothing_is_cut(ax.figure)


def test_score_by_epoch_is_mean_and_sd_and_says_where_seeds_stopped():
    curves = pd.DataFrame(
        [
            {"method": m, "seed": s, "epoch": e, "nmi": 0.1 * e + 0.02 * s}
            for m in ("qbmvi", "gaussian")
            for s in (0, 1)
            for e in (1, 2, 3, 4)
            if not (s == 1 and e == 4)
        ]
    )
    (ax,) = score_by_epoch(curves, {"nmi": "NMI"}, METHODS)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.11, 0.21, 0.31, np.nan])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0.31, 0.40])  # dotted, one seed left
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(0.31 + 0.02 / np.sqrt(2))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "NMI")
    names = [t.get_text() for t in ax.figure.legends[0].get_texts()]
    assert names == ["QBMVI (2 seeds)", "Gaussian twin of a rather long name (2 seeds)"]
    nothing_is_cut(ax.figure)


def cells(n_types=20, n_batches=4, n=400):
    rng = np.random.default_rng(0)
    kind = rng.integers(n_types, size=n)
    labels = np.array([f"type {k} with a name" for k in range(n_types)])[kind]
    batch = np.array([f"b{k}" for k in range(n_batches)])[rng.integers(n_batches, size=n)]
    return rng.normal(size=(n_types, 2))[kind] * 5 + rng.normal(size=(n, 2)), labels, batch


def test_embedding_grid_has_a_row_a_method_and_numbers_the_types():
    xy, labels, batch = cells()
    axes = embedding_grid({"QBMVI": xy, "PCA <b>": -xy}, labels, batch)
    assert [ax.get_title() for ax in axes[:2]] == ["cell type", "batch"]
    assert [ax.get_ylabel() for ax in axes] == ["QBMVI", "", "PCA <b>", ""]
    assert len(axes[0].texts) == 20 and not axes[1].texts
    largest = pd.Series(labels).value_counts(sort=True)
    centre = np.median(xy[labels == sorted(largest[largest == largest.max()].index)[0]], axis=0)
    np.testing.assert_allclose(axes[0].texts[0].get_position(), centre)
    colours = axes[0].collections[0].get_facecolors()
    assert len(np.unique(colours.round(3), axis=0)) == 20  # more types than the palette has
    figure = axes[0].figure
    nothing_is_cut(figure)
    types, batches = (a for a in figure.axes[-1].get_children() if hasattr(a, "get_texts"))
    assert not types.get_window_extent().overlaps(batches.get_window_extent())
    for legend in (types, batches):
        box = legend.get_window_extent()
        assert box.x1 <= figure.bbox.x1 and not any(
            box.overlaps(ax.get_window_extent()) for ax in axes
        )


def test_embedding_grid_without_batches_and_with_wrong_shapes():
    xy, labels, _ = cells()
    assert len(embedding_grid({"QBMVI": xy}, labels)) == 1
    with pytest.raises(ValueError, match=r"\(400, 2\)"):
        embedding_grid({"QBMVI": xy[:-1]}, labels)
    with pytest.raises(ValueError, match="Wanted"):
        embedding_grid({}, labels)


CONFUSION = np.array([[90, 10, 0, 0], [30, 70, 0, 0], [0, 0, 95, 5], [0, 1, 4, 5]])


def test_confusion_matrix_shows_shares_of_the_true_type():
    ax = confusion_matrix(CONFUSION, ["a", "b", "c", "d"], title="QBMVI")
    np.testing.assert_allclose(
        ax.images[0].get_array()[[1, 3]], [[0.3, 0.7, 0, 0], [0, 0.1, 0.4, 0.5]]
    )
    assert {t.get_text() for t in ax.texts} >= {"90", "30", "70", "50"}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted type", "true type")
    nothing_is_cut(ax.figure)
    with pytest.raises(ValueError, match="3 types"):
        confusion_matrix(CONFUSION, ["a", "b", "c"])


def test_confused_groups_takes_the_mean_and_leaves_rare_types_out():
    (group,) = confused_groups([CONFUSION])
    assert sorted(group) == [0, 1]  # d has ten cells only
    assert [sorted(g) for g in confused_groups([CONFUSION], min_cells=5)] == [[0, 1, 2, 3]]
    assert [sorted(g) for g in confused_groups([CONFUSION], min_cells=5, size=2)] == [
        [2, 3],
        [0, 1],
    ]
    assert confused_groups([np.diag([50, 50])]) == []
    clean = np.diag([100, 100, 100, 10])
    half = confused_groups([CONFUSION, clean])
    assert [sorted(g) for g in half] == [[0, 1]]


def test_confusion_zoom_is_the_same_groups_for_both():
    axes = confusion_zoom({"QBMVI": CONFUSION, "Gaussian twin": CONFUSION.T}, list("abcd"))
    assert [ax.get_title() for ax in axes][0] == "QBMVI: 80.0% right"
    np.testing.assert_allclose(axes[0].images[0].get_array(), [[0.9, 0.1, 0], [0.3, 0.7, 0]])
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["a (100)", "b (100)"]
    assert [t.get_text() for t in axes[1].get_xticklabels()] == ["a", "b", "any other"]
    nothing_is_cut(axes[0].figure)
    with pytest.raises(ValueError, match="No two types"):
        confusion_zoom({"QBMVI": np.diag([50, 50])}, ["a", "b"])


def test_pseudotime_comparison_leaves_out_cells_off_the_trajectory():
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=300)
    same, other = truth**2, 1 - truth
    truth[:50], same[50:60] = np.nan, np.inf
    axes = pseudotime_comparison(truth, {"QBMVI": same, "PCA": other})
    assert axes[0].get_title() == "QBMVI\nSpearman 1.000 (240 cells)"
    assert axes[1].get_title() == "PCA\nSpearman -1.000 (250 cells)"
    assert "no unit" in axes[0].get_xlabel() and "no unit" in axes[0].get_ylabel()
    limits = {ax.collections[0].get_clim() for ax in axes}
    assert len(limits) == 1  # the one colour bar holds for both
    nothing_is_cut(axes[0].figure)
    with pytest.raises(ValueError, match="pseudotimes of shape"):
        pseudotime_comparison(truth, {"QBMVI": same[:-1]})
    with pytest.raises(ValueError, match="pseudotimes of shape"):
        pseudotime_comparison(truth, {})


def test_cost_has_units_and_a_log_axis_only_where_it_helps():
    time, memory = cost(made_rows(), METHODS, BLOCKS, reference="qbmvi")
    assert (time.get_xlabel(), memory.get_xlabel()) == (
        "time to fit (s)",
        "memory added at the peak (MiB)",
    )
    assert (time.get_xscale(), memory.get_xscale()) == ("log", "linear")
    assert memory.get_xlim()[0] == 0
    nothing_is_cut(time.figure)
    assert len(cost(made_rows().drop(columns="memory_mb"))) == 1
    with pytest.raises(ValueError, match="No metric"):
        cost(made_rows()[["method"]])
