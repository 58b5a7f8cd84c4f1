"""The benchmark on Ray: on a stand-in with a clock of its own, and, where there is one, on Ray."""

import math
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from support.pool import work

from scvi_qbm.benchmark import ray as _ray
from scvi_qbm.benchmark import run
from scvi_qbm.benchmark.config import Config, DataSpec


class RayError(Exception):
    cause = None


class Job:
    """A task on the cluster, and the references to what it yields."""

    def __init__(self, task, values, cpus):
        self.task, self.values, self.cpus = task, values, cpus
        self.taken, self.end = 0, None

    def ready(self, now):
        return self.end is not None and (self.taken == 0 or now >= self.end)

    def __next__(self):
        self.taken += 1
        return self


class Ray(ModuleType):
    """As much of Ray as is used. A task is ``(what it does, its seconds)``."""

    def __init__(self, cpus=8):
        super().__init__("ray")
        self.exceptions = SimpleNamespace(RayError=RayError)
        self.cpus, self.now, self.jobs, self.cancelled = cpus, 0.0, [], []
        self.initialized, self.waits, self.interrupt_at = False, 0, math.inf

    def is_initialized(self):
        return self.initialized

    def init(self, **kwargs):
        self.initialized = True

    def shutdown(self):
        self.initialized = False

    def nodes(self):
        return [{"Resources": {"memory": 1.0}}, {"Resources": {"CPU": float(self.cpus)}}]

    def remote(self, **options):
        self.options = options

        def decorated(function):
            def submit(task):
                self.jobs.append(Job(task, function(task), options["num_cpus"]))
                return self.jobs[-1]

            return SimpleNamespace(remote=submit)

        return decorated

    def at_work(self):
        return [job for job in self.jobs if job.end is not None and job.end > self.now]

    def start(self):
        for job in self.jobs:
            if job.end is None and sum(j.cpus for j in self.at_work()) + job.cpus <= self.cpus:
                job.end = self.now + job.task[1]

    def wait(self, jobs, timeout=None):
        self.waits += 1
        assert self.waits < 100, "the driver never rests"
        until = math.inf if timeout is None else self.now + timeout
        while True:
            self.start()
            ready = [job for job in jobs if job.ready(self.now)][:1]
            if ready or self.now >= until:
                return ready, [job for job in jobs if job not in ready]
            self.now = min([until, self.interrupt_at, *(job.end for job in self.at_work())])
            assert self.now < math.inf, "waits for ever"
            if self.now == self.interrupt_at:
                raise KeyboardInterrupt

    def get(self, job):
        if job.taken == 2 and job.task[0] == "die":
            raise RayError("The worker died.\nHere is how to look into it.")
        if job.taken == 2 and job.task[0] == "raise":
            error = RayError("ray::remote() (pid=3)\nmany lines\nKeyError: 'x'")
            error.cause = KeyError("x")
            raise error
        return next(job.values)

    def cancel(self, job, force):
        assert force, "it would go on"
        self.cancelled.append(job.task)
        job.end = self.now


@pytest.fixture
def ray(monkeypatch):
    ray = Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(_ray, "time", SimpleNamespace(monotonic=lambda: ray.now))
    return ray


@pytest.fixture
def start(ray, tmp_path):
    def start(tasks, **kwargs):
        defaults = {
            "n_workers": 2, "n_threads": 1, "timeout": 5, "environment": {"A": "b"},
            "logs": tmp_path / "not here",
        }  # fmt: skip
        function = lambda task: {"status": "ok", "reason": task[0]}  # noqa: E731
        return _ray.work_through_on_ray(tasks, function, **(defaults | kwargs))

    return start


@pytest.fixture
def outcome(ray, start):
    """``task -> (seconds since the start, reason)``."""
    return lambda *args, **kwargs: {
        task: (ray.now, row["reason"]) for task, row in start(*args, **kwargs)
    }


STOPPED = "Stopped after 5 s."


def test_rows_come_as_they_are_ready(ray, outcome):
    tasks = [("a", 3), ("b", 1), ("c", 1), ("d", 2)]
    assert list(outcome(tasks).items()) == [
        (("b", 1), (1, "b")), (("c", 1), (2, "c")), (("a", 3), (3, "a")), (("d", 2), (4, "d")),
    ]  # fmt: skip
    assert not ray.initialized and not ray.cancelled
    assert ray.options["max_retries"] == 0
    assert ray.options["runtime_env"] == {"env_vars": {"A": "b"}}


def test_no_tasks_wait_for_nothing(outcome):
    assert outcome([]) == {}


def test_a_row_that_hangs_is_stopped_while_others_finish(ray, outcome):
    quick = [(name, 1) for name in "abcdefgh"]
    rows = outcome([("hang", math.inf), *quick])
    assert rows.pop(("hang", math.inf)) == (5, STOPPED)
    assert ray.cancelled == [("hang", math.inf)]
    assert [reason for _, reason in rows.values()] == list("abcdefgh")


