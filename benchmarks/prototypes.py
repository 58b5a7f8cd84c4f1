"""What was tried for QBMVI and not taken, kept so that docs/evidence.md can be run again.

:class:`GaussianCodes`: the decoder sees Gaussian codes whose prior is a Boltzmann mixture of
Gaussians. :class:`MeanFieldCodes`: the encoder gives evidence, and mean-field passes of the prior
turn it into probabilities. :class:`HardBits`: no relaxation, gradients by the trapezoid rule.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from scvi_qbm import QBMVI
from scvi_qbm.module import QBMVAE, BinaryEncoder
from scvi_qbm.relaxations import BinaryRelaxation, register_relaxation


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


def log_normal(x: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
    return -0.5 * ((x - mean) * torch.exp(-log_sd)) ** 2 - log_sd - 0.5 * math.log(2 * math.pi)


def mean_field(prior: Any, evidence: Tensor, passes: int, damping: float = 0.5) -> Tensor:
    """Log-odds after damped parallel passes; gradients through the evidence only."""
    with torch.no_grad():
        logits = evidence - prior.local_field(torch.zeros_like(evidence))
        for _ in range(passes):
            new = evidence - prior.local_field(torch.sigmoid(logits))
            logits = damping * logits + (1 - damping) * new
        field = prior.local_field(torch.sigmoid(logits))
    return evidence - field


class GaussianPosterior:
    """q(zeta|x), Gaussian, with what the rest of the package asks of a posterior."""

    def __init__(self, mean: Tensor, log_sd: Tensor) -> None:
        self.mean = self.loc = mean
        self.log_sd = log_sd

    def rsample(self, shape: tuple[int, ...] = ()) -> Tensor:
        return self.mean + self.log_sd.exp() * torch.randn(*shape, *self.mean.shape)

    def sample(self, shape: tuple[int, ...] = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(shape)


class GaussianEncoder(nn.Module):
    def __init__(self, encoder: nn.Module, n_hidden: int, n_latent: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.mean, self.log_var = nn.Linear(n_hidden, n_latent), nn.Linear(n_hidden, n_latent)
        self.z_transformation = nn.Identity()

    def forward(self, x: Tensor, *cats: Tensor) -> tuple[GaussianPosterior, Tensor]:
        hidden = self.encoder(x, *cats)
        variance = torch.exp(self.log_var(hidden)) + 1e-4
        qz = GaussianPosterior(self.mean(hidden), 0.5 * torch.log(variance))
        return qz, qz.rsample()


class GaussianCodesVAE(QBMVAE):
    r"""Prior :math:`p(\zeta) = \sum_z p(z) \prod_l N(\zeta_l; m_{z_l}, s_{z_l})`.

    :math:`\log p(\zeta)` is bounded from below by a mean-field q(z | zeta). ``separation`` and
    ``sd``: initial components at plus and minus ``separation``. ``squash``: the decoder
    sees sigmoid(squash * zeta).
    """

    options: dict[str, float] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        chosen = {"separation": 1.0, "sd": 0.6, "squash": 0.0} | self.options
        n, start = self.n_latent, chosen["separation"]
        self.z_encoder = GaussianEncoder(self.z_encoder.encoder, kwargs.get("n_hidden", 128), n)
        self.means = nn.Parameter(torch.stack([-start * torch.ones(n), start * torch.ones(n)]))
        self.log_sds = nn.Parameter(math.log(chosen["sd"]) * torch.ones(2, n))
        self.squash = chosen["squash"]

    def generative(self, z: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        z = torch.sigmoid(self.squash * z) if self.squash else z
        return super().generative(z, *args, **kwargs)

    def log_prior(self, zeta: Tensor) -> tuple[Tensor, Tensor]:
        off, on = (log_normal(zeta, self.means[k], self.log_sds[k]) for k in (0, 1))
        logits = mean_field(self.prior, on - off, passes=8)
        q = torch.sigmoid(logits)
        entropy = -(q * logsigmoid(logits) + (1 - q) * logsigmoid(-logits)).sum(-1)
        expected = (q * on + (1 - q) * off).sum(-1)
        return expected + entropy - self.prior.energy(q, detach=True) - self.prior.log_z, q

    def loss(
        self, tensors: Any, inference_outputs: Any, generative_outputs: Any, kl_weight: Any = 1.0
    ) -> LossOutput:
        qz, zeta = (inference_outputs[key] for key in (MODULE_KEYS.QZ_KEY, MODULE_KEYS.Z_KEY))
        log_prior, q = self.log_prior(zeta)
        kl = log_normal(zeta, qz.mean, qz.log_sd).sum(-1) - log_prior
        x = tensors[REGISTRY_KEYS.X_KEY]
        reconstruction = -generative_outputs[MODULE_KEYS.PX_KEY].log_prob(x).sum(-1)
        loss = torch.mean(reconstruction + kl_weight * kl)
        if self.training and torch.is_grad_enabled():
            surrogate = self.prior.surrogate(q.detach())
            loss = loss + surrogate - surrogate.detach()
        local = {MODULE_KEYS.KL_Z_KEY: kl, MODULE_KEYS.KL_L_KEY: torch.zeros_like(kl)}
        return LossOutput(loss=loss, reconstruction_loss=reconstruction, kl_local=local)

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(self, tensors: Any, n_mc_samples: int, *args: Any, **kwargs: Any) -> float:
        inference = self.inference(**self._get_inference_input(tensors, full_forward_pass=True))
        qz, weights = inference[MODULE_KEYS.QZ_KEY], []
        for _ in range(n_mc_samples):
            zeta = qz.sample()
            outputs = inference | {MODULE_KEYS.Z_KEY: zeta}
            px = self.generative(**self._get_generative_input(tensors, outputs))
            weights.append(
                self.log_prior(zeta)[0]
                - log_normal(zeta, qz.mean, qz.log_sd).sum(-1)
                + px[MODULE_KEYS.PX_KEY].log_prob(tensors[REGISTRY_KEYS.X_KEY]).sum(-1)
            )
        out = torch.logsumexp(torch.stack(weights), 0) - math.log(n_mc_samples)
        return out.mean().item()


class GaussianCodes(QBMVI):
    """QBMVI on :class:`GaussianCodesVAE`; the representation is the mean the decoder sees."""

    _module_cls = GaussianCodesVAE

    @torch.inference_mode()
    def get_latent_representation(self, **kwargs: Any) -> np.ndarray:
        out = []
        for tensors in self._make_data_loader(adata=self._validate_anndata(None)):
            inputs = self.module._get_inference_input(tensors)
            mean = self.module.inference(**inputs)[MODULE_KEYS.QZ_KEY].mean
            squash = self.module.squash
            out.append(torch.sigmoid(squash * mean) if squash else mean)
        return torch.cat(out).numpy()


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
