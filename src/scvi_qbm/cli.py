"""The command line: ``scvi-qbm fit | samplers | benchmark | demo``; imports wait till needed."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scvi_qbm._files import check_target
from scvi_qbm.benchmark.commands import add_commands, positive, run_command

__all__ = ["main"]

_EPILOG = """\
exit status: 0 success, 1 the data or an option's value cannot be used, 2 wrong usage,
130 interrupted, 143 terminated.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scvi-qbm",
        description="Boltzmann-machine priors for single-cell data, and Boltzmann samplers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    _add_fit(commands)

    samplers = commands.add_parser("samplers", help="the samplers there are")
    actions = samplers.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="names, guarantees and one line about each")

    check = actions.add_parser(
        "check",
        help="run the conformance kit on one",
        epilog="example: scvi-qbm samplers check gibbs --option n_sweeps=200",
    )
    check.add_argument(
        "name",
        metavar="NAME",
        help="a name that list shows; or MODULE:NAME, from here or PYTHONPATH, of a sampler, "
        "a class with solve() or with submit() and fetch(), or a function of a matrix",
    )
    check.add_argument(
        "--option",
        action="append",
        metavar="KEY=VALUE",
        help="an option of the sampler, as JSON or plain text; may be repeated "
        "(default: the options that the sampler declares for this test)",
    )
    check.add_argument("--seed", type=int, default=1, help="seed of the models and the sampler")
    check.add_argument(
        "--dry-run", action="store_true", help="ask for nothing; print what would be asked for"
    )
    for what in ("calls", "reads", "seconds"):
        check.add_argument(
            f"--max-{what}", type=float, default=float("inf"), help=f"stop after so many {what}"
        )

    benchmark = commands.add_parser("benchmark", help="tables and pictures of measured claims")
    subjects = benchmark.add_subparsers(dest="subject", metavar="SUBJECT", required=True)
    sampling = subjects.add_parser(
        "sampling",
        help="the paper's Figure 2: distribution, Moebius ladders, time per sample",
        description="Samples' distribution (b), Moebius ladders and harder instances (c), "
        "time per sample at equal quality (d). Rows are kept in DIR as they are measured: an "
        "interrupted run goes on where it stopped.",
    )
    sampling.add_argument("--out", type=Path, default=Path("sampling-output"), metavar="DIR")
    sampling.add_argument(
        "--part",
        choices=["distribution", "reweighting", "optimum", "time"],
        action="append",
        help="only this part; may be repeated",
    )
    sampling.add_argument("--quick", action="store_true", help="small sizes, a minute or two")
    sampling.add_argument("--seed", type=int, default=0, help="seed of everything")

    add_commands(subjects)

    demo = commands.add_parser("demo", help="700 real cells, nine tenths of their labels hidden")
    demo.add_argument("--out", type=Path, default=Path("demo-output"), help="directory to write")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything")
    _add_threads(demo)
    return parser


