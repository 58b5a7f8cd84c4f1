"""Independent units: the W = 0 twin, with everything in closed form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .boltzmann import BinaryPrior

__all__ = ["BernoulliPrior"]


class BernoulliPrior(BinaryPrior):
    """Independent units with learned biases: the twin of a Boltzmann machine with W = 0.

    Its log Z is exact at any time, and its gradient needs no samples.

    Parameters
    ----------
    n_latent
        Number of binary units, >= 2.
    """

    @property
    def log_z(self) -> Tensor:  # type: ignore[override]
        """Log Z in nats, a scalar without gradients."""
        return softplus(-self.h.detach()).sum()

    @property
    def log_z_se(self) -> Tensor:  # type: ignore[override]
        """Standard error of log Z, which is zero."""
        return torch.zeros((), device=self.h.device)

    def surrogate(self, q: Tensor, negatives: Tensor | None = None) -> Tensor:
        """E(q) + log Z, averaged over cells: the loss itself, in nats.

        Parameters
        ----------
        q
            Posterior probabilities, ``(n_cells, n_latent)``, detached.
        negatives
            Not used.

        Returns
        -------
        torch.Tensor
            A scalar for backpropagation.
        """
        return self.energy(q).mean() + softplus(-self.h).sum()
