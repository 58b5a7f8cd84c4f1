"""The Boltzmann machine as a prior: parameters, energy, divergence. Nothing is drawn here."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from scvi_qbm.ising import Ising

__all__ = ["BoltzmannPrior"]


def _negative_entropy(logits: Tensor) -> Tensor:
    q = torch.sigmoid(logits)
    return (q * logsigmoid(logits) + (1 - q) * logsigmoid(-logits)).sum(-1)


class BinaryPrior(nn.Module):
    r"""A prior over binary units :math:`z \in \{0, 1\}^n` with biases h.

    Parameters
    ----------
    n_latent
        Number of binary units, >= 2.

    Raises
    ------
    ValueError
        If ``n_latent`` < 2.
    """

    h: nn.Parameter
    log_z: Tensor
    log_z_se: Tensor
    #: Units of the code, and those of the machine, which may have more.
    n_latent: int
    n_units: int

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        if n_latent < 2:
            raise ValueError(f"`n_latent` must be at least 2, got {n_latent}.")
        self.n_latent = self.n_units = n_latent
        self.h = nn.Parameter(torch.zeros(n_latent))

    @property
    def is_frozen(self) -> bool:
        """Whether the parameters stay as they are, as in query mapping (scArches)."""
        return not self.h.requires_grad

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

    def local_field(self, z: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        r"""Energy of switching each unit on, given the others.

        Parameters
        ----------
        z
            Codes ``(..., n_latent)``; of probabilities it is the expectation over independent
            units.
        parameters
            Of another such prior, by name; its own if None.

        Returns
        -------
        torch.Tensor
            :math:`h + W z` in nats, shape of ``z``: minus the log-odds of each unit under the
            prior. No gradients.
        """
        return self._given(parameters)["h"].to(z).expand_as(z)

    def _given(self, parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        given = dict(self.named_parameters()) if parameters is None else parameters
        return {name: value.detach() for name, value in given.items()}

    def log_prob(self, z: Tensor, **labels: Tensor) -> Tensor:
        """Normalised log-probability of binary codes.

        Parameters
        ----------
        z
            0 and 1, shape ``(..., n_latent)``.
        **labels
            Of :meth:`energy`, where the prior has labels.

        Returns
        -------
        torch.Tensor
            ``-E(z) - log Z`` in nats, shape ``(...)``, with the log Z last estimated.
        """
        return -self.energy(z, **labels) - self.log_z

    def kl(self, logits: Tensor, **labels: Tensor) -> Tensor:
        """Divergence KL(q || p) of each factorised posterior: exact, but for the error of log Z.

        Gradients flow to the logits only; the prior's own come from :meth:`surrogate`, which no
        KL weight scales.

        Parameters
        ----------
        logits
            Of the posterior's units, shape ``(..., n_latent)``.
        **labels
            Of :meth:`energy`, where the prior has labels.

        Returns
        -------
        torch.Tensor
            In nats, shape ``(...)``.
        """
        energy = self.energy(torch.sigmoid(logits), detach=True, **labels)
        return _negative_entropy(logits) + energy + self.log_z

    def surrogate(self, q: Tensor, negatives: Tensor | None = None) -> Tensor:
        r"""A scalar whose gradient in the prior's parameters is that of :math:`E_q[-\log p]`.

        Parameters
        ----------
        q
            Posterior probabilities, ``(n_cells, n_latent)``, detached.
        negatives
            Samples of the prior, 0 and 1, ``(n_samples, n_latent)``, where it needs them.

        Returns
        -------
        torch.Tensor
            A scalar for backpropagation.
        """
        raise NotImplementedError

    def parameters_numpy(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Couplings and biases as arrays, in nats.

        Returns
        -------
        W : numpy.ndarray
            float64 ``(n_latent, n_latent)``, symmetric with zero diagonal, a copy; zeros for
            independent units.
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


class BoltzmannPrior(BinaryPrior):
    r"""A fully connected Boltzmann machine.

    .. math:: p(z) = e^{-E(z)} / Z, \qquad E(z) = h^\top z + \tfrac{1}{2} z^\top W z

    ``log_z`` and its standard error ``log_z_se`` are buffers that
    :class:`~scvi_qbm.prior.NegativePhase` keeps up to date.

    Parameters
    ----------
    n_latent
        Number of binary units, >= 2.
    """

    W_upper: nn.Parameter

    def __init__(self, n_latent: int) -> None:
        super().__init__(n_latent)
        self.register_buffer("log_z", torch.tensor(n_latent * math.log(2.0)))
        self.register_buffer("log_z_se", torch.tensor(0.0))
        # Only the strict upper triangle is used and gets gradients.
        self.W_upper = nn.Parameter(torch.zeros(n_latent, n_latent))

    @property
    def W(self) -> Tensor:
        """Couplings in nats, ``(n_latent, n_latent)``, symmetric with zero diagonal."""
        upper = self.W_upper.triu(1)
        return upper + upper.T

    def machine(self) -> tuple[Tensor, Tensor]:
        """Couplings and biases of all units of the machine, with gradients.

        Returns
        -------
        W : torch.Tensor
            In nats, ``(n_units, n_units)``, symmetric with zero diagonal.
        h : torch.Tensor
            In nats, ``(n_units,)``.
        """
        return self.W, self.h

    def energy(self, z: Tensor, *, detach: bool = False) -> Tensor:
        upper = self.W_upper.detach() if detach else self.W_upper
        return super().energy(z, detach=detach) + ((z @ upper.triu(1)) * z).sum(-1)

    def local_field(self, z: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        upper = self._given(parameters)["W_upper"].to(z).triu(1)
        return super().local_field(z, parameters) + z @ (upper + upper.T)

    def surrogate(self, q: Tensor, negatives: Tensor | None = None) -> Tensor:
        assert negatives is not None
        negatives = negatives.to(q)
        # Linear in the parameters, so the moments are the gradient: no graph through the energies.
        first = q.mean(0) - negatives.mean(0)
        second = q.T @ q / len(q) - negatives.T @ negatives / len(negatives)
        return self.h @ first + (self.W_upper * second.triu(1)).sum()

    def parameters_numpy(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        upper = np.triu(self.W_upper.detach().cpu().double().numpy(), 1)
        return upper + upper.T, super().parameters_numpy()[1]
