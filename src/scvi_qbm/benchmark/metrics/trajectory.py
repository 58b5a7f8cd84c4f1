"""Does an embedding keep the order of cells along a differentiation? As scIB scores it."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from scvi_qbm.benchmark.metrics.groups import Embedded, group
from scvi_qbm.tl.pseudotime import SCANPY_CUT, diffusion_pseudotime, with_graph

__all__ = ["reference_pseudotime", "trajectory_conservation"]


class TrajectoryScore(NamedTuple):
    """Conservation of a trajectory.

    ``score`` is ``(Spearman correlation + 1) / 2``, 0 also where no start cell was found;
    ``pseudotime`` that in the embedding, NaN for cells without one before; ``eigenvalue`` the
    largest of the diffusion map below 1, NaN where no start cell was found. At 0.9994 or more
    scanpy's pseudotime all but leaves its component out.
    """

    score: float
    pseudotime: NDArray[np.float64]
    eigenvalue: float = np.nan


def _connectivities(x: Any) -> sparse.csr_matrix:
    """The graph of 15 neighbours: from a graph, from neighbours or from an embedding."""
    if sparse.issparse(x):
        return sparse.csr_matrix(x)
    if hasattr(x, "subset_neighbors"):
        nearest = x.subset_neighbors(min(15, x.n_neighbors))
        return sparse.csr_matrix(nearest.knn_graph_connectivities)
    cells = AnnData(np.array(x, dtype=np.float32))
    sc.pp.neighbors(cells, n_neighbors=15, use_rep="X")
    return cells.obsp["connectivities"]


def _dpt(
    graph: sparse.csr_matrix,
    start: NDArray[np.bool_],
    *,
    every_component: bool = False,
    warn: bool = False,
) -> tuple[NDArray[np.float64], float] | None:
    """Pseudotime in the largest component, NaN elsewhere, and the leading eigenvalue.

    None if ``start`` has no cell in the component.

    The root is scIB's: of the start cells, the one most extreme in the first three diffusion
    components (the trivial one among them), towards the side on which the start cells lie.
    """
    _, component = connected_components(graph, directed=False)
    largest = component == np.bincount(component).argmax()
    rows = np.flatnonzero(largest)
    candidates = np.flatnonzero(start[rows])
    if not len(candidates):
        return None
    cells = with_graph(graph[rows][:, rows])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.diffmap(cells)
        votes = np.zeros(len(candidates))
        for axis in cells.obsm["X_diffmap"][:, :3].T:
            values = axis[candidates]
            extreme = np.argmin if values.mean() < axis.mean() else np.argmax
            votes[extreme(values)] += 1
        root = int(candidates[votes.argmax()])
        eigenvalues = cells.uns["diffmap_evals"]
        leading = float(eigenvalues[1])
        if every_component:
            found = diffusion_pseudotime(cells.obsm["X_diffmap"], eigenvalues, root)
        else:
            cells.uns["iroot"] = root
            sc.tl.dpt(cells)
            found = cells.obs["dpt_pseudotime"].to_numpy()
    if warn and leading >= SCANPY_CUT:
        warnings.warn(
            f"scanpy's pseudotime hardly weighs diffusion components above {SCANPY_CUT}, and the "
            "leading one is: it may not be in order along a long trajectory.",
            stacklevel=3,
        )
    pseudotime = np.full(len(start), np.nan)
    pseudotime[rows] = found
    return pseudotime, leading


def reference_pseudotime(
    unintegrated: ArrayLike,
    labels: ArrayLike,
    start_label: str,
    *,
    batch: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Diffusion pseudotime before integration.

    Of 15 neighbours, from the start label's most extreme cell in the diffusion map.

    Parameters
    ----------
    unintegrated
        Principal components, ``(n_cells, n_components)``.
    labels
        ``(n_cells,)``.
    start_label
        Where the trajectory begins.
    batch
        If given, ``(n_cells,)``, each batch has its own pseudotime: score it batch by batch, as
        the scales differ.

    Returns
    -------
    numpy.ndarray
        float64 ``(n_cells,)`` from 0 to 1; NaN for cells outside the largest component of the
        graph, or of a batch where the start label has no cell in that component.

    Raises
    ------
    ValueError
        If lengths differ, no cell has the start label, or none gets a pseudotime.

    Warns
    -----
    UserWarning
        If another label comes first on average, or if scanpy leaves out the leading diffusion
        component (eigenvalue of 0.9994 or more: long, thin or large data); look at the result
        then.

    References
    ----------
    Haghverdi et al. (2016), Nat. Methods 13, 845 (doi:10.1038/nmeth.3971).
    """
    y = np.asarray(labels).astype(str)
    x = np.asarray(unintegrated)
    batches = np.zeros(len(y), int) if batch is None else np.asarray(batch).astype(str)
    if {len(y), len(batches)} != {x.shape[0]}:
        raise ValueError(f"{x.shape[0]} cells, {len(y)} in `labels`, {len(batches)} in `batch`.")
    start = y == str(start_label)
    if not start.any():
        raise ValueError(f"No cell has the label {start_label!r}.")
    pseudotime = np.full(len(y), np.nan)
    for value in np.unique(batches):
        rows = np.flatnonzero(batches == value)
        if len(rows) < 30:  # a diffusion map of 15 neighbours needs more cells than those
            continue
        found = _dpt(_connectivities(x[rows]), start[rows], warn=True)
        if found is not None:
            pseudotime[rows], _ = found
    pseudotime[~np.isfinite(pseudotime)] = np.nan
    if np.isnan(pseudotime).all():
        raise ValueError(f"No batch has a start cell {start_label!r} in its main component.")
    first = pd.Series(pseudotime).groupby(y).mean().idxmin()
    if first != str(start_label):
        warnings.warn(
            f"{first!r} comes before {start_label!r} on average, so the conservation score will "
            "start there: choose a start at an end of the trajectory.",
            stacklevel=2,
        )
    return pseudotime


