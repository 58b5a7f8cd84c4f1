"""How well does an embedding tell cell types apart? Classifiers, cross-validated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from sklearn.metrics import precision_recall_fscore_support as precision_recall_f1
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scvi_qbm.benchmark.extras import require
from scvi_qbm.benchmark.metrics.groups import Embedded, group

__all__ = [
    "BatchOutScores",
    "ProbeScores",
    "XGBoostScores",
    "knn_probe",
    "leave_one_batch_out",
    "logistic_probe",
    "xgboost_scores",
]


class ProbeScores(NamedTuple):
    """Cross-validated scores of a classifier.

    Parameters
    ----------
    accuracy, accuracy_sd
        Share of cells classified rightly, mean and standard deviation over folds.
    macro_f1, macro_f1_sd
        F1 averaged over types, every type the same, mean and standard deviation over folds.
    n_cells
        Cells that took part: those of types that are large enough.
    """

    accuracy: float
    accuracy_sd: float
    macro_f1: float
    macro_f1_sd: float
    n_cells: int


class XGBoostScores(NamedTuple):
    """Cross-validated scores of boosted trees.

    Precision, recall and F1 are macro averages: every type counts the same.

    Parameters
    ----------
    accuracy, precision, recall, f1
        Means over folds, from 0 to 1.
    accuracy_sd, precision_sd, recall_sd, f1_sd
        Standard deviations over folds.
    confusion
        int64 ``(n_types, n_types)``: a row for each true and a column for each predicted type,
        cells of all folds.
    labels
        The types, in the order of ``confusion``.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    accuracy_sd: float
    precision_sd: float
    recall_sd: float
    f1_sd: float
    confusion: NDArray[np.int64]
    labels: NDArray[np.str_]


class BatchOutScores(NamedTuple):
    """Scores on batches that a classifier has not seen; every batch counts the same.

    Parameters
    ----------
    accuracy
        Share of cells classified rightly, mean over batches.
    macro_f1
        F1 averaged over the types of a batch, mean over batches.
    n_batches
        Batches that could be scored.
    """

    accuracy: float
    macro_f1: float
    n_batches: int


def _usable(
    embedding: ArrayLike, labels: ArrayLike, min_cells: int, n_folds: int
) -> tuple[NDArray[Any], NDArray[np.str_]]:
    """Cells of the types that are large enough."""
    x: Any = np.asarray(embedding)
    y = np.asarray(labels).astype(str)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} cells in `embedding`, {len(y)} in `labels`.")
    names, counts = np.unique(y, return_counts=True)
    fewest = max(min_cells, n_folds)
    keep = np.isin(y, names[counts >= fewest])
    x, y = x[keep], y[keep]
    if len(np.unique(y)) < 2:
        raise ValueError(f"Fewer than 2 cell types have at least {fewest} cells.")
    return x, y


