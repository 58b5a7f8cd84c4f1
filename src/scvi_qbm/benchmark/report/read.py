"""The rows of a benchmark, read, and their statistics."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from scvi_qbm._files import read_json
from scvi_qbm.benchmark.metrics.groups import Metric
from scvi_qbm.benchmark.rows import Rows
from scvi_qbm.benchmark.scores import METRICS
from scvi_qbm.benchmark.statistics import means, paired, pool, tidy

#: Metrics that the report draws and shows first, where they were measured.
HEADLINE = (
    "scib_total", "scib_bio", "scib_batch", "nmi", "ari", "ilisi", "graph_connectivity", "pcr",
    "scgraph", "xgb_f1", "lobo_f1", "trajectory",
)  # fmt: skip
#: Those of the first table.
SUMMARY = (
    "scib_total", "scib_bio", "scib_batch", "nmi", "scgraph", "knn_f1", "lobo_f1", "trajectory",
)  # fmt: skip
#: Blocks of methods that explain and do not compete.
FOLDED = ("variant", "control")
_SUPERVISED, _CONTROLS = {"scanvi", "scpoli"}, {"shuffled", "labels"}
#: Bounds on the likelihood, which the report shows beside the scores.
BOUNDS = (
    Metric(
        "validation_iwae", "IWAE (nats per cell)", "likelihood",
        "Importance-weighted log-likelihood of held-out cells; tighter than the ELBO.",
    ),
    Metric(
        "validation_elbo", "ELBO (nats per cell)", "likelihood",
        "Evidence lower bound of held-out cells; looser for posteriors that fit badly.",
    ),
)  # fmt: skip


@dataclass
class Report:
    """Everything the page shows, made by :func:`read_report`.

    ``rows`` has one row a run (:func:`~scvi_qbm.benchmark.statistics.tidy`), ``curves`` scores by
    epoch or nothing, ``metrics`` the columns in the order of tables, ``unreadable`` the number of
    lines of ``rows.jsonl`` that could not be read.
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

    @property
    def overall(self) -> pd.DataFrame:
        """Differences from the reference over data sets; over seeds where there is one set."""
        return self.paired if len(self.data) == 1 else self.pooled

    @staticmethod
    def on(frame: pd.DataFrame, data: str) -> pd.DataFrame:
        """The rows of one data set."""
        return frame[frame["data"] == data] if "data" in frame else frame

    def name(self, data: str) -> str:
        """Title of a data set."""
        return str(self.config.get("data", {}).get(data, {}).get("title") or data)

    def is_subsampled(self, data: str) -> bool:
        """Whether some of a data set's cells were left out, as far as the configuration says."""
        info = self.config.get("data", {}).get(data, {})
        return bool(info.get("subsampled", info.get("max_cells") is not None))

    def headline(self, data: str | None = None, columns: Iterable[str] = HEADLINE) -> list[str]:
        """Those of the columns that were measured."""
        found = self.means if data is None else self.on(self.means, data)
        measured = set(found["metric"])
        return [m for m in columns if m in self.metrics and m in measured]

    def titles(self, columns: Iterable[str]) -> dict[str, str]:
        """Labels of columns."""
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
    metrics = {metric.name: metric for metric in (*METRICS, *BOUNDS)}
    config = _config(directory / "config.json")
    return Report(directory, config, rows, curves, metrics, reference, lines - len(found.rows))


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    config = read_json(path, "Put a copy of it back, or remove it.")
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object, not a {type(config).__name__}.")
    return config


def _block(method: str) -> str:
    if method in _SUPERVISED:
        return "supervised"
    return "control" if method in _CONTROLS else "unsupervised"
