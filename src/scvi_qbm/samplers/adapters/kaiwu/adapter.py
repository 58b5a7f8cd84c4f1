"""The Kaiwu SDK's machine and annealers, from another interpreter."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scvi_qbm._numbers import positive_int
from scvi_qbm.ising import Ising
from scvi_qbm.samplers.adapters.quantise import Quantised, quantise
from scvi_qbm.samplers.adapters.reads import machine_matrix, states
from scvi_qbm.samplers.base import Guarantee, Sampler

from . import jobs, worker

__all__ = ["Kaiwu"]

READS_PER_TASK = (10, 2000)

F64 = NDArray[np.float64]
Spins = NDArray[np.int8]


class Kaiwu(Sampler):
    """Reads of a coherent Ising machine, or of Kaiwu's annealers, from another interpreter.

    The SDK ships for Python 3.10 only, so a worker process runs it there and leaves its reads in
    a job folder. A sample that was interrupted, timed out or failed is taken up by the next equal
    call, which asks the cloud for the same task; reads that arrived are kept. A finished sample
    is handed out again to a call with the same seed only, as when training is resumed.

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
    guarantee: ClassVar[Guarantee] = "heuristic"
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
        self._tape = None if replay is None else jobs.Replay(Path(replay))
        self.options = dict(optimizer_options or {})
        self._told: set[str] = set()
        self._cloud = optimizer.partition(".")[0] == "cim"

    def keep_draws(self, directory: Path) -> None:
        self.directory = self.directory or directory

    def cancel(self) -> None:
        """End the waiting for machines in this process; jobs stay resumable."""
        jobs.cancel()

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[Spins, dict[str, Any]]:
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
        if self._tape is not None:
            spins, recorded = self._tape.draw(request)
            return spins, {**info, **recorded, "replayed": True}
        handed = matrix if rounded is None else rounded.matrix
        control = {
            "poll_interval": self.poll_interval,
            "refresh": self.refresh,
            "hottest": 4 * float(np.abs(handed).sum(axis=1).max()),
        }
        seeds = [int(s) >> 1 for s in entropy.generate_state(self.max_tasks)]
        with jobs.open_job(
            self.directory,
            request,
            handed,
            self.task_name,
            control,
            seeds,
            resume=self.resume,
            check=self._interpreter,
        ) as (folder, resumed):
            kept = (
                "The job is lost: `directory` is None."
                if self.directory is None
                else f"The job is kept in {folder}; an equal call resumes it "
                "(not with resume=False)."
            )
            job = jobs.finish(folder, self._interpreter, self.poll_interval, self.timeout, kept)
            blocks = [
                worker.checked_reads(
                    worker.read_array(folder / f"reads_{k:03d}.npz", "spins"),
                    ising.n_spins + 1,
                    who,
                )
                for k in range(len(job["tasks"]))
            ]
            rng = np.random.default_rng(entropy)
            spins, report = states(blocks, matrix, ising, 1.0, n_samples, rng, who, self._told)
            told = {
                "tasks": [task["name"] for task in job["tasks"]],
                "seeded": self.optimizer in ("sa_sampler", "fake"),
                **report,
            }
            if self.record is not None:
                jobs.append(self.record, request, spins, told)
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
            "seed": given,
            "project": self.project,
            "options": self.options,
        }

    def _interpreter(self) -> str:
        return jobs.interpreter(self.python, sdk=self.optimizer != "fake")
