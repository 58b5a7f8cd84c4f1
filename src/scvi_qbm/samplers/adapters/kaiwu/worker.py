"""Runs one job of the Kaiwu SDK: ``python worker.py JOBDIR``.

It stands alone: the standard library, numpy and the SDK of the interpreter that runs it (Python
3.8 or later), nothing of scvi_qbm, which imports the helpers on files and reads from here, so that
a job folder is described once:

    request.npz        matrix (n + 1, n + 1), last spin the ancilla, H(s) = -s'Ms (no 1/2)
    job.json           state (submitted, waiting, done, failed), request, tasks, error
    reads_000.npz ...  spins int8 (reads, n + 1) of each task, kept whatever happens later
    checkpoints/000/   the SDK's own, one folder a task
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Sequence  # noqa: UP035 - the worker's Python may be 3.8

import numpy as np

CREDENTIALS = ("KAIWU_USER_ID", "KAIWU_SDK_CODE")
CHILD = "SCVI_QBM_KAIWU_CHILD"
OPTIMIZERS = {"cim": "cim.CIMOptimizer", "sa_sampler": "sampler.SimulatedAnnealingSampler"}


def write_json(path: Path, data: Any) -> None:
    """Write so that a reader sees the old file or the new one, never half of one."""
    scratch = path.with_suffix(".tmp%d" % os.getpid())  # noqa: UP031
    scratch.write_text(json.dumps(data, indent=1), encoding="utf-8")
    os.replace(scratch, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_arrays(path: Path, **arrays: Any) -> None:
    """As :func:`write_json`, for a compressed .npz file."""
    scratch = path.with_suffix(".tmp%d" % os.getpid())  # noqa: UP031
    with open(scratch, "wb") as handle:
        np.savez_compressed(handle, **arrays)
    os.replace(scratch, path)


def read_array(path: Path, name: str) -> Any:
    """One array of an .npz file."""
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


def scrub(text: str) -> str:
    """``text`` without the licence's credentials."""
    for name in CREDENTIALS:
        value = os.environ.get(name)
        if value:
            text = text.replace(value, "<%s>" % name)  # noqa: UP031
    return text


def checked_reads(reads: Any, n_columns: int, solver: str) -> Any:
    """States as int8 ``(reads, n_columns)``, or a RuntimeError that says what came instead."""
    expected = f"states of shape (reads, {n_columns}) with entries -1 and +1"
    if reads is None:
        raise RuntimeError(f"{solver} returned None, expected {expected}.")
    try:
        states = np.asarray(reads)
        plain = states.dtype.kind in "iuf"
    except ValueError:  # ragged lists
        plain = False
    if not plain:
        raise RuntimeError(f"{solver} returned a {type(reads).__name__}, expected {expected}.")
    if states.ndim != 2 or states.shape[1] != n_columns:
        raise RuntimeError(f"{solver} returned an array of shape {states.shape}, not {expected}.")
    if not len(states):
        raise RuntimeError(f"{solver} returned no states at all, expected {expected}.")
    wrong = states[(states != 1) & (states != -1)]
    if wrong.size:
        raise RuntimeError(f"{solver} returned entries such as {wrong[0]}, expected {expected}.")
    return states.astype(np.int8)


def heat_bath(matrix: Any, beta: float, n_reads: int, n_sweeps: int, seed: int) -> Any:
    """Independent sequential Gibbs chains of exp(-beta H), H(s) = -s'Ms, from random states."""
    rng = np.random.default_rng(seed)
    n = matrix.shape[0]
    spins = rng.choice([-1.0, 1.0], size=(n_reads, n))
    for _ in range(n_sweeps):
        for i in range(n):
            # H with spin i down minus H with it up is 4 (Ms)_i.
            bias = 4 * beta * (spins @ matrix[:, i] - spins[:, i] * matrix[i, i])
            up = rng.random(n_reads) < 0.5 * (1 + np.tanh(bias / 2))
            spins[:, i] = np.where(up, 1.0, -1.0)
    return spins.astype(np.int8)