def _add_fit(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="a first analysis: train on an h5ad file, embed, cluster, draw",
        description="Train QBMVI on IN.h5ad and write OUT.h5ad: the same data with an embedding, "
        "a UMAP, Leiden clusters, attractors and energies, all under names that end in _qbmvi. "
        "OUT.html is a page with the pictures and numbers. IN.h5ad is not changed.",
        epilog="example: scvi-qbm fit cells.h5ad --layer counts --batch-key donor "
        "--n-top-genes 2000 --out out.h5ad",
    )
    fit.add_argument("input", metavar="IN.h5ad", type=Path, help="cells by genes")
    fit.add_argument("--out", metavar="OUT.h5ad", type=Path, required=True, help="file to write")
    fit.add_argument(
        "--on-disk",
        action="store_true",
        help="leave the matrices on disk and read cells as they are needed, for more data than "
        "memory; OUT.h5ad is a copy of the file",
    )
    fit.add_argument("--layer", help="layer with the values to model (default: X)")
    fit.add_argument("--batch-key", metavar="COLUMN", help="column of obs to correct for")
    fit.add_argument("--labels-key", metavar="COLUMN", help="cell types, for the report")
    fit.add_argument(
        "--unlabeled-category",
        metavar="VALUE",
        help="value of --labels-key for cells without a label: train QBMANVI and predict theirs",
    )
    fit.add_argument("--size-factor-key", metavar="COLUMN", help="size factors, instead of depth")
    for kind in ("categorical", "continuous"):
        fit.add_argument(
            f"--{kind}-covariate-keys",
            nargs="+",
            metavar="COLUMN",
            help=f"{kind} covariates to correct for",
        )
    fit.add_argument(
        "--n-top-genes",
        type=positive,
        metavar="N",
        help="train on so many highly variable genes (default: all genes; 2000 is usual)",
    )
    fit.add_argument(
        "--gene-likelihood",
        help="nb (default), zinb, poisson for counts; normal for log-normalised values",
    )
    fit.add_argument("--recipe", default="default", help="default; paper is for comparison")
    fit.add_argument("--n-latent", type=int, help="binary latent units (default: the recipe's)")
    fit.add_argument("--relaxation", help="spike_exponential or overlapping_exponential")
    fit.add_argument("--sampler", default="parallel_tempering", help="see: scvi-qbm samplers list")
    fit.add_argument("--max-epochs", type=positive, help="at most so many; early stopping is on")
    fit.add_argument("--accelerator", default="auto", help="auto (default), cpu, gpu, mps, ...")
    fit.add_argument(
        "--representation",
        default="aligned",
        choices=["aligned", "probabilities", "logits", "zeta", "binary", "evidence"],
        help="what to write as the embedding (default: aligned)",
    )
    fit.add_argument(
        "--embedding-only", action="store_true", help="no clusters, UMAP, energies and report"
    )
    fit.add_argument("--seed", type=int, default=0, help="same seed, same machine, same result")
    fit.add_argument("--model-dir", metavar="DIR", type=Path, help="also save the model there")
    fit.add_argument(
        "--checkpoint-dir",
        metavar="DIR",
        type=Path,
        help="keep the run there; if it is cut short, the same command goes on from there",
    )
    fit.add_argument("--overwrite", action="store_true", help="replace OUT.h5ad, OUT.html and DIR")
    fit.add_argument("--no-progress", action="store_true", help="no progress bar or lines")
    _add_threads(fit)


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        type=positive,
        default=1,
        help="torch threads (default 1: with more, a busy machine can be 30 times slower)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments after the program's name; those of the process if None.

    Returns
    -------
    int
        Exit status: 0; 1 after an error, which goes to standard error; 2 without a command; 130
        when interrupted.
    """
    parser = _parser()
    args, unknown = parser.parse_known_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    if unknown:
        _leaf(parser, args).error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.version:
        from scvi_qbm import __version__

        print(f"scvi-qbm {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    run = {"fit": _fit, "samplers": _samplers, "demo": _demo, "benchmark": _benchmark}
    try:
        status = run[args.command](args)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns Ctrl-C into SystemExit(1).
        if getattr(stop, "code", None) == 128 + signal.SIGTERM:
            print("\nscvi-qbm: terminated", file=sys.stderr)
            return 128 + signal.SIGTERM
        if not _interrupted(stop):
            raise
        print("\nscvi-qbm: interrupted", file=sys.stderr)
        return 130
    except (ImportError, OSError, KeyError, TypeError, ValueError) as error:
        if args.debug:
            traceback.print_exc()
        # str() of a KeyError is its repr.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"scvi-qbm: error: {message}", file=sys.stderr)
        return 1
    return status or 0


def _leaf(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the command that was given, whose usage helps with its options."""
    for action in parser._subparsers._group_actions if parser._subparsers else ():
        chosen = action.choices.get(getattr(args, action.dest, None))  # type: ignore[union-attr]
        if chosen is not None:
            return _leaf(chosen, args)
    return parser


def _interrupted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def _fit(args: argparse.Namespace) -> None:
    _check_paths(args)
    import anndata

    from scvi_qbm.recipes import get_recipe
    from scvi_qbm.relaxations import get_relaxation
    from scvi_qbm.samplers import get_sampler

    # What a word on the command line can get wrong is found before anything slow starts.
    get_recipe(args.recipe)
    get_sampler(args.sampler)
    if args.relaxation is not None:
        get_relaxation(args.relaxation)
    from scvi_qbm.data import open_on_disk

    try:
        adata = (open_on_disk if args.on_disk else anndata.read_h5ad)(args.input)
    except Exception as error:
        raise ValueError(f"{args.input} cannot be read as h5ad: {error}") from error

    from scvi_qbm._fit import fit_h5ad

    _prepare(args.threads)
    fit_h5ad(adata, args)


