"""Training by recipe."""

from __future__ import annotations

import os
import warnings
from dataclasses import is_dataclass
from typing import Any

from scvi.dataloaders import DataSplitter
from scvi.model._utils import get_max_epochs_heuristic
from scvi.train._config import merge_kwargs

from scvi_qbm.checkpoint import TrainingCheckpoint, run_settings
from scvi_qbm.data import OnDiskDataSplitter, reads_from_disk
from scvi_qbm.plan import QBMTrainingPlan
from scvi_qbm.recipes import get_recipe, kl_warmup
from scvi_qbm.runner import QBMTrainRunner

__all__ = ["TrainingMixin"]


class TrainingMixin:
    """:meth:`train`, with the recipe's settings where none are given."""

    _training_plan_cls = QBMTrainingPlan
    _train_runner_cls = QBMTrainRunner

    @property
    def _data_splitter_cls(self) -> type[DataSplitter]:
        on_disk = self.adata is not None and reads_from_disk(self.adata_manager)
        return OnDiskDataSplitter if on_disk else DataSplitter

    def train(  # type: ignore[override]
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int | None = None,
        early_stopping: bool | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        plan_config: Any = None,
        plan_kwargs: Any = None,
        datamodule: Any = None,
        trainer_config: Any = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model; early stopping on ``elbo_validation`` (log Z included) is on.

        Parameters
        ----------
        max_epochs
            At most so many epochs; scvi-tools' heuristic (400 up to 20,000 cells) if None.
        accelerator, devices, train_size, validation_size, shuffle_set_split, load_sparse_tensor
            As :meth:`scvi.model.SCVI.train`.
        batch_size
            Cells per step. The recipe's (128; paper: 256) if None.
        early_stopping
            On by default wherever cells are held out (not with a ``datamodule``), with the
            recipe's patience of 10, watching from the end of the KL warm-up on.
        datasplitter_kwargs
            As :meth:`scvi.model.SCVI.train`.
        plan_config, plan_kwargs
            Override the recipe; see :class:`~scvi_qbm.plan.QBMTrainingPlan`. An ``lr`` without a
            ``bm_lr`` scales both. Of a config object, the fields that differ from its defaults.
            Unless given, the KL warm-up takes half of the epochs at most.
        datamodule, trainer_config
            As :meth:`scvi.model.SCVI.train`.
        checkpoint_dir
            Keep the run in ``last.ckpt`` there, after every epoch. If it is there already,
            training goes on after the last epoch, to the bit: weights, log Z, chains, history and
            split are those of a run that was never cut short. A finished run gives the model its
            result at once; with a larger ``max_epochs`` it goes on. See the page on training.
        **trainer_kwargs
            As :meth:`scvi.model.SCVI.train`. With ``enable_checkpointing`` or Lightning's
            ``ModelCheckpoint``, ``ckpt_path`` resumes with optimiser, warm-up and chains.

        Raises
        ------
        KeyboardInterrupt
            If interrupted (Ctrl-C). The model then has the weights of the best epoch so far and
            can be used, saved or trained on, as after any other error.
        ValueError
            If the loss is not finite, or the data cannot be modelled; if the checkpoint is of
            another model, other data or other settings.
        CheckpointError
            If the checkpoint's file is damaged.
        OSError
            If not even a first checkpoint can be written. Later ones that cannot be are warned of.

        Notes
        -----
        ``model.history`` also has ``log_z``, ``log_z_se``, ``log_z_drift``, ``energy_gap``,
        ``energy_gap_se`` (nats) and more: whether the negative phase is honest, see
        :class:`~scvi_qbm.prior.NegativePhaseReport`.
        """
        recipe = get_recipe(self.recipe_)
        given = merge_kwargs(_changed(plan_config), plan_kwargs, name="plan")
        plan = recipe.plan | given
        if "lr" in given and "bm_lr" not in given:
            plan["bm_lr"] = given["lr"] * recipe.plan["bm_lr"] / recipe.plan["lr"]
        if given.get("n_steps_kl_warmup") and "n_epochs_kl_warmup" not in given:
            plan["n_epochs_kl_warmup"] = None
        trainer_kwargs = merge_kwargs(_changed(trainer_config), trainer_kwargs, name="trainer")
        # What train() has a name for counts from a config where it was not given by name.
        max_epochs = trainer_kwargs.pop("max_epochs", None) if max_epochs is None else max_epochs
        configured = trainer_kwargs.pop("early_stopping", None)
        early_stopping = configured if early_stopping is None else early_stopping
        configured = trainer_kwargs.pop("accelerator", "auto")
        accelerator = configured if accelerator == "auto" else accelerator
        configured = trainer_kwargs.pop("devices", "auto")
        devices = configured if devices == "auto" else devices
        if "n_epochs_kl_warmup" not in given:
            data = self.adata if datamodule is None else datamodule
            n_epochs = _default_epochs(data) if max_epochs is None else max_epochs
            plan["n_epochs_kl_warmup"] = kl_warmup(plan.get("n_epochs_kl_warmup"), n_epochs)
        if early_stopping is None:
            n_cells = self.adata.n_obs if datamodule is None else 0
            share = 1 - (train_size or 0.9) if validation_size is None else validation_size
            held_out = int(n_cells * share + 1e-9) > 0
            external = (datasplitter_kwargs or {}).get("external_indexing")
            if external is not None:
                held_out = len(external) > 1 and len(external[1]) > 0
            early_stopping = held_out and datamodule is None
        if early_stopping:
            warmup = plan.get("n_epochs_kl_warmup") or 0
            trainer_kwargs.setdefault(
                "early_stopping_patience", recipe.train["early_stopping_patience"]
            )
            trainer_kwargs.setdefault("early_stopping_warmup_epochs", warmup)
        self._check_data()
        if self.minified_data_type is not None:
            warnings.warn(
                "The data are minified: latents of its cells stay as they were stored, whatever "
                "training does to the encoder. Train on the full data, and minify then.",
                UserWarning,
                stacklevel=2,
            )
        if checkpoint_dir is not None:
            if trainer_kwargs.get("ckpt_path") is not None:
                raise ValueError("Pass `checkpoint_dir` or `ckpt_path`, not both.")
            data = self.adata if datamodule is None else datamodule
            settings = run_settings(
                self,
                max_epochs=_default_epochs(data) if max_epochs is None else max_epochs,
                train_size=train_size,
                validation_size=validation_size,
                shuffle_set_split=shuffle_set_split,
                batch_size=batch_size or recipe.train["batch_size"],
                early_stopping=early_stopping,
                datasplitter_kwargs=datasplitter_kwargs or {},
                plan_kwargs=plan,
                trainer=trainer_kwargs,
            )
            trainer_kwargs["checkpoint"] = TrainingCheckpoint(checkpoint_dir, settings)
        super().train(
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            train_size=train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            load_sparse_tensor=load_sparse_tensor,
            batch_size=batch_size or recipe.train["batch_size"],
            early_stopping=early_stopping,
            datasplitter_kwargs=datasplitter_kwargs,
            plan_kwargs=plan,
            datamodule=datamodule,
            **trainer_kwargs,
        )


def _default_epochs(data: Any) -> int:
    n_cells = getattr(data, "n_obs", None)
    return 400 if n_cells is None else get_max_epochs_heuristic(int(n_cells))


def _changed(config: Any) -> Any:
    """The fields of a config object that its user has set, so that a recipe keeps the others."""
    if not is_dataclass(config):
        return config
    kwargs, defaults = config.to_kwargs(), type(config)().to_kwargs()
    return {k: v for k, v in kwargs.items() if k not in defaults or v != defaults[k]}