class Fake:
    """In the SDK's place: Gibbs chains that, like the cloud, are ready after ``delay`` seconds."""

    waits = True

    def __init__(self, request: dict[str, Any], directory: Path) -> None:
        self.beta = request["beta"]
        options = {"n_sweeps": 100, "delay": 0.0}
        unknown = set(request["options"]) - set(options)
        if unknown:
            raise TypeError(f"The fake has no option {sorted(unknown)}; it has {sorted(options)}.")
        options.update(request["options"])
        self.n_sweeps, self.delay = int(options["n_sweeps"]), options["delay"]
        self.directory = directory

    def refresh(self) -> None:
        """No licence to refresh."""

    def task(self, index: int, name: str, n_reads: int, seed: int) -> Callable[[Any], Any]:
        """A function of the matrix that returns None until the reads are there."""
        receipt = self.directory / f"fake_{index:03d}.json"
        if not receipt.exists():
            write_json(receipt, {"task": name, "submitted": time.time()})

        def solve(matrix: Any) -> Any:
            if time.time() - read_json(receipt)["submitted"] < self.delay:
                return None
            return heat_bath(matrix, self.beta, n_reads, self.n_sweeps, seed)

        return solve


def construct(
    factory: Callable[..., Any],
    args: Sequence[Any],
    ours: Sequence[tuple[Sequence[str], Any]],
    options: dict[str, Any],
) -> Any:
    """Call ``factory`` with those of ``ours`` that its signature knows, and all ``options``.

    Signatures differ between versions of the SDK: each entry of ``ours`` lists the names that one
    argument has had.
    """
    parameters: set[str] = set()
    takes_any = True
    try:
        signature = inspect.signature(factory).parameters
        parameters = set(signature)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    except (TypeError, ValueError):  # compiled without a signature
        pass
    unknown = [] if takes_any else sorted(set(options) - parameters)
    label = getattr(factory, "__name__", factory)
    if unknown:
        raise TypeError(f"{label} has no option {unknown}; it has {sorted(parameters)}.")
    keywords = {}
    for names, value in ours:
        known = [name for name in names if takes_any or name in parameters]
        if known:
            keywords[known[0]] = value
        elif "task_name" in names:
            raise TypeError(f"{label} takes no task name: its reads could be cached ones.")
    keywords.update(options)
    return factory(*args, **keywords)


class Sdk:
    """The Kaiwu SDK: licence, checkpoints and one optimiser a task."""

    def __init__(self, request: dict[str, Any], directory: Path) -> None:
        self.request, self.directory = request, directory
        self.path: str = OPTIMIZERS.get(request["optimizer"], request["optimizer"])
        self.waits = self.path.startswith("cim.")
        self.licence, self.licensed = self.module("license"), float("-inf")
        self.refresh()

    @staticmethod
    def module(name: str) -> Any:
        try:
            return importlib.import_module("kaiwu." + name)
        except ImportError as error:
            raise RuntimeError(
                f"{sys.executable} has no kaiwu.{name} ({error}). `python` must be an interpreter "
                "with the Kaiwu SDK (pip install kaiwu; kaiwu-community alone has no solvers)."
            ) from error

    def refresh(self) -> None:
        """Log in, and again before the token runs out (about a day)."""
        if time.monotonic() - self.licensed >= self.request["refresh"]:
            self.licence.init(*(os.environ[name] for name in CREDENTIALS))
            self.licensed = time.monotonic()

    def task(self, index: int, name: str, n_reads: int, seed: int) -> Callable[[Any], Any]:
        """The ``solve`` of a new optimiser; where the cloud is asked, None until it answers."""
        manager = self.module("common").CheckpointManager
        folder = self.directory / "checkpoints" / f"{index:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        manager.save_dir = str(folder)
        # Checkpoints are named by a count of objects: a resumed job must count from one again.
        for counter in ("_class_name_counter", "_dict_obj_identity"):
            if isinstance(getattr(manager, counter, None), dict):
                getattr(manager, counter).clear()
        module, _, attribute = self.path.rpartition(".")
        factory = getattr(self.module(module), attribute)
        optimizer = construct(
            factory,
            (),
            self.cloud(name, n_reads) if self.waits else self.annealing(n_reads, seed),
            self.request["options"],
        )
        if self.waits and self.request["n_bits"] is None:
            optimizer = construct(self.reducer(), (optimizer,), [(("precision",), 8)], {})
        return optimizer.solve  # type: ignore[no-any-return]

    def cloud(self, name: str, n_reads: int) -> list[tuple[Sequence[str], Any]]:
        modes = getattr(self.module("cim"), "TaskMode", None)
        ours: list[tuple[Sequence[str], Any]] = [
            (("task_name", "task_name_prefix"), name),
            (("wait",), False),
            (("sample_number",), n_reads),
            (("task_mode",), getattr(modes, "SAMPLING", "sample")),
        ]
        project = self.request["project"]
        return ours if project is None else [*ours, (("project_no",), project)]

    def annealing(self, n_reads: int, seed: int) -> list[tuple[Sequence[str], Any]]:
        return [
            (("initial_temperature",), max(self.request["hottest"], 10 / self.request["beta"])),
            (("cutoff_temperature",), 1 / self.request["beta"]),
            (("size_limit",), n_reads),
            (("rand_seed",), seed),
        ]

    def reducer(self) -> Any:
        for module in ("preprocess", "cim"):
            try:
                return self.module(module).PrecisionReducer
            except (RuntimeError, AttributeError):
                continue
        raise RuntimeError("This SDK has no PrecisionReducer: use n_bits=8.")


