"""Tasks for test_pool.py, importable by fresh processes."""

import os
import signal
import time
from pathlib import Path


def work(task):
    kind, value = task
    if kind == "exit":
        os._exit(3)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "sleep":
        time.sleep(value)
    if kind == "touch":
        Path(value).write_text(str(os.getpid()))
        time.sleep(60)
    print("working on", kind, value, flush=True)
    return {
        "status": "ok",
        "value": value,
        "pid": os.getpid(),
        "variable": os.environ.get("SCVI_QBM_TEST"),
    }
