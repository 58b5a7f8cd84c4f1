"""Do clusters found in an embedding agree with the cell types?"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    fowlkes_mallows_score,
    normalized_mutual_info_score,
)

from scvi_qbm.benchmark.extras import require
from scvi_qbm.benchmark.metrics.groups import Embedded, group
from scvi_qbm.benchmark.metrics.neighbors import as_neighbors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scib_metrics.nearest_neighbors import NeighborsResults

__all__ = ["leiden_sweep"]

#: Resolutions of the Leiden sweep, 0.05 and 0.1 to 2 in steps of 0.1.
RESOLUTIONS = (0.05, *(round(0.1 * i, 1) for i in range(1, 21)))


class ClusterScores(NamedTuple):
    """Agreement of clusters with labels at the resolution of the highest NMI.

    NMI with the arithmetic mean of the entropies, adjusted Rand index, adjusted mutual
    information, Fowlkes-Mallows index; ``table`` has a row with them for each resolution.
    """

    nmi: float
    ari: float
    ami: float
    fmi: float
    resolution: float
    n_clusters: int
    table: pd.DataFrame


@dataclass(frozen=True)
class LeidenSweep:
    """Clusterings at several resolutions, to be scored against any number of label sets."""

    resolutions: tuple[float, ...]
    clusters: NDArray[np.int64]  # of each cell, (n_resolutions, n_cells)

    def score(self, labels: ArrayLike) -> ClusterScores:
        """Agreement with these labels, at the resolution where NMI is highest (the first of ties).

        The choice uses the labels, as scIB's does: every method gets the same help from it.
        """
        y = np.asarray(labels).astype(str)
        if len(y) != self.clusters.shape[1]:
            raise ValueError(f"{self.clusters.shape[1]} cells, {len(y)} in `labels`.")
        # AMI costs as much as the clustering itself: it is computed once for equal clusterings.
        seen: dict[bytes, tuple[float, ...]] = {}
        rows = []
        for resolution, found in zip(self.resolutions, self.clusters, strict=True):
            key = found.tobytes()
            if key not in seen:
                seen[key] = (
                    normalized_mutual_info_score(y, found, average_method="arithmetic"),
                    adjusted_rand_score(y, found),
                    adjusted_mutual_info_score(y, found, average_method="arithmetic"),
                    fowlkes_mallows_score(y, found),
                )
            rows.append((*map(float, seen[key]), resolution, len(np.unique(found))))
        table = pd.DataFrame(
            rows, columns=["nmi", "ari", "ami", "fmi", "resolution", "n_clusters"]
        )
        return ClusterScores(*rows[int(np.argmax(table["nmi"]))], table)


def leiden_sweep(
    neighbors: NeighborsResults | ArrayLike,
    *,
    resolutions: Sequence[float] = RESOLUTIONS,
    seed: int = 42,
) -> LeidenSweep:
    """Leiden clusterings of the graph that scib-metrics clusters, one for each resolution.

    UMAP's connectivities of 15 neighbours, the cell itself included, modularity, two iterations of
    igraph's Leiden: given equal resolutions and seed, :meth:`LeidenSweep.score` equals
    ``scib_metrics.nmi_ari_cluster_labels_leiden`` in NMI and ARI.

    Parameters
    ----------
    neighbors
        :func:`~scvi_qbm.benchmark.metrics.neighbors.nearest_neighbors`, or an embedding
        ``(n_cells, n_dimensions)``.
    resolutions
        Of the modularity: more gives more clusters.
    seed
        Of every clustering; 42 is that of scib-metrics.

    Returns
    -------
    LeidenSweep
        A clustering a resolution.

    Raises
    ------
    ImportError
        Without scib-metrics or igraph.
    ValueError
        Without resolutions.
    """
    if not len(resolutions):
        raise ValueError("`resolutions` is empty.")
    igraph = require("igraph")
    found = as_neighbors(neighbors, 15)
    graph = igraph.Graph.Weighted_Adjacency(found.knn_graph_connectivities, mode="directed")
    graph.to_undirected(mode="each")
    clusters = []
    try:
        for resolution in resolutions:
            igraph.set_random_number_generator(random.Random(seed))
            clusters.append(
                graph.community_leiden(
                    objective_function="modularity", weights="weight", resolution=resolution
                ).membership
            )
    finally:
        igraph.set_random_number_generator(random)
    return LeidenSweep(tuple(map(float, resolutions)), np.asarray(clusters, dtype=np.int64))


@group(
    "clustering",
    ("nmi", "NMI", "Of types with Leiden clusters, at the resolution of best NMI."),
    ("ari", "ARI", "Adjusted Rand index, same clusters."),
    ("ami", "AMI", "Adjusted mutual information, same clusters."),
    ("fmi", "FMI", "Fowlkes-Mallows index, same clusters."),
    ("nmi_fine", "NMI, fine", "As NMI, for the fine types, at their own best resolution."),
    ("ari_fine", "ARI, fine", "As ARI, for the fine types."),
    ("ami_fine", "AMI, fine", "As AMI, for the fine types."),
    ("fmi_fine", "FMI, fine", "As FMI, for the fine types."),
    # At resolution 1, which is scanpy's default.
    described=("n_clusters", "resolution", "ari_at_1", "n_clusters_at_1"),
)
def clustering(cells: Embedded) -> None:
    """Agreement of Leiden clusters with types and fine types."""
    known = cells.known
    if known.labels is None and known.fine_labels is None:
        return
    sweep = leiden_sweep(cells.neighbors, seed=42 + cells.seed)  # 42 is scib-metrics' own
    names = ("nmi", "ari", "ami", "fmi")
    if known.labels is not None:
        found = sweep.score(known.labels)
        for name in (*names, "n_clusters", "resolution"):
            cells.scores[name] = getattr(found, name)
        at_1 = found.table[found.table["resolution"] == 1.0].iloc[0]
        cells.scores["ari_at_1"] = float(at_1["ari"])
        cells.scores["n_clusters_at_1"] = float(at_1["n_clusters"])
    if known.fine_labels is not None:
        found = sweep.score(known.fine_labels)
        for name in names:
            cells.scores[f"{name}_fine"] = getattr(found, name)
