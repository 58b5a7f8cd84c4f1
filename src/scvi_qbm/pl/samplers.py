"""Samplers at work: the amplitudes of an Ising machine, the ladder of parallel tempering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from scvi_qbm.pl.style import PALETTE, axes_or_new

__all__ = ["amplitude_trajectories", "tempering_diagnostics"]

_BINS = 60
_AT_MOST = 12


def amplitude_trajectories(info: Mapping[str, Any], run: int = 0, ax: Axes | None = None) -> Axes:
    """Amplitudes of one run of a coherent Ising machine, under the net gain that drives them.

    Parameters
    ----------
    info
        ``SampleSet.info`` of a machine made with ``trajectories`` >= 1.
    run
        Which of the recorded runs.
    ax
        Axes to draw into; a new figure if None. The net gain stands in a strip above them.

    Returns
    -------
    Axes
        The axes of the amplitudes.

    Raises
    ------
    ValueError
        If no trajectories were recorded.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_qbm import get_sampler
    >>> from scvi_qbm.ising import Ising
    >>> from scvi_qbm.pl import amplitude_trajectories
    >>> model = Ising(0.3 * (1 - np.eye(8)), np.zeros(8))
    >>> out = get_sampler("cim", trajectories=1).sample(model, n_samples=10, seed=0)
    >>> ax = amplitude_trajectories(out.info)
    """
    if "trajectories" not in info:
        raise ValueError("No trajectories here: get_sampler('cim', trajectories=1) records one.")
    ax = axes_or_new(ax, (4.4, 3.2))
    amplitudes, times = np.asarray(info["trajectories"])[run], np.asarray(info["times"])
    up = amplitudes[-1] >= 0
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
    for signs, colour, name in ((up, PALETTE[0], "positive"), (~up, PALETTE[1], "negative")):
        lines = ax.plot(times, amplitudes[:, signs], color=colour, lw=0.7, alpha=0.7)
        if lines:
            lines[0].set_label(f"ends {name} ({len(lines)})")
    ax.set(xlabel="time (cavity decay times)", ylabel="amplitude", xlim=times[[0, -1]])
    ax.spines[["top", "right"]].set_visible(False)
    strip = ax.inset_axes([0, 1.06, 1, 0.2], sharex=ax)
    strip.plot(times, info["gains"], color=PALETTE[3], lw=1.2)
    strip.axhline(0, color="0.8", lw=0.8, zorder=0)
    strip.tick_params(labelbottom=False)
    strip.set_ylabel("net\ngain")
    strip.spines[["top", "right"]].set_visible(False)
    legend = ax.legend(frameon=False, fontsize="small", loc="lower center", ncols=2,
                       bbox_to_anchor=(0.5, 1.24))  # fmt: skip
    for line in legend.get_lines():
        line.set(lw=2, alpha=1)
    return ax


def tempering_diagnostics(
    info: Mapping[str, Any], axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Swap rates of neighbouring temperatures, flow of states between them, and energies.

    Swap rates should be equal, energies of neighbours should overlap, and states should travel
    from the hottest temperature to the coldest: flow along the straight line, many round trips.
    Swap rates alone can hide a bottleneck; the flow shows it. The best possible rate of round
    trips for these swap rates is ``1 / (2 + 2 sum(r / (1 - r)))`` with rejection rates ``r``
    (Syed et al. 2022).

    Parameters
    ----------
    info
        ``SampleSet.info`` of ``get_sampler("parallel_tempering", record_levels=True)``.
    axes
        Three axes to draw into; a new figure if None.

    Returns
    -------
    Sequence[Axes]
        The axes: swaps, flow, energies.

    Raises
    ------
    ValueError
        If the levels were not recorded.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_qbm import get_sampler
    >>> from scvi_qbm.ising import Ising
    >>> from scvi_qbm.pl import tempering_diagnostics
    >>> model = Ising(0.3 * (1 - np.eye(8)), np.zeros(8))
    >>> sampler = get_sampler("parallel_tempering", record_levels=True)
    >>> swaps, flow, energies = tempering_diagnostics(sampler.sample(model, seed=0).info)
    """
    if "level_energies" not in info:
        raise ValueError(
            "No levels here: get_sampler('parallel_tempering', record_levels=True) records them."
        )
    if axes is None:
        axes = plt.subplots(1, 3, figsize=(8.4, 2.7), layout="constrained")[1]
    energies = np.asarray(info["level_energies"], dtype=float)
    energies = energies.reshape(-1, energies.shape[-1])
    edges = np.linspace(energies.min(), energies.max(), _BINS + 1)
    counts = np.stack([np.histogram(level, edges)[0] for level in energies.T])
    _swaps(axes[0], info, counts / len(energies))
    _flow(axes[1], info)
    _energies(axes[2], np.asarray(info["betas"]), counts / len(energies), edges)
    for ax in axes:
        ax.title.set_size("medium")
        ax.spines[["top", "right"]].set_visible(False)
    return axes


