"""The tables of label transfer in docs/labels.md and logbook/labels.md.

    python benchmarks/label_tables.py labels-output

Part of ``make bench-labels``. The rows are kept in docs/rows/labels. To resume from them, copy
that folder to the output folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from result_tables import NAMES, ROOT, into, markdown

from scvi_qbm.benchmark.rows import Rows

SCHEMES = {
    "10 %": "10 % labelled", "50 a type": "50 a type", "10 a type": "10 a type",
    "one batch": "one batch",
}  # fmt: skip
METHODS = {
    "QBMANVI": "QBMANVI", "scANVI": "scANVI",
    "regression, QBMVI": "regression on QBMVI's embedding",
    "regression, scVI": "regression on scVI's embedding",
}  # fmt: skip
SCORES = {"accuracy": "accuracy", "f1": "macro F1", "ece": "ECE"}


def short(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}".replace("0.", ".")


def by_set(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of the sets on which every method of ``METHODS`` was run."""
    rows = rows[rows["method"].isin(METHODS)]
    means = rows.groupby(["data", "scheme", "method"])[[*SCORES]].mean()
    complete = means.groupby(["data", "scheme"]).size() == len(METHODS)
    return means[complete.reindex(means.index.droplevel("method")).to_numpy()]


def transfer(table: pd.DataFrame) -> str:
    """Means over sets: accuracy, macro F1 and calibration error; the best is bold."""
    means = table.groupby(["scheme", "method"]).mean()
    lines = []
    for method, name in METHODS.items():
        line = [name]
        for scheme in (s for s in SCHEMES if s in means.index):
            here = means.loc[scheme]
            best = here.agg({"accuracy": "max", "f1": "max", "ece": "min"})
            cells = {s: short(here.loc[method, s]) for s in SCORES}
            bold = {s: f"**{c}**" if c == short(best[s]) else c for s, c in cells.items()}
            line.append(", ".join(bold.values()))
        lines.append(line)
    return markdown(["method", *(SCHEMES[s] for s in SCHEMES if s in means.index)], lines)


def gaps(table: pd.DataFrame) -> pd.DataFrame:
    """QBMANVI minus scANVI, by data set and scheme."""
    wide = table.unstack("method")
    return pd.DataFrame({s: wide[s]["QBMANVI"] - wide[s]["scANVI"] for s in SCORES})


def paired(table: pd.DataFrame) -> str:
    """QBMANVI minus scANVI: mean over sets, its bootstrap interval over sets, who is ahead."""
    lines, gap_of = [], gaps(table)
    for scheme in SCHEMES:
        part, line = gap_of.query("scheme == @scheme"), [SCHEMES[scheme]]
        for score in SCORES if len(part) else ():
            gap = part[score].to_numpy()
            drawn = np.random.default_rng(0).choice(gap, (10_000, len(gap))).mean(axis=1)
            low, high = np.quantile(drawn, [0.025, 0.975])
            ahead = ((gap < 0) if score == "ece" else (gap > 0)).sum()
            interval = f"{short(low, '+')} to {short(high, '+')}"
            line.append(f"{short(gap.mean(), '+')} ({interval}); {ahead} of {len(gap)}")
        lines += [line] if line[1:] else []
    return markdown(["QBMANVI minus scANVI", *SCORES.values()], lines)


def each(rows: pd.DataFrame, table: pd.DataFrame) -> str:
    """Macro F1 and calibration error of QBMANVI and scANVI on every set."""
    lines = []
    for data in (d for d in NAMES if d in table.index.get_level_values("data")):
        seeds = rows.loc[rows["data"] == data, "seed"].nunique()
        line = [NAMES[data], str(seeds)]
        for scheme in SCHEMES:
            if (data, scheme, "scANVI") not in table.index:
                line.append("")
                continue
            pair = [table.loc[(data, scheme, m)] for m in ("QBMANVI", "scANVI")]
            line.append(" / ".join(f"{short(p['f1'])}, {short(p['ece'])}" for p in pair))
        lines.append(line)
    return markdown(["data set", "seeds", *SCHEMES.values()], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    rows = Rows(parser.parse_args().out, "transfer")
    kept = ROOT / "docs" / "rows" / "labels" / "transfer.jsonl"
    if rows.path.resolve() != kept:
        kept.write_text(rows.path.read_text())
    table = by_set(rows.frame())
    page, logbook = ROOT / "docs" / "labels.md", ROOT / "logbook" / "labels.md"
    into(page, "transfer", transfer(table))
    into(page, "transfer, paired", paired(table))
    into(logbook, "transfer by set", each(rows.frame(), table))


if __name__ == "__main__":
    main()
