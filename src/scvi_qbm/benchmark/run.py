"""Run a benchmark: rows as they are ready, in processes or on Ray, resumable."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from scvi_qbm._files import alone_in, read_json, replacing
from scvi_qbm.benchmark.data import describe, download
from scvi_qbm.benchmark.data.specs import resolve
from scvi_qbm.benchmark.pool import work_through
from scvi_qbm.benchmark.ray import work_through_on_ray

from .config import Config, DataSpec, Task
from .methods import METHODS, get_method
from .rows import Rows
from .scores import GROUPS

__all__ = ["run_benchmark"]

#: Where rows can run, which is processes of this machine, or Ray.
EXECUTORS = ("processes", "ray")


def run_benchmark(
    config: Config,
    out: Path,
    *,
    executor: str = "processes",
    n_workers: int = 1,
    n_threads: int = 1,
    timeout: float | None = None,
    retry_failed: bool = False,
    rescore: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure every row that is not there yet, and scores that a row lacks.

    Rows are kept in ``out/rows.jsonl`` as they are ready, so that a run that is stopped, by Ctrl-C
    or by a crash, loses the rows in work and no other: run it again and it goes on. Embeddings,
    pictures' data and the logs of the processes are kept beside them.

    Parameters
    ----------
    config
        Data sets, methods, seeds, budget.
    out
        Directory, made if it is not there. One run at a time.
    executor
        ``"processes"`` on this machine or ``"ray"`` (a cluster that shares ``out``).
    n_workers
        Processes, or Ray tasks at a time.
    n_threads
        Threads of each; on Ray, the CPUs of its machine that it asks for.
    timeout
        Seconds a row may take before it is given up.
    retry_failed
        Measure rows again that failed, or lacked a package, for some of their scores as well.
    rescore
        Score all embeddings afresh; models are fitted only where none is kept. A row stays as it
        is until its new scores are there. With ``config.groups`` the other scores stay, or are
        computed as well where the model had to be fitted again.
    progress
        Show a progress bar.

    Returns
    -------
    pandas.DataFrame
        All rows, those of earlier runs included.

    Raises
    ------
    ValueError
        For an unknown executor, unknown data, or a directory that holds another benchmark.
    BlockingIOError
        If another run is at work in ``out``.
    """
    if executor not in EXECUTORS:
        raise ValueError(f"Unknown executor {executor!r}. Available: {', '.join(EXECUTORS)}.")
    if n_workers < 1 or n_threads < 1:
        raise ValueError("`n_workers` and `n_threads` must be at least 1.")
    specs = {spec.name: resolve(spec) for spec in config.data}
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out, "benchmarking"):
        _write_config(config, specs, out)
        rows = Rows(out, "rows")
        before = {task: rows.find(task._asdict()) for task in config.tasks()}
        wanted = set(config.groups or GROUPS)
        tasks = [
            task
            for task, row in before.items()
            if row is None or rescore or _lacks(row, wanted, retry_failed)
        ]
        failed = _download({task.data for task in tasks}, specs, progress)
        for task in tasks:
            if task.data in failed:
                _keep(rows, task, {"status": "failed", "reason": failed[task.data]})
        tasks = [task for task in tasks if task.data not in failed]
        function = partial(
            _measure,
            specs=specs,
            out=out,
            max_epochs=config.max_epochs,
            groups=tuple(group for group in GROUPS if group in wanted),
            scored={task: _scored(before[task]) for task in tasks if before[task]},
            n_threads=n_threads,
        )
        logs = out / "logs"
        logs.mkdir(exist_ok=True)
        on_ray = partial(work_through_on_ray, n_threads=n_threads)
        start = on_ray if executor == "ray" else work_through
        results = start(
            tasks,
            function,
            n_workers=n_workers,
            timeout=timeout,
            environment=_environment(out, n_threads),
            logs=logs,
        )
        for task, row in _shown(results, len(tasks), progress):
            _keep(rows, task, row)
    return rows.frame()


