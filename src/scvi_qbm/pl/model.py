"""Pictures of what a Boltzmann prior says about cells."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage

from scvi_qbm.pl.style import PALETTE, axes_or_new

__all__ = [
    "attractor_tree",
    "coupling_graph",
    "coupling_matrix",
    "energy_landscape",
    "gene_programs",
    "generation_quality",
]

_ON, _OFF = PALETTE[3], PALETTE[0]  # as the ends of the coupling matrix's map


def energy_landscape(
    embedding: ArrayLike,
    values: ArrayLike,
    ax: Axes | None = None,
    *,
    label: str = "free energy (nats)",
) -> Axes:
    """Cells in two dimensions, coloured by free energy, the highest on top.

    Parameters
    ----------
    embedding
        ``(n_cells, 2)``, a UMAP for instance.
    values
        ``model.get_energy()["free_energy"]`` or another column, ``(n_cells,)``.
    ax
        Axes to draw into; new ones if None.
    label
        Of the colour bar. Colours span the 1st to 99th percentile.

    Returns
    -------
    matplotlib.axes.Axes
        The one drawn into.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    xy, values = np.asarray(embedding), np.asarray(values, dtype=float)
    if xy.ndim != 2 or xy.shape[1] != 2 or len(xy) != len(values):
        raise ValueError(f"Wanted (n, 2) and (n,), got {xy.shape} and {values.shape}.")
    ax = axes_or_new(ax, (4.6, 3.6))
    order = np.argsort(values)
    low, high = np.percentile(values, [1, 99])
    dots = ax.scatter(
        *xy[order].T, c=values[order], s=max(1.5, 9e3 / len(xy)) ** 0.9, cmap="cividis",
        vmin=low, vmax=high, linewidths=0, rasterized=True,
    )  # fmt: skip
    ax.figure.colorbar(dots, ax=ax, label=label)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def attractor_tree(
    tree: ArrayLike | None, labels: list[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Tree of merges: minima as leaves, joined at the height of the pass between them.

    Parameters
    ----------
    tree
        ``attractors.tree`` of :func:`scvi_qbm.landscape.find_attractors`.
    labels
        Names of the leaves, in the order of the attractors; their numbers if None. With more than
        60 leaves only the last 60 merges are shown.
    ax
        Axes to draw into; new ones if None.

    Returns
    -------
    matplotlib.axes.Axes
        The one drawn into.

    Raises
    ------
    ValueError
        If there is no tree, because barriers were not computed.
    """
    if tree is None:
        raise ValueError("There is no tree: leave out barriers=False in get_attractors().")
    tree = np.asarray(tree, dtype=float)
    n_leaves = len(tree) + 1
    ax = axes_or_new(ax, (max(4.0, 0.22 * min(n_leaves, 60)), 3.2))
    if n_leaves == 1:
        ax.plot([0], [0], "o", color=PALETTE[0])
        ax.set_xticks([0], labels or ["0"])
    else:
        dendrogram(
            tree,
            labels=labels,
            ax=ax,
            truncate_mode="lastp" if n_leaves > 60 else None,
            p=60,
            leaf_rotation=90,
            color_threshold=0,
            above_threshold_color=PALETTE[0],
        )
    ax.set(xlabel="attractor", ylabel="pass above the lowest minimum (nats)")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def coupling_matrix(couplings: ArrayLike, ax: Axes | None = None) -> Axes:
    """Couplings between units, in the order of a hierarchical clustering.

    Parameters
    ----------
    couplings
        Symmetric ``(n_units, n_units)``, positive where two units like to be on together:
        ``-model.prior.W``.
    ax
        Axes to draw into; new ones if None.

    Returns
    -------
    matplotlib.axes.Axes
        The one drawn into.
    """
    matrix = np.asarray(couplings, dtype=float)
    order = leaves_list(linkage(matrix, method="average")) if len(matrix) > 2 else slice(None)
    matrix = matrix[order][:, order]
    limit = np.abs(matrix).max() or 1.0
    ax = axes_or_new(ax, (4.4, 3.6))
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.figure.colorbar(image, ax=ax, label="coupling (nats)")
    ax.set(xlabel="unit", ylabel="unit", xticks=[], yticks=[])
    return ax


def coupling_graph(
    couplings: pd.DataFrame,
    *,
    n_edges: int = 60,
    labels: Mapping[int, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The strongest couplings as a graph: units on a circle, coupled ones near each other.

    Parameters
    ----------
    couplings
        Columns ``unit_a``, ``unit_b``, ``coupling`` in nats, as of :meth:`QBMVI.get_couplings`.
    n_edges
        So many of the strongest are drawn; units without any of them are left out.
    labels
        Unit -> text in place of its number, such as its strongest gene.
    ax
        Axes to draw into; new ones if None.

    Returns
    -------
    matplotlib.axes.Axes
        The one drawn into.

    Raises
    ------
    ValueError
        If there is no coupling, or columns are missing.
    """
    columns = ["unit_a", "unit_b", "coupling"]
    if absent := [c for c in columns if c not in couplings]:
        raise ValueError(f"`couplings` lacks {', '.join(absent)}; pass model.get_couplings().")
    edges = couplings[couplings["coupling"] != 0]
    edges = edges.loc[edges["coupling"].abs().nlargest(n_edges).index]
    if edges.empty:
        raise ValueError("No coupling to draw: they are all 0, or none was passed.")
    units, ends = np.unique(edges[columns[:2]].to_numpy(), return_inverse=True)
    ends, values = ends.reshape(-1, 2), edges["coupling"].to_numpy(float)
    weight = np.zeros((len(units), len(units)))
    weight[ends[:, 0], ends[:, 1]] = weight[ends[:, 1], ends[:, 0]] = np.abs(values)
    place = np.empty(len(units))
    place[_neighbours_first(weight)] = np.arange(len(units))
    angle = 2 * np.pi * place / len(units)
    xy = np.column_stack([np.cos(angle), np.sin(angle)])
    ax = axes_or_new(ax, (4.4, 4.4))
    strongest = np.abs(values).max()
    for (a, b), value in sorted(zip(ends, values, strict=True), key=lambda e: abs(e[1])):
        # Bent towards the middle, so that edges between neighbours are seen too.
        curve = Path([xy[a], 0.35 * (xy[a] + xy[b]), xy[b]], [1, 3, 3])
        share = abs(value) / strongest
        ax.add_patch(PathPatch(
            curve, fill=False, lw=0.4 + 2.4 * share, alpha=0.35 + 0.6 * share,
            color=_ON if value > 0 else _OFF, ls="-" if value > 0 else (0, (4, 1.5)),
        ))  # fmt: skip
    ax.scatter(
        *xy.T, s=15 + 60 * weight.sum(axis=0) / weight.sum(axis=0).max(), c="0.25", zorder=3
    )
    names = labels or {}
    for unit, (x, y), turn in zip(units, xy, np.degrees(angle), strict=True):
        upright = turn if x >= 0 else turn + 180
        ax.text(1.07 * x, 1.07 * y, names.get(int(unit), str(unit)), fontsize=7,
                rotation=upright, rotation_mode="anchor", va="center",
                ha="left" if x >= 0 else "right")  # fmt: skip
    lines = [
        Line2D([], [], color=_ON, lw=2, label="on together"),
        Line2D([], [], color=_OFF, lw=2, ls=(0, (4, 1.5)), label="one or the other"),
    ]
    ax.legend(handles=lines, frameon=False, fontsize=8, loc="upper center", ncols=2,
              bbox_to_anchor=(0.5, -0.02), title=f"{len(edges)} strongest couplings, to "
              f"{strongest:.2f} nats", title_fontsize=8)  # fmt: skip
    ax.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
    ax.set_axis_off()
    return ax


def _neighbours_first(weight: NDArray[np.float64]) -> NDArray[np.intp]:
    """Order in which strongly coupled units follow each other."""
    if len(weight) < 3:
        return np.arange(len(weight))
    distance = 1 - weight / weight.max()
    return leaves_list(linkage(distance[np.triu_indices(len(weight), 1)], "average"))


def gene_programs(programs: pd.DataFrame, n_genes: int = 3, ax: Axes | None = None) -> Axes:
    """The genes that units move most, as a heat map of log2 fold changes.

    Parameters
    ----------
    programs
        ``model.get_gene_programs()``: units in rows, genes in columns.
    n_genes
        Genes shown for each of the 20 strongest units.
    ax
        Axes to draw into; new ones if None.

    Returns
    -------
    matplotlib.axes.Axes
        The one drawn into.
    """
    strength = programs.pow(2).sum(axis=1).sort_values(ascending=False)
    units = strength.index[:20]
    genes: list[str] = []
    for unit in units:
        top = programs.loc[unit].abs().sort_values(ascending=False).index[:n_genes]
        genes += [g for g in top if g not in genes]
    shown = programs.loc[units, genes]
    limit = float(np.abs(shown.to_numpy()).max()) or 1.0
    ax = axes_or_new(ax, (1.6 + 0.12 * len(genes), 1.0 + 0.13 * len(units)))
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    ax.figure.colorbar(image, ax=ax, label="log2 fold change, on against off")
    ax.set_xticks(range(len(genes)), genes, rotation=90, fontsize=6.5)
    ax.set_yticks(range(len(units)), units, fontsize=6.5)
    ax.tick_params(length=2)
    return ax


def generation_quality(scores: Mapping[str, Mapping[str, float]], ax: Axes | None = None) -> Axes:
    """Scores of generated cells by model, smaller is better.

    Parameters
    ----------
    scores
        Model name -> :func:`scvi_qbm.benchmark.metrics.generation.generation_scores`.
    ax
        Axes to draw into; new ones if None.

    Returns
    -------
    matplotlib.axes.Axes
        The one drawn into.
    """
    frame = pd.DataFrame(scores)
    ax = axes_or_new(ax, (4.6, 3.2))
    width = 0.8 / frame.shape[1]
    for i, name in enumerate(frame):
        x = np.arange(len(frame)) + (i - (frame.shape[1] - 1) / 2) * width
        ax.bar(x, frame[name], width, color=PALETTE[i % len(PALETTE)], label=name)
    classifiers = [x for x, name in enumerate(frame.index) if name.startswith("auc")]
    if classifiers:  # an AUC starts at a half, the other scores at zero
        ends = classifiers[0] - 0.5, classifiers[-1] + 0.5
        ax.plot(ends, [0.5, 0.5], color="0.4", lw=1, ls="--", label="AUC of a guess")
    ax.set_xticks(range(len(frame)), [name.replace("_", "\n") for name in frame.index])
    ax.set_ylabel("distance, or AUC of a classifier")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax
