"""Means over seeds and paired differences between methods, on raw scores."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t as student

#: What stands for the data set in rows that are means over data sets.
POOLED = "(all data sets)"
#: Methods to which another seed gives the same embedding, so that one row of theirs is
#: compared with all of others.
DETERMINISTIC = frozenset({"pca"})
# Nats are comparable where this column is equal, and nowhere else.
COMPARABLE = {"validation_elbo": "likelihood", "validation_iwae": "likelihood"}

_MEANS = ["data", "method", "metric", "n", "mean", "sd", "low", "high"]
_PAIRED = [
    "data", "metric", "reference", "method", "pairing", "n", "mean", "sd", "low", "high",
    "verdict",
]  # fmt: skip
# Below this a difference is rounding, not a result.
_ROUNDING = 1e-9


def t_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean and Student's interval of independent values."""
    x = np.asarray(values, dtype=float)
    x = x[np.isfinite(x)]
    if len(x) == 0:
        return (float("nan"),) * 3
    mean = float(x.mean())
    if len(x) == 1:
        return mean, float("nan"), float("nan")
    quantile = student.ppf(0.975, len(x) - 1)
    half = float(quantile * x.std(ddof=1) / np.sqrt(len(x)))
    return mean, mean - half, mean + half


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a run: a run that succeeded stands for its failed attempts, the last for earlier."""
    key = ["data", "method", "seed"]
    if missing := [c for c in (*key, "status") if c not in rows]:
        raise ValueError(f"Benchmark rows lack {', '.join(missing)}.")
    rows = rows.reset_index(drop=True)
    order = (rows["status"] == "ok").sort_values(kind="stable").index
    return rows.loc[order].drop_duplicates(key, keep="last").sort_index()


def means(rows: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Mean, sd and 95 % interval over seeds by data set, method and metric."""
    metrics = list(metrics)
    good = _numeric(rows, metrics)
    out = []
    for (data, method), group in good.groupby(["data", "method"], sort=False):
        for metric in metrics:
            x = _finite(group, metric)
            if len(x):
                mean, low, high = t_interval(x)
                sd = float(x.std(ddof=1)) if len(x) > 1 else float("nan")
                out.append((data, method, metric, len(x), mean, sd, low, high))
    return pd.DataFrame(out, columns=_MEANS)


def paired(
    rows: pd.DataFrame,
    metrics: Mapping[str, bool | None],
    reference: str = "qbmvi",
) -> pd.DataFrame:
    """Differences between a reference method and each other one over their common seeds.

    A seed fixes the held-out cells and the folds, so a difference within a seed has less noise
    than that of two means. Positive: the reference is better. ``metrics`` says whether higher is
    better; None where neither is, which is not compared.

    ``pairing`` is ``"seeds"`` or ``"fixed"`` (one side is deterministic), ``n`` the number of
    pairs; ``verdict`` is ``"better"`` or ``"worse"`` (the 95 % interval is clear of zero),
    ``"unclear"``, ``"one run"``, ``"no common seed"`` or ``"not comparable"``.
    """
    good = _numeric(rows, metrics)
    out = []
    for data, group in good.groupby("data", sort=False):
        ours = group[group["method"] == reference].set_index("seed")
        for method in group["method"].unique():
            theirs = group[group["method"] == method].set_index("seed")
            if method == reference or ours.empty:
                continue
            for metric, higher in metrics.items():
                a, b = _finite(ours, metric), _finite(theirs, metric)
                if higher is None or a.empty or b.empty:
                    continue
                row = {"data": data, "metric": metric, "reference": reference, "method": method}
                column = COMPARABLE.get(metric)
                if column is not None and not _agree(ours, theirs, column):
                    out.append(row | _summary(pd.Series(dtype=float)) | {
                        "pairing": "seeds", "verdict": "not comparable"})  # fmt: skip
                    continue
                a, b, pairing = _pair(a, b, reference, method)
                difference = (a - b).dropna() if higher else (b - a).dropna()
                out.append(row | _summary(difference) | {"pairing": pairing})
    return pd.DataFrame(out, columns=_PAIRED)


def pool(differences: pd.DataFrame) -> pd.DataFrame:
    """Mean over data sets of each set's mean difference, with an interval over sets."""
    used = differences[(differences["data"] != POOLED) & (differences["n"] > 0)]
    out = []
    keys = ["metric", "reference", "method"]
    for values, group in used.groupby(keys, sort=False):
        summary = _summary(group["mean"])
        if len(group) == 1:
            summary["verdict"] = "one set"
        row = dict(zip(keys, values, strict=True))
        out.append({"data": POOLED, "pairing": "sets"} | row | summary)
    return pd.DataFrame(out, columns=_PAIRED)


def wins(differences: pd.DataFrame, metrics: Collection[str] | None = None) -> pd.DataFrame:
    """How often the reference is better or worse than each method, by intervals clear of zero."""
    used = differences[differences["data"] != POOLED]
    if metrics is not None:
        used = used[used["metric"].isin(list(metrics))]
    columns = ["better", "unclear", "worse", "one run"]
    counts = pd.crosstab(used["method"], used["verdict"]).reindex(columns=columns, fill_value=0)
    order = used["method"].unique()
    return counts.reindex(order).rename(columns={"one run": "one_run"}).rename_axis(columns=None)


def _numeric(rows: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Rows that succeeded, with NaN where a metric is not a finite number."""
    good = rows[rows["status"] == "ok"].copy()
    for column in set(metrics) & set(good):
        values = pd.to_numeric(good[column], errors="coerce").astype(float)
        good[column] = values.where(np.isfinite(values))
    return good


def _finite(frame: pd.DataFrame, column: str) -> pd.Series:
    return frame[column].dropna() if column in frame else pd.Series(dtype=float)


def _agree(ours: pd.DataFrame, theirs: pd.DataFrame, column: str) -> bool:
    if column not in ours:
        return False
    values = pd.concat([ours[column], theirs[column]])
    return bool(values.notna().all() and values.ne("").all() and values.nunique() == 1)


def _pair(
    a: pd.Series, b: pd.Series, reference: str, method: str
) -> tuple[pd.Series, pd.Series, str]:
    """Both sides on the same seeds."""
    if method in DETERMINISTIC and len(b) == 1:
        return a, pd.Series(b.iloc[0], index=a.index), "fixed"
    if reference in DETERMINISTIC and len(a) == 1:
        return pd.Series(a.iloc[0], index=b.index), b, "fixed"
    return a, b, "seeds"


def _summary(values: pd.Series) -> dict[str, Any]:
    mean, low, high = t_interval(values)
    n = len(values)
    if n < 2:
        verdict = "one run" if n else "no common seed"
    else:
        verdict = "better" if low > _ROUNDING else "worse" if high < -_ROUNDING else "unclear"
    sd = float(values.std(ddof=1)) if n > 1 else float("nan")
    return {"n": n, "mean": mean, "sd": sd, "low": low, "high": high, "verdict": verdict}