def wait_for(backend: Any, solve: Callable[[Any], Any], matrix: Any, poll: float) -> Any:
    """Ask until there is an answer; leave when the parent has gone without a word."""
    parent = os.getppid()
    while True:
        reads = solve(matrix)
        if reads is not None or not backend.waits:
            return reads
        time.sleep(poll)
        if os.environ.get(CHILD) and os.getppid() != parent:
            raise SystemExit("The parent process is gone; the job can be resumed.")
        backend.refresh()


def run(directory: Path, job: dict[str, Any]) -> None:
    """Gather the reads of a job, task by task, taking up what is on disk already."""
    request = job["request"]
    backend: Any = None
    matrix = np.asarray(read_array(directory / "request.npz", "matrix"), dtype=np.float64)
    gathered, job["tasks"] = 0, []
    for index, seed in enumerate(job["seeds"]):
        if gathered >= request["n_samples"]:
            break
        path = directory / f"reads_{index:03d}.npz"
        name = f"{job['task_name']}-{index:03d}"
        if not path.exists():
            if backend is None:
                kind: Any = Fake if request["optimizer"] == "fake" else Sdk
                backend = kind({**request, **job["control"]}, directory)
            backend.refresh()
            solve = backend.task(index, name, request["reads_per_task"], seed)
            reads = wait_for(backend, solve, matrix, job["control"]["poll_interval"])
            label = f"Kaiwu optimizer {request['optimizer']!r}"
            write_arrays(path, spins=checked_reads(reads, matrix.shape[0], label))
        n_reads = len(read_array(path, "spins"))
        gathered += n_reads
        job["tasks"].append({"name": name, "reads": n_reads})
        write_json(directory / "job.json", job)
    if gathered < request["n_samples"]:
        raise RuntimeError(
            f"{len(job['seeds'])} tasks gave {gathered} of {request['n_samples']} reads; raise "
            "`max_tasks`."
        )


def main(directory: Path) -> int:
    """Run the job in ``directory``; its state says how that went, and so does the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # let the SDK close its connections
    job = read_json(directory / "job.json")
    try:
        job.update(state="waiting", error=None, pid=os.getpid())
        write_json(directory / "job.json", job)
        run(directory, job)
        job["state"] = "done"
    except Exception as error:  # noqa: BLE001 - whatever the SDK raises belongs in the job's file
        trace = traceback.format_exc()
        message = f"{type(error).__name__}: {error}"
        job.update(state="failed", error=scrub(message), traceback=scrub(trace))
    write_json(directory / "job.json", job)
    return 0 if job["state"] == "done" else 1


if __name__ == "__main__":
    # Our neighbours must not pass for modules of the SDK.
    sys.path[:] = [p for p in sys.path if p != str(Path(__file__).parent)]
    sys.exit(main(Path(sys.argv[1])))
