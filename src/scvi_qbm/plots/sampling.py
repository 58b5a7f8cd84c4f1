"""Pictures of the samplers' benchmark and of Ising machines at work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ._style import PALETTE

__all__ = [
    "amplitude_trajectories",
    "sampling_law",
    "sampling_optimum",
    "sampling_reweighting",
    "sampling_time",
]


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
