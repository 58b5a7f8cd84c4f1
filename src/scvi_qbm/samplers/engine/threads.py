"""Threads: how many by default, a pool of them, and BLAS held to one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from scvi_qbm._numbers import positive_int

Item = TypeVar("Item")
Result = TypeVar("Result")

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_blas_lock = threading.Lock()
_blas_uses = 0
_blas_limit: Any = None


def processors() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """``OMP_NUM_THREADS`` if set, else the processors this process may use."""
    declared = os.environ.get("OMP_NUM_THREADS", "")
    return int(declared) if declared.isdigit() and int(declared) > 0 else processors()


def checked_threads(n_threads: int | None) -> int:
    """``n_threads`` if given and positive, else the default."""
    return default_threads() if n_threads is None else positive_int(n_threads, "n_threads")


def pool(n_threads: int) -> ThreadPoolExecutor:
    """Threads of this process, made on first use."""
    # Keyed by process: a forked child inherits the object but not its threads.
    key = (os.getpid(), n_threads)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(n_threads, thread_name_prefix="scvi-qbm")
    return _pools[key]


def spread(work: Callable[[Item], Result], items: Sequence[Item], n_threads: int) -> list[Result]:
    """``work`` of every item, in their order, by ``n_threads`` threads."""
    if n_threads > 1 and len(items) > 1:
        return list(pool(n_threads).map(work, items))
    return [work(item) for item in items]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread until the last of all overlapping uses ends.

    The limit is the process's, not the thread's: of two overlapping limits the one that ends last
    would restore what the other had set.
    """
    global _blas_uses, _blas_limit
    with _blas_lock:
        if _blas_uses == 0:
            _blas_limit = threadpool_limits(1, user_api="blas")
        _blas_uses += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_uses -= 1
            if _blas_uses == 0:
                _blas_limit.restore_original_limits()
                _blas_limit = None
