"""No relaxation: biased gradients by the trapezoid rule, unbiased ones by antithetic pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scvi_qbm import QBMVI
from scvi_qbm.module import QBMVAE
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


class DisArmVAE(QBMVAE):
    """Bits as they are; unbiased gradients from two antithetic decodings.

    DisARM (Dong, Mnih and Tucker 2020, arXiv:2006.10680).
    """

    options: dict[str, float] = {}

    def loss(
        self, tensors: Any, inference_outputs: Any, generative_outputs: Any, kl_weight: Any = 1.0
    ) -> Any:
        out = super().loss(tensors, inference_outputs, generative_outputs, kl_weight)
        if not (self.training and torch.is_grad_enabled()):
            return out
        logits = inference_outputs["qz"].logits
        with torch.no_grad():
            u = torch.rand_like(logits)
            q = torch.sigmoid(logits)
            pair = (u > 1 - q).float(), (u < q).float()
        losses = []
        x = tensors["X"]
        for bits in pair:
            inputs = self._get_generative_input(tensors, inference_outputs | {"z": bits})
            px = self.generative(**inputs)["px"]
            losses.append(-px.log_prob(x).sum(-1))
        with torch.no_grad():
            sign = 1 - 2 * pair[1]
            size = torch.sigmoid(logits.abs()) * (pair[0] != pair[1])
            gradient = 0.5 * (losses[0] - losses[1])[:, None] * sign * size
        old = out.reconstruction_loss["reconstruction_loss"].mean()
        new = 0.5 * (losses[0] + losses[1]).mean() + ((logits * gradient).sum(-1)).mean()
        out.loss = out.loss - old + new
        return out


class DisArmCodes(QBMVI):
    """QBMVI on :class:`DisArmVAE`."""

    _module_cls = DisArmVAE
