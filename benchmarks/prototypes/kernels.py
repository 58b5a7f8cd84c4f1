"""Other smoothing kernels, with implicit gradients in the place of an inverse CDF."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scvi_qbm.relaxations import BinaryRelaxation, register_relaxation


class ImplicitKernel(BinaryRelaxation):
    """A kernel without a closed inverse CDF; implicit gradients (Figurnov et al. 2018).

    ``_cdf`` and ``_density`` give those of zeta for z = 0 and z = 1.
    """

    default_beta = 1.0

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            _, zeta = self.sample_joint(sample_shape)
            q = self.probs
            off, on = self._cdf(zeta)
            density_off, density_on = self._density(zeta)
            slope = (off - on) * q * (1 - q) / (q * density_on + (1 - q) * density_off + 1e-12)
        return zeta + slope * (self.logits - self.logits.detach())

    def icdf(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def _cdf(self, zeta: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _density(self, zeta: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class GaussianKernel(ImplicitKernel):
    """zeta = z + noise of standard deviation 1 / beta."""

    default_beta = 4.0
    support = torch.distributions.constraints.real

    def _icdf_on(self, u: Tensor) -> Tensor:
        return 1 + self._icdf_off(u)

    def _icdf_off(self, u: Tensor) -> Tensor:
        return torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)) / self.beta

    def _cdf(self, zeta: Tensor) -> tuple[Tensor, Tensor]:
        return torch.special.ndtr(zeta * self.beta), torch.special.ndtr((zeta - 1) * self.beta)

    def _density(self, zeta: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.beta / math.sqrt(2 * math.pi)
        return (
            scale * torch.exp(-0.5 * (zeta * self.beta) ** 2),
            scale * torch.exp(-0.5 * ((zeta - 1) * self.beta) ** 2),
        )

    def _moments(self, order: int) -> tuple[Tensor, Tensor]:
        noise = self.beta**-2 if order == 2 else torch.zeros_like(self.beta)
        return 1 + noise, noise


class PowerKernel(ImplicitKernel):
    """zeta = u^beta where off and 1 - u^beta where on (Vahdat et al. 2018, arXiv:1805.07445)."""

    default_beta = 3.0

    def _icdf_on(self, u: Tensor) -> Tensor:
        return 1 - u**self.beta

    def _icdf_off(self, u: Tensor) -> Tensor:
        return u**self.beta

    def _cdf(self, zeta: Tensor) -> tuple[Tensor, Tensor]:
        return zeta ** (1 / self.beta), 1 - (1 - zeta) ** (1 / self.beta)

    def _density(self, zeta: Tensor) -> tuple[Tensor, Tensor]:
        power = 1 / self.beta - 1
        return (
            zeta.clamp(1e-6) ** power / self.beta,
            (1 - zeta).clamp(1e-6) ** power / self.beta,
        )

    def _moments(self, order: int) -> tuple[Tensor, Tensor]:
        first = 1 / (1 + self.beta)
        if order == 1:
            return 1 - first, first
        second = 1 / (1 + 2 * self.beta)
        return 1 - 2 * first + second, second


register_relaxation("gaussian_kernel", GaussianKernel)
register_relaxation("power_kernel", PowerKernel)
