r"""Gaussian codes under a Boltzmann mixture, in the place of relaxed binary codes.

.. math:: p(\zeta) = \sum_z p(z) \prod_l N(\zeta_l; m_{l z_l}, s_{l z_l}^2), \qquad
          z \in \{0, 1\}^n, \quad p(z) = e^{-E(z)} / Z.

A mixture of :math:`2^n` Gaussians whose weights are a Boltzmann machine's; with equal components
it is the Gaussian VAE. The posterior :math:`q(\zeta|x)` is Gaussian, so that gradients need no
relaxation, and :math:`\log p(\zeta)` is bounded from below by a factorised q(z|zeta).
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Normal

__all__ = ["BoltzmannMixture", "GaussianCode", "mean_field"]

_SEPARATION, _SCALE = 1.0, 0.6
_ROWS = 256


class _Prior(Protocol):
    log_z: Tensor

    def kl(self, logits: Tensor) -> Tensor: ...

    def local_field(self, z: Tensor) -> Tensor: ...


def _log_normal(value: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    standard = (value - loc) * torch.exp(-log_scale)
    return -0.5 * standard**2 - log_scale - 0.5 * math.log(2 * math.pi)


def mean_field(prior: _Prior, ratio: Tensor, passes: int = 8, damping: float = 0.5) -> Tensor:
    """Log-odds of units given evidence for each, by damped parallel passes of mean field.

    Parameters
    ----------
    prior
        The machine over units.
    ratio
        Log-likelihood ratio of on to off, ``(..., n_latent)``.
    passes
        Number of passes.
    damping
        Share of the old log-odds that each pass keeps, in [0, 1).

    Returns
    -------
    torch.Tensor
        Shape of ``ratio``; gradients reach the ratio directly, not through the passes, where the
        bound is stationary.
    """
    with torch.no_grad():
        logits = ratio - prior.local_field(torch.zeros_like(ratio))
        for _ in range(passes):
            new = ratio - prior.local_field(torch.sigmoid(logits))
            logits = damping * logits + (1 - damping) * new
        field = prior.local_field(torch.sigmoid(logits))
    return ratio - field


class BoltzmannMixture(nn.Module):
    """The components: two Gaussians a unit, for off and on.

    Parameters
    ----------
    n_latent
        Number of units.
    """

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        ones = torch.ones(n_latent)
        self.loc = nn.Parameter(torch.stack([-_SEPARATION * ones, _SEPARATION * ones]))
        self.log_scale = nn.Parameter(math.log(_SCALE) * torch.stack([ones, ones]))

    def log_likelihoods(self, zeta: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density of each coordinate given its unit.

        Parameters
        ----------
        zeta
            Codes, ``(..., n_latent)``.

        Returns
        -------
        off, on : torch.Tensor
            In nats, shape of ``zeta``.
        """
        off, on = (_log_normal(zeta, self.loc[k], self.log_scale[k]) for k in (0, 1))
        return off, on

    def log_prob(self, prior: _Prior, zeta: Tensor) -> tuple[Tensor, Tensor]:
        r"""A lower bound on the mixture's log-density, and the units that give it.

        :math:`\sum_z q(z) \log [p(z) p(\zeta | z) / q(z)]` with q the mean-field posterior:
        exact for independent units.

        Parameters
        ----------
        prior
            The machine over units; its parameters get no gradients here.
        zeta
            Codes, ``(..., n_latent)``.

        Returns
        -------
        bound : torch.Tensor
            In nats, ``(...)``.
        q : torch.Tensor
            Probabilities of the units, ``(..., n_latent)``.
        """
        off, on = self.log_likelihoods(zeta)
        logits = mean_field(prior, on - off)
        q = torch.sigmoid(logits)
        return (q * on + (1 - q) * off).sum(-1) - prior.kl(logits), q

    @torch.no_grad()
    def sample_given(self, z: Tensor) -> Tensor:
        """Draw codes given their units.

        Parameters
        ----------
        z
            0 and 1, ``(..., n_latent)``.

        Returns
        -------
        torch.Tensor
            Codes, shape of ``z``; without gradients.
        """
        on = z > 0
        scale = torch.where(on, self.log_scale[1], self.log_scale[0]).exp()
        return torch.where(on, self.loc[1], self.loc[0]) + scale * torch.randn_like(scale)


