"""The tables and the page of a benchmark."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pandas as pd

from scvi_qbm._files import replacing
from scvi_qbm.benchmark.report import sections
from scvi_qbm.benchmark.report.html import Html, bullets, join, page, tag
from scvi_qbm.benchmark.report.pictures import (
    cell_pictures,
    cost_picture,
    score_pictures,
    summary_picture,
)
from scvi_qbm.benchmark.report.read import SUMMARY, Report, read_report
from scvi_qbm.benchmark.statistics import POOLED


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
    parts: list[tuple[str, str, Html]] = [
        ("summary", "In short", join([*summary_picture(report), sections.summary(report)])),
        ("notes", "Before you read on", sections.remarks(report)),
    ]
    if len(report.data) > 1:
        content = [
            sections.paired_table(report, POOLED, report.headline(columns=SUMMARY)),
            sections.wins_table(report, report.headline()),
        ]
        parts.append(("pooled", "All data sets", join(content)))
    for i, data in enumerate(report.data):
        content = [
            *score_pictures(report, data),
            tag("h3", "Scores"),
            sections.score_table(
                report,
                data,
                report.headline(data, SUMMARY),
                "Mean ± sd over seeds, higher is better.",
            ),
            tag("h3", "Paired differences"),
            sections.paired_table(report, data, report.headline(data, SUMMARY)),
            sections.all_metrics(report, data),
            *cell_pictures(report, data),
        ]
        parts.append((f"data-{i}", report.name(data), join(content)))
    costs = [
        join([tag("h3", report.name(d)), *cost_picture(report, d), sections.cost_table(report, d)])
        for d in report.data
    ]
    parts += [
        ("cost", "Time, memory and likelihood", join(costs)),
        ("failures", "Failures", sections.failure_table(report)),
        ("meaning", "What the numbers mean", sections.meaning(report)),
        ("data", "Data sets", sections.data_table(report)),
        ("made", "How it was made", _made(report)),
    ]
    return page(title, parts, tag("p", _size(report), class_="quiet"))


def _size(report: Report) -> str:
    counts = report.rows["status"].value_counts()
    said = ", ".join(f"{n} {status}" for status, n in counts.items())
    return f"{len(report.data)} data sets, {len(report.methods)} methods; runs: {said}."


def _made(report: Report) -> Html:
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
