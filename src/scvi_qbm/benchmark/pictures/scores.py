"""Pictures of the comparison of embeddings: scores, differences, curves, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from scvi_qbm.pl.style import PALETTE, plain

BLOCK_COLOURS = {
    "unsupervised": PALETTE[0], "variant": PALETTE[2], "supervised": PALETTE[3], "control": "0.45",
}  # fmt: skip
_INK = "0.25"


def score_dots(
    rows: pd.DataFrame,
    means: pd.DataFrame,
    metrics: Mapping[str, str],
    methods: Mapping[str, str] | None = None,
    blocks: Mapping[str, str] | None = None,
    *,
    reference: str | None = None,
) -> Sequence[Axes]:
    """Scores of one data set, a panel a metric: a dot a seed, mean and interval.

    Parameters
    ----------
    rows
        Columns ``method`` and the metrics, one row a run.
    means
        Columns ``method, metric, mean, low, high``; no interval where ``low`` is NaN.
    metrics
        Column -> title of its panel, with the unit if it has one; passed over without a value.
    methods
        Method -> label, from top to bottom; those in ``rows`` if None.
    blocks
        Method -> its block, a key of ``BLOCK_COLOURS``, shown by colour.
    reference
        Method whose line is shaded.

    Returns
    -------
    collections.abc.Sequence[matplotlib.axes.Axes]
        One a metric drawn.

    Raises
    ------
    ValueError
        If there is no metric or no method to draw.
    """
    methods, blocks = _methods(rows, methods), blocks or {}
    metrics = {m: t for m, t in metrics.items() if any(len(_values(rows, k, m)) for k in methods)}
    grid = _panels(list(metrics.values()), methods, blocks, reference)
    rng = np.random.default_rng(0)
    for ax, metric in zip(grid, metrics, strict=True):
        for y, method in enumerate(methods):
            colour = BLOCK_COLOURS.get(blocks.get(method, ""), PALETTE[0])
            values = _values(rows, method, metric)
            at = y + (rng.uniform(-0.22, 0.22, len(values)) if len(values) > 1 else 0)
            ax.plot(values, np.broadcast_to(at, len(values)), "o", ms=2.6, mew=0, color=colour,
                    alpha=0.45)  # fmt: skip
            here = means[(means["method"] == method) & (means["metric"] == metric)]
            for row in here.itertuples():
                if np.isfinite(row.low):
                    ax.plot([row.low, row.high], [y, y], "-", lw=1.4, color=colour)
                ax.plot(row.mean, y, "D", ms=4.2, mew=0.6, mec="white", color=colour)
        _span(ax, rows.loc[rows["method"].isin(list(methods)), metric].to_numpy(dtype=float))
    handles = [
        _key("one seed", "o", ms=3, alpha=0.6),
        _key("mean and 95 % interval, cut at the frame", "D", ls="-", ms=4.5),
    ]
    _block_legend(grid[0].figure, handles, blocks, methods)
    grid[0].figure.supxlabel("score (raw, no unit unless named)", fontsize=8)
    return grid


def paired_differences(
    differences: pd.DataFrame,
    metrics: Mapping[str, str],
    methods: Mapping[str, str] | None = None,
    blocks: Mapping[str, str] | None = None,
    *,
    reference_label: str = "the reference",
) -> Sequence[Axes]:
    """Differences of a reference from each method, with intervals and the line of no difference.

    Parameters
    ----------
    differences
        Columns ``method, metric, mean, low, high`` of one data set, positive where the reference
        is better. Hollow where the interval holds zero, a cross where there is none.
    metrics, methods, blocks
        As :func:`score_dots`.
    reference_label
        Its name in the axis label.

    Returns
    -------
    collections.abc.Sequence[matplotlib.axes.Axes]
        One a metric drawn.

    Raises
    ------
    ValueError
        If there is no metric or no method to draw.
    """
    methods, blocks = _methods(differences, methods), blocks or {}
    drawn = differences[differences["method"].isin(list(methods)) & differences["mean"].notna()]
    metrics = {m: t for m, t in metrics.items() if drawn["metric"].eq(m).any()}
    grid = _panels(list(metrics.values()), methods, blocks, None)
    for ax, metric in zip(grid, metrics, strict=True):
        ax.axvline(0, color="0.35", lw=0.9, zorder=1)
        for y, method in enumerate(methods):
            colour = BLOCK_COLOURS.get(blocks.get(method, ""), PALETTE[0])
            here = drawn[drawn["method"].eq(method) & drawn["metric"].eq(metric)]
            for row in here.itertuples():
                known = np.isfinite(row.low)
                if known:
                    ax.plot([row.low, row.high], [y, y], "-", lw=1.3, color=colour)
                clear = known and (row.low > 0 or row.high < 0)
                ax.plot(row.mean, y, "o" if known else "x", ms=4.4, mew=1.1, mec=colour,
                        mfc=colour if clear else "white")  # fmt: skip
        here = drawn[drawn["metric"] == metric]
        # An interval from two runs is so wide that nothing else could be read.
        half = here["high"] - here["mean"]
        fit = here[half <= 4 * half.median()] if half.notna().any() else here[:0]
        _span(ax, np.concatenate([here["mean"], fit["low"], fit["high"], [0.0]]))
    handles = [
        _key("clear of zero (cut at the frame)", "o", ls="-", ms=4.5),
        _key("not clear", "o", ls="-", ms=4.5, mfc="white"),
        _key("one run, no interval", "x", ms=4.5),
    ]
    _block_legend(grid[0].figure, handles, blocks, methods)
    grid[0].figure.supxlabel(
        f"difference in score (95 % interval); right of zero: {plain(reference_label)} is better",
        fontsize=8,
    )
    return grid


def score_by_epoch(
    curves: pd.DataFrame,
    metrics: Mapping[str, str],
    methods: Mapping[str, str] | None = None,
) -> Sequence[Axes]:
    """Scores during training: mean over seeds and one standard deviation, a panel a metric.

    Parameters
    ----------
    curves
        Columns ``method, seed, epoch`` and the metrics. Where a seed has stopped early the mean
        of the others goes on as a dotted line, for it is a mean of other runs.
    metrics
        Column -> axis label.
    methods
        Method -> label; those in ``curves`` if None.

    Returns
    -------
    collections.abc.Sequence[matplotlib.axes.Axes]
        One a metric, in their order.

    Raises
    ------
    ValueError
        If there is no metric or no method to draw.
    """
    methods = _methods(curves, methods)
    if not metrics:
        raise ValueError("No metric to draw.")
    n_columns = min(3, len(metrics))
    n_rows = -(-len(metrics) // n_columns)
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=(max(5.2, 0.6 + 2.9 * n_columns), 0.4 + 2.3 * n_rows),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for ax, (metric, label) in zip(grid.flat, metrics.items(), strict=False):
        for k, method in enumerate(methods):
            table = curves[curves["method"] == method]
            table = table.pivot_table(index="epoch", columns="seed", values=metric)
            if table.empty:
                continue
            mean, sd = table.mean(axis=1), table.std(axis=1)
            whole = table.notna().all(axis=1)
            name = f"{plain(methods[method])} ({table.shape[1]} seed{'s'[: table.shape[1] > 1]})"
            style = {"color": PALETTE[k % len(PALETTE)], "lw": 1.4}
            ax.plot(mean.where(whole), marker="os^D"[k % 4], ms=2.5, label=name, **style)
            # From the last whole epoch on, so that the line has no gap.
            ax.plot(mean[mean.index >= mean.index[whole].max()] if whole.any() else mean, ":",
                    **style)  # fmt: skip
            band = (mean - sd).where(whole), (mean + sd).where(whole)
            ax.fill_between(mean.index, *band, color=style["color"], alpha=0.18, lw=0)
        ax.set_xlabel("epoch", fontsize=8)
        ax.set_ylabel(fill(plain(label), 30), fontsize=8)
        _quiet(ax)
    for ax in grid.flat[len(metrics) :]:
        ax.set_axis_off()
    handles, names = _every_label(grid.flat)
    figure.legend(handles, names, loc="outside upper left", ncols=3, frameon=False, fontsize=8,
                  title="mean ± sd over seeds; dotted where a seed has stopped",
                  title_fontsize=8, alignment="left")  # fmt: skip
    return list(grid.flat[: len(metrics)])


def cost(
    rows: pd.DataFrame,
    methods: Mapping[str, str] | None = None,
    blocks: Mapping[str, str] | None = None,
    *,
    reference: str | None = None,
) -> Sequence[Axes]:
    """Time and memory by method: a dot a run, a bar at the mean; log axes where they differ much.

    Parameters
    ----------
    rows
        Columns ``method``, ``seconds`` and, if known, ``cpu_seconds`` and ``memory_mb``.
    methods, blocks, reference
        As :func:`score_dots`.

    Returns
    -------
    collections.abc.Sequence[matplotlib.axes.Axes]
        One a column that is known.

    Raises
    ------
    ValueError
        If there is no method, or neither column.
    """
    titles = {"seconds": "time to fit (s)", "cpu_seconds": "processor time (s)",
              "memory_mb": "memory added at the peak (MiB)"}  # fmt: skip
    titles = {c: t for c, t in titles.items() if c in rows and rows[c].gt(0).any()}
    methods, blocks = _methods(rows, methods), blocks or {}
    grid = _panels(list(titles.values()), methods, blocks, reference, 3, width=3.0)
    for ax, column in zip(grid, titles, strict=True):
        for y, method in enumerate(methods):
            colour = BLOCK_COLOURS.get(blocks.get(method, ""), PALETTE[0])
            values = _values(rows, method, column)
            values = values[values > 0]
            ax.plot(values, np.full(len(values), y), "o", ms=3.2, mew=0, color=colour, alpha=0.5)
            if len(values):
                ax.plot(values.mean(), y, "|", ms=10, mew=1.8, color=colour)
        ax.set_title("")
        ax.set_xlabel(titles[column], fontsize=8)
        positive = rows.loc[rows[column] > 0, column]
        if positive.max() > 5 * positive.min():
            ax.set_xscale("log")
        else:
            ax.set_xlim(left=0)
    handles = [
        _key("one run", "o", ms=3.5, alpha=0.6),
        _key("mean", "|", ms=9, mew=1.8),
    ]
    _block_legend(grid[0].figure, handles, blocks, methods)
    return grid


def _methods(frame: pd.DataFrame, methods: Mapping[str, str] | None) -> dict[str, str]:
    here = list(frame["method"].unique())
    chosen = {m: m for m in here} if methods is None else dict(methods)
    if not chosen:
        raise ValueError("No method to draw.")
    return chosen


def _values(rows: pd.DataFrame, method: str, column: str) -> NDArray[np.float64]:
    if column not in rows:
        return np.empty(0)
    values = rows.loc[rows["method"] == method, column].to_numpy(dtype=float)
    return values[np.isfinite(values)]


def _panels(
    titles: Sequence[str],
    methods: Mapping[str, str],
    blocks: Mapping[str, str],
    reference: str | None,
    n_columns: int = 6,
    width: float = 1.45,
) -> list[Axes]:
    """Panels with the methods on a shared axis, from top to bottom, and lines between blocks."""
    if not titles:
        raise ValueError("No metric to draw.")
    n_rows = -(-len(titles) // n_columns)
    n_columns = -(-len(titles) // n_rows)
    names = [_short(label, 34) for label in methods.values()]
    figure, grid = plt.subplots(
        n_rows, n_columns, sharey=True, layout="constrained", squeeze=False,
        figsize=(max(7.4, 0.3 + 0.065 * max(map(len, names)) + width * n_columns),
                 0.6 + n_rows * (0.62 + 0.19 * len(names))),
    )  # fmt: skip
    figure.get_layout_engine().set(wspace=0.03, hspace=0.04)
    keys = list(methods)
    for ax, title in zip(grid.flat, titles, strict=False):
        ax.set_title(fill(plain(title), 20), fontsize=8)
        for y in range(1, len(keys)):
            if blocks.get(keys[y]) != blocks.get(keys[y - 1]):
                ax.axhline(y - 0.5, color="0.75", lw=0.8)
        if reference in methods:
            at = keys.index(reference)
            ax.axhspan(at - 0.5, at + 0.5, color="0.94", lw=0, zorder=0)
        _quiet(ax)
        ax.grid(axis="x", color="0.92", lw=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0, labelsize=8)
    for ax in grid.flat[len(titles) :]:
        ax.set_axis_off()
    grid[0, 0].set_yticks(range(len(names)), names)
    grid[0, 0].set_ylim(len(names) - 0.4, -0.6)
    return list(grid.flat[: len(titles)])


def _span(ax: Axes, values: NDArray[np.float64]) -> None:
    """Limits around values, and few ticks."""
    values = values[np.isfinite(values)]
    pad = 0.08 * (values.max() - values.min()) or 0.02
    ax.set_xlim(values.min() - pad, values.max() + pad)
    ax.xaxis.set_major_locator(MaxNLocator(3))


def _block_legend(
    figure: Figure, handles: list[Line2D], blocks: Mapping[str, str], methods: Mapping[str, str]
) -> None:
    shown = {blocks.get(m) for m in methods}
    patches = [
        _key(block, "s", ms=5, color=colour)
        for block, colour in BLOCK_COLOURS.items()
        if block in shown and len(shown) > 1
    ]
    figure.legend(handles=[*handles, *patches], loc="outside upper right", frameon=False,
                  ncols=len(handles) + len(patches), fontsize=7.5, columnspacing=1.2,
                  handletextpad=0.4)  # fmt: skip


def _key(label: str, marker: str, **style: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], marker=marker, label=label, **{"ls": "", "color": _INK} | style)


def _quiet(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("0.7")
    ax.tick_params(labelsize=7, color="0.7")


def _short(name: str, length: int = 32) -> str:
    name = str(name)
    return plain(name if len(name) <= length else name[: length - 1] + "…")


def _every_label(axes: Sequence[Axes]) -> tuple[list[object], list[str]]:
    found: dict[str, object] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
