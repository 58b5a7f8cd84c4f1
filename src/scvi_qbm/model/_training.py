"""Training by recipe."""

from __future__ import annotations

import os
import warnings
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from scvi.model._utils import get_max_epochs_heuristic
from scvi.train._config import merge_kwargs

from scvi_qbm._numbers import positive_int
from scvi_qbm.checkpoint import TrainingCheckpoint, run_settings
from scvi_qbm.data.on_disk import OnDiskDataSplitter, Splitter, reads_from_disk
from scvi_qbm.plan import QBMTrainingPlan
from scvi_qbm.recipes import get_recipe, resolve_plan
from scvi_qbm.runner import QBMTrainRunner

__all__ = ["TrainingMixin"]


class TrainingMixin:
    """:meth:`train`, with the recipe's settings where none are given."""

    _training_plan_cls = QBMTrainingPlan
    _train_runner_cls = QBMTrainRunner

    @property
    def _data_splitter_cls(self) -> type[Splitter]:
        on_disk = self.adata is not None and reads_from_disk(self.adata_manager)
        return OnDiskDataSplitter if on_disk else Splitter

    def train(  # type: ignore[override]
        self,
        max_epochs: int | None = None,
        *,
        train_size: float | None = None,
        validation_size: float | None = None,
        batch_size: int | None = None,
        early_stopping: bool | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        plan_config: Any = None,
        plan_kwargs: Any = None,
        datamodule: Any = None,
        trainer_config: Any = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the model; early stopping on ``elbo_validation`` (log Z included) is on.

        Parameters
        ----------
        max_epochs
            At most so many epochs; scvi-tools' heuristic (400 up to 20,000 cells) if None.
        train_size, validation_size
            As :meth:`scvi.model.SCVI.train`.
        batch_size
            Cells per step. The recipe's (128; paper: 256) if None.
        early_stopping
            On by default wherever cells are held out (not with a ``datamodule``), with the
            recipe's patience of 10, watching from the end of the KL warm-up on. Off with
            ``max_steps`` and without validation.
        datasplitter_kwargs
            As :meth:`scvi.model.SCVI.train`.
        plan_config, plan_kwargs
            Override the recipe; see :class:`~scvi_qbm.plan.QBMTrainingPlan`. If only ``lr`` is
            given, ``bm_lr`` is a fifth of it. Of a config object, the fields that differ from its
            defaults. By default the KL warm-up takes at most half of the epochs.
        datamodule
            As :meth:`scvi.model.SCVI.train`.
        trainer_config
            As :meth:`scvi.model.SCVI.train`; the fields that differ from its defaults.
        checkpoint_dir
            Directory in which the run is saved as ``last.ckpt`` after every epoch. If the file
            exists, training resumes after its last epoch, with bit-identical results: weights,
            log Z, chains, history and split. A finished run only gives the model its result; a
            larger ``max_epochs`` continues it. Answers of an Ising machine are kept in ``draws``
            and not asked for again. See docs/training.md.
        **kwargs
            As :meth:`scvi.model.SCVI.train`: ``accelerator``, ``devices``,
            ``shuffle_set_split``, ``load_sparse_tensor``, and the trainer's. With
            ``enable_checkpointing`` or Lightning's ``ModelCheckpoint``, ``ckpt_path`` resumes with
            optimiser, warm-up and chains.

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
        Afterwards the model has the weights of the best held-out ELBO after the KL warm-up
        (``history["best_epoch"]``). Then the prior is fitted again, to the codes of the training
        cells, with ten times the steps of training, at most 1,000. With an Ising machine this
        final fit makes as many calls as training did. ``history`` does not include it. Finally,
        the batches of the default embedding are aligned.

        ``model.history`` also has ``log_z``, ``log_z_se``, ``log_z_drift``, ``energy_gap``,
        ``energy_gap_se`` (nats) and more: whether the negative phase samples the prior, see
        :class:`~scvi_qbm.prior.NegativePhaseReport`.
        """
        recipe = get_recipe(self.recipe_)
        kwargs = merge_kwargs(_changed(trainer_config), kwargs, name="trainer")
        # What train() has a name for counts from a config where it was not given by name.
        from_config = kwargs.pop("max_epochs", None), kwargs.pop("early_stopping", None)
        max_epochs = from_config[0] if max_epochs is None else max_epochs
        if max_epochs is None:
            max_epochs = self._default_epochs(datamodule)
        if max_epochs is not None:
            max_epochs = positive_int(max_epochs, "max_epochs", -1)  # Lightning: without an end
        early_stopping = from_config[1] if early_stopping is None else early_stopping
        if early_stopping is None:
            # With fewer steps than an epoch, or none for validation, there is nothing to watch.
            cut = kwargs.get("max_steps", -1) != -1 or kwargs.get("limit_val_batches") == 0
            early_stopping = (
                datamodule is None
                and not cut
                and self._holds_out(train_size, validation_size, datasplitter_kwargs)
            )
        given = merge_kwargs(_changed(plan_config), plan_kwargs, name="plan")
        plan = resolve_plan(self.recipe_, self._plan_defaults() | given, max_epochs)
        if early_stopping:
            patience = recipe.train["early_stopping_patience"]
            kwargs.setdefault("early_stopping_patience", patience)
            warmup = plan.get("n_epochs_kl_warmup") or 0
            kwargs.setdefault("early_stopping_warmup_epochs", warmup)
        self._check_own_genes()
        self._check_data(self.adata)
        if self.minified_data_type is not None:
            warnings.warn(
                "The data are minified: latents of its cells stay as they were stored, whatever "
                "training does to the encoder. Train on the full data, and minify then.",
                UserWarning,
                stacklevel=2,
            )
        arguments = {
            "max_epochs": max_epochs,
            "train_size": train_size,
            "validation_size": validation_size,
            # Batch normalisation takes no single cells.
            "batch_size": positive_int(batch_size or recipe.train["batch_size"], "batch_size", 2),
            "early_stopping": early_stopping,
            "datasplitter_kwargs": datasplitter_kwargs or {},
            "plan_kwargs": plan,
        }
        if checkpoint_dir is not None:
            if kwargs.get("ckpt_path") is not None:
                raise ValueError("Pass `checkpoint_dir` or `ckpt_path`, not both.")
            settings = run_settings(self, **arguments, trainer=dict(kwargs))
            kwargs["checkpoint"] = TrainingCheckpoint(checkpoint_dir, settings)
            if self.module.negative_phase is not None:
                self.module.negative_phase.keep_draws(Path(checkpoint_dir) / "draws")
        try:
            super().train(datamodule=datamodule, **arguments, **kwargs)
        except BaseException:
            # Of a call that fails before its first step the model must not show a trace; the
            # training plan has turned dropout on.
            self.module.eval()
            raise
        self._forget_fits()
        loader = getattr(datamodule, "inference_dataloader", None)
        if datamodule is not None and loader is None:
            return
        bm_lr, decay = plan.get("bm_lr", plan["lr"] / 5), plan.get("bm_weight_decay", 0.0)
        self._fit_prior(loader, lr=10 * bm_lr, weight_decay=decay)
        self._fit_alignment(loader and loader())

    def _forget_fits(self) -> None:
        """Drop what was fitted to an encoder that has moved on; a query keeps its reference's."""
        if not self.module.prior.is_frozen:
            self._alignment_ = self._attractors_ = self._pull_ = None

    def _plan_defaults(self) -> dict[str, Any]:
        """What the training plan is told beside the recipe, where the user says nothing."""
        return {}

    def _default_epochs(self, datamodule: Any) -> int | None:
        """scvi-tools' heuristic; None where nobody knows the number of cells."""
        n_cells = getattr(self.adata if datamodule is None else datamodule, "n_obs", None)
        return None if n_cells is None else get_max_epochs_heuristic(int(n_cells))

    def _holds_out(
        self,
        train_size: float | None,
        validation_size: float | None,
        datasplitter_kwargs: dict[str, Any] | None,
    ) -> bool:
        """Whether there are cells to validate on."""
        external = (datasplitter_kwargs or {}).get("external_indexing")
        if external is not None:
            return len(external) > 1 and len(external[1]) > 0
        share = 1 - (train_size or 0.9) if validation_size is None else validation_size
        return int(self.adata.n_obs * share + 1e-9) > 0


def _changed(config: Any) -> Any:
    """The fields of a config object that its user has set, so that a recipe keeps the others."""
    if not is_dataclass(config):
        return config
    kwargs, defaults = config.to_kwargs(), type(config)().to_kwargs()
    return {k: v for k, v in kwargs.items() if k not in defaults or v != defaults[k]}
