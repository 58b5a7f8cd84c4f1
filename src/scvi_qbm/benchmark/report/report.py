"""From a directory of benchmark rows to CSV tables and one HTML page."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from scvi_qbm._files import replacing
from scvi_qbm.benchmark.report.html import Html, bullets, join, page, tag
from scvi_qbm.benchmark.rows import Rows
from scvi_qbm.benchmark.statistics import POOLED, means, paired, pool, tidy

__all__ = ["HEADLINE", "Report", "read_report", "write_report"]

#: Metrics that the report draws and shows first, where they were measured.
HEADLINE = (
    "scib_total", "scib_bio", "scib_batch", "nmi", "ari", "ilisi", "graph_connectivity", "pcr",
    "scgraph", "xgb_f1", "lobo_f1", "trajectory",
)  # fmt: skip
_SUPERVISED, _CONTROLS = {"scanvi", "scpoli"}, {"shuffled", "labels"}


class _Bound(NamedTuple):
    """As :class:`~scvi_qbm.benchmark.scores.Metric`."""

    name: str
    label: str
    group: str
    higher_is_better: bool
    summary: str


_BOUNDS = (
    _Bound("validation_iwae", "IWAE (nats per cell)", "likelihood", True,
           "Importance-weighted bound on the likelihood of held-out cells; the tighter bound."),
    _Bound("validation_elbo", "ELBO (nats per cell)", "likelihood", True,
           "Evidence lower bound of held-out cells; looser for posteriors that fit badly."),
)  # fmt: skip


@dataclass
class Report:
    """Everything the page shows, made by :func:`read_report`.

    Parameters
    ----------
    directory
        Of the benchmark.
    config
        ``config.json``, or empty.
    rows
        One row a run (:func:`~scvi_qbm.benchmark.statistics.tidy`).
    curves
        Scores by epoch, or empty.
    metrics
        Column -> metric, in the order of the tables.
    reference
        Method with which the others are compared.
    unreadable
        Lines of ``rows.jsonl`` that could not be read.
    """

    directory: Path
    config: dict[str, Any]
    rows: pd.DataFrame
    curves: pd.DataFrame
    metrics: dict[str, Any]
    reference: str
    unreadable: int = 0
    means: pd.DataFrame = field(init=False)
    paired: pd.DataFrame = field(init=False)
    pooled: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        directions = {name: m.higher_is_better for name, m in self.metrics.items()}
        self.means = means(self.rows, self.metrics)
        self.paired = paired(self.rows, directions, self.reference)
        self.pooled = pool(self.paired)
        info = self.config.get("methods", {})
        seen = list(self.rows["method"].unique())
        # Methods in the order of the configuration, then what it does not know.
        self.methods = [m for m in info if m in seen] + [m for m in seen if m not in info]
        self.labels = {m: str(info.get(m, {}).get("label", m)) for m in self.methods}
        self.blocks = {m: info.get(m, {}).get("block") or _block(m) for m in self.methods}
        order = list(self.config.get("data", {}))
        here = list(self.rows["data"].unique())
        self.data = [d for d in order if d in here] + [d for d in here if d not in order]

    @staticmethod
    def on(frame: pd.DataFrame, data: str) -> pd.DataFrame:
        """The rows of one data set.

        Parameters
        ----------
        frame
            Rows with a column ``data``.
        data
            Name of the data set.

        Returns
        -------
        pandas.DataFrame
            All rows of a frame without that column.
        """
        return frame[frame["data"] == data] if "data" in frame else frame

    def name(self, data: str) -> str:
        """Title of a data set.

        Parameters
        ----------
        data
            Its name in the rows.

        Returns
        -------
        str
            The configuration's title, or the name itself.
        """
        return str(self.config.get("data", {}).get(data, {}).get("title") or data)

    def is_subsampled(self, data: str) -> bool:
        """Whether some of a data set's cells were left out, as far as the configuration says.

        Parameters
        ----------
        data
            Name of the data set.

        Returns
        -------
        bool
            False where nothing is known.
        """
        info = self.config.get("data", {}).get(data, {})
        return bool(info.get("subsampled", info.get("max_cells") is not None))

    def headline(self, data: str | None = None) -> list[str]:
        """The headline metrics that were measured.

        Parameters
        ----------
        data
            Name of the data set; any if None.

        Returns
        -------
        list[str]
            In the order of ``HEADLINE``.
        """
        found = self.means if data is None else self.on(self.means, data)
        measured = set(found["metric"])
        return [m for m in HEADLINE if m in self.metrics and m in measured]

    def titles(self, columns: Iterable[str]) -> dict[str, str]:
        """Labels of columns.

        Parameters
        ----------
        columns
            Names of metrics; unknown ones are passed over.

        Returns
        -------
        dict[str, str]
            Column -> label.
        """
        return {c: self.metrics[c].label for c in columns if c in self.metrics}

    @property
    def failures(self) -> pd.DataFrame:
        """Runs that failed or were absent, and (``partial``) runs of which some scores failed."""
        columns = ["data", "method", "seed", "status", "reason"]
        bad = self.rows[self.rows["status"] != "ok"].reindex(columns=columns)
        if "errors" in self.rows:
            some = self.rows[self.rows["status"].eq("ok") & self.rows["errors"].fillna("").ne("")]
            some = some.assign(status="partial", reason=some["errors"])
            bad = pd.concat([bad, some.reindex(columns=columns)])
        return bad.fillna({"reason": "no reason given"})


def read_report(directory: Path | str, *, reference: str = "qbmvi") -> Report:
    """Read the rows of a benchmark and compute its statistics.

    Parameters
    ----------
    directory
        With ``rows.jsonl`` and, if there, ``config.json`` and ``curves.jsonl``.
    reference
        Method to compare the others with; a warning if it has no run.

    Returns
    -------
    Report
        Rows, means, paired differences and what is pooled over data sets.

    Raises
    ------
    FileNotFoundError
        If there are no rows.
    ValueError
        If rows lack their key, or ``config.json`` is no JSON object.
    """
    directory = Path(directory)
    path = directory / "rows.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no benchmark: there is no rows.jsonl.")
    found = Rows(directory, "rows")
    if not found.rows:
        raise FileNotFoundError(f"{path} holds no rows: run the benchmark first.")
    lines = sum(bool(text.strip()) for text in path.read_text().splitlines())
    rows = tidy(found.frame())
    if not (rows["method"].eq(reference) & rows["status"].eq("ok")).any():
        known = ", ".join(rows.loc[rows["status"] == "ok", "method"].unique()) or "none"
        warnings.warn(
            f"The reference {reference!r} has no run, so nothing is paired. Choose another with "
            f"`reference` (--reference). Runs: {known}.",
            UserWarning,
            stacklevel=2,
        )
    curves = pd.DataFrame()
    if (directory / "curves.jsonl").is_file():
        curves = Rows(directory, "curves").frame()
    metrics = {metric.name: metric for metric in (*_metrics(), *_BOUNDS)}
    config = _config(directory / "config.json")
    return Report(directory, config, rows, curves, metrics, reference, lines - len(found.rows))


def write_report(
    directory: Path | str, *, reference: str = "qbmvi", title: str | None = None
) -> Path:
    """Write tables and a page that needs no other file and no network.

    ``rows.csv`` (every run), ``means.csv`` (mean, sd and interval over seeds), ``paired.csv``
    (differences from the reference, by data set and pooled), ``failures.csv``, ``report.html``.

    Parameters
    ----------
    directory
        Of the benchmark.
    reference
        Method to compare the others with.
    title
        Of the page.

    Returns
    -------
    pathlib.Path
        Path of the page.

    Raises
    ------
    FileNotFoundError
        If there are no rows.
    ValueError
        If rows lack their key, or ``config.json`` is no JSON object.
    """
    report = read_report(directory, reference=reference)
    flat = report.rows.copy()
    for column in flat:
        if flat[column].map(lambda v: isinstance(v, dict | list)).any():
            flat[column] = flat[column].map(json.dumps)
    tables = {
        "rows": flat,
        "means": report.means,
        "paired": pd.concat([f for f in (report.paired, report.pooled) if len(f)] or
                            [report.paired]),
        "failures": report.failures,
    }  # fmt: skip
    for name, frame in tables.items():
        frame.to_csv(report.directory / f"{name}.csv", index=False)
    path = report.directory / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(_page(report, title or "Comparison of embeddings"), encoding="utf-8")
    return path


def _page(report: Report, title: str) -> str:
    from scvi_qbm.benchmark.report import sections
    from scvi_qbm.benchmark.report.pictures import cell_pictures, cost_picture, score_pictures

    every = report.headline()
    bounds = [b.name for b in _BOUNDS]
    parts: list[tuple[str, str, Html]] = [
        ("notes", "Before you read on", sections.remarks(report)),
        ("data", "Data sets", sections.data_table(report)),
    ]
    if len(report.data) > 1:
        content = [
            sections.paired_table(report, POOLED, every),
            sections.wins_table(report, every),
        ]
        parts.append(("pooled", "All data sets", join(content)))
    for i, data in enumerate(report.data):
        headline = report.headline(data)
        content = [
            sections.score_table(
                report, data, headline, "Mean ± sd over seeds, higher is better."
            ),
            *score_pictures(report, data),
            tag("h3", "Paired differences"),
            sections.paired_table(report, data, [*headline, *bounds]),
            sections.all_metrics(report, data),
            *cell_pictures(report, data),
        ]
        parts.append((f"data-{i}", report.name(data), join(content)))
    costs = [
        join([tag("h3", report.name(d)), sections.cost_table(report, d), *cost_picture(report, d)])
        for d in report.data
    ]
    parts += [
        ("cost", "Time, memory and likelihood", join(costs)),
        ("failures", "Failures", sections.failure_table(report)),
        ("meaning", "What the numbers mean", sections.meaning(report)),
    ]
    return page(title, parts, _head(report))


def _head(report: Report) -> Html:
    counts = report.rows["status"].value_counts()
    said = ", ".join(f"{n} {status}" for status, n in counts.items())
    dates = sorted({str(d) for d in report.rows.get("date", pd.Series(dtype=str)).dropna()})
    when = report.config.get("date") or "unknown"
    if dates:
        first, last = dates[0][:10], dates[-1][:10]
        when = first if first == last else f"{first} to {last}"
    budget = ""
    if "max_epochs" in report.config:
        given = report.config["max_epochs"]
        limit = f"at most {given}" if given else "each method's own"
        budget = f"Budget: {limit} epochs."
    facts = [
        f"{len(report.data)} data sets, {len(report.methods)} methods; runs: {said}.",
        f"Measured {when}; page made {datetime.now():%Y-%m-%d %H:%M}.",
        budget,
        "Versions: " + (_versions(report) or "not recorded") + ".",
    ]
    command = report.config.get("command")
    return join([bullets(f for f in facts if f), tag("pre", command) if command else ""])


def _versions(report: Report) -> str:
    """Every version of every package that a row was measured with."""
    found: dict[str, list[str]] = {}
    if report.config.get("version"):
        found["scvi-qbm"] = [str(report.config["version"])]
    for versions in report.rows.get("versions", pd.Series(dtype=object)):
        for name, version in versions.items() if isinstance(versions, dict) else ():
            known = found.setdefault(name, [])
            if str(version) not in known:
                known.append(str(version))
    return ", ".join(f"{name} {' and '.join(v)}" for name, v in found.items())


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object, not a {type(config).__name__}.")
    return config


def _block(method: str) -> str:
    if method in _SUPERVISED:
        return "supervised"
    return "control" if method in _CONTROLS else "unsupervised"


def _metrics() -> tuple[Any, ...]:
    from scvi_qbm.benchmark.columns import METRICS

    return METRICS
