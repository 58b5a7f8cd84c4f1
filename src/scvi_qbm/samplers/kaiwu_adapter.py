r"""Ising machines: anything with ``solve(matrix)`` in this process, and the Kaiwu SDK outside it.

Machines of the Kaiwu family minimise :math:`H(\tilde s) = -\tilde s^\top M \tilde s`, without a
half, over n + 1 spins of which the last is an ancilla that carries the fields. With
:math:`A` = :meth:`Ising.to_ancilla <scvi_qbm.ising.Ising.to_ancilla>`,
:math:`E(s) - c = -\frac12 \tilde s^\top A \tilde s`, so that :math:`M = \beta A / 2` makes
:math:`H = \beta (E - c)`; the states of the model are :math:`s = \tilde s_{1..n} \tilde s_{n+1}`.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
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
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scvi_qbm.ising import Ising

from . import _kaiwu_worker as worker
from .base import Law, Sampler, positive_int
from .quantise import Quantised, quantise

__all__ = ["Kaiwu", "SolveAdapter"]

PYTHON_VARIABLE = "SCVI_QBM_KAIWU_PYTHON"
READS_PER_TASK = (10, 2000)
#: Pairs of equal reads expected at least, before their absence is called de-duplication.
EXPECTED_PAIRS = 10

F64 = NDArray[np.float64]
Reads = NDArray[np.int8]


def machine_matrix(ising: Ising, scale: float = 1.0) -> F64:
    r""":math:`M` with :math:`-\tilde s^\top M \tilde s` = ``scale * (E(s) - offset)``."""
    return 0.5 * scale * ising.to_ancilla()


def unfold(reads: Reads, matrix: F64, ising: Ising, scale: float, who: str) -> Reads:
    """States of the model from a machine's reads; its energies must be the model's.

    Raises
    ------
    RuntimeError
        If ``-s'Ms`` of a read is not ``scale * (energy - offset)``: a wrong mapping.
    """
    spins: Reads = reads[:, :-1] * reads[:, -1:]
    machine = -np.einsum("ri,ri->r", reads @ matrix, reads)
    model = scale * (ising.energy(spins) - ising.offset)
    size = np.abs(matrix).sum() + scale * abs(ising.offset)
    if not np.allclose(machine, model, rtol=0, atol=1e-9 * size):
        worst = float(np.abs(machine - model).max())
        raise RuntimeError(f"Energies of {who} differ from the model's by up to {worst:.3g}.")
    # Uniform states have mean 0 and variance 2 |M|^2: nothing that looks for low energies is
    # above that, unless it has the other sign.
    noise = np.sqrt(2 / len(reads)) * np.linalg.norm(matrix)
    if machine.mean() > 5 * noise:
        warnings.warn(
            f"Reads of {who} have higher energies than random states: does it minimise -s'Ms?",
            RuntimeWarning,
            stacklevel=4,
        )
    return spins


def audit(blocks: list[Reads], who: str) -> dict[str, Any]:
    """Whether blocks of reads, one a call, could be independent draws; warns where not.

    Returns
    -------
    ``n_distinct``; ``deduplicated``, no state twice within a block although equal pairs were to
    be expected, from pairs across blocks or from the number of states; ``repeated``, two blocks
    are equal read for read.
    """
    reads = np.concatenate(blocks)
    # Pools are made unique before the ancilla is folded away, or after: look at reads as they are.
    _, ids = np.unique(reads, axis=0, return_inverse=True)
    ids = ids.reshape(-1)
    labels = np.split(ids, np.cumsum([len(block) for block in blocks])[:-1])

    def pairs(counts: NDArray[np.int64]) -> float:
        return float((counts * (counts - 1.0)).sum() / 2)

    sizes = np.array([len(block) for block in blocks])
    equal_within = sum(pairs(np.unique(x, return_counts=True)[1]) for x in labels)
    across = pairs(np.array([len(ids)])) - pairs(sizes)
    equal_across = pairs(np.bincount(ids)) - equal_within
    n_free = reads.shape[1] - bool((reads[:, -1] == reads[0, -1]).all())
    chance = max(0.5**n_free, equal_across / across if across else 0.0)
    deduplicated = equal_within == 0 and chance * pairs(sizes) >= EXPECTED_PAIRS

    # Equal blocks by chance: every read must meet its like, with the chance seen within blocks.
    meets = (equal_within + 1) / (pairs(sizes) + 1)
    telling = [x.tobytes() for x in labels if len(x) * np.log(meets) < np.log(1e-6)]
    repeated = len(set(telling)) < len(telling)
    n_distinct = len(np.unique(reads * reads[:, -1:], axis=0))

    faults = []
    if n_distinct == 1 and len(ids) > 1 and reads.shape[1] > 2:
        faults.append(f"all {len(ids)} reads are the same state")
    elif sizes.max() > 1 and all((x == x[0]).all() for x in labels):
        faults.append("each call returned one state only")
    if deduplicated:
        faults.append("no state comes twice: the pool is de-duplicated, frequencies mean nothing")
    if repeated:
        faults.append("two calls returned the same reads")
    for fault in faults:
        warnings.warn(f"Reads of {who}: {fault}.", RuntimeWarning, stacklevel=4)
    return {"n_distinct": n_distinct, "deduplicated": deduplicated, "repeated": repeated}


def thin(reads: Reads, n_samples: int, rng: np.random.Generator) -> Reads:
    """``n_samples`` reads in their order, left out at random: pools may come sorted by energy."""
    kept = np.sort(rng.permutation(len(reads))[:n_samples])
    return reads[kept]


class HeatBath:
    """The smallest solver: 500 Gibbs chains of 100 sweeps at temperature 1."""

    def solve(self, matrix: F64, seed: int) -> Reads:
        """States of shape (500, n + 1)."""
        reads: Reads = worker.heat_bath(matrix, 1.0, 500, 100, seed)
        return reads


class SolveAdapter(Sampler):
    """Reads of any object with ``solve(matrix)``, such as a ``kaiwu.core.IsingSolver``.

    ``solve`` gets a float64 matrix of shape (n + 1, n + 1) and returns states of -1 and +1,
    shape (reads, n + 1), that are low in ``-s'Ms``; it is called until there are enough.

    Parameters
    ----------
    solver
        The object, or ``"module:attribute"``: imported, and called unless it is a solver itself.
    n_bits
        Round the matrix to signed integers of so many bits (:func:`~.quantise.quantise`) before
        it is handed over; ``info["quantisation"]`` says what that cost. The temperature of the
        integers is the report's ``gain`` times that of the matrix. ``None`` does not round.
    scale_beta
        Multiply the matrix by beta, for solvers that work at temperature 1. Without it the
        solver's own temperature decides, whatever beta is.
    max_solves
        Calls of ``solve`` for one sample at most.

    Notes
    -----
    A solver is seeded only through a keyword ``seed`` or ``rand_seed`` of ``solve``, a new
    integer at each call: an attribute of that name may have been read long before. Otherwise
    ``info["seeded"]`` is False and a seed does not repeat the reads.
    """

    name: ClassVar[str] = "solve"
    law: ClassVar[Law] = "heuristic"
    conformance: ClassVar[dict[str, Any]] = {"solver": f"{__name__}:HeatBath"}

    def __init__(
        self,
        solver: Any = None,
        n_bits: int | None = None,
        scale_beta: bool = True,
        max_solves: int = 1000,
    ) -> None:
        self.solver = _solver(solver)
        self.n_bits = n_bits if n_bits is None else positive_int(n_bits, "n_bits", 2)
        self.scale_beta = scale_beta
        self.max_solves = positive_int(max_solves, "max_solves")

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[Reads, dict[str, Any]]:
        if self.solver is None:
            raise ValueError("Sampler 'solve' needs a solver: get_sampler('solve', solver=...).")
        who = f"solver {type(self.solver).__name__}"
        scale = beta if self.scale_beta else 1.0
        matrix = machine_matrix(ising, scale)
        rounded = None if self.n_bits is None else quantise(matrix, self.n_bits)
        handed = matrix if rounded is None else rounded.matrix.astype(np.float64)
        keyword = _seed_keyword(self.solver)
        rng = np.random.default_rng(entropy)
        blocks: list[Reads] = []
        while sum(map(len, blocks)) < n_samples:
            if len(blocks) == self.max_solves:
                raise RuntimeError(
                    f"{who} gave {sum(map(len, blocks))} of {n_samples} reads in {len(blocks)} "
                    "calls; raise `max_solves`."
                )
            seed = {} if keyword is None else {keyword: int(rng.integers(2**31))}
            reads = self.solver.solve(handed.copy(), **seed)
            blocks.append(worker.checked_reads(reads, ising.n_spins + 1, who))
        report = audit(blocks, who)
        reads = thin(np.concatenate(blocks), n_samples, rng)
        return unfold(reads, matrix, ising, scale, who), {
            "n_solves": len(blocks),
            "seeded": keyword is not None,
            "scale_beta": self.scale_beta,
            "quantisation": None if rounded is None else rounded.as_dict(),
            **report,
        }


def _solver(solver: Any) -> Any:
    if isinstance(solver, str):
        module, colon, attribute = solver.partition(":")
        if not colon:
            raise ValueError(f"`solver` must look like 'module:attribute', got {solver!r}.")
        solver = getattr(import_module(module), attribute)
        if isinstance(solver, type) or not hasattr(solver, "solve"):
            solver = solver()
    if solver is not None and (
        isinstance(solver, type) or not callable(getattr(solver, "solve", None))
    ):
        raise TypeError(f"`solver` must be an object with solve(matrix), got {solver!r}.")
    return solver


def _seed_keyword(solver: Any) -> str | None:
    try:
        known = inspect.signature(solver.solve).parameters
    except (TypeError, ValueError):  # compiled without a signature
        return None
    return next((name for name in ("seed", "rand_seed") if name in known), None)


class Kaiwu(Sampler):
    """Reads of a coherent Ising machine, or of Kaiwu's annealers, from another interpreter.

    The SDK ships for Python 3.10 only, so a worker process runs it there and leaves its reads in
    a job folder. A sample that was interrupted, timed out or failed is taken up by the next equal
    call, which asks the cloud for the same task; reads that arrived are kept. A finished sample
    is never handed out twice.

    The licence is read from ``KAIWU_USER_ID`` and ``KAIWU_SDK_CODE`` in the environment only,
    and neither written to disk nor shown.

    Parameters
    ----------
    python
        Interpreter with the SDK and numpy; by default the environment's
        ``SCVI_QBM_KAIWU_PYTHON`` (with ``optimizer="fake"``, this one).
    optimizer
        ``"cim"``, the machine in the cloud, at a temperature of its own; ``"sa_sampler"``, the
        SDK's annealer with independent reads, ending at 1 / beta; ``"fake"``, Gibbs chains in the
        worker without the SDK, for tests; or a class of the SDK such as
        ``"classical.TabuSearchOptimizer"``.
    directory
        Holds a folder for each job; ``None`` keeps nothing, so that nothing can be resumed.
    n_bits
        Bits of an integer coupling; ``info["quantisation"]`` says what rounding cost. ``None``
        hands over float64, on which ``"cim"`` uses the SDK's own ``PrecisionReducer``.
    task_name
        Start of every task's name; a hash of the matrix and a nonce follow, since the cloud
        answers an old name with old reads.
    project
        Project number in the cloud.
    sample_number
        Reads a task, 10 to 2000.
    max_tasks
        Tasks of one sample at most; each costs quota.
    poll_interval
        Seconds between questions to the cloud.
    timeout
        Seconds after which a call gives up; the job stays.
    max_spins
        Spins of the machine, ancilla included (``"cim"`` only).
    resume
        Take up an unfinished job for the same matrix and request.
    record
        File (.npz) to which every sample is added, with its request.
    replay
        Such a file, to draw from instead of a machine, equal requests in their order; no process
        is started.
    optimizer_options
        More arguments for the optimiser, such as ``{"alpha": 0.999}``; for ``"fake"``
        ``n_sweeps`` and ``delay`` (seconds).

    Raises
    ------
    ValueError
        If an option is out of range or too many spins or reads are asked for.
    FileNotFoundError
        If the interpreter or the recording is missing.
    TimeoutError
        After ``timeout`` seconds; the message names the job.
    RuntimeError
        If the worker fails or dies, or a request is not in the recording.

    References
    ----------
    Kaiwu SDK, QBoson: https://kaiwu-sdk-docs.qboson.com
    """

    name: ClassVar[str] = "kaiwu"
    law: ClassVar[Law] = "heuristic"
    conformance: ClassVar[dict[str, Any]] = {"optimizer": "fake", "directory": None}
    #: Seconds after which the worker logs in again; a token lasts about a day.
    refresh: ClassVar[float] = 20 * 3600.0

    def __init__(
        self,
        python: str | os.PathLike[str] | None = None,
        optimizer: str = "cim",
        directory: str | os.PathLike[str] | None = "kaiwu-jobs",
        n_bits: int | None = 8,
        task_name: str = "scvi-qbm",
        project: str | None = None,
        sample_number: int = 1000,
        max_tasks: int = 20,
        poll_interval: float = 30.0,
        timeout: float = 3600.0,
        max_spins: int = 550,
        resume: bool = True,
        record: str | os.PathLike[str] | None = None,
        replay: str | os.PathLike[str] | None = None,
        optimizer_options: Mapping[str, Any] | None = None,
    ) -> None:
        low, high = READS_PER_TASK
        if optimizer not in (*worker.OPTIMIZERS, "fake") and "." not in optimizer:
            raise ValueError(
                f"`optimizer` must be 'cim', 'sa_sampler', 'fake' or 'module.Class' of the SDK, "
                f"got {optimizer!r}."
            )
        if not low <= sample_number <= high:
            raise ValueError(f"`sample_number` must be within {low} and {high}.")
        if not poll_interval > 0 or not timeout > 0:
            raise ValueError("`poll_interval` and `timeout` must be positive.")
        if record is not None and replay is not None:
            raise ValueError("Give `record` or `replay`, not both.")
        self.python, self.optimizer = python, optimizer
        self.directory = None if directory is None else Path(directory)
        self.n_bits = n_bits if n_bits is None else positive_int(n_bits, "n_bits", 2)
        self.task_name, self.project = task_name, project
        self.sample_number = positive_int(sample_number, "sample_number")
        self.max_tasks = positive_int(max_tasks, "max_tasks")
        self.poll_interval, self.timeout = poll_interval, timeout
        self.max_spins, self.resume = positive_int(max_spins, "max_spins", 2), resume
        self.record = None if record is None else Path(record)
        self.replay = None if replay is None else Path(replay)
        self.options = dict(optimizer_options or {})
        self._cloud = optimizer.partition(".")[0] == "cim"
        self._served: dict[str, int] = {}

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[Reads, dict[str, Any]]:
        if self._cloud and ising.n_spins + 1 > self.max_spins:
            raise ValueError(
                f"The model has {ising.n_spins} spins and its fields need one more; the machine "
                f"has `max_spins` = {self.max_spins}."
            )
        who = f"Kaiwu optimizer {self.optimizer!r}"
        matrix = machine_matrix(ising)
        rounded = None if self.n_bits is None else quantise(matrix, self.n_bits)
        request = self._request(matrix, rounded, beta, n_samples, entropy)
        info: dict[str, Any] = {
            "optimizer": self.optimizer,
            "machine_beta": request["beta"],
            "quantisation": None if rounded is None else rounded.as_dict(),
        }
        if self.replay is not None:
            spins, recorded = self._replayed(self.replay, request)
            return spins, {**info, **recorded, "replayed": True}
        handed = matrix if rounded is None else rounded.matrix
        with self._job(request, handed, entropy) as (folder, resumed):
            job = self._finish(folder)
            blocks = [
                worker.checked_reads(
                    worker.read_array(folder / f"reads_{k:03d}.npz", "spins"),
                    ising.n_spins + 1,
                    who,
                )
                for k in range(len(job["tasks"]))
            ]
            report = audit(blocks, who)
            reads = thin(np.concatenate(blocks), n_samples, np.random.default_rng(entropy))
            spins = unfold(reads, matrix, ising, 1.0, who)
            told = {
                "tasks": [task["name"] for task in job["tasks"]],
                "seeded": self.optimizer in ("sa_sampler", "fake"),
                **report,
            }
            if self.record is not None:
                _append(self.record, request, spins, told)
            (folder / "consumed").touch()
        job_folder = None if self.directory is None else str(folder)
        return spins, {**info, **told, "job": job_folder, "resumed": resumed, "replayed": False}

    def _request(
        self,
        matrix: F64,
        rounded: Quantised | None,
        beta: float,
        n_samples: int,
        entropy: np.random.SeedSequence,
    ) -> dict[str, Any]:
        """What decides the reads: two equal requests may share a job."""
        n_tasks = -(-n_samples // self.sample_number)
        if n_tasks > self.max_tasks:
            raise ValueError(
                f"{n_samples} samples need {n_tasks} tasks of `sample_number` = "
                f"{self.sample_number}, and `max_tasks` is {self.max_tasks}."
            )
        # The machine's energies are `gain` times the model's, so its beta is that much smaller.
        machine_beta = beta / (1.0 if rounded is None else rounded.gain)
        if not self._cloud and self.optimizer != "fake" and not machine_beta > 0:
            raise ValueError(f"{self.optimizer!r} cools to 1 / beta: `beta` must be positive.")
        given = entropy.entropy if isinstance(entropy.entropy, int) else None
        if given is not None and given.bit_length() > 64:
            given = None  # drawn by numpy (128 bits), not given: an interrupted call may resume
        data = matrix if rounded is None else rounded.matrix
        return {
            "matrix": hashlib.sha256(data.tobytes() + str(data.dtype).encode()).hexdigest(),
            "n_spins": len(data) - 1,
            "n_samples": n_samples,
            "optimizer": self.optimizer,
            "beta": None if self._cloud else machine_beta,
            "n_bits": self.n_bits,
            "reads_per_task": max(READS_PER_TASK[0], -(-n_samples // n_tasks)),
            "seed": None if self._cloud else given,
            "project": self.project,
            "options": self.options,
        }

    @contextlib.contextmanager
    def _job(
        self, request: dict[str, Any], matrix: NDArray[Any], entropy: np.random.SeedSequence
    ) -> Iterator[tuple[Path, bool]]:
        """A job's folder, ours as long as the context lasts, and whether it was there before."""
        seeds = [int(s) >> 1 for s in entropy.generate_state(self.max_tasks)]
        control = {
            "poll_interval": self.poll_interval,
            "refresh": self.refresh,
            "hottest": 4 * float(np.abs(matrix).sum(axis=1).max()),
        }
        with contextlib.ExitStack() as stack:
            root = self.directory
            if root is None:
                root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kaiwu-")))
            wanted = json.loads(json.dumps(request))
            for path in sorted(root.glob("job-*/job.json")) if self.resume else []:
                consumed = path.parent / "consumed"
                if consumed.exists() or worker.read_json(path)["request"] != wanted:
                    continue
                # It may have been at work, and finished, until we had the lock.
                if stack.enter_context(_lock(path.parent)) and not consumed.exists():
                    job = worker.read_json(path)
                    job["seeds"] += seeds[len(job["seeds"]) :]
                    job["control"] = control
                    worker.write_json(path, job)
                    yield path.parent, True
                    return
            self._interpreter()  # complain before there is a folder
            nonce = secrets.token_hex(6)
            folder = root / f"job-{time.strftime('%Y%m%dT%H%M%S')}-{nonce}"
            folder.mkdir(parents=True)
            stack.enter_context(_lock(folder))
            worker.write_arrays(folder / "request.npz", matrix=matrix)
            job = {
                "state": "submitted",
                "task_name": f"{self.task_name}-{request['matrix'][:12]}-{nonce}",
                "request": request,
                "control": control,
                "seeds": seeds,
                "tasks": [],
                "error": None,
            }
            worker.write_json(folder / "job.json", job)
            yield folder, False

    def _interpreter(self) -> str:
        python = self.python or os.environ.get(PYTHON_VARIABLE)
        if python is None and self.optimizer == "fake":
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
        if missing and self.optimizer != "fake":
            raise RuntimeError(f"The licence is missing: set {' and '.join(missing)}.")
        return found

    def _finish(self, folder: Path) -> dict[str, Any]:
        """Run the worker until the job is done."""
        path = folder / "job.json"
        job: dict[str, Any] = worker.read_json(path)
        if job["state"] == "done":
            return job
        job.update(state="submitted", error=None)
        worker.write_json(path, job)
        process = subprocess.Popen(
            [self._interpreter(), str(Path(worker.__file__).resolve()), str(folder.resolve())],
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
        deadline = time.monotonic() + self.timeout
        try:
            while time.monotonic() < deadline:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(self.poll_interval, 0.1))
                job = worker.read_json(path)
                if job["state"] in ("done", "failed") or process.returncode is not None:
                    break
        finally:
            _stop(process, patience=5 if job["state"] in ("done", "failed") else 0)
            reader.join(2)
            if process.stdout is not None and not reader.is_alive():
                process.stdout.close()
        kept = "The job is lost: `directory` is None."
        if self.directory is not None:
            kept = (
                f"The job is kept in {folder}; an equal call resumes it (not with resume=False)."
            )
        if job["state"] == "done":
            return job
        said = worker.scrub("".join(list(tail))).strip()
        if job["state"] == "failed":
            raise RuntimeError(f"The Kaiwu worker failed: {job['error']} {kept}")
        if time.monotonic() >= deadline:
            raise TimeoutError(f"No answer from Kaiwu within {self.timeout:g} s. {kept}")
        raise RuntimeError(
            f"The Kaiwu worker died with exit status {process.returncode}. {kept} Its last words:"
            f"\n{said or '(none)'}"
        )

    def _replayed(self, path: Path, request: dict[str, Any]) -> tuple[Reads, dict[str, Any]]:
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
def _lock(folder: Path) -> Iterator[bool]:
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


def _append(path: Path, request: dict[str, Any], spins: Reads, info: dict[str, Any]) -> None:
    """Add a sample to a recording, which is whole at any moment."""
    arrays: dict[str, Any] = {"index": "[]"}
    if path.exists():
        with np.load(path, allow_pickle=False) as tape:
            arrays = dict(tape)
    index = json.loads(str(arrays["index"]))
    arrays[f"spins_{len(index):05d}"] = spins
    index.append({"request": request, "info": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    worker.write_arrays(path, **{**arrays, "index": np.array(json.dumps(index))})