def _check_paths(args: argparse.Namespace) -> None:
    if not args.input.is_file():
        raise FileNotFoundError(f"no such file: {args.input}")
    if args.out.exists() and args.out.samefile(args.input):
        raise ValueError("IN.h5ad and OUT.h5ad are the same file")
    if args.unlabeled_category is not None and args.labels_key is None:
        raise ValueError("--unlabeled-category needs --labels-key")
    if args.n_top_genes is not None and args.on_disk:
        raise ValueError("--n-top-genes reads the whole matrix: leave out --on-disk")
    page = None if args.embedding_only else args.out.with_suffix(".html")
    if page == args.out:
        raise ValueError("--out is the data, and a page ending in .html goes beside it: OUT.h5ad")
    for path in (args.out, page, args.model_dir):
        if path is not None and path.exists() and not args.overwrite:
            raise ValueError(f"{path} exists; pass --overwrite to replace it")
    # All before training, which may take hours.
    folders = [path for path in (args.model_dir, args.checkpoint_dir) if path is not None]
    targets = [check_target(path) for path in (args.out, page) if path is not None]
    targets += [check_target(path, folder=True) for path in folders]
    if len(set(targets)) < len(targets):
        raise ValueError(
            "OUT, its page, --model-dir and --checkpoint-dir must be different places"
        )
    free, needed = shutil.disk_usage(targets[0].parent).free, args.input.stat().st_size
    if free < needed:
        raise OSError(
            f"{targets[0].parent} has {free / 1e6:.0f} MB left; OUT.h5ad needs about "
            f"{needed / 1e6:.0f} MB"
        )


def _prepare(n_threads: int) -> None:
    """Set torch's threads; keep Lightning's remarks on hardware and logging from the user."""
    import logging
    import warnings

    import torch

    torch.set_num_threads(n_threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.|torch\.|anndata\.|scvi\.|umap\.")


def _check(args: argparse.Namespace) -> int:
    import json

    from scvi_qbm.samplers.conformance import check_sampler
    from scvi_qbm.samplers.registry import is_sampler, register_sampler

    options = None
    if args.option:
        options = {}
        for text in args.option:
            key, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"--option takes KEY=VALUE, got {text!r}")
            try:
                options[key] = json.loads(value)
            except json.JSONDecodeError:
                options[key] = value
    name = args.name
    sys.path.insert(0, os.getcwd())
    if ":" in name:
        register_sampler(name, name, overwrite=True)
        if not is_sampler(name):
            options, name = {"solver": name} | (options or {}), "solve"
    report = check_sampler(
        name, options=options, seed=args.seed, strict=False, dry_run=args.dry_run,
        max_calls=args.max_calls, max_reads=args.max_reads, max_seconds=args.max_seconds,
    )  # fmt: skip
    print(report)
    return 0 if report.passed else 1


def _benchmark(args: argparse.Namespace) -> int | None:
    if args.subject != "sampling":
        if args.subject == "curves":  # the others train in processes of their own, or not at all
            _prepare(args.threads)
        return run_command(args)
    from scvi_qbm.benchmark.sampling.parts import PARTS, run_sampling

    run_sampling(args.out, parts=args.part or list(PARTS), quick=args.quick, seed=args.seed)
    print(f"{args.out}: {', '.join(sorted(os.listdir(args.out)))}")
    return None


def _samplers(args: argparse.Namespace) -> int:
    if args.action == "check":
        return _check(args)
    from scvi_qbm.samplers.registry import describe_samplers

    rows = describe_samplers()
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:<{width}}  {row.guarantee:<9}  {row.summary}")
    return 0


def _demo(args: argparse.Namespace) -> None:
    from scvi_qbm.benchmark.demo import run_demo

    _prepare(args.threads)
    print("\n" + run_demo(args.out, seed=args.seed))
    names = ", ".join(sorted(os.listdir(args.out)))
    print(f"{args.out}: {names}")


if __name__ == "__main__":
    sys.exit(main())
