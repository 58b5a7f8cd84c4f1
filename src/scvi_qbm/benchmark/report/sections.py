"""The report's tables and remarks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from scvi_qbm.benchmark.report.html import Html, bullets, details, join, line, table, tag
from scvi_qbm.benchmark.report.read import FOLDED, SUMMARY, Report
from scvi_qbm.benchmark.statistics import POOLED, wins

BLOCKS = {
    "unsupervised": "methods",
    "supervised": "supervised: see the labels that they are judged by",
    "variant": "twins and variants: one thing changed, which shows what it is worth",
    "control": "controls: known to be good or bad, not methods",
}
_DASH = Html("&ndash;")


def summary(report: Report) -> Html:
    """Means over data sets, and in what the reference is ahead of each method."""
    metrics = report.headline(columns=SUMMARY)
    if not metrics:
        return tag("p", "No score was measured.")
    columns = report.means[report.means["metric"].isin(metrics)]
    found = columns.groupby(["method", "metric"])["mean"].agg(["mean", "count"])
    blocks = found.index.get_level_values("method").map(report.blocks)
    best = found["mean"][blocks == "unsupervised"].groupby("metric").max()
    most = found["count"].groupby("metric").max()

    def cells(method: str) -> Iterator[object]:
        for metric in metrics:
            if (method, metric) not in found.index:
                yield _DASH
                continue
            mean, count = found.loc[(method, metric)]
            value, few = _number(mean, metric), int(count) < most[metric]
            bold = report.blocks[method] == "unsupervised" and not few
            bold = bold and value == _number(best[metric], metric)
            yield tag("td", value, tag("small", f" {count:.0f} sets" if few else ""),
                      class_="best" if bold else "")  # fmt: skip

    caption = "Mean over seeds" + " and data sets" * (len(report.data) > 1) + ", higher is better."
    scores = _tables(
        report, ["method", *_headings(report, metrics)], found.index.unique("method"), cells,
        caption,
    )  # fmt: skip
    return join([scores, _verdicts(report, metrics)])


def _verdicts(report: Report, metrics: Sequence[str]) -> Html:
    """In words: the metrics in which the reference is clearly ahead of each method, or behind."""
    chosen = report.overall[report.overall["metric"].isin(metrics)]
    if chosen.empty:
        return tag("p", _why_unpaired(report), class_="quiet")
    name = report.labels.get(report.reference, report.reference)

    def cells(method: str) -> Iterator[object]:
        mine = chosen[chosen["method"] == method].set_index("metric")["verdict"]
        for wanted in ("better", "worse", None):
            here = [m for m in metrics if m in mine.index and (
                mine[m] == wanted if wanted else mine[m] not in ("better", "worse"))]  # fmt: skip
            yield tag("td", ", ".join(report.metrics[m].label for m in here) or _DASH,
                      class_="text")  # fmt: skip

    over = "data sets" if len(report.data) > 1 else "seeds"
    caption = f"By 95 % intervals over {over} of paired differences; one run decides nothing."
    head = ["method", f"{name} is ahead in", f"{name} is behind in", "no clear difference in"]
    return _tables(report, head, chosen["method"].unique(), cells, caption, prose=True)


def remarks(report: Report) -> Html:
    """What a reader must know before believing a number."""
    good = report.rows[report.rows["status"] == "ok"]
    runs = good.groupby(["data", "method"]).size()
    items: list[object] = []
    if report.unreadable:
        items.append(
            "rows.jsonl cannot be read to its end (a line was cut off while it was written): "
            f"lines not in this report: {report.unreadable}."
        )
    if runs.empty:
        items.append("No run succeeded: there is nothing to compare.")
    else:
        items.append(_about_seeds(report, runs))
    items.append(
        "± is the standard deviation over seeds. Intervals (95 %, Student) are over seeds too: "
        "they cover training and scoring, not another choice of cells, donors or data sets. Bold "
        "is the best mean of the unsupervised methods, whether or not it is clear of the next."
    )
    n_intervals = int(report.paired["low"].notna().sum())
    if n_intervals:
        items.append(
            f"{n_intervals:,} intervals of paired differences are not corrected for their number: "
            f"with no difference anywhere about {n_intervals / 20:,.0f} would be clear of zero. "
            "Scores of one embedding are correlated, so wins are no independent votes."
        )
    elif not runs.empty:
        items.append(_why_unpaired(report))
    if cut := [report.name(d) for d in report.data if report.is_subsampled(d)]:
        items.append(f"Subsampled, so not comparable with published numbers: {', '.join(cut)}.")
    items.append(
        "All scores are raw. Totals that were min-max scaled over the methods compared, as in "
        "many papers, are on another scale and change with the list of methods."
    )
    blocks = {report.blocks[m] for m in good["method"].unique()}
    if "supervised" in blocks:
        items.append("Supervised methods see the labels that they are judged by; read them apart.")
    if "control" in blocks:
        items.append(
            "Controls show what a score rewards. One that beats all methods tells of the score, "
            "not of the control."
        )
    items.append(_about_nats(report, good))
    return bullets(items)


def _about_seeds(report: Report, runs: pd.Series) -> str:
    low, high = int(runs.min()), int(runs.max())
    said = f"{low} to {high} runs" if low < high else f"{low} run{'s' * (low > 1)}"
    said = f"{said} (seeds) per method and data set."
    one = sorted({report.labels[m] for (_, m), n in runs.items() if n == 1})
    if one:
        said += f" One run, hence no interval of their own: {'; '.join(one)}."
    if 1 < high < 5:
        said += " Fewer than five seeds: intervals are wide and lean on normality."
    return said


def _why_unpaired(report: Report) -> str:
    good = report.rows[report.rows["status"] == "ok"]
    if not good["method"].eq(report.reference).any():
        return f"The reference {report.reference!r} has no run: there are no paired differences."
    return "No two seeds are common to the reference and another method: no interval of paired \
differences can be had."


def _about_nats(report: Report, good: pd.DataFrame) -> Html | str:
    start = "Bounds in nats compare only models of the same likelihood on the same data"
    if "likelihood" not in good:
        return start + "."
    groups = {}
    for value, group in good[good["likelihood"].fillna("") != ""].groupby("likelihood"):
        groups[value] = "; ".join(report.labels[m] for m in group["method"].unique())
    parts = [join([tag("b", f"{k}:"), f" {v}."]) for k, v in groups.items()]
    return join([f"{start}.", *parts], " ")


def data_table(report: Report) -> Html:
    """The data sets."""
    body = []
    for data in report.data:
        info = report.config.get("data", {}).get(data, {})
        rows = report.on(report.rows, data)
        sizes = [_whole(info.get(c, _only(rows, c))) for c in ("n_cells", "n_genes")]
        keys = [tag("td", info.get(k) or _DASH) for k in ("batch_key", "label_key")]
        source = info.get("citation") or info.get("path") or _DASH
        subsampled = "yes" if report.is_subsampled(data) else "no"
        body.append([report.name(data), *sizes, subsampled, *keys,
                     tag("td", source, class_="text")])  # fmt: skip
    head = ["data set", "cells", "genes", "subsampled", "batches", "types", "source"]
    return table(head, body, prose=True)


def score_table(report: Report, data: str, metrics: Sequence[str], caption: str = "") -> Html:
    """Means and standard deviations: methods x metrics, blocks apart, the best in bold."""
    means = report.on(report.means, data)
    grid = {(r.method, r.metric): r for r in means.itertuples()}
    best = {m: _best(report, means, m) for m in metrics}
    rows = report.on(report.rows, data)
    counts = rows[rows["status"] == "ok"]["method"].value_counts()

    def cells(method: str) -> Iterator[object]:
        yield int(counts.get(method, 0))
        for metric in metrics:
            found = grid.get((method, metric))
            if found is None:
                yield _DASH
                continue
            value = _number(found.mean, metric)
            sd = _number(found.sd, metric).removeprefix("0") if np.isfinite(found.sd) else ""
            bold = report.blocks[method] == "unsupervised" and value == best[metric]
            spread = tag("small", f" ±{sd}" if sd else "")
            yield tag("td", value, spread, class_="best" if bold else "")

    head = ["method", "runs", *_headings(report, metrics)]
    return _tables(report, head, rows["method"].unique(), cells, caption)


def all_metrics(report: Report, data: str) -> Html:
    """Scores and paired differences by every metric, a table a group, folded away."""
    measured = set(report.on(report.means, data)["metric"])
    groups: dict[str, list[str]] = {}
    for name, metric in report.metrics.items():
        if name in measured:
            groups.setdefault(metric.group, []).append(name)
    # As many columns as fit on a screen of 1,200 pixels.
    scores = [
        score_table(report, data, part, group)
        for group, names in groups.items()
        for part in _parts(names, 9)
    ]
    differences = [
        paired_table(report, data, part) for names in groups.values() for part in _parts(names, 7)
    ]
    return join([
        details("Scores by all metrics", *scores),
        details("Paired differences by all metrics", *differences),
    ])  # fmt: skip


def _parts(names: list[str], most: int) -> list[list[str]]:
    """The names in equal parts of ``most`` at most."""
    n_parts = -(-len(names) // most)
    return [list(part) for part in np.array_split(names, n_parts)]


def paired_table(report: Report, data: str, metrics: Sequence[str]) -> Html:
    """Paired differences: methods x metrics, positive where the reference is better."""
    chosen = report.on(report.paired if data != POOLED else report.pooled, data)
    grid = {(r.method, r.metric): r for r in chosen.itertuples()}
    metrics = [m for m in metrics if any(key[1] == m for key in grid)]
    if not metrics:
        return tag("p", _why_unpaired(report), class_="quiet")

    # The number that most cells have stands in the caption, others in their cells.
    usual = int(chosen.loc[chosen["n"] > 0, "n"].mode().max() if chosen["n"].any() else 0)

    def cells(method: str) -> Iterator[object]:
        for metric in metrics:
            found = grid.get((method, metric))
            yield _DASH if found is None else _difference(found, metric, usual)

    name = report.labels.get(report.reference, report.reference)
    unit = "data sets" if data == POOLED else "common seeds"
    caption = (
        f"{name} minus the method in each row: mean over {usual} {unit} (else n is given) with "
        f"its 95 % interval. ▲ {name} better, ▼ worse, where the interval is clear of zero."
    )
    head = ["method", *_headings(report, metrics)]
    return _tables(report, head, chosen["method"].unique(), cells, caption)


def _difference(found: Any, metric: str, usual: int) -> Html:
    if not np.isfinite(found.mean):
        return tag("td", tag("small", found.verdict))
    value = _number(found.mean, metric, sign=True)
    if not np.isfinite(found.low):
        return tag("td", value, tag("span", found.verdict, class_="range"))
    mark = {"better": " ▲", "worse": " ▼"}.get(found.verdict, "")
    ends = f"[{_number(found.low, metric)}, {_number(found.high, metric)}]"
    inner = tag("span", ends + f" n={found.n}" * (found.n != usual), class_="range")
    return tag("td", f"{value}{mark}", inner, class_=found.verdict if mark else "")


def wins_table(report: Report, metrics: Collection[str]) -> Html:
    """How often the reference is better or worse, by method."""
    counts = wins(report.paired, metrics)
    if counts.empty:
        return Html("")

    def cells(method: str) -> Iterator[object]:
        yield from (int(v) for v in counts.loc[method])

    name = report.labels.get(report.reference, report.reference)
    head = ["method", f"{name} better", "unclear", f"{name} worse", "one run, not counted"]
    caption = "Data sets x headline metrics, by intervals of paired differences clear of zero."
    return _tables(report, head, counts.index, cells, caption)


def cost_table(report: Report, data: str) -> Html:
    """Time, memory, size, and likelihoods in nats."""
    rows = report.on(report.rows, data)
    good = rows[rows["status"] == "ok"]
    columns = {
        "seconds": "time (s)", "cpu_seconds": "processor time (s)",
        "memory_mb": "memory added at the peak (MiB)",
        "n_dimensions": "dimensions", "epochs": "epochs",
        "max_epochs": "of at most",
        "validation_iwae": "IWAE (nats per cell)", "validation_elbo": "ELBO (nats per cell)",
        "log_z_se": "se of log Z (nats)",
    }  # fmt: skip
    columns = {c: t for c, t in columns.items() if c in good and good[c].notna().any()}

    def cells(method: str) -> Iterator[object]:
        mine = good[good["method"] == method]
        for column in columns:
            x = pd.to_numeric(mine[column], errors="coerce").dropna()
            if x.empty:
                yield _DASH
                continue
            said = partial(_number, metric=column) if "nats" in columns[column] else _plain
            sd = f" ±{said(x.std())}" if len(x) > 1 and x.std() > 0 else ""
            yield tag("td", said(x.mean()), tag("small", sd))
        value = _only(mine, "likelihood")
        yield tag("td", value or _DASH, class_="short")

    head = ["method", *columns.values(), "likelihood"]
    caption = "Mean ± sd over runs. Bounds are of held-out cells, higher is better; they compare "
    caption += "within a likelihood only. The error of log Z is common to all cells of a run."
    return _tables(report, head, good["method"].unique(), cells, caption)


def failure_table(report: Report) -> Html:
    """What failed, what was absent, and scores that could not be computed."""
    failures = report.failures
    if failures.empty:
        return tag("p", "Every run succeeded, with all its scores.")
    body = [
        [report.name(r.data), *(tag("td", v, class_="short") for v in
         (report.labels.get(r.method, r.method), r.seed, r.status)),
         tag("td", r.reason, class_="text")]
        for r in failures.itertuples()
    ]  # fmt: skip
    caption = "absent: a package is missing. partial: the run counts, some scores are missing."
    return table(["data set", "method", "seed", "status", "reason"], body, caption, prose=True)


def meaning(report: Report) -> Html:
    """What each metric and each method is."""
    measured = set(report.means["metric"])
    better = {True: "higher", False: "lower", None: "neither"}
    info, seen = report.config.get("methods", {}), set(report.rows["method"])

    def row(name: str, *short: str, last: str) -> list[object]:
        return [
            name,
            *(tag("td", s, class_="short") for s in short),
            tag("td", last, class_="text"),
        ]

    metrics = [
        row(m.label, name, m.group, better[m.higher_is_better], last=m.summary)
        for name, m in report.metrics.items()
        if name in measured
    ]
    methods = [
        row(report.labels[m], m, report.blocks[m], last=info.get(m, {}).get("summary", ""))
        for m in report.methods
        if m in seen
    ]
    head = ["metric", "column", "group", "better", "meaning"]
    first = join([tag("h3", "Metrics"), table(head, metrics, prose=True)])
    head = ["method", "name", "block", "what it is"]
    return join([first, tag("h3", "Methods"), table(head, methods, prose=True)])


def _tables(
    report: Report,
    head: Sequence[object],
    methods: Collection[str],
    cells: Any,
    caption: str = "",
    *,
    prose: bool = False,
) -> Html:
    """A table of the methods, and one of twins, variants and controls that is folded away."""
    shown = [m for m in report.methods if m in set(methods)]
    folded = [m for m in shown if report.blocks[m] in FOLDED and m != report.reference]
    if len(shown) - len(folded) < 3:  # the variants are what this benchmark is about
        folded = []
    first = [m for m in shown if m not in folded]
    parts = [table(head, _by_block(report, first, cells, len(head)), caption, prose=prose)]
    if folded:
        rest = table(head, _by_block(report, folded, cells, len(head)), caption, prose=prose)
        parts.append(details(f"Twins, variants and controls ({len(folded)})", rest))
    return join(parts)


def _by_block(report: Report, methods: Collection[str], cells: Any, width: int) -> Iterator[Html]:
    shown = [m for m in report.methods if m in set(methods)]
    blocks = [b for b in BLOCKS if any(report.blocks[m] == b for m in shown)]
    for block in blocks:
        if len(blocks) > 1:
            yield tag("tr", tag("th", BLOCKS[block], colspan=width, scope="rowgroup"),
                      class_="block")  # fmt: skip
        for method in shown:
            if report.blocks[method] == block:
                mark = "reference" if method == report.reference else ""
                yield line([report.labels[method], *cells(method)], mark)


def _headings(report: Report, metrics: Sequence[str]) -> list[Html]:
    return [
        tag("th", report.metrics[m].label, scope="col", title=report.metrics[m].summary)
        for m in metrics
    ]


def _best(report: Report, means: pd.DataFrame, metric: str) -> str | None:
    """The best unsupervised mean as it is printed: what looks equal is equally bold."""
    good = [report.blocks[m] == "unsupervised" for m in means["method"]]
    values = means[np.array(good, dtype=bool) & means["metric"].eq(metric).to_numpy()]["mean"]
    higher = report.metrics[metric].higher_is_better
    if values.empty or higher is None:
        return None
    return _number(values.max() if higher else values.min(), metric)


def _number(value: float, metric: str, *, sign: bool = False) -> str:
    digits = 1 if metric.startswith("validation_") else 3
    said = f"{value:{'+' if sign else ''}.{digits}f}"
    return said.replace("-", "−")


def _plain(value: float) -> str:
    said = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return said.replace("-", "−")


def _only(rows: pd.DataFrame, column: str) -> Any:
    """The column's values, joined where there are several."""
    if column not in rows:
        return None
    values = [v for v in rows[column].dropna().unique() if v != ""]
    return values[0] if len(values) == 1 else ", ".join(map(str, values)) or None


def _whole(value: Any) -> object:
    return f"{int(value):,}" if isinstance(value, int | float | np.number) else value or _DASH
