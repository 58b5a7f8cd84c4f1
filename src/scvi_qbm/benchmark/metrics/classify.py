"""How well does an embedding tell cell types apart? Classifiers, cross-validated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from sklearn.metrics import precision_recall_fscore_support as precision_recall_f1
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from scvi_qbm.benchmark.extras import require
from scvi_qbm.benchmark.metrics.groups import Embedded, group

__all__ = ["knn_probe", "leave_one_batch_out", "xgboost_scores"]

_MIN_CELLS = 10


class ProbeScores(NamedTuple):
    """Accuracy and macro F1 (every type the same): means and standard deviations over folds.

    ``n_cells`` took part: those of types that are large enough.
    """

    accuracy: float
    accuracy_sd: float
    macro_f1: float
    macro_f1_sd: float
    n_cells: int


class XGBoostScores(NamedTuple):
    """Accuracy, macro precision, recall and F1: means and standard deviations over folds.

    ``confusion`` counts cells of all folds, a row for each true and a column for each predicted
    type, in the order of ``labels``.
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
    """Accuracy and macro F1 on batches that a classifier has not seen: means over batches."""

    accuracy: float
    macro_f1: float
    n_batches: int


def _knn() -> KNeighborsClassifier:
    return KNeighborsClassifier(15)


def _logistic() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, tol=1e-3))


def _usable(
    embedding: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[Any], NDArray[np.str_], NDArray[np.bool_]]:
    """Cells of types of 10 or more, which no fold lacks; their types; which of all cells they are.

    xgboost refuses a fold that lacks a type.
    """
    x: Any = np.asarray(embedding)
    y = np.asarray(labels).astype(str)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} cells in `embedding`, {len(y)} in `labels`.")
    names, counts = np.unique(y, return_counts=True)
    kept = np.isin(y, names[counts >= _MIN_CELLS])
    if len(np.unique(y[kept])) < 2:
        raise ValueError(f"Fewer than 2 cell types have at least {_MIN_CELLS} cells.")
    return x[kept], y[kept], kept


def _folds(seed: int) -> StratifiedKFold:
    return StratifiedKFold(5, shuffle=True, random_state=seed)


def _probe(
    make: Callable[[], Any], embedding: ArrayLike, labels: ArrayLike, seed: int
) -> ProbeScores:
    x, y, _ = _usable(embedding, labels)
    accuracy, f1 = [], []
    for train, test in _folds(seed).split(x, y):
        predicted = make().fit(x[train], y[train]).predict(x[test])
        accuracy.append(accuracy_score(y[test], predicted))
        f1.append(f1_score(y[test], predicted, average="macro"))
    values = [float(over_folds(x)) for x in (accuracy, f1) for over_folds in (np.mean, np.std)]
    return ProbeScores(*values, len(y))


def knn_probe(embedding: ArrayLike, labels: ArrayLike, *, seed: int = 0) -> ProbeScores:
    """Accuracy and macro F1 of cell types predicted from 15 nearest neighbours, in five folds.

    Parameters
    ----------
    embedding
        Shape ``(n_cells, n_dimensions)``.
    labels
        Cell types, ``(n_cells,)``. Types of fewer than 10 cells are left out.
    seed
        Of the stratified, shuffled folds.

    Returns
    -------
    ProbeScores
        Means and standard deviations over folds.

    Raises
    ------
    ValueError
        If lengths differ, or fewer than 2 types have enough cells.
    """
    return _probe(_knn, embedding, labels, seed)


def logistic_probe(embedding: ArrayLike, labels: ArrayLike, *, seed: int = 0) -> ProbeScores:
    """As :func:`knn_probe`, by a logistic regression on standardised dimensions (C = 1)."""
    return _probe(_logistic, embedding, labels, seed)


def xgboost_scores(
    embedding: ArrayLike,
    labels: ArrayLike,
    *,
    n_estimators: int = 100,
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
    embedding, labels
        As :func:`knn_probe`.
    n_estimators
        Rounds, each of one tree a type.
    n_jobs
        Threads.
    seed
        Of the folds and the classifier.

    Returns
    -------
    XGBoostScores
        Means and standard deviations over five folds, and the confusion matrix of all of them.

    Raises
    ------
    ImportError
        Without xgboost.
    ValueError
        As :func:`knn_probe`.
    """
    xgboost = require("xgboost")
    x, y, _ = _usable(embedding, labels)
    names, codes = np.unique(y, return_inverse=True)
    every = np.arange(len(names))
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    scores = []
    for train, test in _folds(seed).split(x, codes):
        model = xgboost.XGBClassifier(
            n_estimators=n_estimators,
            max_depth=4,
            max_bin=64,
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
    embedding: ArrayLike, labels: ArrayLike, batch: ArrayLike
) -> BatchOutScores:
    """Predict each batch from 15 neighbours in the others: does the embedding carry types across?

    Parameters
    ----------
    embedding, labels
        As :func:`knn_probe`.
    batch
        ``(n_cells,)``.

    Returns
    -------
    BatchOutScores
        Means over batches. Cells whose type the other batches lack are left out, and so is a batch
        with no others or whose training part has one type. Macro F1 is over the types that a batch
        has. NaN with a single batch.

    Raises
    ------
    ValueError
        If lengths differ, or fewer than 2 types have enough cells.
    """
    batches = np.asarray(batch).astype(str)
    x, y, kept = _usable(embedding, labels)
    if len(batches) != len(kept):
        raise ValueError(f"{len(kept)} cells in `labels`, {len(batches)} in `batch`.")
    batches = batches[kept]
    scores = []
    for value in np.unique(batches):
        train = batches != value
        test = (batches == value) & np.isin(y, y[train])
        if not test.any() or len(np.unique(y[train])) < 2:
            continue
        model = _knn().set_params(n_neighbors=min(15, int(train.sum())))
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
