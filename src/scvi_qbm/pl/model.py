"""Pictures of what ``scvi_qbm.tl`` wrote into the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cophenet, dendrogram, leaves_list, linkage
from scipy.spatial.distance import squareform

from scvi_qbm._numbers import positive_int
from scvi_qbm.pl.style import PALETTE, axes_or_new, plain

__all__ = [
    "attractors",
    "coupling_graph",
    "coupling_matrix",
    "energy",
    "generation_quality",
    "programs",
]

_ON, _OFF = PALETTE[3], PALETTE[0]  # as the ends of the coupling matrix's map


def _kept(adata: AnnData, key: str, tool: str) -> Any:
    """What ``scvi_qbm.tl`` keeps of a result."""
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"Pictures take the AnnData that tl.{tool}() wrote into, not a {type(adata).__name__}."
        )
    kept = adata.uns.get("qbm", {}).get(key)
    if kept is None or kept.get("tool") != tool:
        raise KeyError(
            f"No result of tl.{tool} under {key!r} in adata.uns['qbm']. First: "
            f"scvi_qbm.tl.{tool}(model, adata), with key_added={key!r}."
        )
    return kept


def most_frequent(adata: AnnData, key: str, labels_key: str) -> pd.Series:
    """The most frequent label of each group of ``obs[key]`` and its share, "" if none has one."""
    counts = pd.crosstab(adata.obs[key], adata.obs[labels_key])
    shares = counts.div(counts.sum(axis=1), axis=0)
    named = shares.idxmax(axis=1).astype(str) + shares.max(axis=1).map(" {:.0%}".format)
    return named.reindex(adata.obs[key].cat.categories, fill_value="")


def energy(
    adata: AnnData,
    key: str = "free_energy",
    *,
    basis: str = "umap",
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Cells on an embedding, coloured by free energy, the highest on top.

    Parameters
    ----------
    adata
        Cells with a result of :func:`scvi_qbm.tl.energy` and coordinates.
    key
        Its column of ``obs``.
    basis
        The embedding, as :func:`scanpy.pl.embedding`.
    ax
        Axes to draw into; new ones if None.
    **kwargs
        Of :func:`scanpy.pl.embedding`. Colours span the 1st to 99th percentile by default.

    Returns
    -------
    matplotlib.axes.Axes
        The one drawn into.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If there is no energy or no embedding.
    """
    import scanpy as sc  # slow; pictures of samplers do without

    _kept(adata, key, "energy")
    if not {basis, f"X_{basis}"} & set(adata.obsm):
        raise KeyError(
            f"No embedding {basis!r} in adata.obsm. `basis=` can be {', '.join(adata.obsm)}. "
            "For a UMAP: scanpy.pp.neighbors(adata, use_rep='X_qbmvi'), scanpy.tl.umap(adata)."
        )
    ax = axes_or_new(ax, (4.6, 3.6))
    look = {"color_map": "cividis", "vmin": "p1", "vmax": "p99", "frameon": False}
    look |= {"title": "free energy (nats)", "show": False}
    sc.pl.embedding(adata, basis, color=key, ax=ax, **(look | kwargs))
    return ax


