"""A callback that keeps a run on disk, and lets the next one go on from there."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from . import _state
from ._file import CheckpointError, read_checkpoint, write_checkpoint
from ._settings import differences
from ._snapshot import FORMAT, RUN_KEY, loader_kind, snapshot

__all__ = ["TrainingCheckpoint"]

# A child of scvi-tools' logger, which is the one that users see.
logger = logging.getLogger("scvi.qbm")


class TrainingCheckpoint(Callback):
    """Keep a run in ``directory/last.ckpt``, and go on from there to the bit.

    Lightning's checkpoint holds weights, optimiser and counters. This one adds the order of the
    epoch under way, random generators, chains of each rank, half an epoch's means, history, the
    split of the cells and the settings. It is taken between two steps, when nothing is pending.

    Parameters
    ----------
    directory
        Made if it is not there.
    every_n_steps
        Steps of the optimiser between two checkpoints.
    settings
        What decides the result, by :func:`run_settings`.

    Attributes
    ----------
    path
        The file.
    found
        What is in it, None for a new run.

    Raises
    ------
    ValueError
        If the file belongs to another run.
    CheckpointError
        If the file is damaged.
    """

    def __init__(
        self, directory: str | Path, every_n_steps: int = 1000, settings: Any = None
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(
                f"`checkpoint_every_n_steps` must be at least 1, got {every_n_steps}."
            )
        self.path = Path(directory) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self.settings: dict[str, Any] = dict(settings or {})
        self.history_before: Any = None
        self._next_step = 0
        self._half_epoch: dict[str, Any] | None = None
        self._epoch_start: dict[str, Any] = {}
        self._weights: dict[str, torch.Tensor] | None = None
        checkpoint = read_checkpoint(self.path) if self.path.exists() else None
        self.found = None if checkpoint is None else self._checked(checkpoint)
        self._is_new = self.found is None

    def _checked(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        run = checkpoint.get(RUN_KEY)
        if run is None or run["format"] != FORMAT:
            raise CheckpointError(
                f"{self.path} is not of this version's train(checkpoint_dir=...). Name another "
                "directory; Lightning's own checkpoints go into train(ckpt_path=...)."
            )
        # Each rank may have a seed of its own, and none knows yet which it is.
        each = (differences(rank["settings"], self.settings) for rank in run["ranks"])
        lines = min(each, key=len)
        if lines:
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
        more = self.settings.get("max_epochs") != before.get("max_epochs")
        return not (more and self.found["finished"] == "max_epochs")

    def attach(self, model: Any, trainer: Any) -> None:
        """Take part in a trainer's run, after all other callbacks.

        Parameters
        ----------
        model
            The :class:`~scvi_qbm.QBMVI` that is trained.
        trainer
            Its trainer.
        """
        trainer.callbacks.append(self)
        if self.found is None:
            if model.is_trained_ and isinstance(model.history_, dict):
                self.history_before = _state.plain_history(model.history_)
            return
        # scvi-tools appends to the history of a model that is trained, which this one may be by
        # now because it is the very run that goes on.
        self.history_before = self.found["history_before"]
        model.is_trained_ = self.history_before is not None
        if model.is_trained_:
            model.history_ = _state.frames(self.history_before)

    # -- going on -------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put back what is needed before the first minibatch is made.

        Parameters
        ----------
        trainer, pl_module, checkpoint
            Lightning's.

        Raises
        ------
        ValueError
            If the run had another number of processes.
        """
        run = checkpoint.get(RUN_KEY)
        if run is None or self.found is None:
            return
        if len(run["ranks"]) != trainer.world_size:
            raise ValueError(
                f"The checkpoint {self.path} is of a run with {len(run['ranks'])} processes, this "
                f"one has {trainer.world_size}."
            )
        rank = run["ranks"][trainer.global_rank]
        if rank["prior"] is not None:
            pl_module.resume_prior(rank["prior"], stream=0)
        for name, cells in run["split"].items():
            setattr(trainer.datamodule, name, cells.numpy())
        if trainer.is_global_zero and hasattr(trainer.logger, "history"):
            trainer.logger.experiment.data = _state.frames(run["history"])
        if str(trainer.precision).startswith("64"):
            # Lightning has put them into float32, and makes float64 of that later.
            self._weights = checkpoint["state_dict"]
        _state.load_early_stopping_state(run["early_stopping"], trainer)
        trainer.should_stop = self.is_finished
        where = f"epoch {checkpoint['epoch']}, step {checkpoint['global_step']}"
        if trainer.is_global_zero and self.is_finished:
            logger.info(
                f"The run in {self.path.parent} is finished ({where}): the model has its result. "
                "Name another checkpoint_dir to train anew, or more epochs to go on."
            )
        elif trainer.is_global_zero:
            logger.info(f"Training goes on from {self.path} ({where}).")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the loop go on between two steps.

        Parameters
        ----------
        trainer, pl_module
            Lightning's.
        """
        if self.found is None:
            return
        if self._weights is not None:
            pl_module.load_state_dict(self._weights)
            self._weights = None
        loop, rank = trainer.fit_loop.epoch_loop, self.found["ranks"][trainer.global_rank]
        self._next_step = trainer.global_step + self.every_n_steps
        for bar in trainer.callbacks:  # scvi-tools' counts epochs
            if getattr(bar, "main_progress_bar", None) is not None and hasattr(bar, "is_enabled"):
                bar.main_progress_bar.update(trainer.current_epoch)
        if self.found["loader"] == "plain" or self.found["finished"]:
            # Its order is drawn as then, if torch, numpy or Python draws it.
            _state.load_generators(rank["epoch_start"], trainer.strategy.root_device)
            iter(trainer.fit_loop._data_fetcher)
        if self.found["finished"]:
            self.found = None
            return
        self._half_epoch = rank
        start = loop.on_run_start

        def on_run_start(fetcher: Any) -> None:
            del loop.on_run_start
            start(fetcher)
            # Lightning would take the validation before this step, and a step that counts, for
            # unfinished.
            loop.restarting = False

        loop.on_run_start = on_run_start

    def _go_on(self, trainer: Any, pl_module: Any, batch_idx: int) -> None:
        assert self._half_epoch is not None
        rank, device = self._half_epoch, trainer.strategy.root_device
        # Else Lightning would not update schedulers that watch a metric when this epoch ends.
        trainer.fit_loop._restarting = False
        trainer._logger_connector._first_loop_iter = batch_idx == 0
        _state.load_epoch_state(rank["epoch"], trainer, pl_module)
        _state.load_generators(rank["generators"], device)

    # -- keeping --------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember the generators by which a loader without state draws its first order.

        Parameters
        ----------
        trainer, pl_module
            Lightning's.
        """
        self._epoch_start = _state.generators(trainer.strategy.root_device)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember the generators by which a loader without state draws its order.

        Parameters
        ----------
        trainer, pl_module
            Lightning's.
        """
        # The first epoch's was drawn before this hook, the next ones' are right after it.
        if trainer.current_epoch:
            self._epoch_start = _state.generators(trainer.strategy.root_device)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go on here, or keep the run: the last step is done with, and the next not begun.

        Parameters
        ----------
        trainer, pl_module, batch, batch_idx
            Lightning's.

        Raises
        ------
        OSError
            If not even the first checkpoint can be written.
        """
        if self._half_epoch is not None:
            self._go_on(trainer, pl_module, batch_idx)
        # Where gradients are summed over steps the count moves when they are used up.
        elif trainer.global_step >= self._next_step and (
            batch_idx == 0 or loader_kind(trainer) == "resumable"
        ):
            self._next_step = trainer.global_step + self.every_n_steps
            problem = self._keep(trainer, pl_module)
            if problem is not None and self._is_new:
                raise OSError(
                    f"The first checkpoint {self.path} cannot be written ({problem}). Nothing was "
                    "trained yet: make room, or name another checkpoint_dir."
                )
            self._is_new = False
            self._warn(trainer, problem, "Training goes on")

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the first step of a run that goes on: its means go on, too.

        Parameters
        ----------
        trainer, pl_module, outputs, batch, batch_idx
            Lightning's.
        """
        if self._half_epoch is not None:
            _state.merge_means(self._half_epoch["epoch"], trainer)
            self._half_epoch = self.found = None

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep the result, with the last log Z; or give it to the model.

        Parameters
        ----------
        trainer, pl_module
            Lightning's.
        """
        if self.is_finished:
            assert self.found is not None
            rank = self.found["ranks"][trainer.global_rank]
            pl_module.load_resumed_prior()
            _state.load_generators(rank["generators"], trainer.strategy.root_device)
            return
        loop, finished = trainer.fit_loop, None
        if _state.stopped_early(trainer):
            finished = "early_stopping"
        elif loop.epoch_progress.current.processed >= loop.max_epochs >= 0:
            finished = "max_epochs"
        elif trainer.global_step >= loop.max_steps >= 0:
            finished = "max_steps"
        if finished is not None:
            self._warn(trainer, self._keep(trainer, pl_module, finished), "The model is trained")

    def _keep(self, trainer: Any, pl_module: Any, finished: str | None = None) -> str | None:
        """Write a checkpoint, or say on all ranks why that cannot be; all do this together."""
        checkpoint = snapshot(
            trainer,
            pl_module,
            finished=finished,
            settings=self.settings,
            epoch_start=self._epoch_start,
            history_before=self.history_before,
        )
        problem: str | None = None
        if checkpoint is not None:
            try:
                write_checkpoint(self.path, checkpoint)
            except OSError as error:
                problem = f"{type(error).__name__}: {error}"
        if trainer.world_size > 1:
            problem = trainer.strategy.broadcast(problem)
        return problem

    def _warn(self, trainer: Any, problem: str | None, after: str) -> None:
        if problem is not None and trainer.is_global_zero:
            warnings.warn(
                f"The checkpoint {self.path} cannot be written in step {trainer.global_step} "
                f"({problem}). {after}; the checkpoint before it is as it was.",
                UserWarning,
                stacklevel=2,
            )
