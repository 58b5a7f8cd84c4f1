"""The tables of README.md, docs/results.md and logbook/results.md, and scores by number of cells.

    python benchmarks/result_tables.py bench-priors-output bench-cells-output

Part of ``make bench-priors``. The rows are kept in docs/rows (priors, cells). To resume from
them, copy such a folder to the output folder.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from scvi_qbm.benchmark.methods import METHODS
from scvi_qbm.benchmark.rows import Rows
from scvi_qbm.benchmark.statistics import means, tidy
from scvi_qbm.pl.style import PALETTE

ROOT = Path(__file__).parents[1]
NAMES = {
    "pbmc_10x_3techs": "10x", "pancreas_panc8_small": "panc8",
    "cellmix_lines_6batches_2kgenes": "cellmix", "paul15_myeloid": "paul15",
    "pancreas_endocrinogenesis_e15": "e15", "pbmc_3k_4k_facs": "facs",
    "pbmc_kang_ctrl_8donors": "kang", "pbmc_4studies_11batches": "4 studies",
    "simulated_100k": "simulated",
}  # fmt: skip
_ALIGNED = {
    "qbmvi": "QBMVI", "bernoulli": "QBMVI, W = 0", "gaussian_aligned": "Gaussian VAE, aligned",
    "gaussian_mixture_aligned": "Gaussian VAE, mixture prior, aligned",
    "scvi_aligned": "scVI, aligned",
}  # fmt: skip
_NOT_ALIGNED = {
    "qbmvi_probabilities": "QBMVI, not aligned", "gaussian": "Gaussian VAE",
    "gaussian_mixture": "Gaussian VAE, mixture prior",
    "gaussian_vamp": "Gaussian VAE, VampPrior", "scvi": "scVI",
}  # fmt: skip
LABELS = _ALIGNED | _NOT_ALIGNED
METRICS = {
    "scib_total": "scIB total", "scib_bio": "bio", "scib_batch": "batch", "nmi": "NMI",
    "scgraph": "scGraph", "knn_f1": "kNN F1", "lobo_f1": "unseen batch F1",
    "disentanglement": "disentanglement", "validation_elbo": "held-out ELBO",
    "validation_iwae": "IW log-likelihood", "cpu_seconds": "CPU s",
}  # fmt: skip
SHORT = ("scib_total", "scib_bio", "scib_batch", "nmi", "scgraph", "knn_f1", "lobo_f1")
SHORT_METHODS = (
    "qbmvi", "scvi_aligned", "gaussian_mixture_aligned", "qbmvi_probabilities", "scvi",
    "gaussian", "gaussian_mixture",
)  # fmt: skip
PAIRED = ("validation_elbo", "validation_iwae", "scib_total", "scib_bio", "scgraph", "lobo_f1")
_NATS = ("validation_elbo", "validation_iwae")
_MANY = 8000  # cells, from which on a data set is large
_LARGEST, _SIMULATED = "pbmc_4studies_11batches", "simulated_100k"


def markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def number(metric: str, value: float) -> str:
    if pd.isna(value):
        return ""
    if metric in _NATS:
        return f"{value:.1f}"
    return f"{value:,.0f}" if metric == "cpu_seconds" else f"{value:.3f}"


def one_set(rows: pd.DataFrame, metrics: Iterable[str] = tuple(METRICS)) -> str:
    """Means on one data set, over the seeds of each method."""
    wide = means(rows, METRICS).pivot(index="method", columns="metric", values="mean")
    columns = [m for m in metrics if m in wide and wide[m].notna().any()]
    seeds = rows.groupby("method")["seed"].agg(lambda s: ", ".join(map(str, sorted(s))))
    lines = [
        [LABELS[m], seeds[m], *(number(c, wide.loc[m, c]) for c in columns)]
        for m in LABELS
        if m in wide.index
    ]
    return markdown(["", "seeds", *(METRICS[c] for c in columns)], lines)


def by_set(rows: pd.DataFrame) -> str:
    """A table a data set."""
    out = []
    for data in (d for d in NAMES if d in set(rows["data"])):
        here = rows[rows["data"] == data]
        out.append(f"**{NAMES[data]}**: {here['n_cells'].iloc[0]:,.0f} cells\n\n{one_set(here)}")
    return "\n\n".join(out)


def over_sets(rows: pd.DataFrame, methods: tuple[str, ...]) -> str:
    """Means over seeds, then data sets, of those on which all of the methods were run."""
    there = [m for m in methods if m in set(rows["method"])]
    wide = rows.pivot(index=["data", "seed"], columns="method", values=[*SHORT])
    wide = wide.loc[:, wide.columns.get_level_values("method").isin(there)].dropna()
    by_data = wide.groupby("data").mean()
    lines = [[LABELS[m], *(number(c, by_data[c, m].mean()) for c in SHORT)] for m in there]
    return markdown([f"mean over {len(by_data)} data sets", *(METRICS[c] for c in SHORT)], lines)


def paired(rows: pd.DataFrame, methods: dict[str, str]) -> str:
    """The first method minus each other, on equal data set and seed: median, and who is ahead."""
    lines = []
    reference, *others = methods
    for method in others:
        line = [LABELS[method]]
        for metric in PAIRED:
            wide = rows.pivot(index=["data", "seed"], columns="method", values=metric)
            if method not in wide:
                continue
            gap = (wide[reference] - wide[method]).dropna()
            middle = gap.groupby("data").mean().median()
            text = f"{middle:+.1f}" if metric in _NATS else f"{middle:+.3f}"
            line.append(f"{text} ({(gap > 0).sum()} of {len(gap)})")
        lines += [line] if line[1:] else []
    return markdown([f"{LABELS[reference]} minus", *(METRICS[m] for m in PAIRED)], lines)


def into(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of that name."""
    marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
    before = page.read_text()
    if not pattern.search(before):
        raise SystemExit(f"{page} has no place for {name}.")
    page.write_text(pattern.sub(lambda _: f"{marks[0]}\n{text}\n{marks[1]}", before))