def _swaps(ax: Axes, info: Mapping[str, Any], frequency: NDArray[np.float64]) -> None:
    pairs = np.arange(1, len(info["betas"]))
    overlap = np.minimum(frequency[:-1], frequency[1:]).sum(axis=1)
    ax.plot(pairs, info["swap_rates"], "o-", ms=4, lw=1, color=PALETTE[0], label="swaps accepted")
    ax.plot(pairs, overlap, "s:", ms=3.5, lw=1, mfc="none", color=PALETTE[3],
            label="overlap of energies")  # fmt: skip
    if info.get("target_swap_rate") is not None:
        ax.axhline(info["target_swap_rate"], color="0.6", lw=1, ls="--", zorder=0, label="target")
    ax.set(xlim=(0.5, len(pairs) + 0.5), ylim=(-0.02, 1), ylabel="probability",
           xlabel="pair of neighbouring levels",
           title=f"swaps: barrier {info['barrier']:.2g}")  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.legend(frameon=False, fontsize="small", loc="best")


def _flow(ax: Axes, info: Mapping[str, Any]) -> None:
    levels = np.arange(len(info["betas"]))
    ax.plot([0, levels[-1]], [1, 0], color="0.6", lw=1, ls="--", label="free diffusion")
    ax.plot(levels, info["flow"], "o-", ms=4, lw=1, color=PALETTE[0], label="measured")
    accepted = np.maximum(info["swap_rates"], 1e-12)
    best = 1 / (2 + 2 * float(((1 - accepted) / accepted).sum()))
    ax.set(ylim=(-0.03, 1.03), xlabel="level (0: hottest)", ylabel="part from the hot end",
           title=f"{info['round_trips']:,} round trips, "
           f"{100 * info['round_trip_rate'] / best:.0f} % of best")  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.legend(frameon=False, fontsize="small")


def _energies(
    ax: Axes,
    betas: NDArray[np.float64],
    frequency: NDArray[np.float64],
    edges: NDArray[np.float64],
) -> None:
    n_levels = len(betas)
    shown = np.unique(np.linspace(0, n_levels - 1, min(n_levels, _AT_MOST)).round().astype(int))
    # Viridis without its lightest end, which vanishes on white.
    colours = plt.get_cmap("viridis_r")(np.linspace(0.15, 1, n_levels))
    density = frequency / np.diff(edges)
    for level in shown:
        ends = level in (0, n_levels - 1)
        ax.stairs(density[level], edges, color=colours[level], lw=1.6 if ends else 0.9,
                  label=f"β = {betas[level]:.3g}" if ends else None)  # fmt: skip
    # The cold levels' peak is far higher than the tails in which neighbours meet.
    top = float(density.max())
    ax.set(xlabel="tempered energy (nats)", ylabel="density", yscale="log",
           ylim=(3e-3 * top, 2 * top), title="energies by level")  # fmt: skip
    ax.legend(frameon=False, fontsize="small")
