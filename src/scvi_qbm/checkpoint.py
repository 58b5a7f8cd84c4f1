"""Training that goes on from the end of its last epoch: ``train(checkpoint_dir=...)``."""

from __future__ import annotations

import hashlib
import logging
import random
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from scvi import settings

from scvi_qbm._files import replacing

__all__ = ["CheckpointError"]

# A child of scvi-tools' logger, which is the one that users see.
logger = logging.getLogger("scvi.qbm")

_KEY = "scvi_qbm_run"
_SPLIT = ("train_idx", "val_idx", "test_idx")
# What may change from one call of train() to the next without changing its result.
_FREE = {
    "benchmark", "budget", "callbacks", "check_max_epochs", "default_root_dir", "detect_anomaly",
    "directory",
    "enable_checkpointing", "enable_model_summary", "enable_progress_bar", "log_every_n_steps",
    "log_save_dir", "logger", "max_time", "num_workers", "persistent_workers", "pin_memory",
    "plugins", "poll_interval", "prefetch_factor", "profiler", "progress_bar_refresh_rate",
    "replay", "retries", "simple_progress_bar", "timeout",
}  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that is there, but cannot be read."""


class TrainingCheckpoint(Callback):
    """Keep a run in ``directory/last.ckpt`` as each epoch begins, and go on from there to the bit.

    To Lightning's checkpoint it adds what that lacks: random generators, split of the cells,
    history and settings. It must be the first callback: a resumed run calls
    ``on_train_epoch_start`` again for the epoch that it repeats, and so the file must not yet hold
    what other callbacks do there.
    """

    def __init__(self, directory: str | Path, settings: dict[str, str]) -> None:
        self.path = Path(directory) / "last.ckpt"
        self.settings = settings
        self.found = self._read() if self.path.exists() else None
        self._history_before: dict[str, Any] | None = None
        self._generators: dict[str, Any] = {}
        self._finished: str | None = None
        self._in_first_epoch, self._keeping = True, False

    def _read(self) -> dict[str, Any]:
        run = read_checkpoint(self.path).get(_KEY)
        if run is None:
            raise CheckpointError(
                f"{self.path} is not of this version's train(checkpoint_dir=...). Name another "
                "directory; Lightning's own checkpoints go into train(ckpt_path=...)."
            )
        # Each rank may have a seed of its own, and none knows yet which it is.
        each = (differences(rank["settings"], self.settings) for rank in run["ranks"])
        if lines := min(each, key=len):
            raise ValueError(
                f"The checkpoint {self.path} is of another run:\n  "
                + "\n  ".join(lines)
                + "\nGo on with the model and the settings that it was made with, or name another "
                "checkpoint_dir (or remove that file) to train from the start."
            )
        return dict(run)

    @property
    def is_finished(self) -> bool:
        """Whether the run that was found needs no further step."""
        if self.found is None or self.found["finished"] is None:
            return False
        before = self.found["ranks"][0]["settings"]
        more = self.settings["max_epochs"] != before["max_epochs"]
        return not (more and self.found["finished"] == "max_epochs")

    def take_history(self, model: Any) -> None:
        """Of a training before this run: scvi-tools goes on with it if a model is trained."""
        if self.found is not None:
            # What the model has may be of this very run.
            before = self._history_before = self.found["history_before"]
            model.is_trained_, model.history_ = before is not None, _frames(before or {})
        elif model.is_trained_:
            self._history_before = _plain_history(model.history_ or {})

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put back what is not part of weights, optimiser and callbacks."""
        assert self.found is not None
        ranks = self.found["ranks"]
        if len(ranks) != trainer.world_size:
            raise ValueError(
                f"The checkpoint {self.path} is of a run with {len(ranks)} processes, this one "
                f"has {trainer.world_size}."
            )
        self._generators = ranks[trainer.global_rank]["generators"]
        _load_generators(self._generators, trainer.strategy.root_device)
        for name, cells in self.found["split"].items():
            setattr(trainer.datamodule, name, cells.numpy())
        # A limit of time is for each call.
        for key in [k for k in checkpoint["callbacks"] if k.startswith("Timer")]:
            del checkpoint["callbacks"][key]
        trainer.should_stop = self.is_finished
        if not trainer.is_global_zero:
            return
        if hasattr(trainer.logger, "history"):
            trainer.logger.experiment.data = _frames(self.found["history"])
        where = f"epoch {checkpoint['epoch']}, step {checkpoint['global_step']}"
        if self.is_finished:
            logger.info(
                f"All epochs of the run in {self.path.parent} are done ({where}). Name another "
                "checkpoint_dir to train anew, or more epochs to continue."
            )
        else:
            logger.info(f"Training resumes from {self.path} ({where}).")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """The order of the first epoch is drawn between this hook and its start."""
        if self.found is None:
            self._generators = _generators(trainer.strategy.root_device)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """With ``max_steps``, Lightning takes every run that goes on for one cut in mid-epoch."""
        loop = trainer.fit_loop
        max_steps, loop.epoch_loop.max_steps = loop.max_steps, -1
        loop.restarting = False
        loop.epoch_loop.max_steps = max_steps

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Keep the run: history is complete only now, and the epoch's order is not drawn yet."""
        device, bar = trainer.strategy.root_device, trainer.progress_bar_callback
        if not self._in_first_epoch:
            self._generators = _generators(device)
        elif trainer.current_epoch:
            # The order of a later epoch is drawn after this hook, but of the one that a run goes
            # on with Lightning has drawn it: once more, with the generators as they were.
            _load_generators(self._generators, device)
            iter(trainer.fit_loop._data_fetcher)
            if hasattr(bar, "init_train_tqdm"):  # scvi-tools' counts epochs
                bar.main_progress_bar.update(trainer.current_epoch)
        self._in_first_epoch = False
        self._keep(trainer, "Training goes on")

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep the result, with the last log Z; or be done with the one that was found."""
        device = trainer.strategy.root_device
        if self.is_finished:
            _load_generators(self._generators, device)
            return
        if trainer.should_stop and any(map(_has_stopped, trainer.callbacks)):
            self._finished = "early_stopping"
        elif trainer.current_epoch >= trainer.max_epochs >= 0:
            self._finished = "max_epochs"
        elif trainer.global_step >= trainer.max_steps >= 0:
            self._finished = "max_steps"
        if self._finished is not None:
            self._generators = _generators(device)
            self._keep(trainer, "The model is trained")

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add to Lightning's checkpoint, if it is for ``last.ckpt``."""
        if not self._keeping:
            return
        # The epoch that has been announced is one to come.
        for count in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            count["ready"] = count["started"]
        mine = {"settings": self.settings, "generators": self._generators}
        split = {name: getattr(trainer.datamodule, name, None) for name in _SPLIT}
        logged = trainer.logger if trainer.is_global_zero else None
        checkpoint[_KEY] = {
            "finished": self._finished,
            "split": {k: torch.tensor(v) for k, v in split.items() if isinstance(v, np.ndarray)},
            "history": _plain_history(getattr(logged, "history", {})),
            "history_before": self._history_before,
            "ranks": [trainer.strategy.broadcast(mine, k) for k in range(trainer.world_size)],
        }

    def _keep(self, trainer: Any, after: str) -> None:
        # In memory first: a disk that is full must not leave the other ranks waiting.
        memory, name = fsspec.filesystem("memory"), f"memory://{id(self)}/last.ckpt"
        self._keeping = True
        trainer.save_checkpoint(name, weights_only=False)
        self._keeping = False
        problem = None
        if trainer.is_global_zero:
            content = memory.cat(name)
            memory.rm(name)
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(self.path, alone=True) as temporary:
                    temporary.write_bytes(content)
            except OSError as error:
                problem = f"{type(error).__name__}: {error}"
        problem = trainer.strategy.broadcast(problem)
        if problem is None:
            return
        if self.found is None and not trainer.global_step:
            raise OSError(
                f"The first checkpoint {self.path} cannot be written ({problem}). Nothing was "
                "trained yet: make room, or name another checkpoint_dir."
            )
        if trainer.is_global_zero:
            warnings.warn(
                f"The checkpoint {self.path} cannot be written in step {trainer.global_step} "
                f"({problem}). {after}; the checkpoint before it is as it was.",
                UserWarning,
                stacklevel=2,
            )