def keep(directory: Path, name: str) -> pd.DataFrame:
    """The rows, kept in docs/rows; returned are those that succeeded."""
    rows = tidy(Rows(directory, "rows").frame())
    target = ROOT / "docs" / "rows" / name
    target.mkdir(parents=True, exist_ok=True)
    lines = rows.apply(lambda row: row.dropna().to_json() + "\n", axis=1)
    (target / "rows.jsonl").write_text("".join(lines))
    config = json.loads((directory / "config.json").read_text())
    config["command"] = "make bench-priors"
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return rows[(rows["status"] == "ok") & rows["method"].isin(METHODS)]


def picture(rows: pd.DataFrame, path: Path) -> None:
    """QBMVI minus a Gaussian VAE, by number of cells; one dot per seed."""
    titles = {
        "validation_elbo": "held-out ELBO (nats per cell)", "scib_bio": "bio conservation",
        "scgraph": "scGraph", "nmi": "NMI", "knn_f1": "kNN F1", "lobo_f1": "unseen batch F1",
    }  # fmt: skip
    wide = rows.pivot(index=["n_cells", "seed"], columns="method", values=list(titles))
    figure, axes = plt.subplots(2, 3, figsize=(8.5, 4.2), layout="constrained")
    for ax, (metric, title) in zip(axes.flat, titles.items(), strict=True):
        gap = (wide[metric]["qbmvi_probabilities"] - wide[metric]["gaussian"]).dropna()
        mean = gap.groupby("n_cells").mean()
        ax.axhline(0, color="0.7", lw=0.8)
        ax.plot(mean.index, mean, "-", color=PALETTE[0], lw=1.2)
        ax.plot(gap.index.get_level_values("n_cells"), gap, "o", color=PALETTE[0], ms=4)
        ax.set(title=title, xscale="log", xticks=list(mean.index))
        ax.set_xticklabels([f"{n / 1000:.0f}" for n in mean.index])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("thousand cells", fontsize="medium")
    figure.supylabel("QBMVI minus Gaussian VAE", fontsize="medium")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("priors", type=Path)
    parser.add_argument("cells", type=Path)
    args = parser.parse_args()
    rows, results = keep(args.priors, "priors"), ROOT / "docs" / "results.md"
    simulated = rows["data"] == _SIMULATED
    large, small = rows[(rows["n_cells"] >= _MANY) & ~simulated], rows[rows["n_cells"] < _MANY]
    into(ROOT / "logbook" / "results.md", "by set", by_set(rows))
    # W = 0 has other seeds there: it is compared by pairs only.
    into(results, "large", over_sets(large, tuple(m for m in LABELS if m != "bernoulli")))
    into(results, "large, aligned", paired(large, _ALIGNED))
    into(results, "large, not aligned", paired(large, _NOT_ALIGNED))
    into(results, "small", over_sets(small, tuple(LABELS)))
    into(results, "small, aligned", paired(small, _ALIGNED))
    into(results, "small, not aligned", paired(small, _NOT_ALIGNED))
    into(results, "simulated", one_set(rows[simulated], (*SHORT, *_NATS)))
    into(ROOT / "README.md", "results", over_sets(large, SHORT_METHODS))
    cells = pd.concat([keep(args.cells, "cells"), rows[rows["data"] == _LARGEST]])
    picture(cells, ROOT / "docs" / "_static" / "cells.png")


if __name__ == "__main__":
    main()
