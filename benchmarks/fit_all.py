"""``scvi-qbm fit`` on every data set in a folder; a table of the runs. Run by ``make table``.

    python benchmarks/fit_all.py ../shared/data docs/fits.csv

Each row is written as its run finishes; rows that are there already are not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata
import pandas as pd

from scvi_qbm.benchmark.metrics.classify import knn_probe


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of h5ad files with obs['batch']")
    parser.add_argument("table", type=Path, help="CSV to write; a Markdown twin goes beside it")
    parser.add_argument("--max-epochs", type=int, default=40)
    args = parser.parse_args()
    files = sorted(args.data.glob("*.h5ad"))
    if not files:
        print(f"no h5ad files in {args.data}: nothing to do", file=sys.stderr)
        return 1
    rows = pd.read_csv(args.table).to_dict("records") if args.table.exists() else []
    for path in files:
        if path.stem in {row["data"] for row in rows}:
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.h5ad"
            command = [
                "scvi-qbm",
                "fit",
                str(path),
                "--out",
                str(out),
                "--no-progress",
                "--embedding-only",
            ]
            command += ["--batch-key", "batch", "--max-epochs", str(args.max_epochs)]
            prefix = Path(sys.executable).parent
            run = subprocess.run(
                [str(prefix / command[0]), *command[1:]], capture_output=True, text=True
            )
            row = {"data": path.stem, "exit": run.returncode}
            if run.returncode == 0:
                fitted = anndata.read_h5ad(out)
                summary = fitted.uns["qbm"]["fit"]
                probe = knn_probe(fitted.obsm["X_qbmvi"], fitted.obs["cell_type"])
                names = ("n_cells", "n_genes", "epochs", "seconds", "validation_elbo", "log_z",
                         "log_z_se")  # fmt: skip
                row |= {name: summary[name] for name in names}
                row |= {"batches": fitted.obs["batch"].nunique()}
                row |= {"knn_accuracy": probe.accuracy, "knn_macro_f1": probe.macro_f1}
            else:
                row["error"] = run.stderr.strip().splitlines()[-1:]
        rows.append(row)
        pd.DataFrame(rows).to_csv(args.table, index=False)
        print(row, flush=True)
    table = pd.read_csv(args.table)
    lines = [
        "# `scvi-qbm fit` on every data set at hand",
        "",
        "Made by `make table` (`benchmarks/fit_all.py`): `scvi-qbm fit DATA.h5ad --batch-key "
        f"batch --max-epochs {args.max_epochs}`,",
        "all else at its default, seed 0, one run each. ELBO in nats per held-out cell; kNN "
        "scores of cell types",
        "(15 neighbours, 5 folds, types of 10 cells or more) on the embedding as it was written. "
        "A record that the",
        "command runs, not a comparison. The data are in `../shared/data`.",
        "",
        "| data | cells x genes | batches | epochs | s | ELBO | log Z (se) | kNN accuracy, F1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in table.itertuples():
        lines.append(
            f"| {r.data} | {r.n_cells:.0f} x {r.n_genes:.0f} | {r.batches:.0f} | {r.epochs:.0f} | "
            f"{r.seconds:.0f} | {r.validation_elbo:.1f} | {r.log_z:.2f} ({r.log_z_se:.2f}) | "
            f"{r.knn_accuracy:.3f}, {r.knn_macro_f1:.3f} |"
            if r.exit == 0
            else f"| {r.data} | failed: {r.error} |"
        )
    args.table.with_suffix(".md").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
