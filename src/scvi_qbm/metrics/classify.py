"""How well does an embedding tell cell types apart?"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier

__all__ = ["ProbeScores", "knn_probe"]


class ProbeScores(NamedTuple):
    """Cross-validated scores of a classifier, mean and standard deviation over folds."""

    accuracy: float
    accuracy_sd: float
    macro_f1: float
    macro_f1_sd: float
    n_cells: int


def knn_probe(
    embedding: ArrayLike,
    labels: ArrayLike,
    *,
    n_neighbors: int = 15,
    n_folds: int = 5,
    min_cells: int = 10,
    seed: int = 0,
) -> ProbeScores:
    """Accuracy and macro F1 of a k-nearest-neighbour classifier of cell types.

    Parameters
    ----------
    embedding
        Shape ``(n_cells, n_dimensions)``.
    labels
        Cell types, ``(n_cells,)``.
    n_neighbors
        Number of neighbours.
    n_folds
        Folds of the stratified, shuffled cross-validation.
    min_cells
        Types with fewer cells are left out: a fold could lack them.
    seed
        Seed of the folds.

    Raises
    ------
    ValueError
        If lengths differ, or fewer than 2 types have enough cells.
    """
    x: Any = np.asarray(embedding)
    y = np.asarray(labels).astype(str)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} cells in `embedding`, {len(y)} in `labels`.")
    names, counts = np.unique(y, return_counts=True)
    keep = np.isin(y, names[counts >= max(min_cells, n_folds)])
    x, y = x[keep], y[keep]
    if len(np.unique(y)) < 2:
        raise ValueError(f"Fewer than 2 cell types have at least {min_cells} cells.")
    accuracy, f1 = [], []
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    for train, test in folds.split(x, y):
        predicted = KNeighborsClassifier(n_neighbors).fit(x[train], y[train]).predict(x[test])
        accuracy.append(accuracy_score(y[test], predicted))
        f1.append(f1_score(y[test], predicted, average="macro"))
    return ProbeScores(
        float(np.mean(accuracy)),
        float(np.std(accuracy)),
        float(np.mean(f1)),
        float(np.std(f1)),
        int(keep.sum()),
    )
