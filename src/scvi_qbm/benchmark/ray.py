"""Tasks on a Ray cluster; a worker that dies costs its own task only."""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from scvi_qbm.benchmark.extras import require
from scvi_qbm.benchmark.pool import print_to


def work_through_on_ray(
    tasks: Iterable[Any],
    function: Callable[[Any], dict[str, Any]],
    *,
    n_workers: int,
    n_threads: int,
    timeout: float | None,
    environment: dict[str, str],
    logs: Path,
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """As ``work_through``, on Ray, not through its client (``ray://``).

    Each task asks for ``n_threads`` CPUs, and its time runs from when it gets them. Workers print
    to ``logs``, those of a machine that does not share it to Ray's own logs.
    """
    ray = require("ray", "autotune")
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False)
    if not any(node["Resources"].get("CPU", 0) >= n_threads for node in ray.nodes()):
        message = f"No machine of the Ray cluster has {n_threads} CPUs: rows wait for one."
        warnings.warn(message, stacklevel=2)

    options = {"num_cpus": n_threads, "runtime_env": {"env_vars": environment}}

    @ray.remote(max_retries=0, num_returns="streaming", **options)
    def remote(task: Any) -> Iterator[dict[str, Any] | None]:
        yield None  # It has started.
        if logs.is_dir():
            print_to(logs / f"{platform.node()}-{os.getpid()}.log")
        yield function(task)

    left = deque(tasks)
    running: dict[Any, Any] = {}
    deadlines: dict[Any, float] = {}
    try:
        while left or running:
            while left and len(running) < n_workers:
                task = left.popleft()
                running[remote.remote(task)] = task
            next_end = min(deadlines.values(), default=math.inf)
            wait = None if next_end == math.inf else max(0.0, next_end - time.monotonic())
            done, _ = ray.wait(list(running), timeout=wait)
            now = time.monotonic()
            for reference in done or [r for r, end in deadlines.items() if end <= now]:
                if not done:
                    ray.cancel(reference, force=True)
                    row = {"status": "failed", "reason": f"Stopped after {timeout:.0f} s."}
                else:
                    try:
                        row = ray.get(next(reference))
                    except ray.exceptions.RayError as error:
                        cause = getattr(error, "cause", None) or error  # what the task raised
                        first = "".join(str(cause).strip().splitlines()[:1])
                        row = {"status": "failed", "reason": f"{type(cause).__name__}: {first}"}
                if row is None:
                    deadlines[reference] = math.inf if timeout is None else now + timeout
                else:
                    deadlines.pop(reference, None)
                    yield running.pop(reference), row
    finally:
        if started_here:
            ray.shutdown()
        else:
            for reference in running:
                ray.cancel(reference, force=True)
