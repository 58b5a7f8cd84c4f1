"""Pictures of the samplers' benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from scvi_qbm.pl.style import MARKERS, PALETTE


def draw_distribution(rows: pd.DataFrame) -> Sequence[Axes]:
    """Log-frequency of states against energy, one panel a sampler; the line is Boltzmann's."""
    models, samplers = list(rows["model"].unique()), list(rows["sampler"].unique())
    n_columns = min(5, len(samplers))
    per_model = -(-len(samplers) // n_columns)
    figure, grid = plt.subplots(
        per_model * len(models), n_columns, layout="constrained", squeeze=False,
        figsize=(1.5 * n_columns, 1.55 * per_model * len(models)),
    )  # fmt: skip
    axes = []
    for k, model in enumerate(models):
        panels = grid[k * per_model : (k + 1) * per_model].ravel()
        for ax in panels[1:]:
            ax.sharex(panels[0])
            ax.sharey(panels[0])
        for ax in panels[len(samplers) :]:
            ax.set_axis_off()
        for i, (ax, sampler) in enumerate(zip(panels, samplers, strict=False)):
            row = rows[(rows["model"] == model) & (rows["sampler"] == sampler)].iloc[0]
            _distribution_panel(ax, row)
            ax.tick_params(labelsize="small")
            # Panels without one below them name the energies.
            ax.tick_params(labelbottom=i + n_columns >= len(samplers), labelleft=not i % n_columns)
            if not i % n_columns:
                ax.set_ylabel(f"{model}: log-frequency", fontsize="small")
            axes.append(ax)
    figure.supxlabel("energy (nats at beta = 1); hollow: never drawn", fontsize="medium")
    return axes


def _distribution_panel(ax: Axes, row: pd.Series) -> None:
    energies, frequency = np.asarray(row["energies"]), np.asarray(row["log_frequency"])
    # Half a count was added to all: below one count is what was never drawn.
    never = frequency < -np.log(row.get("n_samples", np.inf))
    ax.plot(energies[~never], frequency[~never], ".", ms=2, color=PALETTE[0], rasterized=True)
    ax.plot(energies[never], frequency[never], "o", ms=2, mfc="none", mew=0.4, color=PALETTE[0],
            rasterized=True)  # fmt: skip
    order = np.argsort(energies)
    ax.plot(energies[order], np.asarray(row["log_p"])[order], color=PALETTE[3], lw=1)
    ax.set_title(f"{row['sampler']}\nTV {row['total_variation']:.2f}", fontsize="small")


def draw_reweighting(rows: pd.DataFrame) -> Sequence[Axes]:
    """Difference of inverse temperatures shown by the energies over that asked for; 1 is right."""
    _, ax = plt.subplots(figsize=(4.8, 3.2), layout="constrained")
    samplers = list(rows["sampler"].unique())
    for k, (beta, group) in enumerate(rows.groupby("beta")):
        # Rows come in the order in which they were measured, which differs between temperatures.
        at = np.array([samplers.index(s) for s in group["sampler"]]) + 0.2 * (k - 0.5)
        error = 1.96 * group["ratio_se"]
        ax.errorbar(at, group["ratio"], error, fmt=MARKERS[k], ms=4, color=PALETTE[k],
                    label=f"β = {beta}")  # fmt: skip
    ax.set_xticks(np.arange(len(samplers)), samplers, rotation=40, ha="right")
    ax.axhline(1.0, color="0.6", lw=1, zorder=0)
    n = int(rows["n_spins"].max())
    ax.set(ylabel="Δβ shown / Δβ asked for")
    ax.set_title(f"SK, {n:,} spins, 95 % intervals", fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower left")
    return [ax]


def draw_optimum(rows: pd.DataFrame) -> Sequence[Axes]:
    """Time to solution by size, one panel a family; hollow where the optimum was never seen."""
    families, solvers = list(rows["family"].unique()), list(rows["solver"].unique())
    _, grid = plt.subplots(
        1, len(families), figsize=(1.4 + 2.6 * len(families), 3.4), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for ax, family in zip(grid[0], families, strict=True):
        here = rows[rows["family"] == family]
        for k, solver in enumerate(solvers):
            group = here[here["solver"] == solver]
            # Several instances: their median; an optimum never seen counts as infinite.
            group = group.groupby("n_spins", as_index=False)[["tts99", "tts99_low"]].median()
            seen = np.isfinite(group["tts99"].astype(float))
            colour, marker = PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]
            ax.plot(group["n_spins"][seen], group["tts99"][seen], f"{marker}-", ms=4, lw=1,
                    color=colour, label=solver)  # fmt: skip
            # Never seen: at least this long, the lower end of the interval.
            ax.plot(group["n_spins"][~seen], group["tts99_low"][~seen], marker, ms=5, mfc="none",
                    color=colour)  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="spins")
        ax.set_title(family, fontsize="medium")
        sizes = sorted(here["n_spins"].unique())
        ax.set_xticks(sizes, [f"{n}" for n in sizes], rotation=45)
        ax.minorticks_off()
        ax.margins(x=0.12)
        ax.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("time to solution, 99 % (s)")
    handles, labels = grid[0][-1].get_legend_handles_labels()
    never = Line2D([], [], ls="", marker="o", mfc="none", color="0.3")
    grid[0][-1].legend([*handles, never], [*labels, "never seen: at least"], frameon=False,
                       fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))  # fmt: skip
    return list(grid[0])


def draw_time(rows: pd.DataFrame) -> Sequence[Axes]:
    """Seconds a sample of equal mean energy by size; what never reached it is left out."""
    _, ax = plt.subplots(figsize=(4.8, 3.4), layout="constrained")
    for k, (sampler, group) in enumerate(rows.groupby("sampler", sort=False)):
        group = group[np.isfinite(group["seconds"].astype(float))].sort_values("n_spins")
        ax.plot(group["n_spins"], group["seconds"], f"{MARKERS[k % len(MARKERS)]}-", ms=4,
                lw=2 if sampler == "PT" else 0.9, color=PALETTE[k % len(PALETTE)],
                label=sampler)  # fmt: skip
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="spins, with the ancilla",
        ylabel="seconds a sample of equal depth",
    )
    sizes = sorted(rows["n_spins"].unique())
    ax.set_xticks(sizes, [f"{n}" for n in sizes])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return [ax]
