"""Training curves and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ._style import PALETTE

__all__ = ["embedding_scatter", "training_curves"]


def training_curves(
    history: Mapping[str, pd.DataFrame], axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """ELBO, KL and log Z by epoch, three panels.

    Parameters
    ----------
    history
        ``model.history``: data frames indexed by epoch.
    axes
        Three axes to draw into; a new figure if None.

    Returns
    -------
    The axes.
    """
    if axes is None:
        axes = plt.subplots(1, 3, figsize=(10.5, 3.0), layout="constrained")[1]
    panels: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "negative ELBO (nats per cell)",
            [("elbo_train", "train"), ("elbo_validation", "held out")],
        ),
        ("KL (nats per cell)", [("kl_local_train", "train"), ("kl_local_validation", "held out")]),
    ]
    for ax, (label, curves) in zip(axes, panels, strict=False):
        shown = []
        for i, (key, name) in enumerate(curves):
            if key in history:
                series = _series(history[key])
                ax.plot(series, color=PALETTE[i], label=name, ls="-" if i == 0 else "--")
                shown.append(series.to_numpy())
        ax.set(xlabel="epoch", ylabel=label)
        ax.legend(frameon=False)
        _skip_the_cliff(ax, shown)
    if "log_z" in history:
        log_z, se = _series(history["log_z"]), _series(history["log_z_se"])
        axes[2].plot(log_z, color=PALETTE[0], label="log Z of the prior")
        band = (log_z - 2 * se).to_numpy(), (log_z + 2 * se).to_numpy()
        axes[2].fill_between(log_z.index, *band, color=PALETTE[0], alpha=0.25, lw=0)
        gap = axes[2].twinx()
        gap.plot(_series(history["energy_gap"]), color=PALETTE[3], lw=0.9, ls=":")
        gap.set_ylabel("energy gap of the chains (nats)", color=PALETTE[3])
        axes[2].set(xlabel="epoch", ylabel="log Z ± 2 se (nats)")
    else:
        axes[2].set_axis_off()
    return axes


def _series(frame: pd.DataFrame) -> pd.Series:
    return frame.iloc[:, 0].astype(float)


def _skip_the_cliff(ax: Axes, curves: list[np.ndarray]) -> None:
    """Let the first epochs' steep fall leave the panel, so that the rest can be read."""
    if not curves or max(map(len, curves)) < 10:
        return
    later = np.concatenate([curve[len(curve) // 10 :] for curve in curves])
    margin = 0.05 * (later.max() - later.min()) + 1e-9
    ax.set_ylim(later.min() - margin, later.max() + margin)


def embedding_scatter(
    coordinates: ArrayLike, labels: ArrayLike, ax: Axes | None = None, **kwargs: Any
) -> Axes:
    """Cells in two dimensions, coloured by label, largest groups first.

    Parameters
    ----------
    coordinates
        Shape ``(n_cells, 2)``, such as a UMAP.
    labels
        Shape ``(n_cells,)``.
    ax
        Axes to draw into; a new figure if None.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.scatter`.
    """
    if ax is None:
        ax = plt.subplots(figsize=(5.6, 3.8), layout="constrained")[1]
    xy, names = np.asarray(coordinates), np.asarray(labels).astype(str)
    if xy.ndim != 2 or xy.shape[1] != 2 or len(xy) != len(names):
        raise ValueError(f"Need (n_cells, 2) coordinates and as many labels, got {xy.shape}.")
    order, counts = np.unique(names, return_counts=True)
    style = {"s": float(np.clip(6000 / len(xy), 2, 14)), "lw": 0} | kwargs
    for i, name in enumerate(order[np.argsort(-counts, kind="stable")]):
        mask = names == name
        marker = "os^D"[i // len(PALETTE) % 4]
        label = f"{name} ({mask.sum()})"
        color = PALETTE[i % len(PALETTE)]
        ax.scatter(*xy[mask].T, color=color, marker=marker, label=label, **style)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(
        frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2, fontsize=8
    )
    return ax
