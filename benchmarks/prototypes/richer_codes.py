"""Codes that say more than on or off: a slope for each slab, Gaussian coordinates beside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scvi_qbm import QBMVI
from scvi_qbm.encoders import BinaryEncoder
from scvi_qbm.module import QBMVAE
from scvi_qbm.prior import BernoulliPrior, BoltzmannPrior
from scvi_qbm.relaxations import SpikeExponential


def log_slab(slope: Tensor) -> Tensor:
    """log of the integral of exp(slope t) over (0, 1)."""
    small = slope.abs() < 1e-2
    safe = torch.where(small, torch.ones_like(slope), slope)
    exact = (
        torch.where(safe > 0, safe + torch.log(-torch.expm1(-safe)), torch.log(-torch.expm1(safe)))
        - safe.abs().log()
    )
    return torch.where(small, slope / 2 + slope**2 / 24, exact)


def slab_mean(slope: Tensor) -> Tensor:
    small = slope.abs() < 1e-2
    safe = torch.where(small, torch.ones_like(slope), slope)
    return torch.where(small, 0.5 + slope / 12, -1 / torch.expm1(-safe) - 1 / safe)


class SlopedPosterior(SpikeExponential):
    """Spike-and-exponential whose slope the encoder chooses: a unit that is on says how much.

    The prior's slope is a constant; the slabs' divergence is exact.
    """

    slope: Tensor

    def _icdf_on(self, u: Tensor) -> Tensor:
        s = self.slope
        small = s.abs() < 1e-2
        safe = torch.where(small, torch.full_like(s, 1e-2), s)
        return torch.log1p(u * torch.expm1(safe)) / safe

    def divergence(self, prior: Any, zeta: Tensor) -> tuple[Tensor, Tensor]:
        kl, q = super().divergence(prior, zeta)
        slab = (self.slope - self.beta) * slab_mean(self.slope)
        slab = slab - log_slab(self.slope) + log_slab(self.beta)
        return kl + (q * slab).sum(-1), q

    @torch.no_grad()
    def weighted_draw(self, prior: Any, size: int) -> tuple[Tensor, Tensor]:
        z, zeta = self.sample_joint((size,))
        slab = (self.beta - self.slope) * zeta - log_slab(self.beta) + log_slab(self.slope)
        log_weight = prior.log_prob(z) - self.binary_log_prob(z).sum(-1)
        return zeta, log_weight + (z * slab).sum(-1)

    def _moments(self, order: int) -> tuple[Tensor, Tensor]:
        on = slab_mean(self.slope)
        return on, torch.zeros_like(on)


class SlopedEncoder(BinaryEncoder):
    def forward(self, x: Tensor, *cat_list: Tensor) -> tuple[SlopedPosterior, Tensor]:
        hidden = self.encoder(x, *cat_list)
        qz = SlopedPosterior(self.logits(hidden), self.relaxation_beta)
        bound = self.bound
        qz.slope = self.relaxation_beta + bound * torch.tanh(self.slope(hidden) / bound)
        return qz, qz.rsample()


class SlopedVAE(QBMVAE):
    """``bound``: how far the slope may go from the prior's."""

    options: dict[str, float] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        encoder = self.z_encoder
        encoder.__class__ = SlopedEncoder
        encoder.bound = self.options.get("bound", 8.0)
        encoder.slope = torch.nn.Linear(encoder.logits.in_features, encoder.logits.out_features)
        torch.nn.init.zeros_(encoder.slope.weight)
        torch.nn.init.zeros_(encoder.slope.bias)


class SlopedCodes(QBMVI):
    """QBMVI on :class:`SlopedVAE`."""

    _module_cls = SlopedVAE


class HybridPosterior(SpikeExponential):
    """Binary units, and beside them independent Gaussian coordinates."""

    loc_beside: Tensor
    log_variance_beside: Tensor

    def beside(self) -> torch.distributions.Normal:
        return torch.distributions.Normal(
            self.loc_beside, torch.exp(0.5 * self.log_variance_beside) + 1e-4
        )

    def divergence(self, prior: Any, zeta: Tensor) -> tuple[Tensor, Tensor]:
        kl, q = super().divergence(prior, zeta)
        law = self.beside()
        standard = torch.distributions.Normal(torch.zeros_like(law.loc), torch.ones_like(law.loc))
        return kl + torch.distributions.kl_divergence(law, standard).sum(-1), q

    @torch.no_grad()
    def weighted_draw(self, prior: Any, size: int) -> tuple[Tensor, Tensor]:
        zeta, log_weight = super().weighted_draw(prior, size)
        law = self.beside()
        y = law.sample((size,))
        standard = torch.distributions.Normal(torch.zeros_like(law.loc), torch.ones_like(law.loc))
        log_weight = log_weight + (standard.log_prob(y) - law.log_prob(y)).sum(-1)
        return torch.cat([zeta, y], -1), log_weight


class HybridEncoder(BinaryEncoder):
    def forward(self, x: Tensor, *cat_list: Tensor) -> tuple[HybridPosterior, Tensor]:
        hidden = self.encoder(x, *cat_list)
        qz = HybridPosterior(self.logits(hidden), self.relaxation_beta)
        qz.loc_beside, qz.log_variance_beside = self.loc(hidden), self.log_variance(hidden)
        return qz, torch.cat([qz.rsample(), qz.beside().rsample()], -1)


class HybridVAE(QBMVAE):
    """``beside``: number of Gaussian coordinates beside the units."""

    options: dict[str, float] = {}

    def __init__(self, *args: Any, n_latent: int = 64, **kwargs: Any) -> None:
        beside = int(self.options.get("beside", 8))
        super().__init__(*args, n_latent=n_latent + beside, **kwargs)
        encoder = self.z_encoder
        encoder.__class__ = HybridEncoder
        width = encoder.logits.in_features
        encoder.logits = torch.nn.Linear(width, n_latent)
        encoder.loc = torch.nn.Linear(width, beside)
        encoder.log_variance = torch.nn.Linear(width, beside)
        name = kwargs.get("prior", "boltzmann")
        self.prior = BoltzmannPrior(n_latent) if name == "boltzmann" else BernoulliPrior(n_latent)


class HybridCodes(QBMVI):
    """QBMVI on :class:`HybridVAE`."""

    _module_cls = HybridVAE
