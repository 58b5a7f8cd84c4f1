"""Jobs of the Kaiwu SDK: their folders, the worker process that does them, and recordings."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from scvi_qbm._files import read_json

from . import worker

PYTHON_VARIABLE = "SCVI_QBM_KAIWU_PYTHON"

Reads = NDArray[np.int8]


def interpreter(python: str | os.PathLike[str] | None, *, sdk: bool) -> str:
    """Path of the worker's interpreter; with ``sdk`` it has the SDK, and a licence is needed."""
    python = python or os.environ.get(PYTHON_VARIABLE)
    if python is None and not sdk:
        python = sys.executable
    if python is None:
        raise RuntimeError(
            "The Kaiwu SDK runs in an interpreter of its own (Python 3.10): make one with the "
            f"SDK and numpy and give its path as `python` or in {PYTHON_VARIABLE}; "
            "docs/kaiwu.md shows how. Without the SDK, use `replay`."
        )
    found = shutil.which(os.path.expanduser(python))
    if found is None:
        raise FileNotFoundError(f"There is no interpreter at {os.fspath(python)!r}.")
    missing = [name for name in worker.CREDENTIALS if not os.environ.get(name)]
    if missing and sdk:
        raise RuntimeError(f"The licence is missing: set {' and '.join(missing)}.")
    return found


@contextlib.contextmanager
def open_job(
    root: Path | None,
    request: dict[str, Any],
    matrix: NDArray[Any],
    task_name: str,
    control: dict[str, Any],
    seeds: list[int],
    *,
    resume: bool,
    check: Callable[[], object],
) -> Iterator[tuple[Path, bool]]:
    """A job's folder, ours as long as the context lasts, and whether it was there before.

    ``root`` holds the folders, ``None`` a temporary one; ``check`` is called before a new folder
    is made, and may complain; the rest but ``resume`` is for the worker.
    """
    with contextlib.ExitStack() as stack:
        if root is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kaiwu-")))
        wanted = json.loads(json.dumps(request))
        for path in sorted(root.glob("job-*/job.json")) if resume else []:
            if read_json(path, "Remove its folder: that task is lost.")["request"] != wanted:
                continue
            # Without a seed, two equal samples are two: it may have been handed out until we had
            # the lock.
            again, consumed = wanted["seed"] is not None, path.parent / "consumed"
            if stack.enter_context(lock(path.parent)) and (again or not consumed.exists()):
                job = worker.read_json(path)
                job["seeds"] += seeds[len(job["seeds"]) :]
                job["control"] = control
                worker.write_json(path, job)
                yield path.parent, True
                return
        check()
        nonce = secrets.token_hex(6)
        folder = root / f"job-{time.strftime('%Y%m%dT%H%M%S')}-{nonce}"
        folder.mkdir(parents=True)
        stack.enter_context(lock(folder))
        worker.write_arrays(folder / "request.npz", matrix=matrix)
        job = {
            "state": "submitted",
            "task_name": f"{task_name}-{request['matrix'][:12]}-{nonce}",
            "request": request,
            "control": control,
            "seeds": seeds,
            "tasks": [],
            "error": None,
        }
        worker.write_json(folder / "job.json", job)
        yield folder, False


_cancelled = 0


def cancel() -> None:
    """End all waiting for workers in this process; their jobs stay resumable."""
    global _cancelled
    _cancelled += 1


# Threads of a pool are joined at exit, before ordinary atexit handlers: a worker in the cloud's
# queue would keep the interpreter alive for an hour.
getattr(threading, "_register_atexit", atexit.register)(cancel)


