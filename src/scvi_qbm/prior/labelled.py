"""A machine whose last units are labels: one normalised model of codes and labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .boltzmann import BoltzmannPrior

__all__ = ["LabelledPrior"]

# In nats, before the first step. A label is on in most states, two hardly ever.
_BIAS, _REPULSION = -3.0, 12.0


class LabelledPrior(BoltzmannPrior):
    r"""A Boltzmann machine over a code z and label units y.

    .. math:: p(z, y) = \frac1Z \exp\bigl(-h^\top z - \tfrac{1}{2} z^\top W z - a^\top y
              - z^\top U y - r\, n(y)\bigr)

    with r nats for each of the n(y) pairs of labels that exclude each other. That is one machine
    of ``n_latent + n_labels`` units, so every sampler and log Z serve. A cell's labels are one of
    K *configurations* of the label units: a single unit on, or one of each level. Given a code
    their distribution is an exact softmax,

    .. math:: p(y_k | z) \propto e^{-f_k(z)}, \qquad f_k(z) = (a + U^\top z)^\top y_k,

    and a sum over the configurations that a cell may have (one where its label is known, all where
    nothing is) costs a product of matrices.

    Parameters
    ----------
    n_latent
        Number of binary units of the code, >= 2.
    configurations
        0 and 1, ``(n_configurations, n_labels)``: which label units go together. The identity for
        one level of labels. Not part of the state dictionary.

    Raises
    ------
    ValueError
        If ``n_latent`` < 2, or the configurations are not different rows of 0 and 1.
    """

    configurations: Tensor
    repulsion: Tensor

    def __init__(self, n_latent: int, configurations: Tensor) -> None:
        super().__init__(n_latent)
        configurations = torch.as_tensor(configurations, dtype=torch.float32)
        binary = ((configurations == 0) | (configurations == 1)).all()
        if not binary or len(set(map(tuple, configurations.tolist()))) < len(configurations):
            raise ValueError("Configurations of labels must be different rows of 0 and 1.")
        n_labels = configurations.shape[1]
        self.n_units = n_latent + n_labels
        self.register_buffer("configurations", configurations, persistent=False)
        self.register_buffer("repulsion", torch.tensor(_REPULSION))
        self.a = nn.Parameter(torch.full((n_labels,), _BIAS))
        self.U = nn.Parameter(torch.zeros(n_latent, n_labels))

    def machine(self) -> tuple[Tensor, Tensor]:
        together = self.configurations.T @ self.configurations
        V = self.repulsion * (together == 0).to(together)
        top, bottom = torch.cat([self.W, self.U], 1), torch.cat([self.U.T, V], 1)
        return torch.cat([top, bottom]), torch.cat([self.h, self.a])

    def parameters_numpy(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        W, h = (x.detach().cpu().double().numpy() for x in self.machine())
        return W, h

    def label_logits(
        self, z: Tensor, allowed: Tensor | None = None, *, detach: bool = False
    ) -> Tensor:
        """Logits of the configurations given codes, -f in nats.

        Parameters
        ----------
        z
            Codes ``(..., n_latent)``; of probabilities it is the expectation over independent
            units.
        allowed
            Configurations that each code may have, bool ``(..., n_configurations)``; all if None.
        detach
            No gradients to the prior's parameters.

        Returns
        -------
        torch.Tensor
            ``(..., n_configurations)``, minus infinity where not allowed. Their softmax is
            p(y | z).
        """
        a, U = (self.a.detach(), self.U.detach()) if detach else (self.a, self.U)
        logits = -(z @ U + a) @ self.configurations.T
        return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)

    def energy(self, z: Tensor, allowed: Tensor | None = None, *, detach: bool = False) -> Tensor:
        r"""Energy of codes with their labels summed over, in nats.

        Parameters
        ----------
        z
            Codes ``(..., n_latent)``, 0 and 1; of probabilities it is the expectation over
            independent units where one configuration is allowed, and no less otherwise (Jensen).
        allowed
            As :meth:`label_logits`.
        detach
            No gradients to the prior's parameters.

        Returns
        -------
        torch.Tensor
            :math:`-\log \sum_k e^{-E(z, y_k)}`, shape ``(...)``.
        """
        logits = self.label_logits(z, allowed, detach=detach)
        return super().energy(z, detach=detach) - torch.logsumexp(logits, -1)

    def classification_loss(self, z: Tensor, allowed: Tensor) -> Tensor:
        """Cross-entropy of what is known of the labels, -log p(label | z).

        Parameters
        ----------
        z, allowed
            As :meth:`label_logits`.

        Returns
        -------
        torch.Tensor
            In nats, shape ``(...)``; 0 where all configurations are allowed.
        """
        logits = self.label_logits(z)
        some = torch.logsumexp(logits.masked_fill(~allowed, -torch.inf), -1)
        return torch.logsumexp(logits, -1) - some

    def local_field(self, z: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        given, S = self._given(parameters), self.configurations.to(z)
        a, U = given["a"].to(z), given["U"].to(z)
        y = torch.softmax(-(z @ U + a) @ S.T, -1) @ S
        return super().local_field(z, parameters) + y @ U.T

    def surrogate(
        self, q: Tensor, negatives: Tensor | None = None, allowed: Tensor | None = None
    ) -> Tensor:
        """A scalar whose gradient in the prior's parameters is that of the ELBO's -log p.

        Parameters
        ----------
        q
            Posterior probabilities, ``(n_cells, n_latent)``, detached.
        negatives
            Samples of the machine, 0 and 1, ``(n_samples, n_units)``.
        allowed
            As :meth:`label_logits`, for the cells of q.

        Returns
        -------
        torch.Tensor
            A scalar for backpropagation.
        """
        assert negatives is not None
        negatives = negatives.to(q)
        z, y = negatives[:, : self.n_latent], negatives[:, self.n_latent :]
        expected = torch.softmax(self.label_logits(q, allowed, detach=True), -1)
        expected = expected @ self.configurations
        first = expected.mean(0) - y.mean(0)
        second = q.T @ expected / len(q) - z.T @ y / len(z)
        return super().surrogate(q, z) + self.a @ first + (self.U * second).sum()
