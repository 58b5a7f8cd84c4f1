"""``scvi-qbm benchmark run | curves | report | methods``; imports wait till needed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_RUN = """\
example: scvi-qbm benchmark run --data cells.h5ad --layer counts --batch-key donor \\
           --label-key cell_type --methods core pca harmony --seeds 5 --workers 2 --out DIR
         scvi-qbm benchmark run CONFIG.toml --out DIR
Rows are kept in DIR as they are ready: a run that was stopped goes on where it was.
"""


def positive(text: str) -> int:
    """Type of a command-line option that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def add_commands(subjects: Any) -> None:
    """Add the subcommands to ``scvi-qbm benchmark``."""
    run = subjects.add_parser(
        "run",
        help="compare methods by their embeddings",
        epilog=_RUN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(run)
    run.add_argument("--methods", nargs="+", metavar="NAME", help="names or groups (core, all)")
    run.add_argument("--groups", nargs="+", metavar="NAME", help="groups of metrics (all)")
    run.add_argument(
        "--executor", default="processes", choices=["processes", "ray"], help="where rows run"
    )
    run.add_argument("--workers", type=positive, default=1, help="rows at a time (1)")
    run.add_argument("--timeout", type=float, metavar="S", help="give a row up after S seconds")
    run.add_argument("--retry-failed", action="store_true", help="measure failed rows again")
    run.add_argument("--rescore", action="store_true", help="score kept embeddings afresh")
    run.add_argument("--no-report", action="store_true", help="do not write the report")

    curves = subjects.add_parser("curves", help="scores by epoch, QBMVI and its Gaussian VAE")
    _add_what(curves)
    curves.add_argument("--methods", nargs="+", default=["qbmvi", "gaussian"], metavar="NAME")

    report = subjects.add_parser("report", help="one HTML page and CSV tables from a benchmark")
    report.add_argument("directory", type=Path, metavar="DIR")
    report.add_argument("--reference", default="qbmvi", help="method of the paired differences")
    report.add_argument("--title", help="title of the page")

    subjects.add_parser("methods", help="the methods there are")


def _add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--data", metavar="F.h5ad", help="a file, or a name of ours")
    parser.add_argument("--layer", help="layer with the counts (default: X)")
    parser.add_argument("--batch-key", help="column of obs")
    parser.add_argument("--label-key", help="column of obs with cell types")
    parser.add_argument(
        "--n-top-genes", type=positive, metavar="N", help="highly variable genes (all)"
    )
    parser.add_argument("--max-cells", type=positive, metavar="N", help="cells, drawn once (all)")
    parser.add_argument("--seeds", type=positive, help="number of seeds (5)")
    parser.add_argument("--max-epochs", type=positive, help="of every model; default its own")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--threads", type=positive, default=1, help="threads of a row (1)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def _config(args: argparse.Namespace) -> Any:
    from dataclasses import replace

    from .config import Config, DataSpec

    if (args.config is None) == (args.data is None):
        raise ValueError("Give either CONFIG.toml or --data.")
    given = {"seeds": args.seeds, "max_epochs": args.max_epochs}
    if args.subject == "run":
        given |= {k: tuple(getattr(args, k) or ()) or None for k in ("methods", "groups")}
    given = {k: v for k, v in given.items() if v is not None}
    names = ("layer", "batch_key", "label_key", "n_top_genes", "max_cells")
    keys = {k: getattr(args, k) for k in names}
    if args.config is not None:
        if any(keys.values()):
            raise ValueError(
                "With CONFIG.toml, layers, columns, genes and cells are set in the file."
            )
        if not args.config.is_file():
            raise FileNotFoundError(f"no such file: {args.config}")
        return replace(Config.from_toml(args.config), **given)
    path = Path(args.data)
    is_file = path.suffix == ".h5ad" or path.exists()
    spec = DataSpec(path.stem, str(path.resolve()), **keys) if is_file else DataSpec(args.data)
    return Config(data=(replace(spec, **{k: v for k, v in keys.items() if v}),), **given)


def run_command(args: argparse.Namespace) -> int | None:
    """Run what :func:`add_commands` parsed; returns the exit status, None for success."""
    run = {"run": _run, "curves": _curves, "report": _report, "methods": _methods}[args.subject]
    return run(args)


def _run(args: argparse.Namespace) -> int:
    from .run import run_benchmark

    rows = run_benchmark(
        _config(args),
        args.out,
        executor=args.executor,
        n_workers=args.workers,
        n_threads=args.threads,
        timeout=args.timeout,
        retry_failed=args.retry_failed,
        rescore=args.rescore,
        progress=not args.no_progress,
    )
    counts = rows["status"].value_counts()
    print(f"{args.out / 'rows.jsonl'}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    if not args.no_report and counts.get("ok", 0):
        from scvi_qbm.benchmark.report import write_report

        print(write_report(args.out))
    return 0 if counts.get("ok", 0) else 1


def _curves(args: argparse.Namespace) -> None:
    from .curves import score_by_epoch

    rows = score_by_epoch(
        _config(args),
        args.out,
        methods=args.methods,
        n_threads=args.threads,
        progress=not args.no_progress,
    )
    print(f"{args.out / 'curves.jsonl'}: {len(rows)} rows")


def _report(args: argparse.Namespace) -> None:
    from scvi_qbm.benchmark.report import write_report

    if not args.directory.is_dir():
        raise FileNotFoundError(f"no such directory: {args.directory}")
    print(write_report(args.directory, reference=args.reference, title=args.title))


def _methods(args: argparse.Namespace) -> None:
    from .methods import METHODS

    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        print(f"{name:<{width}}  {method.block:<12}  {method.summary}")
