"""Put a benchmark's results into docs: rows as CSV, their tables, and the table of README.md.

    python benchmarks/benchmark_tables.py bench-methods-output docs/benchmark

Part of ``make bench-methods``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pandas as pd

from scvi_qbm.benchmark.config import Config
from scvi_qbm.benchmark.methods import METHODS
from scvi_qbm.benchmark.rows import Rows
from scvi_qbm.benchmark.statistics import means, paired, pool, tidy

METRICS = {
    "validation_elbo": "ELBO", "validation_iwae": "IW bound", "scib_bio": "bio",
    "scib_batch": "batch", "scib_total": "total", "nmi": "NMI", "ari": "ARI",
    "scgraph": "scGraph", "xgb_f1": "XGB F1", "knn_f1": "kNN F1", "lobo_f1": "unseen batch F1",
    "trajectory": "trajectory", "cpu_seconds": "CPU s",
}  # fmt: skip
# README.md: these, on the sets on which all of them were measured.
SHORT_METHODS = (
    "qbmvi",
    "bernoulli",
    "gaussian",
    "scvi_fast",
    "scvi",
    "scvi_wide",
    "ldvae",
    "autozi",
    "harmony",
)
SHORT_METRICS = ("scib_total", "scib_bio", "scgraph", "nmi", "xgb_f1", "lobo_f1")
# docs/evidence.md: QBMVI's default was chosen on these; the others had no part in it.
CHOSEN_ON = (
    "pbmc_10x_3techs",
    "pancreas_panc8_small",
    "pancreas_endocrinogenesis_e15",
    "pbmc_3k_4k_facs",
)
CONFIG = Path(__file__).parent / "shared.toml"
MARKS = "<!-- results -->", "<!-- end of results -->"
NATS = ("validation_elbo", "validation_iwae", "cpu_seconds")


def number(metric: str, row: pd.Series, sd: bool = True) -> str:
    digits = 1 if metric in NATS else 3
    text = f"{row['mean']:.{digits}f}"
    return text + (f" ({row['sd']:.{digits}f})" if sd and row["sd"] == row["sd"] else "")


def said(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def epochs(runs: pd.DataFrame) -> str:
    """Mean of the epochs, and the most there could be."""
    done = runs["epochs"].dropna()
    return f"{done.mean():.0f} of {runs['max_epochs'].max():.0f}" if len(done) else ""


def by_data(rows: pd.DataFrame, subsampled: set[str]) -> str:
    table = means(rows, METRICS)
    order = [m for m in METHODS if m in set(rows["method"])]
    out = []
    for data in rows["data"].unique():
        part = table[table["data"] == data]
        columns = [m for m in METRICS if m in set(part["metric"])]
        cells = rows[rows["data"] == data].iloc[0]
        lines = []
        for method in order:
            mine = part[part["method"] == method].set_index("metric")
            if len(mine):
                values = [number(m, mine.loc[m]) if m in mine.index else "" for m in columns]
                runs = rows[(rows["data"] == data) & (rows["method"] == method)]
                seeds = str(runs["seed"].nunique())
                lines.append([METHODS[method].label, seeds, *values, epochs(runs)])
        head = ["method", "seeds", *(METRICS[m] for m in columns), "epochs"]
        title = f"### {data}: {cells['n_cells']:.0f} cells, {cells['n_genes']:.0f} genes"
        title += ", subsampled" if data in subsampled else ""
        out.append(f"{title}\n\n{markdown(head, lines)}")
    return "\n\n".join(out)


def short(rows: pd.DataFrame) -> str:
    """Means over data sets of means over seeds, for README.md."""
    table = means(rows, SHORT_METRICS)
    table = table[table["method"].isin(SHORT_METHODS)]
    wide = table.pivot_table(index="data", columns=["metric", "method"], values="mean")
    # A score that a set cannot have, as one without batches, is missing for all.
    whole = {m: wide[m].reindex(columns=SHORT_METHODS).dropna() for m in SHORT_METRICS}
    lines = []
    for method in SHORT_METHODS:
        values = [f"{whole[m][method].mean():.3f}" for m in SHORT_METRICS]
        lines.append([METHODS[method].label, *values])
        apart = whole["scib_total"].drop(index=list(CHOSEN_ON), errors="ignore")
        lines[-1].insert(2, f"{apart[method].mean():.3f}")
    head = ["mean over", *(f"{METRICS[m]} ({len(whole[m])} sets)" for m in SHORT_METRICS)]
    head.insert(2, f"total ({len(apart)} sets not chosen on)")
    seeds = rows[rows["method"].isin(SHORT_METHODS)].groupby(["data", "method"])["seed"].nunique()
    said = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    return f"{markdown(head, lines)}\n\nMeans over data sets of means over {said} seeds."


def overall(rows: pd.DataFrame) -> str:
    """Mean over data sets of QBMVI minus method, interval over sets; nats with the median."""
    metrics = [m for m in METRICS if m != "cpu_seconds"]
    differences = paired(rows, dict.fromkeys(metrics, True))
    pooled = pool(differences)
    medians = differences.groupby(["method", "metric"])["mean"].median()
    lines = []
    for method in METHODS:
        mine = pooled[pooled["method"] == method].set_index("metric")
        if len(mine) and METHODS[method].block != "control":
            values = []
            for m in metrics:
                if m not in mine.index or mine.loc[m, "n"] < 2:
                    values.append("")
                    continue
                r = mine.loc[m]
                d = 1 if m in NATS else 3
                mark = "**" if r["verdict"] in ("better", "worse") else ""
                low, high = f"{r['low']:+.{d}f}", f"{r['high']:+.{d}f}"
                text = f"{mark}{r['mean']:+.{d}f}{mark} ({low}, {high})"
                # A set with few held-out cells can be most of a mean.
                text += f"; {medians[method, m]:+.1f}" if m in NATS else ""
                values.append(text)
            lines.append([METHODS[method].label, *values])
    return markdown(["QBMVI minus", *(METRICS[m] for m in metrics)], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("docs", type=Path)
    args = parser.parse_args()
    rows = tidy(Rows(args.directory, "rows").frame())
    args.docs.mkdir(parents=True, exist_ok=True)
    # Rows as they were measured: what `scvi-qbm benchmark run` goes on from.
    text = "".join(rows.apply(lambda r: r.dropna().to_json() + "\n", axis=1))
    (args.docs / "rows.jsonl").write_text(text)
    flat = rows.assign(versions=[said(v) for v in rows["versions"]])
    flat.round(5).to_csv(args.docs / "rows.csv", index=False)
    gone = sorted(set(rows["method"]) - set(METHODS))
    if gone:
        print(f"Rows kept, not in tables, of methods that are no more: {', '.join(gone)}")
    rows = rows[rows["method"].isin(METHODS)]
    good = rows[rows["status"] == "ok"]
    dates = sorted(good["date"].str[:10].unique())
    found: dict[str, list[str]] = {}
    for versions in good["versions"]:
        for name, version in ({"code": "not recorded"} | versions).items():
            if version not in found.setdefault(name, []):
                found[name].append(version)
    versions = said({name: " and ".join(v) for name, v in found.items()})
    config = json.loads((args.directory / "config.json").read_text())
    config["command"] = "make bench-methods"
    (args.docs / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    asked = set(Config.from_toml(CONFIG).tasks())
    there = set(good[["data", "method", "seed"]].itertuples(index=False, name=None))
    apart = good[~good["data"].isin(CHOSEN_ON)]
    subsampled = {name for name, data in config["data"].items() if data["subsampled"]}
    (args.docs / "results.md").write_text(
        "# Results\n\nMade by `make bench-methods` (`benchmarks/benchmark_tables.py`); how to "
        "read it: [the benchmark](../benchmark.md).\n\n"
        f"{len(asked & there)} of the {len(asked)} rows that `benchmarks/shared.toml` asks for, "
        f"{len(there - asked)} more; {dates[0]} to {dates[-1]}; {versions}. Rows: "
        "[rows.csv](rows.csv).\n\n"
        "## Over data sets that had no part in the choice\n\nQBMVI minus the method, paired by "
        "seed; mean over data sets, in brackets the 95 % interval over data sets, of nats the "
        "median after it; bold: clear of zero. Positive: QBMVI is better. None is corrected for "
        "their number: of a hundred intervals five miss by chance. First the sets that were not "
        f"looked at when QBMVI's default was chosen ({', '.join(apart['data'].unique())}).\n\n"
        f"{overall(apart)}\n\n## Over all data sets\n\nThose that it was chosen on included."
        f"\n\n{overall(good)}\n\n## By data set\n\nMean over seeds (sd). ELBO and "
        "importance-weighted bound in nats per held-out cell, comparable among models of one "
        f"likelihood. CPU time of fitting alone.\n\n{by_data(good, subsampled)}\n"
    )
    if (args.directory / "report.html").exists():
        shutil.copy(args.directory / "report.html", args.docs)
    readme = args.docs.parents[1] / "README.md"
    if args.docs.parent.name == "docs" and readme.exists():
        text = readme.read_text()
        before, after = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
        readme.write_text(f"{text[:before]}\n{short(good)}\n{text[after:]}")


if __name__ == "__main__":
    main()
