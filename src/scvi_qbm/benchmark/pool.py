"""Processes that work through tasks; one that dies costs its own task only."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple


class _Worker(NamedTuple):
    process: Any
    connection: Connection
    task: Any
    started: float


def work_through(
    tasks: Iterable[Any],
    function: Callable[[Any], dict[str, Any]],
    *,
    n_workers: int = 1,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    logs: Path | None = None,
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield ``(task, row)`` as the rows are ready, with ``status="failed"`` for a dead process.

    Processes are started afresh, not forked, with the variables of ``environment``; what they
    print goes to ``logs``, and one whose task takes ``timeout`` seconds is killed.
    """
    left = deque(tasks)
    workers: dict[int, _Worker] = {}
    try:
        for index in range(min(n_workers, len(left))):
            workers[index] = _start(index, function, environment, logs, left.popleft())
        while workers:
            wait([w.connection for w in workers.values()], timeout=1.0)
            for index, worker in list(workers.items()):
                row = _poll(worker, timeout)
                if row is None:
                    continue
                alive = "died" not in row
                task = worker.task
                row.pop("died", None)
                if not left:
                    workers.pop(index)
                    _stop(worker, patience=10.0 if alive else 0.0)
                elif alive:
                    workers[index] = _give(worker, left.popleft())
                else:
                    _stop(worker)
                    workers[index] = _start(index, function, environment, logs, left.popleft())
                yield task, row
    finally:
        for worker in workers.values():
            _stop(worker)


def _poll(worker: _Worker, timeout: float | None) -> dict[str, Any] | None:
    if worker.connection.poll():
        try:
            return worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join(10)
            code = worker.process.exitcode
            cause = "out of memory?" if code == -signal.SIGKILL else "see its log"
            reason = f"The process died with exit code {code} ({cause})."
            return {"status": "failed", "reason": reason, "died": True}
    if timeout is not None and time.monotonic() - worker.started > timeout:
        reason = f"Stopped after {timeout:.0f} s."
        return {"status": "failed", "reason": reason, "died": True}
    return None


@contextmanager
def _variables(values: Mapping[str, str] | None) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values or {})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _start(index: int, function: Any, environment: Any, logs: Path | None, task: Any) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    log = None if logs is None else str(logs / f"worker-{index}.log")
    process = context.Process(target=_loop, args=(theirs, function, log), daemon=False)
    with _variables(environment):
        process.start()
    theirs.close()
    return _give(_Worker(process, ours, None, 0.0), task)


def _give(worker: _Worker, task: Any) -> _Worker:
    try:
        worker.connection.send(task)
    except OSError:  # it died between tasks; _poll tells
        pass
    return worker._replace(task=task, started=time.monotonic())


def _stop(worker: _Worker, patience: float = 0.0) -> None:
    worker.connection.close()  # an idle process ends by itself, and releases what it holds
    worker.process.join(patience)
    worker.process.terminate()
    worker.process.join(5)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()


def _loop(connection: Connection, function: Any, log: str | None) -> None:
    # Ctrl-C is the parent's to handle, which stops us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    if log is not None:
        print_to(log)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(function(task))


def print_to(log: str | os.PathLike[str]) -> None:
    """Append to a file whatever this process prints from now on."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _end_with_parent() -> None:
    """A parent that was killed cannot stop us, and nobody would take our row."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