def test_each_has_a_deadline_of_its_own(outcome):
    rows = outcome([("hang", math.inf), ("a", 3), ("late", 7), ("b", 1), ("c", 4)])
    assert rows == {
        ("a", 3): (3, "a"), ("hang", math.inf): (5, STOPPED), ("b", 1): (6, "b"),
        ("late", 7): (8, STOPPED), ("c", 4): (10, "c"),
    }  # fmt: skip


def test_waiting_for_cpus_is_not_counted(ray, outcome):
    rows = outcome([("a", 4), ("b", 4), ("hang", 9)], n_workers=3, n_threads=5)
    assert rows == {("a", 4): (4, "a"), ("b", 4): (8, "b"), ("hang", 9): (13, STOPPED)}
    assert {job.cpus for job in ray.jobs} == {5}


def test_a_row_that_was_ready_before_we_looked_is_kept(ray, start):
    rows = {}
    for task, row in start([("a", 1), ("b", 4)]):
        rows[task] = row["status"]
        ray.now += 60
    assert rows == {("a", 1): "ok", ("b", 4): "ok"}


def test_without_a_timeout_rows_take_their_time(outcome):
    tasks = [("a", 1e6), ("b", 1), ("die", 9)]
    assert list(outcome(tasks, timeout=None)) == [("b", 1), ("die", 9), ("a", 1e6)]


def test_a_worker_that_dies_costs_its_own_row_only(ray, outcome):
    rows = outcome([("die", 1), ("a", 2), ("b", 3)])
    assert rows[("die", 1)] == (1, "RayError: The worker died.")
    assert (rows[("a", 2)], rows[("b", 3)]) == ((2, "a"), (4, "b"))
    assert not ray.cancelled


def test_what_a_row_raises_is_its_reason(outcome):
    assert outcome([("raise", 1), ("a", 1)]) == {
        ("raise", 1): (1, "KeyError: 'x'"), ("a", 1): (1, "a"),
    }  # fmt: skip


@pytest.mark.parametrize("theirs", [True, False])
@pytest.mark.parametrize("how", ["interrupted", "left"])
def test_a_run_that_ends_early_leaves_nothing_at_work(theirs, how, ray, start):
    """A cluster that was there before us stays, without our rows."""
    ray.initialized = theirs
    rows = start([("a", 1), ("b", 9), ("c", 9), ("d", 9)], n_workers=3)
    next(rows)
    if how == "left":
        rows.close()
    else:
        ray.interrupt_at = 2
        with pytest.raises(KeyboardInterrupt):
            next(rows)
    assert ray.initialized == theirs
    at_work = [("b", 9), ("c", 9)] + [("d", 9)] * (how == "interrupted")
    assert ray.cancelled == (at_work if theirs else [])


def test_what_rows_print_is_kept_where_logs_are_shared(ray, outcome, tmp_path, monkeypatch):
    logs = []
    monkeypatch.setattr(_ray, "print_to", logs.append)
    outcome([("a", 1)])
    assert logs == []
    outcome([("a", 1)], logs=tmp_path)
    assert [(log.parent, log.suffix) for log in logs] == [(tmp_path, ".log")]


def test_a_cluster_of_small_machines_is_told_of(ray, start):
    with pytest.warns(UserWarning, match="No machine of the Ray cluster has 9 CPUs"):
        with pytest.raises(AssertionError, match="for ever"):
            next(start([("a", 1)], n_threads=9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(start([("a", 1)], n_threads=8))


def test_a_benchmark_hands_its_options_on(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(run, "work_through_on_ray", lambda *args, **kw: given.update(kw) or [])
    (tmp_path / "made.h5ad").touch()
    config = Config(data=(DataSpec("made", str(tmp_path / "made.h5ad")),), methods=("pca",))
    options = {"n_workers": 2, "n_threads": 3, "timeout": 4.0}
    run.run_benchmark(config, tmp_path, executor="ray", progress=False, **options)
    assert given.pop("environment")["OMP_NUM_THREADS"] == "3"
    assert given == options | {"logs": tmp_path / "logs"} and given["logs"].is_dir()


def test_on_ray_itself(tmp_path):
    ray = pytest.importorskip("ray", reason="ray is an extra: pip install 'scvi-qbm[autotune]'")
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    kwargs = {
        "n_workers": 3, "n_threads": 2, "timeout": 4,
        "environment": {"SCVI_QBM_TEST": "there", "PYTHONPATH": paths}, "logs": tmp_path,
    }  # fmt: skip
    tasks = [("ok", 0), ("sleep", 60), ("exit", 1), ("ok", 2)]
    try:
        rows = dict(_ray.work_through_on_ray(tasks, work, **kwargs))
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert rows[("sleep", 60)]["reason"] == "Stopped after 4 s."
    assert rows[("exit", 1)]["reason"].startswith("WorkerCrashedError: ")
    assert [rows[("ok", i)]["variable"] for i in (0, 2)] == ["there"] * 2
    printed = "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert "working on ok 0" in printed and "working on ok 2" in printed
