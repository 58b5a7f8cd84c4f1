"""Processes that work through the benchmark's tasks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.pool import work

from scvi_qbm.benchmark.pool import work_through


def run(tasks, **kwargs):
    return dict(work_through(tasks, work, **kwargs))


def test_every_task_has_its_row_and_processes_are_used_again():
    tasks = [("ok", i) for i in range(6)]
    rows = run(tasks, n_workers=2)
    assert {task: row["value"] for task, row in rows.items()} == {t: t[1] for t in tasks}
    pids = {row["pid"] for row in rows.values()}
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids


def test_no_tasks_start_nothing():
    assert run([]) == {}


@pytest.mark.parametrize(("kind", "message"), [("exit", "exit code 3"), ("kill", "out of memory")])
def test_a_process_that_dies_costs_its_own_task_only(kind, message):
    rows = run([("ok", 0), (kind, 1), ("ok", 2), ("ok", 3)])
    assert rows[(kind, 1)]["status"] == "failed"
    assert message in rows[(kind, 1)]["reason"]
    assert [rows[("ok", i)]["status"] for i in (0, 2, 3)] == ["ok"] * 3
    assert rows[("ok", 2)]["pid"] == rows[("ok", 3)]["pid"] != rows[("ok", 0)]["pid"]


def test_a_task_that_takes_too_long_is_given_up():
    started = time.monotonic()
    rows = run([("sleep", 60), ("ok", 1)], timeout=2)
    assert time.monotonic() - started < 30
    assert rows[("sleep", 60)]["reason"] == "Stopped after 2 s."
    assert rows[("ok", 1)]["status"] == "ok"


def test_environment_and_logs(tmp_path):
    rows = run([("ok", 5)], environment={"SCVI_QBM_TEST": "there"}, logs=tmp_path)
    assert rows[("ok", 5)]["variable"] == "there"
    assert "SCVI_QBM_TEST" not in os.environ
    assert "working on ok 5" in (tmp_path / "worker-0.log").read_text()


def test_a_run_that_is_left_stops_its_processes(tmp_path):
    path = tmp_path / "pid"
    rows = work_through([("ok", 0), ("touch", str(path))], work)
    next(rows)
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    rows.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


PARENT = """
import sys
from support.pool import work
from scvi_qbm.benchmark.pool import work_through

if __name__ == "__main__":
    list(work_through([("touch", sys.argv[1])], work))
"""


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    script, path = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(PARENT)
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    parent = subprocess.Popen(
        [sys.executable, script, path], env={**os.environ, "PYTHONPATH": paths}
    )
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while Path(f"/proc/{path.read_text()}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)
