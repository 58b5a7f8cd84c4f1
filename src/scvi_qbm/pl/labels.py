"""Pictures of predicted labels against known ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from numpy.typing import NDArray

from scvi_qbm._numbers import positive_int
from scvi_qbm.pl.model import _kept
from scvi_qbm.pl.style import PALETTE, axes_or_new, plain

__all__ = ["confusion", "reliability"]


def _known_and_predicted(
    adata: AnnData, labels_key: str, key: str
) -> tuple[pd.Series, pd.Series, NDArray[np.float64]]:
    """Labels and predictions of cells that have both, and how probable the predictions were."""
    tool_key = key
    for name, kept in adata.uns.get("qbm", {}).items():
        if kept.get("tool") == "predict" and key in list(kept["columns"]):
            tool_key = name
    kept = _kept(adata, tool_key, "predict")
    if key not in list(kept["columns"]):
        raise KeyError(
            f"Several levels were predicted. Pass key=, one of {list(kept['columns'])}."
        )
    if labels_key not in adata.obs:
        raise KeyError(
            f"{labels_key!r} is not in adata.obs. Available: {', '.join(map(repr, adata.obs))}."
        )
    known = adata.obs[labels_key].astype(object)
    there = (known.notna() & (known.astype(str) != kept["unlabeled"])).to_numpy()
    if not there.any():
        raise ValueError(f"No cell has a label in obs[{labels_key!r}].")
    probability = adata.obs[f"{key}_probability"].to_numpy(dtype=float)
    known, predicted = known[there].astype(str), adata.obs[key][there].astype(str)
    return known, predicted, probability[there]


def confusion(
    adata: AnnData,
    labels_key: str,
    key: str = "predicted_label",
    *,
    ax: Axes | None = None,
) -> Axes:
    """Confusion matrix of known and predicted labels.

    Each row is a known label, with its number of cells, and sums to 1. Cells without a known
    label are left out.

    Parameters
    ----------
    adata
        Cells with a result of :func:`scvi_qbm.tl.predict`.
    labels_key
        Column of ``obs`` with the known labels; NaN and the unlabelled category count as missing.
    key
        The column of ``obs`` with the predictions.
    ax
        Axes to draw into; new ones if None.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    TypeError
        If ``adata`` is not an AnnData.
    KeyError
        If there are no predictions or labels.
    ValueError
        If no cell has a label.
    """
    known, predicted, _ = _known_and_predicted(adata, labels_key, key)
    shares = pd.crosstab(known, predicted, normalize="index")
    columns = [name for name in shares.index if name in shares.columns]
    columns += [name for name in shares.columns if name not in columns]
    shares = shares[columns]
    n_rows, n_columns = shares.shape
    ax = axes_or_new(ax, (2.6 + 0.28 * n_columns, 1.8 + 0.24 * n_rows))
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.figure.colorbar(image, ax=ax, label="share of the known label's cells")
    ax.set_xticks(range(n_columns), map(plain, columns), rotation=90, fontsize=7)
    cells = known.value_counts()
    rows = [f"{plain(name)} ({cells[name]:,})" for name in shares.index]
    ax.set_yticks(range(n_rows), rows, fontsize=7)
    if n_columns <= 20:
        for (i, j), share in np.ndenumerate(shares.to_numpy()):
            if share >= 0.005:
                color = "white" if share > 0.6 else "0.2"
                text = f"{share:.2f}".lstrip("0")
                ax.text(j, i, text, ha="center", va="center", fontsize=6, color=color)
    ax.set_xlabel("predicted")
    ax.set_ylabel(f"known ({plain(labels_key)})")
    ax.tick_params(length=2)
    return ax


def reliability(
    adata: AnnData,
    labels_key: str,
    key: str = "predicted_label",
    *,
    n_bins: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Calibration plot: accuracy against predicted probability.

    On the diagonal probabilities are right; below it they are too high. The title has the
    expected calibration error (ECE), the mean distance to the diagonal over cells. Use labels
    that the model has not seen.

    Parameters
    ----------
    adata
        Cells with a result of :func:`scvi_qbm.tl.predict`, made without a threshold.
    labels_key
        Column of ``obs`` with the known labels; NaN and the unlabelled category count as missing.
    key
        The column of ``obs`` with the predictions.
    n_bins
        Bins of equal width between 0 and 1.
    ax
        Axes to draw into; new ones if None.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    TypeError
        If ``adata`` is not an AnnData.
    KeyError
        If there are no predictions or labels.
    ValueError
        If ``n_bins`` < 1, or no cell has a label.

    References
    ----------
    Guo et al. (2017), On calibration of modern neural networks, ICML.
    """
    positive_int(n_bins, "n_bins")
    known, predicted, probability = _known_and_predicted(adata, labels_key, key)
    right = (known == predicted).to_numpy()
    bins = np.clip((probability * n_bins).astype(int), 0, n_bins - 1)
    size = np.bincount(bins, minlength=n_bins)
    there = size > 0
    said = np.bincount(bins, probability, n_bins)[there] / size[there]
    found = np.bincount(bins, right, n_bins)[there] / size[there]
    error = float((size[there] * np.abs(said - found)).sum() / size.sum())
    ax = axes_or_new(ax, (3.4, 3.2))
    ax.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
    ax.bar(
        (np.arange(n_bins)[there] + 0.5) / n_bins, size[there] / size.sum(), 0.9 / n_bins,
        color="0.88", label="cells in the bin",
    )  # fmt: skip
    ax.plot(said, found, "o-", color=PALETTE[0], ms=4, label="share that is right")
    ax.set(
        xlim=(0, 1),
        ylim=(0, 1.02),
        xlabel="probability of the prediction",
        ylabel="share of cells",
    )
    ax.set_title(f"ECE {error:.3f}", fontsize=9)
    ax.legend(frameon=False, fontsize=7, loc="upper left")
    return ax
