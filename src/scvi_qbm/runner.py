"""Running a training plan so that nothing is lost when it is cut short."""

from __future__ import annotations

import signal
import threading
import warnings
from contextlib import nullcontext, suppress
from typing import Any

import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from scvi.dataloaders import DataSplitter
from scvi.train import LoudEarlyStopping, TrainRunner

from scvi_qbm._files import alone_in

_MONITOR = "elbo_validation"


def _copied(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights as they are now, in the computer's memory."""
    return {k: v.detach().to("cpu", copy=True) for k, v in module.state_dict().items()}


class KeepBest(Callback):
    """Keep the weights of the best held-out ELBO in memory, and leave the model with them.

    Under a rising KL weight the network minimises something else: weights from before the end of
    the warm-up give way to any later ones. Without validation the last weights stay.
    """

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.score = float("inf")
        self._is_warm = False
        self._state: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        value = trainer.callback_metrics.get(_MONITOR)
        if trainer.sanity_checking or value is None or not torch.isfinite(value):
            return
        score, is_warm = float(value), bool(pl_module.kl_weight >= pl_module.max_kl_weight)
        gives_way = self.epoch is None or (is_warm and not self._is_warm)
        if not gives_way and score >= self.score:
            return
        self.epoch, self.score = int(trainer.current_epoch), score
        self._is_warm = is_warm
        # torch.compile wraps the module, and renames its weights.
        self._state = _copied(getattr(pl_module.module, "_orig_mod", pl_module.module))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Before the plan's own, which brings log Z and chains to the weights that are left."""
        self.restore(pl_module.module)

    def state_dict(self) -> dict[str, Any]:
        kept = {"epoch": self.epoch, "score": self.score, "is_warm": self._is_warm}
        return kept | {"weights": self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.score = state_dict["epoch"], state_dict["score"]
        self._is_warm = state_dict["is_warm"]
        self._state = {k: v.to("cpu", copy=True) for k, v in state_dict["weights"].items()}

    def restore(self, module: torch.nn.Module) -> bool:
        """Put the kept weights into a module of the same architecture; False if there are none."""
        if self.epoch is None:
            return False
        getattr(module, "_orig_mod", module).load_state_dict(self._state)
        return True


class _EarlyStopping(LoudEarlyStopping):
    """scvi-tools', whose warm-up goes on where a checkpoint was made."""

    def state_dict(self) -> dict[str, Any]:
        counted = {"checks": self._current_step, "reason": self.early_stopping_reason}
        return super().state_dict() | counted

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._current_step = state_dict["checks"]
        self.early_stopping_reason = state_dict["reason"]


class QBMTrainRunner(TrainRunner):
    """scvi-tools' runner; however a run ends, it leaves the weights of the best held-out ELBO.

    Early stopping also works under DDP, where scvi-tools drops it, and after a checkpoint. Besides
    upstream's arguments it takes ``checkpoint``, of ``train(checkpoint_dir=...)``.
    """

    def __init__(self, model: Any, training_plan: Any, *args: Any, **kwargs: Any) -> None:
        self.checkpoint = checkpoint = kwargs.pop("checkpoint", None)
        self.best = KeepBest()
        self.before: dict[str, torch.Tensor] = {}  # the weights of a model that is trained on
        callbacks = [*(kwargs.pop("callbacks", None) or []), self.best]
        if checkpoint is not None:
            callbacks.insert(0, checkpoint)
            kwargs["ckpt_path"] = None if checkpoint.found is None else checkpoint.path
        if kwargs.pop("early_stopping", False):
            callbacks.append(
                _EarlyStopping(
                    monitor=kwargs.get("early_stopping_monitor", _MONITOR),
                    min_delta=kwargs.get("early_stopping_min_delta", 0.0),
                    patience=kwargs.get("early_stopping_patience", 45),
                    mode=kwargs.get("early_stopping_mode", "min"),
                    warmup_epochs=kwargs.get("early_stopping_warmup_epochs") or 0,
                )
            )
            if kwargs.get("check_val_every_n_epoch") is None:
                kwargs["check_val_every_n_epoch"] = 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="early_stopping was automatically disabled")
            super().__init__(model, training_plan, *args, callbacks=callbacks, **kwargs)
        self._check_early_stopping()
        if checkpoint is not None:
            checkpoint.take_history(model)

    def _check_early_stopping(self) -> None:
        """scvi-tools' own check, which goes by the name of its splitter."""
        stopping, splitter = self.trainer.early_stopping_callback, self.data_splitter
        if stopping is None or not isinstance(splitter, DataSplitter):
            return
        n_test = self.model.adata.n_obs - splitter.n_train - splitter.n_val
        for name, held_out in (("validation", splitter.n_val), ("test", n_test)):
            if not held_out and name[:5] in stopping.monitor:
                raise ValueError(
                    f"Can't run Early Stopping with {name} monitor with no {name} set"
                )

    def __call__(self) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGINT) if in_main else None
        if self.model.is_trained_:
            self.before = _copied(self.model.module)
        alone: Any = nullcontext()
        if self.checkpoint is not None and rank_zero_only.rank == 0:
            alone = alone_in(self.checkpoint.path.parent, "training")
        try:
            with alone:
                super().__call__()
        except (KeyboardInterrupt, SystemExit) as error:
            # Lightning turns Ctrl-C into exit(1), which would end a notebook's kernel, and goes on
            # to ignore further ones.
            if in_main:
                signal.signal(signal.SIGINT, handler)
            left = self._left()
            if isinstance(error, SIGTERMException):  # Lightning's, with which exit() says 0
                raise SystemExit(128 + signal.SIGTERM) from error
            if isinstance(error, SystemExit) and not isinstance(
                error.__context__, KeyboardInterrupt
            ):
                raise
            raise KeyboardInterrupt(f"Training was interrupted. {left}") from None
        except BaseException as error:
            if "DataLoader worker" in str(error) or isinstance(error, ConnectionError):
                error.add_note(
                    "A process that loads data died, most often for want of memory. Try fewer of "
                    "them: datasplitter_kwargs={'num_workers': 0} loads in this process."
                )
            error.add_note(self._left())
            raise
        self._in_single_precision()
        self._name_epoch()

    def _name_epoch(self) -> None:
        """``history["best_epoch"]``: whose weights the model has, counted over all training."""
        history = self.model.history_
        if not isinstance(history, dict) or "elbo_train" not in history:
            return
        history.pop("best_epoch", None)  # of an earlier call of train()
        if self.best.epoch is None:
            return
        n_epochs = len(history["elbo_train"])
        best = n_epochs - self.trainer.current_epoch + self.best.epoch
        last = pd.Index([n_epochs - 1], name="epoch")
        history["best_epoch"] = pd.DataFrame({"best_epoch": [best]}, index=last)

    def _left(self) -> str:
        try:
            left = self._salvage()
            if self.checkpoint is not None and self.checkpoint.path.exists():
                left += (
                    f" The run goes on from {self.checkpoint.path} in the next call of train()."
                )
            return left
        except Exception as error:  # noqa: BLE001 - must not take the place of what went wrong
            return f"The model could not be brought to rest ({type(error).__name__}: {error})."

    def _salvage(self) -> str:
        """Leave the model usable, with the best weights there are; returns what was done."""
        model = self.model
        negative_phase = getattr(model.module, "negative_phase", None)
        if negative_phase is not None:
            negative_phase.cancel()
        restored = self.best.restore(model.module)
        self._in_single_precision()
        model.module.eval()
        if not (restored or self.trainer.global_step):
            if self.before:  # a step that fails has moved the statistics of batch norm already
                model.module.load_state_dict(self.before)
            model.to_device(self.device)
            return "No step was taken, and the model is as it was."
        model.trainer = self.trainer
        model._forget_fits()
        finite = all(torch.isfinite(p).all() for p in model.module.parameters())
        if not finite:
            return "No validation came before it, and the model's weights are not finite."
        # log Z of the weights as they are now, with an error bar of its own. Not over the ranks:
        # the others may be anywhere, and waiting for them would hang.
        with suppress(Exception):
            if negative_phase is not None:
                negative_phase.refresh_log_z(over_ranks=False)
        model.is_trained_ = True
        model.to_device(self.device)
        for name, short in (("train", "train"), ("test", "test"), ("validation", "val")):
            setattr(model, f"{name}_indices", getattr(self.data_splitter, f"{short}_idx", None))
        if restored:
            return (
                f"The model has the weights of epoch {self.best.epoch}, the best so far "
                f"(held-out ELBO {-self.best.score:.2f} nats a cell). Use, save or train it on."
            )
        return "The model has the weights of the last step; none were validated yet."

    def _in_single_precision(self) -> None:
        """After ``precision="64-true"``: data loaders give float32, and so must the weights be."""
        module = self.model.module
        if any(p.dtype == torch.float64 for p in module.parameters()):
            module.float()