def _probe(
    make: Callable[[], Any],
    embedding: ArrayLike,
    labels: ArrayLike,
    n_folds: int,
    min_cells: int,
    seed: int,
) -> ProbeScores:
    x, y = _usable(embedding, labels, min_cells, n_folds)
    accuracy, f1 = [], []
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    for train, test in folds.split(x, y):
        predicted = make().fit(x[train], y[train]).predict(x[test])
        accuracy.append(accuracy_score(y[test], predicted))
        f1.append(f1_score(y[test], predicted, average="macro"))
    return ProbeScores(
        float(np.mean(accuracy)),
        float(np.std(accuracy)),
        float(np.mean(f1)),
        float(np.std(f1)),
        len(y),
    )


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

    Returns
    -------
    ProbeScores
        Means and standard deviations over folds.

    Raises
    ------
    ValueError
        If lengths differ, or fewer than 2 types have enough cells.
    """
    return _probe(
        lambda: KNeighborsClassifier(n_neighbors), embedding, labels, n_folds, min_cells, seed
    )


def logistic_probe(
    embedding: ArrayLike,
    labels: ArrayLike,
    *,
    n_folds: int = 5,
    min_cells: int = 10,
    max_iter: int = 200,
    seed: int = 0,
) -> ProbeScores:
    """Accuracy and macro F1 of a logistic regression on standardised dimensions (C = 1).

    Are the types *linearly* separable?

    Parameters
    ----------
    embedding
        Shape ``(n_cells, n_dimensions)``.
    labels
        Cell types, ``(n_cells,)``.
    n_folds
        Folds of the stratified, shuffled cross-validation.
    min_cells
        Types with fewer cells are left out: a fold could lack them.
    max_iter
        Iterations of L-BFGS at most.
    seed
        Seed of the folds.

    Returns
    -------
    ProbeScores
        Means and standard deviations over folds.

    Raises
    ------
    ValueError
        If lengths differ, or fewer than 2 types have enough cells.
    """
    return _probe(
        lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iter, tol=1e-3)),
        embedding,
        labels,
        n_folds,
        min_cells,
        seed,
    )


def xgboost_scores(
    embedding: ArrayLike,
    labels: ArrayLike,
    *,
    n_folds: int = 5,
    min_cells: int = 10,
    n_estimators: int = 100,
    max_depth: int = 4,
    max_bin: int = 64,
    n_jobs: int = 1,
    seed: int = 0,
) -> XGBoostScores:
    """Accuracy, macro precision, recall and F1 of boosted trees, the QBM-VAE paper's classifier.

    The paper names no parameters. These are xgboost's for ``hist`` (100 trees a type, learning
    rate 0.3) but for ``max_depth`` 4 instead of 6 and 64 bins instead of 256: on 20,000 cells x 64
    dimensions with 14 types a fold took 4.5 s instead of 14.2 s on two threads, at an accuracy of
    0.936 instead of 0.930.

    Parameters
    ----------
    embedding
        Shape ``(n_cells, n_dimensions)``.
    labels
        Cell types, ``(n_cells,)``.
    n_folds
        Folds of the stratified, shuffled cross-validation.
    min_cells
        Types with fewer cells are left out: xgboost refuses a fold that lacks a type.
    n_estimators, max_depth, max_bin
        Rounds, each of one tree a type; their depth; bins of a dimension.
    n_jobs
        Threads.
    seed
        Of the folds and the classifier.

    Returns
    -------
    XGBoostScores
        Means and standard deviations over folds, and the confusion matrix of all of them.

    Raises
    ------
    ImportError
        Without xgboost.
    ValueError
        If lengths differ, or fewer than 2 types have enough cells.
    """
    xgboost = require("xgboost")
    x, y = _usable(embedding, labels, min_cells, n_folds)
    names, codes = np.unique(y, return_inverse=True)
    every = np.arange(len(names))
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    scores = []
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    for train, test in folds.split(x, codes):
        model = xgboost.XGBClassifier(
            n_estimators=n_estimators,
            max_depth=max_depth,
            max_bin=max_bin,
            tree_method="hist",
            n_jobs=n_jobs,
            random_state=seed,
        )
        predicted = model.fit(x[train], codes[train]).predict(x[test])
        parts = precision_recall_f1(codes[test], predicted, average="macro", zero_division=0.0)
        scores.append([accuracy_score(codes[test], predicted), *parts[:3]])
        confusion += confusion_matrix(codes[test], predicted, labels=every)
    mean, sd = np.mean(scores, axis=0), np.std(scores, axis=0)
    return XGBoostScores(*map(float, mean), *map(float, sd), confusion, names)


def leave_one_batch_out(
    embedding: ArrayLike,
    labels: ArrayLike,
    batch: ArrayLike,
    *,
    classifier: Literal["knn", "logistic"] | Any = "knn",
    min_cells: int = 10,
) -> BatchOutScores:
    """Train on all batches but one, predict that one: does the embedding carry types across?

    Parameters
    ----------
    embedding
        Shape ``(n_cells, n_dimensions)``.
    labels, batch
        ``(n_cells,)``.
    classifier
        ``"knn"`` (15 neighbours), ``"logistic"``, or a function that returns an unfitted
        scikit-learn classifier.
    min_cells
        Types with fewer cells in all are left out, as in the other scores.

    Returns
    -------
    BatchOutScores
        Means over batches. Cells whose type the other batches lack are left out, and so is a batch
        with no others or whose training part has one type. Macro F1 is over the types that a batch
        has. NaN with a single batch.

    Raises
    ------
    ValueError
        If lengths differ, the classifier is unknown, or fewer than 2 types have enough cells.
    """
    known: dict[Any, Callable[[], Any]] = {
        "knn": lambda: KNeighborsClassifier(15),
        "logistic": lambda: make_pipeline(
            StandardScaler(), LogisticRegression(max_iter=200, tol=1e-3)
        ),
    }
    if not callable(classifier) and classifier not in known:
        raise ValueError(f"Unknown classifier {classifier!r}. Available: {', '.join(known)}.")
    make = classifier if callable(classifier) else known[classifier]
    y = np.asarray(labels).astype(str)
    batches = np.asarray(batch).astype(str)
    if len(batches) != len(y):
        raise ValueError(f"{len(y)} cells in `labels`, {len(batches)} in `batch`.")
    names, counts = np.unique(y, return_counts=True)
    keep = np.isin(y, names[counts >= min_cells])
    x, y = _usable(embedding, y, min_cells, 1)
    batches = batches[keep]
    scores = []
    for value in np.unique(batches):
        train = batches != value
        test = (batches == value) & np.isin(y, y[train])
        if not test.any() or len(np.unique(y[train])) < 2:
            continue
        model = make()
        if classifier == "knn":
            model.set_params(n_neighbors=min(15, int(train.sum())))
        predicted = model.fit(x[train], y[train]).predict(x[test])
        f1 = f1_score(y[test], predicted, labels=np.unique(y[test]), average="macro")
        scores.append((accuracy_score(y[test], predicted), f1))
    if not scores:
        return BatchOutScores(float("nan"), float("nan"), 0)
    return BatchOutScores(*map(float, np.mean(scores, axis=0)), len(scores))


_XGBOOST = ("accuracy", "precision", "recall", "f1")


@group(
    "classify",
    ("xgb_accuracy", "XGBoost accuracy", "Of types, 5 folds."),
    ("xgb_precision", "XGBoost precision", "Macro average over types, 5 folds."),
    ("xgb_recall", "XGBoost recall", "Macro average over types, 5 folds."),
    ("xgb_f1", "XGBoost F1", "Macro average over types, 5 folds."),
    ("knn_accuracy", "kNN accuracy", "15 neighbours, 5 folds."),
    ("knn_f1", "kNN F1", "15 neighbours, macro average over types, 5 folds."),
    ("knn_f1_fine", "kNN F1, fine", "As kNN F1, for the fine types."),
    ("logistic_accuracy", "Logistic accuracy", "Linear classifier, 5 folds."),
    ("logistic_f1", "Logistic F1", "Linear classifier, macro average over types, 5 folds."),
    ("lobo_accuracy", "Unseen batch accuracy", "15 neighbours from the other batches."),
    ("lobo_f1", "Unseen batch F1", "15 neighbours from the other batches, macro average."),
    described=tuple(f"xgb_{name}_sd" for name in _XGBOOST),
    needs_neighbors=False,
)
def classify(cells: Embedded) -> None:
    """Classifiers of types and fine types; the confusion of the trees is kept for the pictures."""
    known, x, seed, scores = cells.known, cells.x, cells.seed, cells.scores
    if known.labels is not None:
        near = knn_probe(x, known.labels, seed=seed)
        linear = logistic_probe(x, known.labels, seed=seed)
        scores |= {"knn_accuracy": near.accuracy, "knn_f1": near.macro_f1}
        scores |= {"logistic_accuracy": linear.accuracy, "logistic_f1": linear.macro_f1}
        if known.batch is not None:
            unseen = leave_one_batch_out(x, known.labels, known.batch)
            scores |= {"lobo_accuracy": unseen.accuracy, "lobo_f1": unseen.macro_f1}
        trees = xgboost_scores(x, known.labels, n_jobs=cells.n_jobs, seed=seed)
        for name in _XGBOOST:
            scores[f"xgb_{name}"] = getattr(trees, name)
            scores[f"xgb_{name}_sd"] = getattr(trees, f"{name}_sd")
        cells.artifacts |= {"confusion": trees.confusion, "confusion_labels": trees.labels}
    if known.fine_labels is not None:
        scores["knn_f1_fine"] = knn_probe(x, known.fine_labels, seed=seed).macro_f1
