"""What was tried for QBMVI and not taken, kept so that docs/evidence.md can be run again.

:class:`SquashedCodes`: Gaussian codes from other starts, or bounded by a sigmoid.
:class:`MeanFieldCodes`: the encoder gives evidence, and mean-field passes of the prior turn it
into probabilities. :class:`HardBits`: no relaxation, gradients by the trapezoid rule.
:class:`GroupedCodes`: a posterior of groups of units, each given those before it.
:class:`SlopedCodes`: the encoder chooses each slab's slope. :class:`HybridCodes`: Gaussian
coordinates beside the units. :class:`ChangedInput`: the encoder sees counts without their depth,
with genes masked, or at random depths.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from scvi_qbm import QBMVI
from scvi_qbm.encoders import BinaryEncoder
from scvi_qbm.mixture import mean_field
from scvi_qbm.module import QBMVAE
from scvi_qbm.prior import BernoulliPrior, BoltzmannPrior
from scvi_qbm.relaxations import BinaryRelaxation, SpikeExponential, register_relaxation


class HardBits(BinaryRelaxation):
    """z itself; gradients by the trapezoid rule (ReinMax, Liu et al. 2023, arXiv:2304.08612)."""

    default_beta = 1.0

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            q = self.probs
            z = (self._uniform(sample_shape) < q).to(self.logits.dtype)
            weight = (z - q).abs() / 2
        return z + weight * (self.logits - self.logits.detach())

    def icdf(self, value: Tensor) -> Tensor:
        return (value > 1 - self.probs).to(self.logits.dtype)

    def _icdf_on(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)

    def _icdf_off(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)

    def _moments(self, order: int) -> tuple[Tensor, Tensor]:
        return torch.ones_like(self.beta), torch.zeros_like(self.beta)

    @torch.no_grad()
    def sample_binary(self, value: Tensor) -> Tensor:
        return (value > 0.5).to(self.logits.dtype)


register_relaxation("hard", HardBits)


class SquashedVAE(QBMVAE):
    """Gaussian codes, which the decoder sees through a sigmoid: bounded, as binary codes are.

    ``separation`` and ``sd``: components at the start, at plus and minus ``separation``.
    ``squash``: slope of the sigmoid; none if 0.
    """

    options: dict[str, float] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        chosen = {"separation": 1.0, "sd": 0.6, "squash": 0.0} | self.options
        with torch.no_grad():
            self.z_encoder.mixture.loc.mul_(chosen["separation"])
            self.z_encoder.mixture.log_scale.fill_(math.log(chosen["sd"]))
        self.squash = chosen["squash"]

    def generative(self, z: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        z = torch.sigmoid(self.squash * z) if self.squash else z
        return super().generative(z, *args, **kwargs)


class SquashedCodes(QBMVI):
    """QBMVI on :class:`SquashedVAE`; the representation is the mean as the decoder sees it."""

    _module_cls = SquashedVAE

    def get_latent_representation(self, **kwargs: Any) -> np.ndarray:
        mean = super().get_latent_representation(**kwargs)
        squash = self.module.squash
        return 1 / (1 + np.exp(-squash * mean)) if squash else mean


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


class ChangedInputVAE(QBMVAE):
    """Changes of the counts that the encoder sees; the decoder explains them as they are.

    ``depth``: counts are scaled to this library size. ``mask``: share of genes set to zero in
    training. ``shallow``: in training, depth is scaled by a factor from 1 - ``shallow`` to 1.
    """

    options: dict[str, float] = {}

    def _regular_inference(self, x: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        seen, library = x, torch.log(x.sum(1, keepdim=True))
        if depth := self.options.get("depth"):
            seen = seen * (depth / seen.sum(1, keepdim=True))
        if self.training and (mask := self.options.get("mask")):
            seen = seen * (torch.rand_like(seen) >= mask)
        if self.training and (shallow := self.options.get("shallow")):
            seen = seen * (1 - shallow * torch.rand(len(seen), 1))
        out = super()._regular_inference(seen, *args, **kwargs)
        out["library"] = library.expand_as(out["library"])
        return out


class ChangedInput(QBMVI):
    """QBMVI on :class:`ChangedInputVAE`."""

    _module_cls = ChangedInputVAE