def _scored(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The groups of metrics that a row has."""
    return tuple(group for group in GROUPS if f"seconds_{group}" in row)


def _lacks(row: Mapping[str, Any], groups: set[str], retry_failed: bool) -> bool:
    """Whether a row is to be measured once more."""
    if row["status"] != "ok":
        return retry_failed
    return not groups <= set(_scored(row)) or (retry_failed and bool(row.get("errors")))


def _keep(rows: Rows, task: Task, new: dict[str, Any]) -> None:
    """Write what was measured; no score that is there is lost to a failure or to fewer groups."""
    old = rows.find(task._asdict()) or {"status": "absent"}
    if old["status"] == "ok":
        if new["status"] != "ok":
            return
        if old.get("date") == new.get("date"):  # the same fit
            failed = {k for k, v in new.items() if new["errors"] and v != v and k in old}
            new = old | {k: v for k, v in new.items() if k not in failed}
        elif new["errors"] and not old.get("errors"):
            return
    rows.add(task._asdict(), new)


def _download(names: set[str], specs: Mapping[str, DataSpec], progress: bool) -> dict[str, str]:
    """Files that rows need, by one process: several would write to one place."""
    failed = {}
    for name in sorted(names):
        if specs[name].path is None:
            try:
                download(name, progress=progress)
            except (RuntimeError, OSError) as error:
                # Its rows say so, and the others can be measured.
                failed[name] = f"{type(error).__name__}: {error}"
                warnings.warn(f"{name}: {error}", RuntimeWarning, stacklevel=3)
    return failed


def _measure(
    task: Task,
    *,
    specs: Any,
    out: Path,
    n_threads: int,
    scored: Mapping[Task, tuple[str, ...]],
    **kwargs: Any,
) -> Any:
    import logging

    import torch

    from .measure import measure

    torch.set_num_threads(n_threads)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print(f"--- {task}", flush=True)
    return measure(
        task, specs[task.data], out, n_jobs=n_threads, scored=scored.get(task, ()), **kwargs
    )


def _environment(out: Path, n_threads: int) -> dict[str, str]:
    """Libraries read these when they are imported; JAX keeps what it compiled for the next row."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    return {f"{name}_NUM_THREADS": str(n_threads) for name in names} | {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get(
            "JAX_COMPILATION_CACHE_DIR", str(out / ".jax")
        ),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "Agg",
        "TQDM_DISABLE": "1",
    }


def _write_config(config: Config, specs: Any, out: Path) -> None:
    import scvi_qbm

    path = out / "config.json"
    data = {name: dict(vars(spec)) | _titles(spec) for name, spec in specs.items()}
    before = {"data": {}}
    if path.exists():
        before = read_json(path, "Put a copy of it back, or choose another directory.")
    for name, spec in specs.items():
        known = before["data"].get(name, {})
        if any(known.get(key, value) != value for key, value in vars(spec).items()):
            raise ValueError(
                f"{out} holds a benchmark in which {name!r} was set up otherwise; its rows would "
                "not be comparable. Choose another directory."
            )
    if before.get("max_epochs", config.max_epochs) != config.max_epochs:
        raise ValueError(
            f"{out} holds a benchmark with max_epochs={before['max_epochs']}, not "
            f"{config.max_epochs}. Choose another directory."
        )
    content = {
        "data": before["data"] | data,
        "methods": before.get("methods", {})
        | {
            name: {"label": m.label, "block": m.block, "summary": m.summary}
            for name, m in (METHODS | {n: get_method(n) for n in config.methods}).items()
        },
        "max_epochs": config.max_epochs,
        "seeds": max(config.seeds, before.get("seeds", 0)),
        "command": " ".join(["scvi-qbm", *sys.argv[1:]]),
        "version": scvi_qbm.__version__,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def _titles(spec: DataSpec) -> dict[str, Any]:
    """What the report says of a data set beyond its columns."""
    out: dict[str, Any] = {"subsampled": spec.max_cells is not None}
    if spec.path is None:
        info = describe(spec.name)
        out |= {"title": info.title, "citation": info.citation}
    return out


def _shown(results: Any, total: int, progress: bool) -> Iterator[tuple[Task, dict[str, Any]]]:
    from rich import progress as parts

    columns = (parts.TextColumn("{task.description}"), parts.BarColumn())
    columns += (parts.MofNCompleteColumn(), parts.TimeRemainingColumn())
    with parts.Progress(*columns, disable=not progress) as bar:
        shown = bar.add_task("benchmark", total=total)
        for task, row in results:
            state = f"  {row['errors']}" if row.get("errors") else ""
            if row["status"] != "ok":
                state = f"  {row['status']}: {row['reason'][:150]}"
            if progress:
                name = f"{task.data}  {task.method}  seed {task.seed}"
                bar.console.print(f"{name}  {row.get('seconds_total', 0):.0f} s{state}")
            bar.advance(shown)
            yield task, row
