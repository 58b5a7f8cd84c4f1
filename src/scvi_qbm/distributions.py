"""scvi-tools' Poisson and Normal, complete enough to be concatenated and subset by parameters.

Upstream stores and rebuilds likelihoods from ``arg_constraints``, which for these two name other
parameters than the constructor takes, or not all; importance weights fail on them (scvi-tools
1.4.2).
"""

from __future__ import annotations

import torch
from scvi.distributions import Normal, Poisson
from torch import Tensor
from torch.distributions import constraints

__all__ = ["FreeNormal", "ScaledPoisson"]


class FreeNormal(Normal):
    """Normal law whose mean is its own normalised expression.

    Parameters
    ----------
    loc, scale
        Mean and standard deviation, shapes that broadcast.
    validate_args
        Whether to check arguments and values; torch's default if None.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(loc, scale, validate_args=validate_args, normal_mu=loc)


class ScaledPoisson(Poisson):
    """Poisson law that keeps its normalised expression.

    Parameters
    ----------
    rate
        Mean, >= 0.
    scale
        Normalised expression, the mean over the library size, shape of ``rate``; ones if None.
    validate_args
        Whether to check arguments and values; torch's default if None.
    """

    arg_constraints = {
        "rate": constraints.nonnegative,
        "scale": constraints.nonnegative,
    }

    def __init__(
        self, rate: Tensor, scale: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        # torch validates every parameter named above while it is still being built.
        self.scale = torch.ones_like(rate) if scale is None else scale
        super().__init__(rate, validate_args=validate_args, scale=self.scale)