def _spearman(x: NDArray[Any], y: NDArray[Any]) -> float:
    return float(pd.Series(x).corr(pd.Series(y), method="spearman"))


def trajectory_conservation(
    embedding: Any,
    pseudotime: ArrayLike,
    labels: ArrayLike,
    *,
    batch: ArrayLike | None = None,
    every_component: bool = False,
) -> TrajectoryScore:
    """Rank correlation of the pseudotime before with that in the embedding, as in scIB.

    ``scib.metrics.trajectory_conservation`` (1.1.7) step by step: cells with a pseudotime before;
    the largest component of their graph; the label of the lowest mean pseudotime begins; diffusion
    pseudotime from its most extreme cell; 0 for cells out of that component or beyond 1.

    Parameters
    ----------
    embedding
        ``(n_cells, n_dimensions)``; or
        :func:`~scvi_qbm.benchmark.metrics.neighbors.nearest_neighbors`, of which 15 are used; or
        a sparse graph of connectivities.
    pseudotime
        :func:`reference_pseudotime`, ``(n_cells,)``; NaN for cells to leave out.
    labels
        ``(n_cells,)``: those in which the start is looked for.
    batch
        If given, ``(n_cells,)``: the mean over batches of the correlation within each.
    every_component
        If True, the embedding's pseudotime is :func:`diffusion_pseudotime`, which keeps diffusion
        components that scanpy's leaves out. Not scIB's score.

    Returns
    -------
    TrajectoryScore
        The score and the pseudotime behind it.

    Raises
    ------
    ValueError
        If lengths differ or fewer than 3 cells have a pseudotime.
    """
    before, y = np.asarray(pseudotime, dtype=np.float64), np.asarray(labels).astype(str)
    graph = _connectivities(embedding)
    batches = None if batch is None else np.asarray(batch).astype(str)
    lengths = {len(before), len(y), *([] if batches is None else [len(batches)])}
    if lengths != {graph.shape[0]}:
        raise ValueError(
            f"{graph.shape[0]} cells in `embedding`, {len(before)} in `pseudotime`, "
            f"{len(y)} in `labels`."
        )
    kept = np.flatnonzero(~np.isnan(before))
    if len(kept) < 3:
        raise ValueError(f"{len(kept)} cells have a pseudotime: at least 3 are needed.")
    first = pd.Series(before[kept]).groupby(y[kept]).mean().idxmin()
    after = np.full(len(before), np.nan)
    found = _dpt(graph[kept][:, kept], y[kept] == first, every_component=every_component)
    if found is None:
        return TrajectoryScore(0.0, after)
    order, leading = found
    after[kept] = np.where(order <= 1, order, 0.0)
    if batches is None:
        correlation = _spearman(before[kept], after[kept])
    else:
        groups = [kept[batches[kept] == b] for b in np.unique(batches[kept])]
        each = [_spearman(before[rows], after[rows]) for rows in groups]
        correlation = float(pd.Series(each).mean())
    return TrajectoryScore((correlation + 1) / 2, after, leading)


@group(
    "trajectory",
    ("trajectory", "Trajectory", "Rank agreement of pseudotime with the unintegrated one."),
    (
        "trajectory_every",
        "Trajectory, every component",
        "The same without scanpy's cut of leading diffusion components; ours.",
    ),
    described=("diffusion_eigenvalue",),
)
def trajectory(cells: Embedded) -> None:
    """Conservation of the pseudotime, with scanpy's cut and without."""
    known = cells.known
    if known.pseudotime is None or known.trajectory_labels is None:
        return
    batch = known.batch if known.pseudotime_per_batch else None
    found, every = (
        trajectory_conservation(
            cells.neighbors,
            known.pseudotime,
            known.trajectory_labels,
            batch=batch,
            every_component=every,
        )
        for every in (False, True)
    )
    cells.scores |= {"trajectory": found.score, "trajectory_every": every.score}
    cells.scores["diffusion_eigenvalue"] = found.eigenvalue
    cells.artifacts["pseudotime"] = found.pseudotime
