"""Put what bench_scale.py measured into docs: CSV, a picture of growth, exponents.

    python benchmarks/scale_tables.py bench-output/scale docs/scale

Part of ``make bench-scale``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

# Expected: a step costs n for the layers; a draw n^2 a sweep and chain, by max(5, n // 25) sweeps.
LINES = {
    "step_ms": "training step",
    "draw_ms": "negative samples of a step",
    "log_z_ms": "estimate of log Z",
    "chains_mb": "memory of the chains (MB)",
}


def exponent(x: pd.Series, y: pd.Series) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path)
    parser.add_argument("docs", type=Path)
    args = parser.parse_args()
    args.docs.mkdir(parents=True, exist_ok=True)
    for file in sorted(args.measured.glob("*.csv")):
        table = pd.read_csv(file)
        table.round(3).to_csv(args.docs / file.name, index=False)
        print(f"\n{file.stem}\n{table.round(2).to_string(index=False)}")
    table = pd.read_csv(args.measured / "growth.csv")
    by_units = table[table["n_chains"].isna()].sort_values("n_latent")
    by_chains = table[table["n_latent"] == 64].sort_values("chains")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, part, x in ((axes[0], by_units, "n_latent"), (axes[1], by_chains, "chains")):
        for column, label in LINES.items():
            tail = part[part[x] >= (128 if x == "n_latent" else 0)]
            slope = exponent(tail[x], tail[column])
            print(f"{label} by {x}: exponent {slope:.2f}")
            axis.loglog(part[x], part[column], "o-", ms=3, label=f"{label}: {slope:.2f}")
        axis.set(xlabel={"n_latent": "latent units", "chains": "chains (64 units)"}[x])
        axis.legend(frameon=False, fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("ms, or MB")
    figure.savefig(args.docs / "growth.png", dpi=120)


if __name__ == "__main__":
    main()
