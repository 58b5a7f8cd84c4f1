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

# Exponents that the algorithm makes one expect, by units from 128 on, of the growth of levels and
# chains that was measured: a draw is n^2 a sweep, chain and level, of max(5, n // 25) sweeps; an
# estimate of log Z has a fixed number of sweeps of its own chains; the training chains are n a
# level and chain, beside matrices of n^2. A step is the network, which does not grow with the
# units, and what of the draw does not hide behind it.
EXPECTED = {
    "n_latent": {
        "draw_ms": lambda levels, chains: (3 + levels + chains,),
        "log_z_ms": lambda levels, chains: (2 + levels,),
        "chains_mb": lambda levels, chains: (1 + levels + chains, 2),
    },
    "chains": {
        "draw_ms": lambda levels, chains: (1,),
        "log_z_ms": lambda levels, chains: (0,),
        "chains_mb": lambda levels, chains: (1,),
    },
}
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
    rows = []
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    for axis, part, x in ((axes[0], by_units, "n_latent"), (axes[1], by_chains, "chains")):
        for column, label in LINES.items():
            tail = part[part[x] >= (128 if x == "n_latent" else 0)]
            slope = exponent(tail[x], tail[column])
            row = {"by": x, "quantity": label, "measured": round(slope, 2), "expected": ""}
            (line,) = axis.loglog(part[x], part[column], "o-", ms=3)
            if column in EXPECTED[x]:
                grown = [exponent(tail[x], tail[name]) for name in ("levels", "chains")]
                distributions, first = EXPECTED[x][column](*grown), tail.iloc[0]
                for distribution in distributions:
                    expected = first[column] * (tail[x] / first[x]) ** distribution
                    axis.loglog(tail[x], expected, ":", lw=1, color=line.get_color())
                row["expected"] = " to ".join(
                    f"{distribution:.1f}" for distribution in distributions
                )
            said = f" (expected {row['expected']})" if row["expected"] else ""
            line.set_label(f"{label}: {slope:.2f}{said}")
            rows.append(row)
        axis.set(xlabel={"n_latent": "latent units", "chains": "chains (64 units)"}[x])
        axis.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("ms, or MB")
    exponents = pd.DataFrame(rows)
    exponents.to_csv(args.docs / "exponents.csv", index=False)
    print(exponents.to_string(index=False))
    figure.savefig(args.docs / "growth.png", dpi=120)


if __name__ == "__main__":
    main()
