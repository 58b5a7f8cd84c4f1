"""kBET within cell types: do neighbourhoods have the batch composition of their type?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from scipy.stats import chi2

from scvi_qbm.benchmark.metrics.neighbors import nearest_neighbors

if TYPE_CHECKING:
    from scib_metrics.nearest_neighbors import NeighborsResults


def _diffusion_coordinates(
    graph: sparse.csr_matrix, n_components: int, seed: int
) -> NDArray[np.float32]:
    """Density-normalised diffusion map, all times summed; the first coordinate is trivial."""
    density = sparse.diags_array(1.0 / np.asarray(graph.sum(0)).ravel())
    kernel = density @ graph @ density
    scale = sparse.diags_array(1.0 / np.sqrt(np.asarray(kernel.sum(0)).ravel()))
    transitions = (scale @ kernel @ scale).astype(np.float64)
    k = min(transitions.shape[0] - 1, n_components)
    start = np.random.default_rng(seed).standard_normal(transitions.shape[0])
    values, vectors = eigsh(transitions, k=k, which="LM", v0=start)
    values = values.astype(np.float32)[::-1] + np.float32(1e-8)
    vectors = vectors.astype(np.float32)[:, ::-1]
    return vectors * np.array([v if v == 1 else v / (1 - v) for v in values], dtype=np.float32)


def _acceptance(indices: NDArray[np.int64], batches: NDArray[np.int64]) -> float:
    """Share of rows whose batch counts a chi-squared test does not tell from ``batches``."""
    n_batches = batches.max() + 1
    frequency = np.bincount(batches, minlength=n_batches) / len(batches)
    observed = np.eye(n_batches)[batches[indices]].sum(1)
    expected = frequency * indices.shape[1]
    statistic = np.sum((observed - expected) ** 2 / expected, axis=1)
    return float(np.mean(chi2.sf(statistic, n_batches - 1) >= 0.05))


def kbet_per_label(
    neighbors: NeighborsResults,
    batch: ArrayLike,
    labels: ArrayLike,
    *,
    n_jobs: int = 1,
    seed: int = 0,
) -> float:
    """Mean over labels of the share of cells whose neighbourhood passes a chi-squared test.

    ``scib_metrics.kbet_per_label`` of 0.5.10, but reproducible and without its compilation for
    each size of a label: there the eigenvectors start at random, so two calls may differ in the
    fourth decimal. Within a label, neighbours are searched in a diffusion map, between 10 and 70
    by the size of its batches. Kept from it, for equality: a small label lowers the number of
    diffusion components for all labels that follow.
    """
    names, codes = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    _, batches = np.unique(np.asarray(batch).astype(str), return_inverse=True)
    graph = sparse.csr_matrix(neighbors.knn_graph_connectivities)
    n_components = 100
    scores = []
    for label in range(len(names)):
        rows = np.flatnonzero(codes == label)
        sizes = np.unique(batches[rows], return_counts=True)[1]
        if len(rows) < 10 or len(sizes) == 1:
            continue
        k = min(70, max(10, int(sizes.mean() / 4)))
        part = graph[rows][:, rows]
        n_pieces, piece = connected_components(part, connection="strong")
        if n_pieces > 1:
            large = np.flatnonzero(np.bincount(piece)[piece] >= 3 * k)
            if len(large) / len(rows) < 0.75:
                scores.append(0.0)
                continue
            rows, part = rows[large], part[large][:, large]
        n_components = min(n_components, len(rows) - 1)
        try:
            space = _diffusion_coordinates(part, n_components, seed)
            found = nearest_neighbors(space, k + 1, n_jobs=n_jobs, seed=seed)
        except ValueError:  # as scib-metrics: no map counts as rejection
            scores.append(0.0)
            continue
        _, present = np.unique(batches[rows], return_inverse=True)
        scores.append(_acceptance(found.indices, present))
    return float(np.mean(scores)) if scores else float("nan")