def finish(
    folder: Path, python: Callable[[], str], poll_interval: float, timeout: float, kept: str
) -> dict[str, Any]:
    """Run the worker, unless the job is done; ``kept`` is what an error says of its fate."""
    path = folder / "job.json"
    job: dict[str, Any] = worker.read_json(path)
    if job["state"] == "done":
        return job
    job.update(state="submitted", error=None)
    worker.write_json(path, job)
    process = subprocess.Popen(
        [python(), str(Path(worker.__file__).resolve()), str(folder.resolve())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, worker.CHILD: "1"},
        start_new_session=True,  # Ctrl-C is for us; we tell the worker
    )
    tail: deque[str] = deque(maxlen=20)
    # Kept in memory: what the SDK prints may hold credentials.
    reader = threading.Thread(target=lambda: tail.extend(process.stdout or ()), daemon=True)
    reader.start()
    deadline = time.monotonic() + timeout
    at_start = _cancelled
    try:
        while time.monotonic() < deadline and _cancelled == at_start:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(poll_interval, 0.1))
            job = worker.read_json(path)
            if job["state"] in ("done", "failed") or process.returncode is not None:
                break
    finally:
        _stop(process, patience=5 if job["state"] in ("done", "failed") else 0)
        reader.join(2)
        if process.stdout is not None and not reader.is_alive():
            process.stdout.close()
    if job["state"] == "done":
        return job
    said = worker.scrub("".join(list(tail))).strip()
    if job["state"] == "failed":
        raise RuntimeError(f"The Kaiwu worker failed: {job['error']} {kept}")
    if _cancelled != at_start:
        raise RuntimeError(f"Waiting for Kaiwu was cancelled. {kept}")
    if time.monotonic() >= deadline:
        raise TimeoutError(f"No answer from Kaiwu within {timeout:g} s. {kept}")
    raise RuntimeError(
        f"The Kaiwu worker died with exit status {process.returncode}. {kept} Its last words:"
        f"\n{said or '(none)'}"
    )


def _stop(process: subprocess.Popen[str], patience: float) -> None:
    """End a worker and what it started, once it has had time to leave by itself."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    for end in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        if process.poll() is not None:
            return
        if hasattr(os, "killpg"):  # a wrapper such as a pyenv shim may stand in between
            os.killpg(process.pid, end)
        else:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Whether the job is ours: two processes that want equal samples want different reads."""
    with open(folder / "lock", "w") as handle:
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield True
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


class Replay:
    """Samples of a recording, equal requests in their order, each once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._served: dict[str, int] = {}

    def draw(self, request: dict[str, Any]) -> tuple[Reads, dict[str, Any]]:
        """The next sample of that request, and what its machine told."""
        path = self.path
        if not path.exists():
            raise FileNotFoundError(f"There is no recording at {path}.")
        with np.load(path, allow_pickle=False) as tape:
            index = json.loads(str(tape["index"]))
            key = _key(request)
            matches = [k for k, entry in enumerate(index) if _key(entry["request"]) == key]
            served = self._served.get(key, 0)
            if served >= len(matches):
                there = "; ".join(_label(entry["request"]) for entry in index)
                why = f"is there {served} times and was drawn as often" if served else "is not"
                raise RuntimeError(
                    f"{_label(request)}: this request {why} in {path}, which holds: {there}."
                )
            self._served[key] = served + 1
            return tape[f"spins_{matches[served]:05d}"], index[matches[served]]["info"]


def _key(request: Mapping[str, Any]) -> str:
    """What a recorded request is found by; seeds and tasks are the recorder's business."""
    beta = request["beta"] and f"{request['beta']:.6g}"
    names = ("matrix", "n_spins", "n_samples", "optimizer")
    return json.dumps([*(request[name] for name in names), beta])


def _label(request: Mapping[str, Any]) -> str:
    beta = "" if request["beta"] is None else f", machine beta {request['beta']:.6g}"
    return (
        f"{request['n_samples']} samples of {request['n_spins']} spins from "
        f"{request['optimizer']!r}, matrix {request['matrix'][:12]}{beta}"
    )


def append(path: Path, request: dict[str, Any], spins: Reads, info: dict[str, Any]) -> None:
    """Add a sample to a recording, which is whole at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):  # several may record at once
        arrays: dict[str, Any] = {"index": "[]"}
        if path.exists():
            with np.load(path, allow_pickle=False) as tape:
                arrays = dict(tape)
        index = json.loads(str(arrays["index"]))
        arrays[f"spins_{len(index):05d}"] = spins
        index.append({"request": request, "info": info})
        worker.write_arrays(path, **{**arrays, "index": np.array(json.dumps(index))})
