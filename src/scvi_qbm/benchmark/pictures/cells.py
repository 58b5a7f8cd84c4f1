"""Pictures of cells in the comparison of embeddings: UMAPs, confusions, pseudotime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from scvi_qbm.benchmark.pictures.scores import _quiet, _short
from scvi_qbm.pl.style import PALETTE, plain


def embedding_grid(
    embeddings: Mapping[str, ArrayLike], labels: ArrayLike, batch: ArrayLike | None = None
) -> Sequence[Axes]:
    """Two-dimensional embeddings, a method a row, coloured by cell type and by batch.

    Cell types are numbered at their medians and in the legend, for there are more than eyes can
    tell apart by colour.

    Parameters
    ----------
    embeddings
        Label of the method -> ``(n_cells, 2)``.
    labels, batch
        Shape ``(n_cells,)``; without batches there is one column. A pandas Series gives ``batch``
        its own name as title.

    Returns
    -------
    collections.abc.Sequence[matplotlib.axes.Axes]
        Row by row, as :func:`matplotlib.pyplot.subplots` gives them.

    Raises
    ------
    ValueError
        If there is no embedding or a shape does not fit.
    """
    columns = {"cell type": np.asarray(labels).astype(str)}
    if batch is not None:
        columns[str(getattr(batch, "name", None) or "batch")] = np.asarray(batch).astype(str)
    n_cells = len(columns["cell type"])
    shapes = {name: np.shape(xy) for name, xy in embeddings.items()}
    wrong = {name: shape for name, shape in shapes.items() if shape != (n_cells, 2)}
    if not embeddings or wrong or any(len(c) != n_cells for c in columns.values()):
        raise ValueError(f"Wanted embeddings of shape ({n_cells}, 2), got {wrong or shapes}.")
    names = {title: _by_size(values) for title, values in columns.items()}
    height = max(2.1 * len(embeddings), 2.8) + 0.3
    n_lines = sum(min(len(n), 60) for n in names.values()) + 2.5 * len(names)
    n_legend = int(np.ceil(n_lines * 0.155 / height))
    longest = max(len(_short(n)) for group in names.values() for n in group)
    width = 0.2 + n_legend * (0.3 + 0.058 * longest)
    size = 2.35
    figure = plt.figure(figsize=(0.35 + size * len(columns) + width, height), layout="constrained")
    spec = figure.add_gridspec(
        len(embeddings), len(columns) + 1, width_ratios=[size] * len(columns) + [width]
    )
    shuffle = np.random.default_rng(0).permutation(n_cells)
    axes = []
    for i, (method, xy) in enumerate(embeddings.items()):
        xy = np.asarray(xy, dtype=float)
        for j, (title, values) in enumerate(columns.items()):
            ax = figure.add_subplot(spec[i, j])
            index = pd.Categorical(values, names[title]).codes
            colours = np.array([_colour(k) for k in range(len(names[title]))])
            ax.scatter(
                *xy[shuffle].T, c=colours[index[shuffle]], s=np.clip(5000 / n_cells, 0.7, 8),
                lw=0, rasterized=True,
            )  # fmt: skip
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_color("0.85")
            if j == 0:
                ax.set_ylabel(fill(plain(method), 28), fontsize=8)
                _number(ax, xy, index, len(names[title]))
            if i == 0:
                ax.set_title(title, fontsize=9)
            if i == len(embeddings) - 1:
                ax.set_xlabel("UMAP 1 × UMAP 2 (no unit)", fontsize=7, color="0.4")
            axes.append(ax)
    _name_legend(figure.add_subplot(spec[:, -1]), names, n_legend)
    return axes


def confusion_matrix(
    confusion: ArrayLike, labels: Sequence[str], ax: Axes | None = None, *, title: str = ""
) -> Axes:
    """Shares of each true type's cells that a classifier put where, types in the order given.

    Parameters
    ----------
    confusion
        Counts ``(n_types, n_types)``, true types in rows.
    labels
        Names of the types.
    ax
        Axes to draw into; new ones if None.
    title
        Of the picture.

    Returns
    -------
    matplotlib.axes.Axes
        The one drawn into.

    Raises
    ------
    ValueError
        If the matrix is not square or does not fit the labels.
    """
    share, counts = _shares(confusion, labels)
    n = len(labels)
    names = [_short(label) for label in labels]
    if ax is None:
        side = max(2.4, (0.28 if n <= 16 else 0.17) * n) + 0.06 * max(map(len, names))
        ax = plt.subplots(figsize=(side + 1.5, side + 0.6), layout="constrained")[1]
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(n), names, rotation=90, fontsize=7)
    ax.set_yticks(range(n), names, fontsize=7)
    if n <= 16:
        _write_shares(ax, share, 6.5)
    ax.set_xlabel("predicted type", fontsize=8)
    ax.set_ylabel("true type", fontsize=8)
    ax.set_title(plain(title), fontsize=9)
    _small_bar(ax.figure, image, ax, "share of the true type's cells (numbers in %)")
    return ax


def confused_groups(
    confusions: Sequence[ArrayLike], *, size: int = 6, min_cells: int = 20
) -> list[NDArray[np.intp]]:
    """Groups of types that are taken for each other most, by the mean of several classifiers.

    From the most confused pair on, the type that is most confused with the group joins it, until
    it has ``size`` types or none is left with a share above 0.02.
    """
    counts = [np.asarray(c, dtype=float) for c in confusions]
    mean = np.mean([c / np.maximum(c.sum(axis=1, keepdims=True), 1) for c in counts], axis=0)
    affinity = (mean + mean.T) / 2
    np.fill_diagonal(affinity, 0)
    rare = counts[0].sum(axis=1) < min_cells
    affinity[rare] = affinity[:, rare] = 0
    groups = []
    while len(groups) < 2 and affinity.max(initial=0) > 0.02:
        group = list(np.unravel_index(affinity.argmax(), affinity.shape))
        while len(group) < size:
            joining = affinity[group].sum(axis=0)
            joining[group] = 0
            if joining.max() <= 0.02:
                break
            group.append(joining.argmax())
        groups.append(np.array(group))
        affinity[group] = affinity[:, group] = 0
    return groups


def confusion_zoom(confusions: Mapping[str, ArrayLike], labels: Sequence[str]) -> Sequence[Axes]:
    """The most confused groups of close types, methods side by side.

    Parameters
    ----------
    confusions
        Label of the method -> counts ``(n_types, n_types)``, true types in rows; two as a rule.
        The groups come from their mean (:func:`confused_groups`), which favours none.
    labels
        Names of the types.

    Returns
    -------
    collections.abc.Sequence[matplotlib.axes.Axes]
        Groups in rows, methods in columns, flat.

    Raises
    ------
    ValueError
        If shapes do not fit, or no types of 20 cells or more are confused.
    """
    shares = {name: _shares(c, labels) for name, c in confusions.items()}
    groups = confused_groups(list(confusions.values()))
    if not groups:
        raise ValueError("No two types of at least 20 cells are confused.")
    longest = max(len(_short(labels[i])) for g in groups for i in g)
    width = 2.4 * len(shares) + 0.062 * longest + 1.4
    heights = [0.27 * len(g) + 0.062 * longest + 0.6 for g in groups]
    figure, grid = plt.subplots(
        len(groups), len(shares), figsize=(width, max(2.8, sum(heights))), layout="constrained",
        squeeze=False, height_ratios=heights,
    )  # fmt: skip
    for i, group in enumerate(groups):
        for j, (method, (share, counts)) in enumerate(shares.items()):
            inside = share[np.ix_(group, group)]
            shown = np.column_stack([inside, share[group].sum(axis=1) - inside.sum(axis=1)])
            ax = grid[i, j]
            image = ax.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            _write_shares(ax, shown, 7.5)
            ax.axvline(len(group) - 0.5, color="0.3", lw=1)
            names = [_short(labels[k]) for k in group]
            ax.set_xticks(range(len(group) + 1), [*names, "any other"], rotation=90, fontsize=7.5)
            sizes = [f"{n} ({counts[k]:,})" for n, k in zip(names, group, strict=True)]
            ax.set_yticks(range(len(group)), sizes if j == 0 else [""] * len(group), fontsize=7.5)
            right = float((np.diag(inside) * counts[group]).sum() / counts[group].sum())
            ax.set_title(f"{plain(method)}: {right:.1%} right", fontsize=8.5)
        grid[i, 0].set_ylabel("true type (cells)", fontsize=8)
    for ax in grid[-1]:
        ax.set_xlabel("predicted type", fontsize=8)
    _small_bar(figure, image, grid, "share of the true type's cells (numbers in %)")
    return list(grid.flat)


def pseudotime_comparison(
    reference: ArrayLike, recovered: Mapping[str, ArrayLike]
) -> Sequence[Axes]:
    """Pseudotime in each embedding against the reference's, with Spearman's correlation.

    Parameters
    ----------
    reference
        Shape ``(n_cells,)``; NaN where a cell is not on the trajectory.
    recovered
        Label of the method -> ``(n_cells,)``.

    Returns
    -------
    collections.abc.Sequence[matplotlib.axes.Axes]
        One a method.

    Raises
    ------
    ValueError
        If there is nothing to compare or a shape does not fit.
    """
    truth = np.asarray(reference, dtype=float)
    times = {name: np.asarray(t, dtype=float) for name, t in recovered.items()}
    if not times or any(t.shape != truth.shape for t in times.values()):
        shapes = {name: t.shape for name, t in times.items()}
        raise ValueError(f"Wanted pseudotimes of shape {truth.shape}, got {shapes}.")
    figure, grid = plt.subplots(
        1, len(times), figsize=(2.1 * len(times) + 0.9, 2.5), layout="constrained", squeeze=False
    )
    axes, bins = list(grid[0]), []
    for ax, (name, t) in zip(axes, times.items(), strict=True):
        on = np.isfinite(t) & np.isfinite(truth)
        both = pd.DataFrame({"x": truth[on], "y": t[on]})
        rho = both["x"].corr(both["y"], method="spearman")
        bins.append(ax.hexbin(both["x"], both["y"], gridsize=32, bins="log", mincnt=1, lw=0,
                              cmap="Blues"))  # fmt: skip
        name = fill(plain(name), 24)
        ax.set_title(f"{name}\nSpearman {rho:.3f} ({on.sum():,} cells)", fontsize=8)
        ax.set_xlabel("reference pseudotime (no unit)", fontsize=7.5)
        _quiet(ax)
    axes[0].set_ylabel("recovered pseudotime\n(no unit)", fontsize=7.5)
    most = max(2, *(b.get_array().max() for b in bins))
    for b in bins:  # one scale for all, which the bar shows
        b.set_clim(0.5, most)
    _small_bar(figure, bins[0], axes, "cells per bin")
    return axes


def _colour(k: int) -> tuple[float, float, float]:
    """The palette, then its lighter and its darker shades."""
    base = np.array(to_rgb(PALETTE[k % len(PALETTE)]))
    turn = k // len(PALETTE) % 3
    r, g, b = (base, 0.5 + 0.5 * base, 0.6 * base)[turn]
    return float(r), float(g), float(b)


def _by_size(values: NDArray[np.str_]) -> list[str]:
    names, counts = np.unique(values, return_counts=True)
    return [str(n) for n in names[np.argsort(-counts, kind="stable")]]


def _number(ax: Axes, xy: NDArray[np.float64], index: NDArray[np.int8], n: int) -> None:
    for k in range(n):
        x, y = np.median(xy[index == k], axis=0)
        ax.text(x, y, str(k + 1), fontsize=6, ha="center", va="center",
                path_effects=[withStroke(linewidth=2.0, foreground="white")])  # fmt: skip


def _name_legend(ax: Axes, names: Mapping[str, list[str]], n_columns: int) -> None:
    ax.set_axis_off()
    for k, (title, group) in enumerate(names.items()):
        handles = [
            Line2D([], [], marker="o", ls="", ms=4, color=_colour(i),
                   label=f"{i + 1}  {_short(name)}" if k == 0 else _short(name))
            for i, name in enumerate(group[:60])
        ]  # fmt: skip
        more = f" (60 of {len(group)})" if len(group) > 60 else ""
        legend = ax.legend(
            handles=handles, title=title + more, loc=("upper left", "lower left")[k],
            ncols=n_columns, frameon=False, fontsize=7, title_fontsize=8, alignment="left",
            borderaxespad=0, handletextpad=0.3, labelspacing=0.25, columnspacing=1.0,
        )  # fmt: skip
        legend.set_in_layout(False)
        if k < len(names) - 1:
            ax.add_artist(legend)


def _shares(
    confusion: ArrayLike, labels: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    matrix = np.asarray(confusion)
    if matrix.shape != (len(labels), len(labels)):
        raise ValueError(f"Wanted {len(labels)} types twice, got a matrix of {matrix.shape}.")
    counts = matrix.sum(axis=1)
    return matrix / np.maximum(counts, 1)[:, None], np.rint(counts).astype(np.int64)


def _write_shares(ax: Axes, share: NDArray[np.float64], size: float) -> None:
    for (i, j), value in np.ndenumerate(share):
        if value >= 0.005:
            ax.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=size,
                    color="white" if value > 0.55 else "0.15")  # fmt: skip


def _small_bar(figure: Figure, image: object, axes: object, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=22)  # type: ignore[arg-type]
    bar.set_label(label, fontsize=7.5)
    bar.ax.tick_params(labelsize=7)
