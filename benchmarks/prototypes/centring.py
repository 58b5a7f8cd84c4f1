"""The machine's gradient in a centred parametrisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scvi_qbm import QBMVI
from scvi_qbm.module import QBMVAE
from scvi_qbm.prior import BoltzmannPrior


class CentredPrior(BoltzmannPrior):
    """Steps of (z - c)' W (z - c) / 2 + h' z, in the parameters of the plain energy.

    Montavon and Mueller 2012; Melchior et al. 2016 (arXiv:1311.1354), c the mean of both phases.
    """

    def surrogate(self, q: Tensor) -> Tensor:
        negatives = torch.as_tensor(self._collect()).to(q)
        means = q.mean(0), negatives.mean(0)
        centre, change = (means[0] + means[1]) / 2, means[0] - means[1]
        second = q.T @ q / len(q) - negatives.T @ negatives / len(negatives)
        second = second - torch.outer(centre, change) - torch.outer(change, centre)
        second = second - torch.diag(second.diagonal())
        return self.h @ (change - second @ centre) + (self.W_upper * second.triu(1)).sum()


class CentredVAE(QBMVAE):
    """QBMVAE with :class:`CentredPrior`."""

    options: dict[str, float] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prior = CentredPrior(self.n_latent)


class CentredCodes(QBMVI):
    """QBMVI on :class:`CentredVAE`."""

    _module_cls = CentredVAE