def attractors(
    adata: AnnData,
    key: str = "attractor",
    *,
    labels_key: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Tree of attractors: a stem starts at the lowest energy and ends where it joins others.

    A stem's length is the barrier to leave the attractor. Names have the colours of
    :func:`scanpy.pl.embedding`.

    Parameters
    ----------
    adata
        Cells with a result of :func:`scvi_qbm.tl.attractors`.
    key
        Its column of ``obs``.
    labels_key
        Another column of ``obs``: leaves also show the most frequent label and its share of the
        cells.
    ax
        Axes to draw into; new ones if None. Of more than 60 leaves the last 60 merges are shown.

    Returns
    -------
    matplotlib.axes.Axes
        The one drawn into.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If there are no attractors or labels.
    """
    kept = _kept(adata, key, "attractors")
    if labels_key is not None and labels_key not in adata.obs:
        raise KeyError(
            f"{labels_key!r} is not in adata.obs. Available: {', '.join(map(repr, adata.obs))}."
        )
    tree, lowest = _valleys(kept)
    names = [str(g) for g in range(len(lowest))]
    if labels_key is not None:
        common = most_frequent(adata, key, labels_key)
        names = [plain(f"{g} {common.get(g, '')}".strip()) for g in names]
    ax = axes_or_new(ax, (max(4.0, 0.22 * min(len(names), 60)), 3.2))
    height = list(lowest)
    if len(names) == 1:
        ax.plot([0], [0], "o", color=PALETTE[0])
        ax.set_xticks([0], names)
    else:
        for a, b in tree[:, :2].astype(int):
            height.append(min(height[a], height[b]))
        many = {"truncate_mode": "lastp", "p": 60} if len(names) > 60 else {}
        drawn = dendrogram(tree, no_plot=True, labels=names, **many)
        leaves = drawn["leaves"]
        for x, y in zip(drawn["icoord"], np.array(drawn["dcoord"]), strict=True):
            for end in (0, 3):
                if y[end] == 0:  # a leaf: scipy's stems start at 0, these at the minimum
                    y[end] = height[leaves[round((x[end] - 5) / 10)]]
            ax.plot(x, y, color="0.4", lw=1)
        ax.set_xticks(5 + 10 * np.arange(len(leaves)), drawn["ivl"], rotation=90, fontsize=7)
        colors = adata.uns.get(f"{key}_colors", PALETTE)
        place = {name: i for i, name in enumerate(adata.obs[key].cat.categories)}
        for text, leaf in zip(ax.get_xticklabels(), leaves, strict=True):
            if leaf < len(lowest) and str(leaf) in place:  # not a joint, and it has cells
                text.set_color(colors[place[str(leaf)] % len(colors)])
    depth = float(kept["depth"])
    ax.set_title(f"{len(lowest)} attractors, barriers above {depth:g} nats", fontsize=9)
    ax.set(xlabel="attractor", ylabel="energy (nats)")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _valleys(kept: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tree of merges of the groups, and the lowest energy of each above the lowest of all."""
    group = np.asarray(kept["group"])
    energies = np.asarray(kept["energies"]) - np.min(kept["energies"])
    order = np.argsort(energies, kind="stable")
    _, first = np.unique(group[order], return_index=True)
    minima = order[first]  # the lowest of each group
    tree = np.asarray(kept["tree"], dtype=float)
    if len(minima) > 1:
        passes = squareform(cophenet(tree))[np.ix_(minima, minima)]
        tree = linkage(squareform(passes), "single")
    return tree, energies[minima]


def programs(
    adata: AnnData,
    key: str = "programs",
    *,
    n_units: int = 20,
    n_genes: int = 3,
    ax: Axes | None = None,
) -> Axes:
    """Heat map of the genes that the strongest units switch.

    Parameters
    ----------
    adata
        Cells with a result of :func:`scvi_qbm.tl.programs`.
    key
        Its key of ``varm``.
    n_units
        Units shown, the strongest first.
    n_genes
        Genes of each, the strongest in either direction.
    ax
        Axes to draw into; new ones if None.

    Returns
    -------
    matplotlib.axes.Axes
        The one drawn into.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If there are no programs.
    """
    _kept(adata, key, "programs")
    positive_int(n_units, "n_units"), positive_int(n_genes, "n_genes")
    change = adata.varm[key].T.iloc[:n_units].fillna(0)
    genes: list[str] = []
    for _, row in change.iterrows():
        genes += [g for g in row.abs().nlargest(n_genes).index if g not in genes]
    shown = change[genes]
    limit = float(np.abs(shown.to_numpy()).max()) or 1.0
    ax = axes_or_new(ax, (1.6 + 0.14 * len(genes), 1.0 + 0.15 * len(shown)))
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    ax.figure.colorbar(image, ax=ax, label="log fold change, unit on against off")
    ax.set_xticks(range(len(genes)), map(plain, genes), rotation=90, fontsize=7)
    ax.set_yticks(range(len(shown)), shown.index, fontsize=7)
    ax.tick_params(length=2)
    return ax


def coupling_matrix(adata: AnnData, key: str = "couplings", *, ax: Axes | None = None) -> Axes:
    """Couplings between all units, in the order of a hierarchical clustering.

    Parameters
    ----------
    adata
        Data with a result of :func:`scvi_qbm.tl.couplings`.
    key
        Its key.
    ax
        Axes to draw into; new ones if None.

    Returns
    -------
    matplotlib.axes.Axes
        The one drawn into.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If there are no couplings.
    """
    kept = _kept(adata, key, "couplings")
    pairs, n_latent = kept["pairs"], int(kept["n_latent"])
    matrix = np.zeros((n_latent, n_latent))
    a, b = pairs["unit_a"].to_numpy(int), pairs["unit_b"].to_numpy(int)
    matrix[a, b] = matrix[b, a] = pairs["coupling"]
    order = leaves_list(linkage(matrix, method="average")) if n_latent > 2 else slice(None)
    matrix = matrix[order][:, order]
    limit = np.abs(matrix).max() or 1.0
    ax = axes_or_new(ax, (4.4, 3.6))
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.figure.colorbar(image, ax=ax, label="coupling (nats)")
    ax.set(xlabel="unit", ylabel="unit", xticks=[], yticks=[])
    return ax


def coupling_graph(
    adata: AnnData,
    key: str = "couplings",
    *,
    n_edges: int = 60,
    labels: Mapping[int, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The strongest couplings as a graph: units on a circle, coupled ones near each other.

    Parameters
    ----------
    adata
        Data with a result of :func:`scvi_qbm.tl.couplings`.
    key
        Its key.
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
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If there are no couplings.
    ValueError
        If all couplings are 0.
    """
    couplings = _kept(adata, key, "couplings")["pairs"]
    positive_int(n_edges, "n_edges")
    edges = couplings[couplings["coupling"] != 0]
    edges = edges.loc[edges["coupling"].abs().nlargest(n_edges).index]
    if edges.empty:
        raise ValueError("No coupling to draw: they are all 0.")
    units, ends = np.unique(edges[["unit_a", "unit_b"]].to_numpy(), return_inverse=True)
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
        ax.text(1.07 * x, 1.07 * y, plain(names.get(int(unit), unit)), fontsize=7,
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
