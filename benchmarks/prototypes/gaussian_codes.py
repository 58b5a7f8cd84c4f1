"""Gaussian codes from other starts, or bounded by a sigmoid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvi_qbm import QBMVI
from scvi_qbm.module import QBMVAE


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
