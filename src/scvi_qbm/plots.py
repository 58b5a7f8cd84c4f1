"""Pictures: data frames and arrays in, matplotlib axes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

__all__ = [
    "amplitude_trajectories",
    "embedding_scatter",
    "sampling_law",
    "sampling_optimum",
    "sampling_reweighting",
    "sampling_time",
    "training_curves",
]

# Okabe and Ito (2008), then darker shades: told apart with colour-blind eyes and in print.
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000",
    "#5D3A9B", "#8C8C8C", "#804000", "#004D40", "#B00058", "#7FA800", "#3B3BFF", "#C0A98E",
)  # fmt: skip


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


def amplitude_trajectories(info: Mapping[str, Any], run: int = 0, ax: Axes | None = None) -> Axes:
    """Amplitudes of one run of a coherent Ising machine, and the net gain that drives them.

    Parameters
    ----------
    info
        ``SampleSet.info`` of a machine made with ``trajectories`` >= 1.
    run
        Which of the recorded runs.
    ax
        Axes to draw into; a new figure if None.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If no trajectories were recorded.
    """
    if "trajectories" not in info:
        raise ValueError("No trajectories here: get_sampler('cim', trajectories=1) records one.")
    if ax is None:
        ax = plt.subplots(figsize=(5.0, 3.2), layout="constrained")[1]
    amplitudes = np.asarray(info["trajectories"])[run]
    up = amplitudes[-1] >= 0
    for signs, colour in ((up, PALETTE[0]), (~up, PALETTE[3])):
        ax.plot(info["times"], amplitudes[:, signs], color=colour, lw=0.6, alpha=0.6)
    ax.plot(info["times"], info["gains"], color="0.3", lw=1, ls="--", label="net gain")
    ax.set(xlabel="time (cavity decay times)", ylabel="amplitude")
    ax.legend(frameon=False)
    return ax


def sampling_law(rows: pd.DataFrame) -> Sequence[Axes]:
    """Log-frequency of states against energy, one panel a sampler; the line is Boltzmann's law.

    Parameters
    ----------
    rows
        Table of :func:`scvi_qbm.benchmark.sampling.law`.

    Returns
    -------
    The axes.
    """
    models, samplers = list(rows["model"].unique()), list(rows["sampler"].unique())
    figure, grid = plt.subplots(
        len(models), len(samplers), figsize=(1.9 * len(samplers), 2.2 * len(models)),
        layout="constrained", squeeze=False, sharex="row", sharey="row",
    )  # fmt: skip
    for axes, model in zip(grid, models, strict=True):
        for ax, sampler in zip(axes, samplers, strict=True):
            row = rows[(rows["model"] == model) & (rows["sampler"] == sampler)].iloc[0]
            energies = np.asarray(row["energies"])
            ax.plot(energies, row["log_frequency"], ".", ms=2, color=PALETTE[0], rasterized=True)
            order = np.argsort(energies)
            ax.plot(energies[order], np.asarray(row["log_p"])[order], color=PALETTE[3], lw=1)
            ax.set_title(f"{sampler}\nTV {row['total_variation']:.2f}", fontsize=8)
        axes[0].set_ylabel(f"{model}\nlog-frequency")
    figure.supxlabel("energy")
    return list(grid.ravel())


def sampling_reweighting(rows: pd.DataFrame) -> Sequence[Axes]:
    """Difference of inverse temperatures shown by the energies over that asked for; 1 is right.

    Parameters
    ----------
    rows
        Table of :func:`scvi_qbm.benchmark.sampling.reweighting`.
    """
    _, ax = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    for k, (beta, group) in enumerate(rows.groupby("beta")):
        at = np.arange(len(group)) + 0.15 * (k - 0.5)
        error = 1.96 * group["ratio_se"]
        ax.errorbar(
            at, group["ratio"], error, fmt="o", ms=4, color=PALETTE[k], label=f"β = {beta}"
        )
        ax.set_xticks(np.arange(len(group)), group["sampler"], rotation=30, ha="right")
    ax.axhline(1.0, color="0.6", lw=1)
    n = int(rows["n_spins"].max())
    ax.set(ylabel="Δβ shown / Δβ asked for", title=f"SK, {n:,} spins, 95 % intervals")
    ax.legend(frameon=False)
    return [ax]


def sampling_optimum(rows: pd.DataFrame) -> Sequence[Axes]:
    """Time to solution by size, one panel a family; hollow where the optimum was never seen.

    Parameters
    ----------
    rows
        Table of :func:`scvi_qbm.benchmark.sampling.optimum`.
    """
    families, solvers = list(rows["family"].unique()), list(rows["solver"].unique())
    _, grid = plt.subplots(
        1, len(families), figsize=(3.6 * len(families), 3.6), layout="constrained", squeeze=False
    )
    for ax, family in zip(grid[0], families, strict=True):
        for k, solver in enumerate(solvers):
            group = rows[(rows["family"] == family) & (rows["solver"] == solver)]
            # Several instances: their median; an optimum never seen counts as infinite.
            group = group.groupby("n_spins", as_index=False)[["tts99", "tts99_low"]].median()
            seen = np.isfinite(group["tts99"].astype(float))
            colour = PALETTE[k % len(PALETTE)]
            ax.plot(group["n_spins"][seen], group["tts99"][seen], "o-", ms=4, color=colour,
                    label=solver)  # fmt: skip
            # Never seen: at least this long, the lower end of the interval.
            ax.plot(group["n_spins"][~seen], group["tts99_low"][~seen], "^", ms=5, mfc="none",
                    color=colour)  # fmt: skip
        ax.set(yscale="log", xlabel="spins", title=family)
    grid[0][0].set_ylabel("time to solution, 99 % (s)")
    grid[0][-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return list(grid[0])


def sampling_time(rows: pd.DataFrame) -> Sequence[Axes]:
    """Seconds a sample of equal mean energy by size; what never reached it is left out.

    Parameters
    ----------
    rows
        Table of :func:`scvi_qbm.benchmark.sampling.per_sample`.
    """
    _, ax = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    for k, (sampler, group) in enumerate(rows.groupby("sampler", sort=False)):
        group = group[np.isfinite(group["seconds"].astype(float))].sort_values("n_spins")
        style = "s-" if sampler == "PT" else "o-"
        ax.plot(group["n_spins"], group["seconds"], style, ms=4, color=PALETTE[k % len(PALETTE)],
                label=sampler)  # fmt: skip
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="spins, with the ancilla",
        ylabel="seconds a sample of equal depth",
    )
    ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return [ax]
