"""One search for nearest neighbours, which every neighbour-based score shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scanpy as sc
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from sklearn.neighbors import NearestNeighbors

from scvi_qbm.benchmark.extras import require
from scvi_qbm.benchmark.metrics.groups import Embedded, group

if TYPE_CHECKING:
    from scib_metrics.nearest_neighbors import NeighborsResults

__all__ = ["knn_label_entropy", "nearest_neighbors"]

N_NEIGHBORS = 90
# Up to so many cells the search is exact: the same neighbours, without half a minute in which
# pynndescent is compiled.
_EXACT = 1000


def check_embedding(embedding: ArrayLike, n_cells: int | None = None) -> NDArray[np.float32]:
    """A new float32 array of the embedding, after checking it."""
    x = np.array(embedding, dtype=np.float32, order="C")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"An embedding is cells x dimensions, this has shape {x.shape}.")
    if n_cells is not None and len(x) != n_cells:
        raise ValueError(f"{len(x)} rows in the embedding, {n_cells} cells.")
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        raise ValueError(f"The embedding is not finite in {bad.sum()} of {len(x)} cells.")
    return x


def nearest_neighbors(
    embedding: ArrayLike, n_neighbors: int = N_NEIGHBORS, *, n_jobs: int = 1, seed: int = 0
) -> NeighborsResults:
    """Nearest neighbours, as ``scib_metrics.benchmark`` searches them above 1,000 cells.

    Up to 1,000 cells by an exact search, above by pynndescent.

    Parameters
    ----------
    embedding
        Shape ``(n_cells, n_dimensions)``.
    n_neighbors
        Neighbours of each cell, itself included; fewer in small data.
    n_jobs
        Threads. Repeated with the same number the search is the same; one and two threads agreed
        in 99.8% of 90 neighbours, as much as either does with an exact search.
    seed
        Of the search.

    Returns
    -------
    scib_metrics.nearest_neighbors.NeighborsResults
        ``indices`` and ``distances`` (Euclidean), both ``(n_cells, n_neighbors)``, nearest first.
        Rows that pynndescent leaves incomplete, as it may where many cells are identical, are
        searched again exactly.

    Raises
    ------
    ImportError
        Without scib-metrics.
    ValueError
        If the embedding is not a finite matrix of at least three rows.
    """
    search = require("scib_metrics.nearest_neighbors")
    x = check_embedding(embedding)
    if len(x) < 3:
        raise ValueError(f"Neighbours need at least 3 cells, not {len(x)}.")
    k = min(n_neighbors, len(x) - 1)
    exact = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x)
    if len(x) <= _EXACT:
        distances, indices = exact.kneighbors(x)
        return search.NeighborsResults(
            indices=indices.astype(np.int32), distances=distances.astype(np.float32)
        )
    found = search.pynndescent(x, k, random_state=seed, n_jobs=n_jobs)
    bad = (found.indices < 0).any(1) | ~np.isfinite(found.distances).all(1)
    if bad.any():
        found.distances[bad], found.indices[bad] = exact.kneighbors(x[bad])
    return found


def subgraph(neighbors: NeighborsResults, n_neighbors: int) -> NeighborsResults:
    """The nearest of the neighbours found."""
    return neighbors.subset_neighbors(min(n_neighbors, neighbors.n_neighbors))


def as_neighbors(x: Any, n_neighbors: int) -> NeighborsResults:
    """Neighbours from neighbours (the nearest of them) or from an embedding (searched)."""
    if not hasattr(x, "subset_neighbors"):
        x = nearest_neighbors(x)
    return subgraph(x, n_neighbors)


def knn_label_entropy(
    neighbors: NeighborsResults | ArrayLike,
    labels: ArrayLike,
    *,
    n_neighbors: int = 15,
) -> float:
    """One minus the mean entropy of the labels among each cell's neighbours; 1 is pure.

    ``1 - mean_i H(labels of the neighbours of i) / ln K`` with K label values. This is what the
    QBM-VAE paper's *text* says of its "KNET". No score of this name is in scib or scib-metrics:
    do not report it as a scIB metric.

    Parameters
    ----------
    neighbors
        :func:`nearest_neighbors`, or an embedding ``(n_cells, n_dimensions)``.
    labels
        ``(n_cells,)``, at least two distinct values.
    n_neighbors
        Neighbours of a cell, itself *not* included.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ValueError
        If lengths differ or there is one label only.
    """
    found = as_neighbors(neighbors, N_NEIGHBORS)
    names, codes = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    if len(codes) != found.n_samples:
        raise ValueError(f"{found.n_samples} cells in `neighbors`, {len(codes)} in `labels`.")
    if len(names) < 2:
        raise ValueError("The entropy of labels needs at least two distinct labels.")
    indices = found.indices
    other = indices != np.arange(len(indices))[:, None]
    rank = np.where(other, np.cumsum(other, 1), n_neighbors + 1)
    near = rank <= n_neighbors
    rows = np.nonzero(near)[0]
    counts = np.zeros((len(indices), len(names)))
    np.add.at(counts, (rows, codes[indices[near]]), 1.0)
    p = counts / counts.sum(1, keepdims=True)
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=1)
    return float(1.0 - entropy.mean() / np.log(len(names)))


def umap_coordinates(
    embedding: ArrayLike,
    neighbors: NeighborsResults | None = None,
    *,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Two-dimensional UMAP of 15 neighbours: an illustration, and what scGraph's authors score."""
    x = check_embedding(embedding)
    near = as_neighbors(x if neighbors is None else neighbors, 15)
    cells = AnnData(x)
    cells.obsp["connectivities"] = near.knn_graph_connectivities
    cells.uns["neighbors"] = {
        "connectivities_key": "connectivities",
        "params": {"method": "umap", "n_neighbors": near.n_neighbors, "use_rep": "X"},
    }
    sc.tl.umap(cells, random_state=seed)
    return np.asarray(cells.obsm["X_umap"], dtype=np.float32)


@group(
    "local",
    ("knn_label_entropy", "kNN label purity", "1 - entropy of types among 15 neighbours."),
)
def local(cells: Embedded) -> None:
    """Purity of types among neighbours."""
    if cells.known.labels is not None:
        entropy = knn_label_entropy(cells.neighbors, cells.known.labels)
        cells.scores["knn_label_entropy"] = entropy
