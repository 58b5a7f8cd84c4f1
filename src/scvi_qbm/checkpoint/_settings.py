"""What a run was started with, so that no checkpoint goes on as something else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scvi import settings

__all__ = ["differences", "run_settings"]

# What may change from one call of train() to the next without changing its result.
_FREE = {
    "benchmark", "callbacks", "check_max_epochs", "default_root_dir", "detect_anomaly",
    "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "log_every_n_steps",
    "log_save_dir", "logger", "max_time", "num_workers", "persistent_workers", "pin_memory",
    "plugins", "prefetch_factor", "profiler", "progress_bar_refresh_rate", "simple_progress_bar",
}  # fmt: skip


def _hash(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()[:16]


def _plain(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Named numbers and words, which a file can hold and ``==`` can compare."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in _FREE:
                yield from _plain(f"{name}.{key}" if name else str(key), item)
    elif value is None or isinstance(value, bool | int | float | str):
        yield name, value
    elif isinstance(value, np.generic):
        yield name, value.item()
    elif isinstance(value, Path):
        yield name, str(value)
    elif isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        yield name, f"array {value.shape} {digest}" if value.dtype != object else "array"
    elif isinstance(value, list | tuple):
        for k, item in enumerate(value):
            yield from _plain(f"{name}[{k}]", item)
    else:
        # Their repr has an address, which is another in each process.
        kind = value if isinstance(value, type) else type(value)
        yield name, f"{kind.__module__}.{kind.__qualname__}"


def run_settings(model: Any, **given: Any) -> dict[str, Any]:
    """What decides the result of a run: model, data, seed and arguments of ``train()``.

    Parameters
    ----------
    model
        The :class:`~scvi_qbm.QBMVI` to train.
    **given
        Arguments, after defaults and recipe; dictionaries of them are taken apart.

    Returns
    -------
    dict[str, Any]
        By name: numbers, words, None. Objects count by their class, arrays by their contents.
    """
    init = {k: v for part in model.init_params_.values() for k, v in part.items()}
    nested = [k for k, v in init.items() if isinstance(v, dict)]
    for key in nested:  # what was given as **kwargs
        init |= init.pop(key)
    everything: dict[str, Any] = {"model": init, "scvi.settings.seed": settings.seed}
    adata = model.adata
    if adata is not None:
        everything |= {
            "number of cells": adata.n_obs,
            "number of genes": adata.n_vars,
            "names of cells": _hash(adata.obs_names),
            "names of genes": _hash(adata.var_names),
            "setup_anndata": dict(model.registry.get("setup_args", {})),
        }
    return dict(_plain("", everything | given))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In words, what two runs do not have in common.

    Parameters
    ----------
    before, now
        From :func:`run_settings`, of the checkpoint and of this call. More epochs than before do
        not count.

    Returns
    -------
    list[str]
        One line for each setting; empty if the one run can go on as the other.
    """
    lines = []
    for name in [*before, *(k for k in now if k not in before)]:
        old, new = before.get(name), now.get(name)
        if old == new or (isinstance(old, float) and old != old and new != new):
            continue
        if name == "max_epochs" and None not in (old, new) and new > old:
            continue
        lines.append(f"{name}: {_say(name, before)} in the checkpoint, {_say(name, now)} now")
    return lines


def _say(name: str, settings: dict[str, Any]) -> str:
    return repr(settings[name]) if name in settings else "not given"
