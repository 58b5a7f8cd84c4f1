"""Calls of a machine: kept on disk, given up after a time, repeated, counted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import tenacity
from numpy.typing import NDArray

from scvi_qbm._files import replacing
from scvi_qbm._numbers import positive, positive_int
from scvi_qbm.samplers.base import BudgetSpent

__all__ = ["Answer", "Calls", "Queued"]

_WRITING = threading.Lock()
_LOG = "calls.jsonl"


class Answer(NamedTuple):
    """What a machine said to one call.

    Parameters
    ----------
    reads
        int8 states as the machine gave them, ``(n_reads, n)``.
    told
        Numbers that came with them, such as the fraction of broken chains.
    kept
        Whether they come from the disk.
    """

    reads: NDArray[np.int8]
    told: dict[str, float] = {}
    kept: bool = False


class Queued(NamedTuple):
    """A call of a machine with a queue.

    Parameters
    ----------
    submit
        Puts the call into the queue and returns the name of the task.
    fetch
        The answer to a task by name; ``None`` while there is none.
    """

    submit: Callable[[], str]
    fetch: Callable[[str], Answer | None]


class _Cancelled(RuntimeError):
    pass


class Calls:
    """Asks a machine, and never twice for what it has answered.

    Every answer is a file in ``directory``: raw reads, the matrix they are of, and when they were
    drawn. A call is known by its ``key`` (:func:`key`): one that is there is not made again, and
    one that waits in a machine's queue is waited for again.

    Parameters
    ----------
    timeout
        Seconds to wait for an answer; ``None`` waits for ever. A call that is given up goes on in
        the background, and its answer is kept if it comes while the process lives; one that comes
        after that of a repetition is kept as well (``-late`` in its name), and not used.
    retries
        Times a failed or overdue call is repeated, after 1, 2, 4, ... 60 seconds.
    budget
        Calls in all, failed ones included; with a ``directory`` those of earlier processes count.
    directory
        For the answers; ``None`` keeps none.
    replay
        Take answers from ``directory`` only, and never ask.
    poll_interval
        Seconds between two questions for a task in a queue.

    Raises
    ------
    ValueError
        If an option is out of range, or ``replay`` has no directory.
    """

    def __init__(
        self,
        timeout: float | None = None,
        retries: int = 0,
        budget: int | None = None,
        directory: str | os.PathLike[str] | None = None,
        replay: bool = False,
        poll_interval: float = 1.0,
    ) -> None:
        if replay and directory is None:
            raise ValueError("`replay` needs the `directory` in which the reads were kept.")
        self.timeout = timeout if timeout is None else positive(timeout, "timeout")
        self.retries = positive_int(retries, "retries", 0)
        self.budget = budget if budget is None else positive_int(budget, "budget", 0)
        self.directory = None if directory is None else Path(directory)
        self.replay = bool(replay)
        self.poll_interval = positive(poll_interval, "poll_interval")
        self._made = 0
        self._tasks: dict[str, str] = {}
        self._end = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_end"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._end = threading.Event()

    def cancel(self) -> None:
        """End all waiting."""
        self._end.set()
        self._end = threading.Event()

    def ask(
        self,
        who: str | None,
        key: str,
        matrix: NDArray[Any],
        call: Callable[[], Answer] | Queued,
    ) -> Answer:
        """The answer to a call, from the disk or from the machine.

        Parameters
        ----------
        who
            Name of the machine; others' answers are not taken for its own. ``None`` takes
            anyone's, to be replayed.
        key
            Of the call, see :func:`key`.
        matrix
            What the machine is given, to be kept with its reads.
        call
            Asks the machine.

        Returns
        -------
        Answer
            With ``kept`` set if it was there.

        Raises
        ------
        TimeoutError
            If the machine has not answered in time.
        OSError
            If the folder cannot be written to.
        RuntimeError
            If the budget is used up, the answer to be replayed is not there, or waiting was
            cancelled. Errors of the machine come as they are, after the last retry.
        """
        if (found := self._kept(who, key)) is not None:
            return found
        if self.replay or who is None:
            raise RuntimeError(
                f"The reads to be replayed are not in {self.directory}: another model, seed, "
                "number of samples or rounding than of those that are kept there, or another "
                "version of scvi-qbm (`about` in each file), whose numbers may differ."
            )
        if self.directory is not None:
            _writable(self.directory)  # before anything is paid for
        end = self._end
        # Of two processes with one folder, one asks at a time: the other may find its answer.
        with self._lock(end):
            return self._repeated(who, key, matrix, call, end)

    @contextlib.contextmanager
    def _lock(self, end: threading.Event) -> Iterator[None]:
        if self.directory is None:
            yield
            return
        lock = filelock.FileLock(self.directory / ".lock")
        while True:
            try:
                lock.acquire(timeout=0.2)
                break
            except filelock.Timeout:
                if end.is_set():
                    raise _Cancelled("Waiting for another process was cancelled.") from None
        try:
            yield
        finally:
            lock.release()

    def _repeated(
        self,
        who: str,
        key: str,
        matrix: NDArray[Any],
        call: Callable[[], Answer] | Queued,
        end: threading.Event,
    ) -> Answer:
        """The answer at last, within the budget."""

        def attempt() -> Answer:
            if (late := self._kept(who, key)) is not None:
                return late
            if not (isinstance(call, Queued) and self._task(who, key)):
                self._count(who, key)
            if isinstance(call, Queued):
                return self._keep(who, key, matrix, lambda: self._queue(who, key, call, end))
            return self._in_time(who, lambda: self._keep(who, key, matrix, call), end)

        def before_sleep(state: tenacity.RetryCallState) -> None:
            error = state.outcome and state.outcome.exception()
            left = self.retries + 1 - state.attempt_number
            warnings.warn(
                f"{who} failed ({type(error).__name__}: {error}); it is asked again, "
                f"{'once' if left == 1 else f'{left} times'} at most.",
                RuntimeWarning,
                stacklevel=2,
            )

        answer: Answer = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.retries + 1),
            wait=tenacity.wait_exponential(min=1, max=60),
            retry=tenacity.retry_if_exception_type(Exception)
            & tenacity.retry_if_not_exception_type((_Cancelled, BudgetSpent)),
            sleep=tenacity.sleep_using_event(end),
            before_sleep=before_sleep,
            reraise=True,
        )(attempt)
        return answer

    def _count(self, who: str, key: str) -> None:
        """Take note of a call, if the budget has one left."""
        n_made = self.n_made(who)
        if self.budget is not None and n_made >= self.budget:
            kept = (
                ""
                if self.directory is None
                else f" Answers in {self.directory} are not paid for again."
            )
            raise BudgetSpent(
                f"{who} was called {n_made} times, and `budget` is {self.budget}. Raise it and "
                f"start again.{kept}"
            )
        self._made += 1
        if self.directory is not None:
            with (self.directory / _LOG).open("a") as file:
                line = {"machine": who, "key": key, "time": time.time()}
                file.write(json.dumps(line) + "\n")

    def n_made(self, who: str) -> int:
        """Calls made so far, failed ones included.

        Parameters
        ----------
        who
            Name of the machine.

        Returns
        -------
        int
            By this object, or, if that is more, by all that used its directory.
        """
        log = None if self.directory is None else self.directory / _LOG
        if log is None or not log.exists():
            return self._made
        machines = [json.loads(line)["machine"] for line in log.read_text().splitlines()]
        return max(self._made, machines.count(who))

    def _in_time(self, who: str, call: Callable[[], Answer], end: threading.Event) -> Answer:
        if self.timeout is None and threading.current_thread() is threading.main_thread():
            return call()
        answer: Future[Answer] = Future()

        def work() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised where the answer is awaited
                answer.set_exception(error)

        # A thread that ends with the process, whatever its machine does.
        threading.Thread(target=work, daemon=True, name=f"call of {who}").start()
        deadline = time.monotonic() + (self.timeout or np.inf)
        while (left := deadline - time.monotonic()) > 0:
            if wait([answer], min(left, 0.1)).done:
                return answer.result()
            if end.is_set():
                raise _Cancelled(f"Waiting for {who} was cancelled.")
        raise TimeoutError(f"{who} has not answered within {self.timeout:g} s (`timeout`).")

    def _queue(self, who: str, key: str, call: Queued, end: threading.Event) -> Answer:
        """Submit a task, unless that was done before, and wait for it."""
        path, task = self._path(who, key, ".task"), self._task(who, key)
        if not task:
            task = self._tasks[key] = call.submit()
            if not (isinstance(task, str) and task):
                raise TypeError(
                    f"submit() of {who} must return the name of a task, a str, got {task!r}."
                )
            if path is not None:
                with replacing(path) as temporary:
                    temporary.write_text(task)
        deadline = time.monotonic() + (self.timeout or np.inf)
        while (answer := call.fetch(task)) is None:
            waiting = f"{who} has not finished task {task}"
            kept = "" if path is None else f"; an equal call waits for it again ({path})"
            if end.wait(max(0.0, min(self.poll_interval, deadline - time.monotonic()))):
                raise _Cancelled(f"{waiting}, and waiting was cancelled{kept}.")
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{waiting} within {self.timeout:g} s (`timeout`){kept}.")
        self._tasks.pop(key, None)
        return answer

    def _task(self, who: str, key: str) -> str | None:
        """Name of the task that was submitted for a call, here or before a crash."""
        path = self._path(who, key, ".task")
        if path is not None and path.exists():
            return path.read_text()
        return self._tasks.get(key)

    def _path(self, who: str, key: str, suffix: str) -> Path | None:
        return None if self.directory is None else self.directory / f"{_slug(who)}-{key}{suffix}"

    def _kept(self, who: str | None, key: str) -> Answer | None:
        if self.directory is None:
            return None
        pattern = f"{'*' if who is None else _slug(who)}-{key}.npz"
        path = next(self.directory.glob(pattern), None)
        if path is None:
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                return Answer(file["reads"], json.loads(str(file["told"])), kept=True)
        except Exception as error:
            raise RuntimeError(
                f"The reads in {path} cannot be read ({type(error).__name__}: {error}). Put a "
                "copy back, or remove the file to have them drawn again."
            ) from error

    def _keep(
        self, who: str, key: str, matrix: NDArray[Any], call: Callable[[], Answer]
    ) -> Answer:
        began = time.time()
        answer = call()
        about = {
            "machine": who,
            "began": began,
            "seconds": time.time() - began,
            "scvi-qbm": version("scvi-qbm"),
        }
        path = self._path(who, key, ".npz")
        if path is None:
            return answer
        with _WRITING:  # a call that was given up may come to an end beside its repetition
            found = self._kept(who, key)
            if found is not None:
                n_late = sum(1 for _ in path.parent.glob(f"{path.stem}-late*"))
                path = path.with_name(f"{path.stem}-late{n_late}.npz")
            try:
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.savez_compressed(
                        file,
                        reads=answer.reads,
                        matrix=matrix,
                        told=json.dumps(answer.told),
                        about=json.dumps(about),
                    )
                if found is not None:
                    return found
                path.with_suffix(".task").unlink(missing_ok=True)
            except OSError as error:  # used all the same: it is paid for
                warnings.warn(
                    f"The reads of {who} cannot be kept in {path} ({error}): if this process "
                    "ends, they are asked for again.",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return answer


def _writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(
            f"Reads cannot be kept in {directory} ({error}): name another `directory`."
        ) from error


def key(entropy: np.random.SeedSequence, *parts: Any) -> str:
    """What a call is known by: the sample's seed, and what else decides its answer.

    Parameters
    ----------
    entropy
        Of the sample. One without a seed has an entropy of its own, so that it finds nothing.
    *parts
        Arrays, numbers and strings.

    Returns
    -------
    str
        24 hexadecimal digits.
    """
    told = hashlib.sha256(repr((entropy.entropy, entropy.spawn_key)).encode())
    for part in parts:
        is_array = isinstance(part, np.ndarray)
        told.update(
            part.tobytes() + repr(part.shape).encode() if is_array else repr(part).encode()
        )
    return told.hexdigest()[:24]


def _slug(who: str) -> str:
    return re.sub(r"\W+", "_", who)
