"""DVAE++'s relaxation."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import BinaryRelaxation


class OverlappingExponential(BinaryRelaxation):
    r"""Two exponentials that lean to either end and overlap.

    :math:`r(\zeta|0) \propto e^{-\beta\zeta}`, :math:`r(\zeta|1) \propto e^{\beta(\zeta-1)}` on
    [0, 1]. Every draw carries a gradient, taken implicitly:
    :math:`d\zeta/dq = -\partial_q F(\zeta) / f(\zeta)`.

    Parameters
    ----------
    logits, beta, validate_args
        As :class:`BinaryRelaxation`; beta is 8 if None.

    References
    ----------
    Vahdat et al. (2018), DVAE++: Discrete Variational Autoencoders with Overlapping
    Transformations, arXiv:1802.04920.
    """

    default_beta = 8.0

    def icdf(self, value: Tensor) -> Tensor:
        q = self.probs
        with torch.no_grad():
            d = torch.exp(-self.beta)
            linear = value * (1 - d) + q * d - (1 - q)
            root = (linear**2 + 4 * (1 - q) * q * d).sqrt()
            tiny = torch.finfo(q.dtype).tiny
            m = torch.where(
                linear >= 0,
                2 * q * d / (linear + root).clamp_min(tiny),
                (root - linear) / (2 * (1 - q)).clamp_min(tiny),
            )
            zeta = (-torch.log(m.clamp_min(tiny)) / self.beta).clamp(0.0, 1.0)
            off = -torch.expm1(-self.beta * zeta) / (1 - d)
            on = (torch.exp(self.beta * (zeta - 1)) - d) / (1 - d)
            slope = (off - on) / self._density(zeta)
        return zeta + slope * (q - q.detach())

    def _density(self, value: Tensor) -> Tensor:
        norm = self.beta / -torch.expm1(-self.beta)
        off, on = torch.exp(-self.beta * value), torch.exp(self.beta * (value - 1))
        return norm * ((1 - self.probs) * off + self.probs * on)

    def _icdf_off(self, u: Tensor) -> Tensor:
        return (-torch.log1p(u * torch.expm1(-self.beta)) / self.beta).clamp(0.0, 1.0)

    def _icdf_on(self, u: Tensor) -> Tensor:
        return 1 - self._icdf_off(u)

    @torch.no_grad()
    def sample_binary(self, value: Tensor) -> Tensor:
        on = torch.sigmoid(self.logits + self.beta * (2 * value - 1))
        return (torch.rand_like(on) < on).to(on.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return torch.log(self._density(value))

    def moments(self, order: int) -> tuple[Tensor, Tensor]:
        b = self.beta
        first = 1 / b - 1 / torch.expm1(b)
        if order == 1:
            return 1 - first, first
        second = (2 * first - 1 / torch.expm1(b) * b) / b
        return 1 - 2 * first + second, second
