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

    ``encoder`` and ``z_transformation`` are scvi-tools' names.

    Parameters
    ----------
    layers
        Hidden layers, as :class:`scvi.nn.FCLayers`; their weights are drawn anew.
    n_hidden
        Their outputs.
    n_output
        Number of binary units.
    relaxation
        Law of the continuous code given the logits.
    relaxation_beta
        Its sharpness; the relaxation's own default if None.
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
        """The relaxed posterior with these logits, in float32 at least.

        Parameters
        ----------
        logits
            Log-odds of the units, ``(..., n_output)``.

        Returns
        -------
        scvi_qbm.relaxations.BinaryRelaxation
            Law of the continuous code, elementwise.
        """
        return self.relaxation(_full_precision(logits), self.relaxation_beta)

    def from_moments(self, mean: Tensor, variance: Tensor) -> BinaryRelaxation:
        """The posterior whose binary units have these moments, as minified data keep them.

        Parameters
        ----------
        mean, variance
            p and p (1 - p), ``(..., n_output)``.

        Returns
        -------
        scvi_qbm.relaxations.BinaryRelaxation
            Law of the continuous code, elementwise.
        """
        return self.relaxation.from_moments(mean, variance, self.relaxation_beta)

    def forward(self, x: Tensor, *cat_list: Tensor) -> tuple[BinaryRelaxation, Tensor]:
        """Posterior and one reparametrised draw of the continuous code.

        Parameters
        ----------
        x
            Features, ``(n_cells, n_input)``.
        *cat_list
            Categories of each covariate of ``n_cat_list``, ``(n_cells, 1)`` each.

        Returns
        -------
        qz : scvi_qbm.relaxations.BinaryRelaxation
            The posterior, ``(n_cells, n_output)``.
        zeta : torch.Tensor
            The draw, in [0, 1], ``(n_cells, n_output)``, with gradients.
        """
        qz = self.posterior(self.logits(self.encoder(x, *cat_list)))
        return qz, qz.rsample()
