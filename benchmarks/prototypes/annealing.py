"""A relaxation that changes while training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback


class AnnealedBeta(Callback):
    """``relaxation_beta`` from ``start`` to ``stop``, geometrically over ``n_epochs``."""

    def __init__(self, start: float, stop: float, n_epochs: int = 60) -> None:
        self.start, self.stop, self.n_epochs = start, stop, n_epochs

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        share = min(1.0, trainer.current_epoch / self.n_epochs)
        beta = self.start ** (1 - share) * self.stop**share
        pl_module.module.z_encoder.relaxation_beta = beta
