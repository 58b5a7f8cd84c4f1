"""scGraph: are the distances between cell types in an embedding those within batches?

Wang, Leskovec and Regev, Nat. Biotechnol. 2025 (doi:10.1038/s41587-025-02702-z). The numbers are
those of the package ``scgraph-eval`` 0.1.2 (PyPI's ``scgraph`` is another one), on arrays and with
a reference that is computed once for a data set; ``tests/test_metrics_oracles.py`` compares.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from scipy.stats import rankdata, trim_mean

from scvi_qbm.benchmark.metrics.groups import Embedded, group
from scvi_qbm.benchmark.metrics.neighbors import umap_coordinates

__all__ = ["scgraph_reference", "scgraph_scores"]

TRIM = 0.05
MIN_BATCH = 100
MIN_TYPE = 10


@dataclass(frozen=True)
class ScGraphReference:
    """Distances between cell types before integration.

    ``pooled``: no batch was large enough (or none was given), so that all cells were taken as one
    batch, and batch effects are part of this reference.
    """

    # Column j: from type j, its largest being 1; NaN where two types share no batch.
    distances: NDArray[np.float64]
    labels: tuple[str, ...]  # sorted
    batches: tuple[str, ...]  # those used
    pooled: bool


class ScGraphScores(NamedTuple):
    """Means over cell types of a correlation with the reference; from -1 to 1, higher is better.

    Spearman's, Pearson's, and (the score) Pearson's weighted by one over the reference's distance:
    "Rank-PCA", "Corr-PCA" and "Corr-Weighted" in the package.
    """

    rank: float
    corr: float
    weighted: float


def _distances(x: NDArray[Any], labels: NDArray[Any], names: list[str]) -> pd.DataFrame:
    """Between trimmed means of types, over the largest of each column; for the types present."""
    present = [name for name in names if (labels == name).any()]
    centres = np.array([trim_mean(x[labels == name], TRIM, axis=0) for name in present])
    distances = cdist(centres, centres)
    with np.errstate(invalid="ignore"):
        distances /= distances.max(0)
    return pd.DataFrame(distances, index=present, columns=present)


def scgraph_reference(
    log_normalised: Any, batch: ArrayLike | None, labels: ArrayLike
) -> ScGraphReference:
    """The consensus of the distances between cell types within each batch.

    In each batch of at least 100 cells: 1000 highly variable genes, 10 principal components,
    centres of the types (means, 5% trimmed off either side), Euclidean distances, each column over
    its largest. Their mean over batches, each column over its largest again. The reference is
    made of principal components, so it favours PCA as a method.

    Parameters
    ----------
    log_normalised
        ``log1p`` of counts per 10,000, ``(n_cells, n_genes)``, all genes; dense or sparse. The
        package takes what it finds in ``X`` and expects this transform; without the logarithm
        scores are others.
    batch
        ``(n_cells,)``. Without it, or if no batch has 100 cells, all cells are one batch.
    labels
        Cell types, ``(n_cells,)``. Types of fewer than 10 cells *in all* are left out.

    Returns
    -------
    ScGraphReference
        For :func:`scgraph_scores`.

    Raises
    ------
    ValueError
        If lengths differ, or fewer than 3 types are left: no correlation is defined.
    """
    y = np.asarray(labels).astype(str)
    batches = np.zeros(len(y), int).astype(str) if batch is None else np.asarray(batch).astype(str)
    n_cells = log_normalised.shape[0]
    if {len(y), len(batches)} != {n_cells}:
        raise ValueError(f"{n_cells} cells, {len(y)} in `labels`, {len(batches)} in `batch`.")
    counts = pd.Series(y).value_counts()
    names = sorted(counts.index[counts >= MIN_TYPE])
    if len(names) < 3:
        raise ValueError(
            f"scGraph needs at least 3 types of {MIN_TYPE} cells, there are {len(names)}."
        )
    used = [b for b in np.unique(batches) if (batches == b).sum() >= MIN_BATCH]
    pooled = batch is None or not used
    tables = []
    for rows in [np.arange(n_cells)] if pooled else [np.flatnonzero(batches == b) for b in used]:
        part = AnnData(log_normalised[rows])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sc.pp.highly_variable_genes(part, n_top_genes=min(1000, part.n_vars))
            sc.pp.pca(part, n_comps=min(10, part.n_obs - 1, part.n_vars - 1))
        tables.append(_distances(part.obsm["X_pca"], y[rows], names))
    stacked = pd.concat(tables)
    consensus = stacked.groupby(stacked.index).mean()
    consensus = consensus.loc[sorted(consensus.index), sorted(consensus.columns)]
    consensus = consensus / consensus.max(axis=0)
    return ScGraphReference(
        distances=consensus.to_numpy(),
        labels=tuple(consensus.index),
        batches=() if pooled else tuple(used),
        pooled=pooled,
    )


def _pearson(x: NDArray[Any], y: NDArray[Any], weights: NDArray[Any]) -> float:
    total = weights.sum()
    if not total > 0:
        return float("nan")
    w = weights / total
    x, y = x - w @ x, y - w @ y
    scale = np.sqrt((w @ x**2) * (w @ y**2))
    return float(w @ (x * y) / scale) if scale > 0 else float("nan")


def scgraph_scores(
    embedding: ArrayLike, labels: ArrayLike, reference: ScGraphReference
) -> ScGraphScores:
    """Correlation, type by type, of the embedding's distances with the reference's.

    Distances from a type to itself (0) take part in the first two scores, as in the package.

    Parameters
    ----------
    embedding
        Shape ``(n_cells, n_dimensions)``, any number of dimensions. Published scores are those of
        two-dimensional UMAPs.
    labels
        Cell types, ``(n_cells,)``.
    reference
        :func:`scgraph_reference` of the same cells.

    Returns
    -------
    ScGraphScores
        Means over types; NaN where no type has a correlation.

    Raises
    ------
    ValueError
        If lengths differ or a type of the reference is missing.
    """
    x, y = np.asarray(embedding, dtype=np.float64), np.asarray(labels).astype(str)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} cells in `embedding`, {len(y)} in `labels`.")
    table = _distances(x, y, list(reference.labels))
    if len(table) != len(reference.labels):
        missing = sorted(set(reference.labels) - set(table.index))
        raise ValueError(f"The reference has types that `labels` lacks: {', '.join(missing)}.")
    scores = []
    for here, there in zip(table.to_numpy().T, reference.distances.T, strict=True):
        both = np.isfinite(here) & np.isfinite(there)
        a, b = here[both], there[both]
        equal = np.ones(len(a))
        inverse = np.divide(1.0, b, out=np.zeros_like(b), where=b > 0)
        scores.append(
            (
                _pearson(rankdata(a), rankdata(b), equal),
                _pearson(a, b, equal),
                _pearson(a, b, inverse),
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN
        return ScGraphScores(*map(float, np.nanmean(scores, axis=0)))


@group(
    "scgraph",
    ("scgraph", "scGraph", "Weighted correlation of distances between types (Corr-Weighted)."),
    ("scgraph_rank", "scGraph rank", "Rank correlation of distances between types."),
    ("scgraph_corr", "scGraph corr", "Correlation of distances between types."),
    ("scgraph_umap", "scGraph, UMAP", "scGraph of the embedding's UMAP, as published."),
    ("scgraph_umap_rank", "scGraph rank, UMAP", "Its rank correlation."),
    ("scgraph_umap_corr", "scGraph corr, UMAP", "Its unweighted correlation."),
)
def scgraph(cells: Embedded) -> None:
    """ScGraph of the embedding and of its UMAP, which is kept for the pictures."""
    known = cells.known
    plane = umap_coordinates(cells.x, cells.neighbors, seed=cells.seed)
    cells.artifacts["umap"] = plane
    if known.scgraph is None or known.labels is None:
        return
    for name, space in (("scgraph", cells.x), ("scgraph_umap", plane)):
        found = scgraph_scores(space, known.labels, known.scgraph)
        cells.scores[name] = found.weighted
        cells.scores[f"{name}_rank"], cells.scores[f"{name}_corr"] = found.rank, found.corr
