"""Training curves and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from scvi_qbm.pl.style import PALETTE

__all__ = ["training_curves"]


_Curves = list[tuple[str, str]]
_BOUND: list[tuple[str, _Curves]] = [
    ("negative ELBO (nats per cell)",
     [("elbo_train", "train"), ("elbo_validation", "held out")]),
    ("reconstruction (nats per cell)",
     [("reconstruction_loss_train", "train"), ("reconstruction_loss_validation", "held out")]),
    ("KL (nats per cell)",
     [("kl_local_train", "train"), ("kl_local_validation", "held out")]),
]  # fmt: skip


def training_curves(
    history: Mapping[str, pd.DataFrame], axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """The ELBO, its two parts, and the prior's negative phase, by epoch.

    First row: the negative ELBO, and its two parts, reconstruction and KL (with log Z). Second
    row, if the prior has couplings: log Z; the energy gap, which is 0 if the training samples are
    in equilibrium; and the drift of log Z between estimates, or, with a corrected sampler, the
    inverse temperature of its samples (1 is right).

    Parameters
    ----------
    history
        ``model.history``: data frames indexed by epoch.
    axes
        Six axes to draw into, three for a prior without couplings; a new figure if None.

    Returns
    -------
    Sequence[Axes]
        The axes.

    Raises
    ------
    TypeError
        If ``history`` is something else, such as the model.
    """
    if not isinstance(history, Mapping):
        raise TypeError(f"Pass model.history, not a {type(history).__name__}.")
    n_rows = 2 if "log_z" in history else 1
    if axes is None:
        axes = plt.subplots(
            n_rows, 3, figsize=(9.0, 2.8 * n_rows), layout="constrained", squeeze=False
        )[1].ravel()
    for ax, (label, curves) in zip(axes, _BOUND, strict=False):
        _skip_the_cliff(ax, _lines(ax, history, curves))
        ax.set_ylabel(label)
    if n_rows == 2:
        _lines(axes[3], history, [("log_z", "")])
        axes[3].set_ylabel("log Z ± 2 se (nats)")
        axes[4].axhspan(-2, 2, color="0.92", lw=0, zorder=0, label="fine")
        _lines(axes[4], history, [("energy_gap", "")])
        axes[4].set_ylabel("energy gap ± 2 se (nats)")
        if "beta_drawn" in history:
            axes[5].axhline(1, color="0.7", lw=0.8, zorder=0)
            _lines(axes[5], history, [("beta_drawn", "drawn"), ("beta_corrected", "corrected")])
            axes[5].set_ylabel("effective β ± 2 se (1 is right)")
        else:
            axes[5].axhline(0, color="0.7", lw=0.8, zorder=0)
            _lines(axes[5], history, [("log_z_drift", "")])
            axes[5].set_ylabel("drift of log Z (nats)")
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.spines[["top", "right"]].set_visible(False)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(frameon=False, fontsize="small")
    return axes


def _lines(ax: Axes, history: Mapping[str, pd.DataFrame], curves: _Curves) -> list[np.ndarray]:
    """Draw the curves that the history has, solid then dashed, with a band of two errors."""
    shown = []
    for i, (key, name) in enumerate(curves):
        if key not in history:
            continue
        series = _series(history[key])
        # Few points, such as the draws of a machine, would not show as a line.
        marker = "o" if series.notna().sum() < 8 else None
        ax.plot(series.dropna(), color=PALETTE[i], label=name or None, ls="-" if i == 0 else "--",
                lw=1.2, marker=marker, ms=3)  # fmt: skip
        shown.append(series.to_numpy())
        if f"{key}_se" in history:
            se = _series(history[f"{key}_se"])
            ax.fill_between(series.index, series - 2 * se, series + 2 * se, color=PALETTE[i],
                            alpha=0.25, lw=0)  # fmt: skip
    return shown


def _series(frame: pd.DataFrame) -> pd.Series:
    return frame.iloc[:, 0].astype(float)


def _skip_the_cliff(ax: Axes, curves: list[np.ndarray]) -> None:
    """Let the first epochs' steep fall leave the panel, so that the rest can be read."""
    if not curves or max(map(len, curves)) < 10:
        return
    later = np.concatenate([curve[len(curve) // 10 :] for curve in curves])
    margin = 0.05 * (later.max() - later.min()) + 1e-9
    ax.set_ylim(later.min() - margin, later.max() + margin)
