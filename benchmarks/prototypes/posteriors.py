"""Posteriors that know the prior, or that are no product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from scvi_qbm import QBMVI
from scvi_qbm.encoders import BinaryEncoder
from scvi_qbm.mixture import mean_field
from scvi_qbm.module import QBMVAE
from scvi_qbm.relaxations import BinaryRelaxation, SpikeExponential


class MeanFieldEncoder(BinaryEncoder):
    def posterior(self, logits: Tensor) -> BinaryRelaxation:
        (prior,) = self.prior
        return super().posterior(mean_field(prior, logits, self.passes, self.damping))


class MeanFieldVAE(QBMVAE):
    """The encoder's output is evidence, to which mean-field passes add the prior."""

    options: dict[str, float] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.z_encoder.__class__ = MeanFieldEncoder
        self.z_encoder.prior = [self.prior]
        self.z_encoder.passes = self.options.get("passes", 6)
        self.z_encoder.damping = self.options.get("damping", 0.5)


class MeanFieldCodes(QBMVI):
    """QBMVI on :class:`MeanFieldVAE`."""

    _module_cls = MeanFieldVAE


class GroupedPosterior(SpikeExponential):
    """Units in groups; each group's logits shift by what the groups before it came out as.

    ``logits`` are those of the mean path, where earlier groups are at their means (what the
    representation shows); ``path`` are those that were drawn.
    """

    path: Tensor
    base: Tensor
    pull: Tensor
    mask: Tensor
    blocks: list[slice]

    def divergence(self, prior: Any, zeta: Tensor) -> tuple[Tensor, Tensor]:
        last = self.blocks[-1]
        q, z = torch.sigmoid(self.path), (zeta > 0).to(zeta.dtype)
        difference = (z - q).detach()
        kl = prior.kl(self.path)
        if hasattr(prior, "W_upper"):
            # Exact within a group, at what was drawn between groups.
            upper = prior.W_upper.detach().triu(1) * self.mask
            kl = kl + ((difference @ upper) * q).sum(-1)
        units = z.detach().clone()
        units[..., last] = q[..., last]
        return kl, units

    @torch.no_grad()
    def weighted_draw(self, prior: Any, size: int) -> tuple[Tensor, Tensor]:
        base = self.base.expand(size, *self.base.shape)
        logits, zeta = grouped_draw(base, self.beta[0, 0], self.pull, self.blocks)
        z = (zeta > 0).to(zeta.dtype)
        log_q = z * logsigmoid(logits) + (1 - z) * logsigmoid(-logits)
        return zeta, prior.log_prob(z) - log_q.sum(-1)


def grouped_draw(
    base: Tensor, beta: float | Tensor, pull: Tensor, blocks: list[slice], mean: bool = False
) -> tuple[Tensor, Tensor]:
    """Logits and codes, a group at a time; ``mean``: earlier groups at their means."""
    shift = torch.zeros_like(base)
    parts, codes = [], []
    for block in blocks:
        law = SpikeExponential(base[..., block] + shift[..., block], beta)
        code = law.mean if mean else law.rsample()
        if mean:
            seen = law.probs
        else:
            bits = (code > 0).to(code.dtype)
            seen = bits.detach() + law.probs - law.probs.detach()
        shift = shift + seen @ pull[block]
        parts.append(law.logits)
        codes.append(code)
    return torch.cat(parts, -1), torch.cat(codes, -1)


class GroupedEncoder(BinaryEncoder):
    def forward(self, x: Tensor, *cat_list: Tensor) -> tuple[GroupedPosterior, Tensor]:
        base = self.logits(self.encoder(x, *cat_list))
        pull = self.pull * self.mask
        path, zeta = grouped_draw(base, self.relaxation_beta, pull, self.blocks)
        mean_path, _ = grouped_draw(base, self.relaxation_beta, pull, self.blocks, mean=True)
        qz = GroupedPosterior(mean_path, self.relaxation_beta)
        qz.path, qz.base, qz.pull, qz.blocks, qz.mask = path, base, pull, self.blocks, self.mask
        return qz, zeta


class GroupedVAE(QBMVAE):
    """A posterior that is no product: ``groups`` blocks of units, each given those before it."""

    options: dict[str, float] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        encoder, n = self.z_encoder, self.prior.n_latent
        encoder.__class__ = GroupedEncoder
        size = n // int(self.options.get("groups", 2))
        encoder.blocks = [slice(i, min(i + size, n)) for i in range(0, n, size)]
        group = torch.arange(n) // size
        encoder.register_buffer("mask", (group[:, None] < group).float())
        encoder.pull = torch.nn.Parameter(torch.zeros(n, n))


class GroupedCodes(QBMVI):
    """QBMVI on :class:`GroupedVAE`."""

    _module_cls = GroupedVAE