class GaussianCode(Normal):
    """The posterior q(zeta|x), with the units behind it.

    Parameters
    ----------
    loc, scale
        Mean and standard deviation, ``(..., n_latent)``.
    mixture, prior
        Components of the prior, and the machine over their units. scvi-tools puts minibatches
        together without them; then all but a Gaussian's own methods fail.
    validate_args
        Whether to check arguments and values. If None torch's default on a CPU, and not on an
        accelerator, for which the host would have to wait.
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        mixture: BoltzmannMixture | None = None,
        prior: _Prior | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if validate_args is None and not loc.is_cpu:
            validate_args = False
        super().__init__(loc, scale, validate_args=validate_args)
        self._attached = None if mixture is None or prior is None else (mixture, prior)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GaussianCode:
        """The same law with batch dimensions expanded.

        Parameters
        ----------
        batch_shape
            The new batch shape.
        _instance
            Not used: torch's, for subclasses.

        Returns
        -------
        GaussianCode
            A view: memory is shared with this law.
        """
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return GaussianCode(loc, scale, *(self._attached or ()), validate_args=False)

    def _known(self) -> tuple[BoltzmannMixture, _Prior]:
        if self._attached is None:
            raise RuntimeError("This law does not know its prior: take it from the module.")
        return self._attached

    @property
    def logits(self) -> Tensor:
        """Log-odds of the units at the posterior's mean.

        Raises
        ------
        RuntimeError
            If the law does not know its prior.
        """
        mixture, prior = self._known()
        off, on = mixture.log_likelihoods(self.loc)
        return mean_field(prior, on - off)

    @property
    def probs(self) -> Tensor:
        """Probabilities of the units at the posterior's mean, in [0, 1]."""
        return torch.sigmoid(self.logits)

    def divergence(self, prior: _Prior, zeta: Tensor) -> tuple[Tensor, Tensor]:
        """KL(q(zeta|x) || p(zeta)) estimated at one draw, and the units that teach the machine.

        Parameters
        ----------
        prior
            The machine over units.
        zeta
            A draw of this law, ``(..., n_latent)``.

        Returns
        -------
        kl : torch.Tensor
            In nats, ``(...)``; an upper bound in expectation, as log p is bounded from below.
        q : torch.Tensor
            Probabilities of the units, ``(..., n_latent)``.

        Raises
        ------
        RuntimeError
            If the law does not know its prior.
        """
        bound, q = self._known()[0].log_prob(prior, zeta)
        return self.log_prob(zeta).sum(-1) - bound, q

    @torch.no_grad()
    def weighted_draw(self, prior: _Prior, size: int) -> tuple[Tensor, Tensor]:
        """Draws with their importance weights.

        Parameters
        ----------
        prior
            The machine over units.
        size
            Number of draws.

        Returns
        -------
        zeta : torch.Tensor
            ``(size, ..., n_latent)``.
        log_weight : torch.Tensor
            log p(zeta), as bounded, minus log q(zeta|x) in nats, ``(size, ...)``.

        Raises
        ------
        RuntimeError
            If the law does not know its prior.
        """
        zeta = self.sample((size,))
        return zeta, self._known()[0].log_prob(prior, zeta)[0] - self.log_prob(zeta).sum(-1)

    @torch.no_grad()
    def population(self, prior: _Prior, zeta: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Log-densities of codes under the prior and under some cells' posteriors.

        Parameters
        ----------
        prior
            The machine over units.
        zeta
            Codes, ``(..., n_latent)``.
        anchors
            Positions of cells in this posterior.

        Returns
        -------
        log_pz : torch.Tensor
            As bounded, in nats, a row of ``zeta`` (flattened).
        log_qz : torch.Tensor
            In nats, ``(n_rows, n_anchors)``.

        Raises
        ------
        RuntimeError
            If the law does not know its prior.
        """
        device = prior.log_z.device
        zeta = zeta.to(device).reshape(-1, zeta.shape[-1])
        loc, scale = (x[anchors].to(device) for x in (self.loc, self.scale))
        cells = Normal(loc, scale, validate_args=False)
        parts = [cells.log_prob(rows[:, None]).sum(-1) for rows in zeta.split(_ROWS)]
        return self._known()[0].log_prob(prior, zeta)[0], torch.cat(parts)

    def sample_given(self, z: Tensor) -> Tensor:
        """Draw codes given their units, see :meth:`BoltzmannMixture.sample_given`.

        Parameters
        ----------
        z
            0 and 1, ``(..., n_latent)``.

        Returns
        -------
        torch.Tensor
            Codes, shape of ``z``; without gradients.

        Raises
        ------
        RuntimeError
            If the law does not know its prior.
        """
        return self._known()[0].sample_given(z)

    def levels(self) -> tuple[Tensor, Tensor]:
        """Mean of each coordinate given its unit.

        Returns
        -------
        on, off : torch.Tensor
            Shape of ``loc``.

        Raises
        ------
        RuntimeError
            If the law does not know its prior.
        """
        loc = self._known()[0].loc
        return loc[1].expand_as(self.loc), loc[0].expand_as(self.loc)