def _has_stopped(callback: Callback) -> bool:
    reason = getattr(callback, "early_stopping_reason", None)
    return isinstance(callback, EarlyStopping) and (callback.stopped_epoch > 0 or bool(reason))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What is in the file, on the CPU."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch does not look at checksums
        if broken is not None:
            raise ValueError(f"wrong checksum of {broken}")
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: it is damaged, or no checkpoint at all "
            f"({why}). Put a copy of it back, or remove it to train from the start."
        ) from error


# -- what Lightning's checkpoints lack -----------------------------------------------------------


def _generators(device: torch.device) -> dict[str, Any]:
    """States of the random generators that a step may draw from."""
    of_numpy = np.random.get_state(legacy=False)
    of_numpy["state"]["key"] = of_numpy["state"]["key"].tolist()
    out = {"torch": torch.get_rng_state(), "numpy": of_numpy, "python": random.getstate()}
    if device.type != "cpu":
        out[device.type] = getattr(torch, device.type).get_rng_state()
    return out


def _load_generators(state: dict[str, Any], device: torch.device) -> None:
    """Those of a device of another kind stay as they are."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if device.type in state:
        getattr(torch, device.type).set_rng_state(state[device.type])


def _plain_history(history: dict[str, pd.DataFrame]) -> dict[str, Any]:
    return {key: frame.to_dict("tight") for key, frame in history.items()}


def _frames(history: dict[str, Any]) -> dict[str, pd.DataFrame]:
    # As scvi-tools' logger makes them: values are objects.
    return {k: pd.DataFrame.from_dict(v, "tight", dtype=object) for k, v in history.items()}


# -- what a run was started with, so that none goes on as another one ----------------------------


def run_settings(model: Any, **given: Any) -> dict[str, str]:
    """What decides the result: model, data, seed and arguments of ``train()``, defaults included.

    In words, by name. Objects count by their class, arrays by their contents.
    """
    init = {k: v for part in model.init_params_.values() for k, v in part.items()}
    for key in [k for k, v in init.items() if isinstance(v, dict)]:  # given as **kwargs
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
        for key in ("batch", "labels"):
            state = model.get_state_registry(key)
            codes = np.ravel(model.adata_manager.get_from_registry(key))
            names = np.asarray(state.categorical_mapping, dtype=object)[codes]
            everything[f"{key} of cells"] = _hash(names)
    return dict(_in_words("", everything | given))


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What keeps a run from going on as this one, a line for each; more epochs do not."""
    lines = []
    for name in before | now:
        there, here = (run.get(name, "not given") for run in (before, now))
        longer = name == "max_epochs" and float(here) > float(there)
        if there != here and not longer:
            lines.append(f"{name}: {there} in the checkpoint, {here} now")
    return lines


def _hash(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()[:16]


def _in_words(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in _FREE:
                yield from _in_words(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list | tuple):
        for k, item in enumerate(value):
            yield from _in_words(f"{name}[{k}]", item)
    elif isinstance(value, np.ndarray):
        content = b"" if value.dtype == object else np.ascontiguousarray(value).tobytes()
        yield name, f"array {value.shape} {hashlib.sha256(content).hexdigest()[:16]}"
    elif value is None or isinstance(value, bool | int | float | str):
        yield name, repr(value)
    elif isinstance(value, np.generic):
        yield name, repr(value.item())
    elif isinstance(value, Path):
        yield name, repr(str(value))
    else:
        # Their repr has an address, which is another in each process.
        kind = value if isinstance(value, type) else type(value)
        yield name, f"{kind.__module__}.{kind.__qualname__}"
