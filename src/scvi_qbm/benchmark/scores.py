"""Every score of the benchmark for one embedding, as one flat row."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import scanpy as sc
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from scvi_qbm.benchmark.metrics import (
    classify,
    clustering,
    disentanglement,
    neighbors,
    scgraph,
    scib,
    trajectory,
)
from scvi_qbm.benchmark.metrics.groups import Embedded, Group, Metric, Reference

__all__ = ["prepare_reference", "score_embedding"]


def _column(adata: AnnData, key: str | None) -> NDArray[np.str_] | None:
    if key is None:
        return None
    if key not in adata.obs:
        raise KeyError(f"obs has no column {key!r}.")
    missing = int(adata.obs[key].isna().sum())
    if missing:
        raise ValueError(f"obs[{key!r}] has {missing} missing values: drop or name these cells.")
    return adata.obs[key].to_numpy().astype(str)


def prepare_reference(
    adata: AnnData,
    *,
    layer: str | None,
    batch_key: str | None,
    label_key: str | None,
    fine_label_key: str | None = None,
    root_key: str | None = None,
    root_label: str | None = None,
    pseudotime_per_batch: bool = False,
) -> Reference:
    """What the scores compare an embedding with. ``adata`` stays as it is.

    Parameters
    ----------
    adata
        Cells.
    layer
        Layer of the counts; None for ``X``.
    batch_key, label_key, fine_label_key
        Columns of ``obs``, or None: scores that need them will be NaN.
    root_key, root_label
        Column of ``obs`` and its value where a trajectory begins; None if there is none.
    pseudotime_per_batch
        Compute a pseudotime for each batch, as scIB did, not one for all cells.

    Returns
    -------
    Reference
        Counts are scaled to 10,000 a cell and ``log1p`` taken; 50 principal components of the
        2,000 most variable genes; scGraph's consensus of all genes, None where fewer than 3 labels
        have 10 cells.

    Raises
    ------
    KeyError
        If a column or layer is missing.
    ValueError
        If counts are negative or not finite, a column has missing values, or the start label has
        no cells.
    """
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"No layer {layer!r}.")
    counts = adata.X if layer is None else adata.layers[layer]
    cells = AnnData(counts.copy().astype(np.float32))
    values = cells.X.data if hasattr(cells.X, "tocsr") else cells.X
    if values.size and not (np.isfinite(values).all() and values.min() >= 0):
        raise ValueError("Counts must be finite and not negative: is this the right layer?")
    labels, batch = _column(adata, label_key), _column(adata, batch_key)
    fine_labels = _column(adata, fine_label_key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
        genes = np.ones(cells.n_vars, dtype=bool)
        if cells.n_vars > 2000:
            sc.pp.highly_variable_genes(cells, n_top_genes=2000)
            genes = cells.var["highly_variable"].to_numpy()
        variable = AnnData(cells.X[:, genes])
        n_comps = min(50, variable.n_obs - 1, variable.n_vars - 1)
        sc.pp.pca(variable, n_comps=n_comps)
    reference = Reference(labels, batch, fine_labels, variable.obsm["X_pca"].astype(np.float32))
    if labels is not None and np.sum(np.unique(labels, return_counts=True)[1] >= 10) >= 3:
        reference.scgraph = scgraph.scgraph_reference(cells.X, batch, labels)
    groups = _column(adata, root_key)
    if groups is not None and root_label is not None:
        reference.trajectory_labels = groups
        per_batch = pseudotime_per_batch and batch is not None
        reference.pseudotime_per_batch = per_batch
        reference.pseudotime = trajectory.reference_pseudotime(
            reference.unintegrated, groups, root_label, batch=batch if per_batch else None
        )
    return reference


#: What is computed together, by name, in the order of tables. A new metric is a column of the
#: ``@group`` in its file of ``metrics``; only a new group is named here as well.
GROUPS: dict[str, Group] = {
    found.name: found
    for found in (
        scib.scib,
        clustering.clustering,
        neighbors.local,
        scgraph.scgraph,
        classify.classify,
        trajectory.trajectory,
        disentanglement.disentanglement,
    )
}
#: Every score, in the order of tables.
METRICS: tuple[Metric, ...] = tuple(m for found in GROUPS.values() for m in found.metrics)


def score_embedding(
    embedding: ArrayLike,
    reference: Reference,
    *,
    groups: Iterable[str] | None = None,
    seed: int = 0,
    n_jobs: int = 1,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """All scores of an embedding.

    Parameters
    ----------
    embedding
        Shape ``(n_cells, n_dimensions)``, continuous: posterior means, not thresholded codes.
    reference
        :func:`prepare_reference` of the same cells.
    groups
        Which of ``GROUPS`` to compute; None for all.
    seed
        Of neighbours, clusterings, UMAP and folds. 0 gives scib-metrics' own numbers.
    n_jobs
        Threads of the searches for neighbours and of xgboost. Compare scores of the same number:
        it changes a few neighbours.

    Returns
    -------
    scores : dict[str, Any]
        The columns of the groups (``METRICS``, and ``n_clusters``, ``resolution``,
        ``xgb_*_sd``), NaN where labels, batches, fine labels or a pseudotime are missing or the
        group failed; ``seconds_<group>`` and ``seconds_neighbors`` (one search serves all);
        ``errors``, the failures joined by ``"; "``, or ``""``.
    artifacts : dict[str, numpy.ndarray]
        Where computed: ``umap`` (n_cells, 2), ``confusion`` and ``confusion_labels`` of xgboost,
        ``pseudotime`` (n_cells,).

    Raises
    ------
    ValueError
        If the embedding is not a finite matrix with one row a cell, or a group is unknown.
    """
    chosen = list(GROUPS if groups is None else dict.fromkeys(groups))
    unknown = [name for name in chosen if name not in GROUPS]
    if unknown:
        raise ValueError(f"Unknown groups {unknown}. Available: {', '.join(GROUPS)}.")
    x = neighbors.check_embedding(embedding, len(reference.unintegrated))
    cells = Embedded(x, reference, seed, n_jobs)
    errors = []
    for name in chosen:
        columns = (*(m.name for m in GROUPS[name].metrics), *GROUPS[name].described)
        cells.scores |= dict.fromkeys(columns, float("nan"))

    def run(name: str, compute: Callable[[Embedded], None]) -> None:
        started = time.perf_counter()
        try:
            compute(cells)
        except Exception as error:  # noqa: BLE001  one group must not take the others with it
            message = " ".join(str(error).split())
            errors.append(f"{name}: {type(error).__name__}: {message}")
        cells.scores[f"seconds_{name}"] = time.perf_counter() - started

    def search(cells: Embedded) -> None:
        cells.neighbors = neighbors.nearest_neighbors(cells.x, n_jobs=n_jobs, seed=seed)

    if any(GROUPS[name].needs_neighbors for name in chosen):
        run("neighbors", search)
    for name in chosen:
        if cells.neighbors is None and GROUPS[name].needs_neighbors:
            errors.append(f"{name}: no neighbours")
            cells.scores[f"seconds_{name}"] = float("nan")
        else:
            run(name, GROUPS[name].compute)
    cells.scores["errors"] = "; ".join(errors)
    return cells.scores, cells.artifacts
