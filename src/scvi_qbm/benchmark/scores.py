"""Every score of the benchmark for one embedding, as one flat row."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import scanpy as sc
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from scvi_qbm.benchmark.metrics.classify import (
    knn_probe,
    leave_one_batch_out,
    logistic_probe,
    xgboost_scores,
)
from scvi_qbm.benchmark.metrics.clustering import leiden_sweep
from scvi_qbm.benchmark.metrics.neighbors import (
    check_embedding,
    knn_label_entropy,
    nearest_neighbors,
    umap_coordinates,
)
from scvi_qbm.benchmark.metrics.scgraph import ScGraphReference, scgraph_reference, scgraph_scores
from scvi_qbm.benchmark.metrics.scib import scib_scores
from scvi_qbm.benchmark.metrics.trajectory import reference_pseudotime, trajectory_conservation

from .columns import DESCRIPTIONS, GROUPS, METRICS, Metric

if TYPE_CHECKING:
    from scib_metrics.nearest_neighbors import NeighborsResults

__all__ = ["GROUPS", "METRICS", "Metric", "Reference", "prepare_reference", "score_embedding"]


@dataclass
class Reference:
    """What is known of a data set before any method, computed once.

    Parameters
    ----------
    labels, batch, fine_labels
        ``(n_cells,)`` strings or None.
    unintegrated
        Principal components of log counts per 10,000, ``(n_cells, 50)``.
    scgraph
        :func:`~scvi_qbm.benchmark.metrics.scgraph.scgraph_reference`, or None.
    pseudotime
        :func:`~scvi_qbm.benchmark.metrics.trajectory.reference_pseudotime`, or None.
    trajectory_labels
        Groups of which the earliest is where the trajectory starts anew in an embedding.
    pseudotime_per_batch
        Whether each batch has its own pseudotime, and is scored by itself.
    """

    labels: NDArray[np.str_] | None
    batch: NDArray[np.str_] | None
    fine_labels: NDArray[np.str_] | None
    unintegrated: NDArray[np.float32]
    scgraph: ScGraphReference | None = None
    pseudotime: NDArray[np.float64] | None = None
    trajectory_labels: NDArray[np.str_] | None = None
    pseudotime_per_batch: bool = False


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
    seed: int = 0,
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
    seed
        Of the principal components and the pseudotime's neighbours.

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
        sc.pp.pca(variable, n_comps=n_comps, random_state=seed)
    reference = Reference(labels, batch, fine_labels, variable.obsm["X_pca"].astype(np.float32))
    if labels is not None and np.sum(np.unique(labels, return_counts=True)[1] >= 10) >= 3:
        reference.scgraph = scgraph_reference(cells.X, batch, labels)
    groups = _column(adata, root_key)
    if groups is not None and root_label is not None:
        reference.trajectory_labels = groups
        per_batch = pseudotime_per_batch and batch is not None
        reference.pseudotime_per_batch = per_batch
        reference.pseudotime = reference_pseudotime(
            reference.unintegrated,
            groups,
            root_label,
            batch=batch if per_batch else None,
            seed=seed,
        )
    return reference


@dataclass
class _Task:
    """One embedding on its way through the groups."""

    embedding: NDArray[np.float32]
    reference: Reference
    seed: int
    n_jobs: int
    neighbors: NeighborsResults | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, NDArray[Any]] = field(default_factory=dict)


def _scib(task: _Task) -> None:
    known = task.reference
    if known.labels is not None:
        task.scores |= scib_scores(
            task.embedding,
            known.batch,
            known.labels,
            known.unintegrated,
            neighbors=task.neighbors,
            n_jobs=task.n_jobs,
            seed=task.seed,
        )


def _clustering(task: _Task) -> None:
    known = task.reference
    if known.labels is None and known.fine_labels is None:
        return
    sweep = leiden_sweep(task.neighbors, seed=42 + task.seed)  # 42 is scib-metrics' own
    names = ("nmi", "ari", "ami", "fmi")
    if known.labels is not None:
        found = sweep.score(known.labels)
        for name in (*names, "n_clusters", "resolution"):
            task.scores[name] = getattr(found, name)
    if known.fine_labels is not None:
        found = sweep.score(known.fine_labels)
        for name in names:
            task.scores[f"{name}_fine"] = getattr(found, name)


def _local(task: _Task) -> None:
    if task.reference.labels is not None:
        entropy = knn_label_entropy(task.neighbors, task.reference.labels)
        task.scores["knn_label_entropy"] = entropy


def _scgraph(task: _Task) -> None:
    known = task.reference
    spaces = {"scgraph": task.embedding}
    plane = umap_coordinates(task.embedding, task.neighbors, seed=task.seed)
    spaces["scgraph_umap"] = task.artifacts["umap"] = plane
    if known.scgraph is None or known.labels is None:
        return
    for name, space in spaces.items():
        found = scgraph_scores(space, known.labels, known.scgraph)
        task.scores[name] = found.weighted
        task.scores[f"{name}_rank"], task.scores[f"{name}_corr"] = found.rank, found.corr


def _classify(task: _Task) -> None:
    known, x, seed = task.reference, task.embedding, task.seed
    if known.labels is not None:
        near, linear = (
            knn_probe(x, known.labels, seed=seed),
            logistic_probe(x, known.labels, seed=seed),
        )
        task.scores |= {"knn_accuracy": near.accuracy, "knn_f1": near.macro_f1}
        task.scores |= {"logistic_accuracy": linear.accuracy, "logistic_f1": linear.macro_f1}
        if known.batch is not None:
            unseen = leave_one_batch_out(x, known.labels, known.batch)
            task.scores |= {"lobo_accuracy": unseen.accuracy, "lobo_f1": unseen.macro_f1}
        trees = xgboost_scores(x, known.labels, n_jobs=task.n_jobs, seed=seed)
        for name in ("accuracy", "precision", "recall", "f1"):
            task.scores[f"xgb_{name}"] = getattr(trees, name)
            task.scores[f"xgb_{name}_sd"] = getattr(trees, f"{name}_sd")
        task.artifacts |= {"confusion": trees.confusion, "confusion_labels": trees.labels}
    if known.fine_labels is not None:
        task.scores["knn_f1_fine"] = knn_probe(x, known.fine_labels, seed=seed).macro_f1


def _trajectory(task: _Task) -> None:
    known = task.reference
    if known.pseudotime is None or known.trajectory_labels is None:
        return
    batch = known.batch if known.pseudotime_per_batch else None
    found = trajectory_conservation(
        task.neighbors, known.pseudotime, known.trajectory_labels, batch=batch
    )
    every = trajectory_conservation(
        task.neighbors,
        known.pseudotime,
        known.trajectory_labels,
        batch=batch,
        every_component=True,
    )
    task.scores |= {"trajectory": found.score, "trajectory_every": every.score}
    task.scores["diffusion_eigenvalue"] = found.eigenvalue
    task.artifacts["pseudotime"] = found.pseudotime


_RUN: dict[str, Callable[[_Task], None]] = {
    "scib": _scib,
    "clustering": _clustering,
    "local": _local,
    "scgraph": _scgraph,
    "classify": _classify,
    "trajectory": _trajectory,
}


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
    unknown = [group for group in chosen if group not in GROUPS]
    if unknown:
        raise ValueError(f"Unknown groups {unknown}. Available: {', '.join(GROUPS)}.")
    x = check_embedding(embedding, len(reference.unintegrated))
    task = _Task(x, reference, seed, n_jobs)
    errors = []
    for metric in METRICS:
        if metric.group in chosen:
            task.scores[metric.name] = float("nan")
    for group in chosen:
        task.scores |= dict.fromkeys(DESCRIPTIONS.get(group, ()), float("nan"))

    def run(name: str, step: Callable[[_Task], None]) -> None:
        started = time.perf_counter()
        try:
            step(task)
        except Exception as error:  # noqa: BLE001  one group must not take the others with it
            message = " ".join(str(error).split())
            errors.append(f"{name}: {type(error).__name__}: {message}")
        task.scores[f"seconds_{name}"] = time.perf_counter() - started

    def search(task: _Task) -> None:
        task.neighbors = nearest_neighbors(task.embedding, n_jobs=n_jobs, seed=seed)

    if set(chosen) - {"classify"}:
        run("neighbors", search)
    for group in chosen:
        if task.neighbors is None and group != "classify":
            errors.append(f"{group}: no neighbours")
            task.scores[f"seconds_{group}"] = float("nan")
        else:
            run(group, _RUN[group])
    task.scores["errors"] = "; ".join(errors)
    return task.scores, task.artifacts
