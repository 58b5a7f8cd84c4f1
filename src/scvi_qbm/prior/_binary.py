"""What both priors share, and the one with independent units."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from scvi_qbm.ising import Ising

from ._report import NegativePhaseReport

__all__ = ["BernoulliPrior", "BinaryPrior"]


def _entropy_term(logits: Tensor) -> Tensor:
    q = torch.sigmoid(logits)
    return (q * logsigmoid(logits) + (1 - q) * logsigmoid(-logits)).sum(-1)


class BinaryPrior(nn.Module):
    """What both priors share: biases h and the KL of a factorised posterior."""

    h: nn.Parameter
    log_z: Tensor
    log_z_se: Tensor

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        if n_latent < 2:
            raise ValueError(f"`n_latent` must be at least 2, got {n_latent}.")
        self.n_latent = n_latent
        self.h = nn.Parameter(torch.zeros(n_latent))
        self.register_buffer("log_z", torch.tensor(n_latent * math.log(2.0)))
        self.register_buffer("log_z_se", torch.tensor(0.0))

    def energy(self, z: Tensor, *, detach: bool = False) -> Tensor:
        """Energy of codes, in nats.

        Parameters
        ----------
        z
            Codes ``(..., n_latent)``, 0 and 1; of probabilities in [0, 1] it is the expectation
            over independent units.
        detach
            No gradients to the prior's parameters.

        Returns
        -------
        torch.Tensor
            Shape ``(...)``.
        """
        h = self.h.detach() if detach else self.h
        return z @ h

    def local_field(self, z: Tensor) -> Tensor:
        r"""Energy of switching each unit on, given the others.

        Parameters
        ----------
        z
            Codes ``(..., n_latent)``; of probabilities it is the expectation over independent
            units.

        Returns
        -------
        torch.Tensor
            :math:`h + W z` in nats, shape of ``z``: minus the log-odds of each unit under the
            prior. No gradients.
        """
        return self.h.detach().to(z).expand_as(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Normalised log-probability of binary codes.

        Parameters
        ----------
        z
            0 and 1, shape ``(..., n_latent)``.

        Returns
        -------
        torch.Tensor
            ``-E(z) - log Z`` in nats, shape ``(...)``, with the log Z last estimated.
        """
        return -self.energy(z) - self.log_z

    def kl(self, logits: Tensor) -> Tensor:
        """Divergence KL(q || p) of each factorised posterior: exact, but for the error of log Z.

        Gradients flow to the logits only; the prior's own come from :meth:`surrogate`, which no
        KL weight scales.

        Parameters
        ----------
        logits
            Of the posterior's units, shape ``(..., n_latent)``.

        Returns
        -------
        torch.Tensor
            In nats, shape ``(...)``.
        """
        return _entropy_term(logits) + self.energy(torch.sigmoid(logits), detach=True) + self.log_z

    def surrogate(self, q: Tensor) -> Tensor:
        r"""A scalar whose gradient is that of :math:`E_q[-\log p]`.

        Parameters
        ----------
        q
            Posterior probabilities, ``(n_cells, n_latent)``, detached.

        Returns
        -------
        torch.Tensor
            A scalar for backpropagation.
        """
        raise NotImplementedError

    def prefetch(self) -> None:
        """Start drawing negative samples in the background, if the prior needs any."""

    def cancel(self) -> None:
        """Give up what is drawn in the background, if anything is."""

    def refresh_log_z(
        self, *, final: bool = False, over_ranks: bool = True
    ) -> NegativePhaseReport | None:
        """Bring ``log_z`` up to date with the parameters.

        Parameters
        ----------
        final
            Whether this is the value that is reported in the end.
        over_ranks
            Average over the ranks of distributed training, which must all call this.

        Returns
        -------
        NegativePhaseReport | None
            None where log Z is exact.
        """
        raise NotImplementedError

    def parameters_numpy(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Couplings and biases as arrays, zeros for the couplings.

        Returns
        -------
        W : numpy.ndarray
            float64 ``(n_latent, n_latent)``.
        h : numpy.ndarray
            float64 ``(n_latent,)``, a copy.
        """
        h = self.h.detach().cpu().double().numpy().copy()
        return np.zeros((self.n_latent, self.n_latent)), h

    def ising(self) -> Ising:
        """The prior as an Ising model with the same energies.

        Returns
        -------
        scvi_qbm.ising.Ising
            Over spins ``s = 2z - 1``, in nats: sample it at ``beta=1``.
        """
        return Ising.from_boltzmann(*self.parameters_numpy())


class BernoulliPrior(BinaryPrior):
    """Independent units: the W = 0 twin, with learned biases and everything in closed form.

    Parameters
    ----------
    n_latent
        Number of binary units, >= 2.

    Raises
    ------
    ValueError
        If ``n_latent`` < 2.
    """

    def _exact_log_z(self) -> Tensor:
        return softplus(-self.h).sum()

    def surrogate(self, q: Tensor) -> Tensor:
        """E(q) + log Z, averaged over cells: here the loss itself, in nats; ``log_z`` is updated.

        Parameters
        ----------
        q
            Posterior probabilities, ``(n_cells, n_latent)``, detached.

        Returns
        -------
        torch.Tensor
            A scalar for backpropagation.
        """
        log_z = self._exact_log_z()
        self.log_z.copy_(log_z.detach())
        return self.energy(q).mean() + log_z

    def refresh_log_z(self, *, final: bool = False, over_ranks: bool = True) -> None:
        """Set ``log_z`` to its closed form; there is no negative phase to report on.

        Parameters
        ----------
        final, over_ranks
            Not used: the value is exact, and the same on every rank.
        """
        self.log_z.copy_(self._exact_log_z().detach())
