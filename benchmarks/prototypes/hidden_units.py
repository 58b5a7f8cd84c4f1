"""A machine with hidden units beside the code's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scvi_qbm import QBMVI
from scvi_qbm.module import QBMVAE
from scvi_qbm.prior import BoltzmannPrior
from scvi_qbm.relaxations import SpikeExponential, register_relaxation


class HiddenPosterior(SpikeExponential):
    """Units of a machine with hidden ones beside, which sit at their mean given the units' means.

    By Jensen (softplus is convex) the divergence is an upper bound, tight where units are sure.
    """

    def hidden(self, prior: Any, z: Tensor) -> Tensor:
        n = self.logits.shape[-1]
        beside = z.new_zeros(*z.shape[:-1], prior.n_latent - n)
        return -prior.local_field(torch.cat([z, beside], -1))[..., n:]

    def divergence(self, prior: Any, zeta: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(prior, self.probs.detach())
        kl = prior.kl(torch.cat([self.logits, hidden], -1))
        return kl, torch.cat([self.probs, torch.sigmoid(hidden)], -1)

    @torch.no_grad()
    def weighted_draw(self, prior: Any, size: int) -> tuple[Tensor, Tensor]:
        z, zeta = self.sample_joint((size,))
        hidden = self.hidden(prior, z)
        log_prior = prior.log_prob(torch.cat([z, torch.zeros_like(hidden)], -1))
        log_prior = log_prior + torch.nn.functional.softplus(hidden).sum(-1)
        return zeta, log_prior - self.binary_log_prob(z).sum(-1)


register_relaxation("hidden", HiddenPosterior)


class HiddenVAE(QBMVAE):
    """``hidden``: units of the machine that the decoder does not see, not coupled to each other.

    ``start``: standard deviation of their couplings at the start.
    """

    options: dict[str, float] = {}

    def __init__(self, *args: Any, n_latent: int = 64, **kwargs: Any) -> None:
        super().__init__(*args, n_latent=n_latent, **kwargs)
        hidden = int(self.options.get("hidden", 64))
        self.prior = BoltzmannPrior(n_latent + hidden)
        coupled = torch.ones(n_latent + hidden, n_latent + hidden)
        coupled[n_latent:, n_latent:] = 0
        if not self.options.get("beside", 1):
            coupled[:n_latent, :n_latent] = 0
        with torch.no_grad():
            self.prior.W_upper[:n_latent, n_latent:].normal_(std=self.options.get("start", 0.1))
        self.prior.W_upper.register_hook(lambda gradient: gradient * coupled)


class HiddenCodes(QBMVI):
    """QBMVI on :class:`HiddenVAE`."""

    _module_cls = HiddenVAE
