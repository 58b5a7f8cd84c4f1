"""The weights that a model has in the end: an average over the last steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["WeightAveraging"]


def _averaged(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights that are trained, and the statistics of batch norm, by name."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats:
            for key in ("running_mean", "running_var"):
                yield f"{name}.{key}", getattr(layer, key)


class WeightAveraging(Callback):
    r"""Exponential average of the weights, which the model has when training ends.

    At a constant learning rate weights end in noise around what they have found; their average
    is nearer to it (Polyak and Juditsky 1992; Izmailov et al. 2018, arXiv:1803.05407). Training
    itself, its validation and early stopping are those of the weights as they are, so that log Z
    follows the machine that is trained. A run that is cut short has no average.

    Lightning's own callback copies the whole plan and swaps weights for each validation, whose
    log Z would be another machine's.

    Parameters
    ----------
    n_steps, n_epochs
        The average goes back over about so many steps, or so many epochs, whichever is shorter:
        weights of the k-th last step count :math:`(1 - 1/n)^k`.

    Raises
    ------
    ValueError
        If either is not positive.
    """

    def __init__(self, n_steps: int = 100, n_epochs: float = 5.0) -> None:
        if n_steps < 1 or n_epochs <= 0:
            raise ValueError(
                "`n_steps` must be at least 1 and `n_epochs` positive, got "
                f"{n_steps} and {n_epochs}."
            )
        self.n_steps, self.n_epochs = n_steps, n_epochs
        self._count = self._step = 0
        self._mean: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints.

        Returns
        -------
        dict[str, Any]
            The average, the steps in it, and after training the weights of the last step.
        """
        counts = {"count": self._count, "step": self._step}
        return {**counts, "mean": self._mean, "last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was made.

        Parameters
        ----------
        state_dict
            From :meth:`state_dict`.
        """
        self._count, self._step = state_dict["count"], state_dict["step"]
        self._mean = {k: v.clone() for k, v in state_dict["mean"].items()}
        self._last = {k: v.clone() for k, v in state_dict["last"].items()}

    @torch.no_grad()
    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Go on from the last step's weights where a finished run gets more epochs.

        Parameters
        ----------
        trainer, pl_module, *args
            Lightning's.
        """
        if not self._last:
            return
        for name, tensor in _averaged(pl_module.module):
            tensor.copy_(self._last[name])
        self._last = {}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Add a step's weights.

        Parameters
        ----------
        trainer, pl_module, *args
            Lightning's; steps count that are the optimiser's.
        """
        if trainer.global_step <= self._step:
            return
        self._step = trainer.global_step
        self._count += 1
        n_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        # Over the first steps their plain mean: where training began does not count.
        weight = 1 / min(self._count, self.n_steps, max(1.0, self.n_epochs * n_epoch))
        for name, tensor in _averaged(pl_module.module):
            mean = self._mean.get(name)
            if mean is None:
                self._mean[name] = tensor.detach().clone()
            else:
                if mean.device != tensor.device:
                    mean = self._mean[name] = mean.to(tensor.device)
                mean.lerp_(tensor.detach().to(mean.dtype), weight)

    @torch.no_grad()
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Give the model its average; log Z is estimated after this.

        Parameters
        ----------
        trainer, pl_module
            Lightning's.
        """
        if not self._mean or self._last:
            return
        for name, tensor in _averaged(pl_module.module):
            self._last[name] = tensor.detach().clone()
            tensor.copy_(self._mean[name])
