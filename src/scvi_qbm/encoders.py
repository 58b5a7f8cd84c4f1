"""The encoder: from expression to the posterior over binary codes."""

from __future__ import annotations

import torch
from scvi.nn import FCLayers
from torch import Tensor, nn

from scvi_qbm.relaxations import BinaryRelaxation


def _full_precision(x: Tensor) -> Tensor:
    # Under autocast it comes in half precision, too coarse for a sum over many units.
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class BinaryEncoder(nn.Module):
    """Fully connected layers to the logits of binary units.

    ``encoder`` and ``z_transformation`` are scvi-tools' names. The weights of ``layers`` are drawn
    anew; ``n_hidden`` is the number of their outputs, ``n_output`` that of the binary units.
    """

    def __init__(
        self,
        layers: FCLayers,
        n_hidden: int,
        n_output: int,
        relaxation: type[BinaryRelaxation],
        relaxation_beta: float | None = None,
    ) -> None:
        super().__init__()
        for layer in layers.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        self.encoder = layers
        self.z_transformation = nn.Identity()
        self.logits = nn.Linear(n_hidden, n_output)
        self.relaxation = relaxation
        self.relaxation_beta = relaxation_beta

    def posterior(self, logits: Tensor) -> BinaryRelaxation:
        """The posterior with these logits, in float32 at least; relaxed while training."""
        return self._settle(self.relaxation(_full_precision(logits), self.relaxation_beta))

    def _settle(self, qz: BinaryRelaxation) -> BinaryRelaxation:
        return qz if self.training else qz.settled()

    def from_moments(self, mean: Tensor, variance: Tensor) -> BinaryRelaxation:
        """The posterior whose binary units have these moments, as minified data keep them."""
        return self._settle(self.relaxation.from_moments(mean, variance, self.relaxation_beta))

    def forward(self, x: Tensor, *cat_list: Tensor) -> tuple[BinaryRelaxation, Tensor]:
        """Posterior and one draw of the continuous code, in [0, 1], reparametrised in training.

        ``cat_list`` holds the categories of each covariate, ``(n_cells, 1)`` each.
        """
        qz = self.posterior(self.logits(self.encoder(x, *cat_list)))
        return qz, qz.rsample()
