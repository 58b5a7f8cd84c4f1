"""The paper's relaxation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .base import BinaryRelaxation


class SpikeExponential(BinaryRelaxation):
    r"""Spike-and-exponential: the paper's relaxation (there with beta = 0.5).

    :math:`r(\zeta|0) = \delta(\zeta)` and :math:`r(\zeta|1) = \beta e^{\beta\zeta} / (e^\beta -
    1)`, with inverse CDF :math:`\frac1\beta \log[\max(\rho + q - 1, 0)\,(e^\beta - 1)/q + 1]`.
    Draws below the spike carry no gradient.

    Parameters
    ----------
    logits, beta, validate_args
        As :class:`BinaryRelaxation`; beta is 0.5 if None.

    References
    ----------
    Rolfe (2017), Discrete Variational Autoencoders, arXiv:1609.02200, appendix D.
    """

    default_beta = 0.5

    def icdf(self, value: Tensor) -> Tensor:
        q = self.probs.clamp_min(1e-7)
        # (rho + q - 1) / q without its cancellation at small q.
        return self._icdf_on((1 - (1 - value) / q).clamp_min(0.0))

    def _icdf_on(self, u: Tensor) -> Tensor:
        return torch.log1p(u * torch.expm1(self.beta)) / self.beta

    def _icdf_off(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)

    @torch.no_grad()
    def sample_binary(self, value: Tensor) -> Tensor:
        return (value > 0).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        slab = torch.log(self.beta) + self.beta * value - torch.log(torch.expm1(self.beta))
        return torch.where(value > 0, logsigmoid(self.logits) + slab, logsigmoid(-self.logits))

    def moments(self, order: int) -> tuple[Tensor, Tensor]:
        b, scale = self.beta, -torch.expm1(-self.beta)
        first = 1 / scale - 1 / b
        on = first if order == 1 else 1 / scale - 2 * first / b
        return on, torch.zeros_like(on)
