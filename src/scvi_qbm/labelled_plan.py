"""The training plan with labels: a weight for what is known, and accuracies in the history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from scvi.module.base import LossOutput
from scvi.train._constants import METRIC_KEYS
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from scvi_qbm.labelled_module import QBMANVAE
from scvi_qbm.plan import QBMTrainingPlan

__all__ = ["QBMANTrainingPlan"]


class QBMANTrainingPlan(QBMTrainingPlan):
    """:class:`QBMTrainingPlan` with a cross-entropy of the labels.

    Label units learn at the rate of encoder and decoder.

    Parameters
    ----------
    module
        A :class:`~scvi_qbm.labelled_module.QBMANVAE`.
    classification_ratio
        Weight of -log p(label | code) of each labelled cell, beside the ELBO, which has it once.
        50 gives an embedding that labels shape, and predictions that are too sure.
    **kwargs
        As :class:`QBMTrainingPlan`.
    """

    module: QBMANVAE

    def __init__(
        self, module: QBMANVAE, *, classification_ratio: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(module, **kwargs)
        self.loss_kwargs["classification_ratio"] = classification_ratio

    def _machine_parameters(self) -> Iterable[torch.nn.Parameter]:
        return [self.module.prior.h, self.module.prior.W_upper]

    def compute_and_log_metrics(self, loss_output: LossOutput, metrics: Any, mode: str) -> None:
        super().compute_and_log_metrics(loss_output, metrics, mode)
        logits, labels = loss_output.logits, loss_output.true_labels
        if logits is None or not len(logits):
            return
        n_classes = logits.shape[-1]
        found = {METRIC_KEYS.CLASSIFICATION_LOSS_KEY: loss_output.classification_loss}
        if n_classes > 1:
            found |= {
                METRIC_KEYS.ACCURACY_KEY: multiclass_accuracy(
                    logits, labels, n_classes, average="micro"
                ),
                METRIC_KEYS.F1_SCORE_KEY: multiclass_f1_score(
                    logits, labels, n_classes, average="micro"
                ),
                METRIC_KEYS.CALIBRATION_ERROR_KEY: multiclass_calibration_error(
                    logits.softmax(-1), labels, n_classes
                ),
            }
        self.log_dict(
            {f"{mode}_{name}": value for name, value in found.items()},
            on_step=self.on_step, on_epoch=self.on_epoch, batch_size=len(logits),
        )  # fmt: skip
