"""Are generated cells like real ones? Arrays in, scores out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.stats import wasserstein_distance
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

__all__ = ["generation_scores"]


def _dense(x: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(x.todense() if sparse.issparse(x) else x, dtype=np.float64)


def log_normalise(counts: ArrayLike, target: float = 1e4) -> NDArray[np.float64]:
    """``log1p`` of counts scaled to ``target`` a cell; cells without counts stay 0."""
    x = _dense(counts)
    totals = x.sum(1, keepdims=True)
    return np.log1p(np.divide(target * x, totals, out=np.zeros_like(x), where=totals > 0))


def _correlations(x: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.corrcoef(x, rowvar=False))


def two_sample_auc(
    real: ArrayLike, generated: ArrayLike, *, classifier: str = "boosting", seed: int = 0
) -> float:
    """Cross-validated AUROC of a classifier that tells generated from real cells; 0.5 is best.

    A classifier two-sample test: any number above 0.5 beyond its error proves a difference, while
    0.5 only says that this classifier sees none.
    """
    real, generated = _dense(real), _dense(generated)
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"{real.shape[1]} and {generated.shape[1]} features: must be the same.")
    if min(len(real), len(generated)) < 10:
        raise ValueError("A two-sample test needs at least ten cells of either kind.")
    if classifier == "boosting":
        model = HistGradientBoostingClassifier(max_iter=100, random_state=seed)
    elif classifier == "logistic":
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    else:
        raise ValueError(f"Unknown classifier {classifier!r}. Available: boosting, logistic.")
    x = np.concatenate([real, generated])
    y = np.repeat([0, 1], [len(real), len(generated)])
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    scores = cross_val_predict(model, x, y, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(y, scores))


def generation_scores(real: ArrayLike, generated: ArrayLike, *, seed: int = 0) -> dict[str, float]:
    """How far generated counts are from held-out ones; every score would be 0 or 0.5 at best.

    Parameters
    ----------
    real, generated
        Counts, (n, n_genes) and (m, n_genes). Use cells the model has not been trained on, and
        judge a score by what a second half of the real cells gets.
    seed
        Of folds and classifiers.

    Returns
    -------
    dict[str, float]
        ``marginal``: mean over genes of the 1-Wasserstein distance between log-normalised values
        in units of the real standard deviation. ``zeros``: mean absolute difference of the share
        of zeros. ``correlation``: root mean square difference of gene correlations over the 200
        most variable genes; 0 where a generated gene is constant. ``auc_boosting``,
        ``auc_logistic``: AUROC of classifiers that tell both
        kinds apart by 30 principal components of all cells.

    Raises
    ------
    ValueError
        If fewer than two genes vary among the real cells, or there are fewer than ten cells
        of either kind.
    """
    counts = _dense(real), _dense(generated)
    x, y = (log_normalise(c) for c in counts)
    sd = x.std(0)
    varying = np.flatnonzero(sd > 0)
    marginal = [wasserstein_distance(x[:, g], y[:, g]) / sd[g] for g in varying]
    if len(varying) < 2:
        raise ValueError("Fewer than two genes vary among the real cells.")
    top = varying[np.argsort(-sd[varying])[:200]]
    upper = np.triu_indices(len(top), 1)
    difference = _correlations(x[:, top])[upper] - _correlations(y[:, top])[upper]
    # Of both kinds together: components of one kind alone fit its noise and give it away.
    both = np.concatenate([x, y])
    pca = PCA(min(30, *both.shape), random_state=seed).fit(both)
    features = pca.transform(x), pca.transform(y)
    zeros = np.abs((counts[0] == 0).mean(0) - (counts[1] == 0).mean(0)).mean()
    return {
        "marginal": float(np.mean(marginal)),
        "zeros": float(zeros),
        "correlation": float(np.sqrt(np.mean(difference**2))),
        "auc_boosting": two_sample_auc(*features, classifier="boosting", seed=seed),
        "auc_logistic": two_sample_auc(*features, classifier="logistic", seed=seed),
    }
