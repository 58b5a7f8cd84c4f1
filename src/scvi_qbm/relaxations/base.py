"""What a relaxation is, and what is left of it after training."""

from __future__ import annotations

import abc

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

_SCALAR = torch.Size()


class BinaryRelaxation(Distribution, abc.ABC):
    r"""Distribution of :math:`\zeta` given the logits of :math:`z`; base class of the relaxations.

    ``loc`` and ``scale`` are mean and standard deviation of the *binary* unit z, as scvi-tools
    reads them from a posterior; ``mean`` and ``variance`` are those of :math:`\zeta`.

    Parameters
    ----------
    logits
        Log-odds of z = 1, any shape.
    beta
        Sharpness, > 0: the larger, the closer :math:`\zeta` to z and the rarer its gradient. The
        class's ``default_beta`` if None.
    validate_args
        Whether to check arguments and values. If None torch's default on a CPU, and not on an
        accelerator, for which the host would have to wait.
    """

    arg_constraints = {"logits": constraints.real, "beta": constraints.positive}
    support = constraints.unit_interval
    has_rsample = True
    default_beta: float
    _probs: Tensor | None = None

    def __init__(
        self,
        logits: Tensor,
        beta: float | Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        beta = self.default_beta if beta is None else beta
        self.logits, self.beta = broadcast_all(logits, beta)
        if validate_args is None and not self.logits.is_cpu:
            validate_args = False
        super().__init__(self.logits.shape, validate_args=validate_args)

    @classmethod
    def from_moments(
        cls, mean: Tensor, variance: Tensor, beta: float | Tensor | None = None
    ) -> BinaryRelaxation:
        """The distribution whose binary unit has this ``loc`` and squared ``scale``.

        ``probs`` is ``mean`` to the bit. Log-odds are right beyond where a float's probability
        rounds to 1, because the variance p (1 - p) still knows 1 - p there.

        Parameters
        ----------
        mean
            p of the binary units, any shape.
        variance
            Their p (1 - p), the same shape.
        beta
            Sharpness, > 0; the class's ``default_beta`` if None.

        Returns
        -------
        BinaryRelaxation
            Of the class that it is called on.
        """
        tiny = torch.finfo(mean.dtype).tiny
        log_mean, log_variance = mean.clamp_min(tiny).log(), variance.clamp_min(tiny).log()
        small = log_mean - torch.log1p(-mean.clamp_max(0.5))
        out = cls(torch.where(mean <= 0.5, small, 2 * log_mean - log_variance), beta)
        out._probs = mean
        return out

    def expand(self, batch_shape: torch.Size, _instance: BinaryRelaxation | None = None):
        """The same distribution with batch dimensions expanded to ``batch_shape``.

        Parameters
        ----------
        batch_shape
            The new batch shape.
        _instance
            torch's: what a subclass that overrides this method hands in to be filled.

        Returns
        -------
        BinaryRelaxation
            A view: memory is shared with this distribution.
        """
        new = self._get_checked_instance(type(self), _instance)
        new.logits, new.beta = self.logits.expand(batch_shape), self.beta.expand(batch_shape)
        if self._probs is not None:
            new._probs = self._probs.expand(batch_shape)
        super(BinaryRelaxation, new).__init__(batch_shape, validate_args=False)
        return new

    def settled(self) -> TwoLevel:
        r"""The same distribution of z, with :math:`\zeta` at its mean given z.

        Returns
        -------
        TwoLevel
            With these logits.
        """
        on, off = self.moments(1)
        out = TwoLevel(self.logits, off, on, validate_args=self._validate_args)
        out._probs = self._probs
        return out

    @property
    def probs(self) -> Tensor:
        """Probability of z = 1, in [0, 1], shape of the logits."""
        return torch.sigmoid(self.logits) if self._probs is None else self._probs

    @property
    def loc(self) -> Tensor:
        """Mean of the binary unit z, the same as ``probs``."""
        return self.probs

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the binary unit z."""
        # By logarithms: p (1 - p) rounds to 0 long before its unit is certain.
        return torch.exp(0.5 * (logsigmoid(self.logits) + logsigmoid(-self.logits)))

    @property
    def mean(self) -> Tensor:
        r"""Mean of the continuous code :math:`\zeta`."""
        on, off = self.moments(1)
        return self.probs * on + (1 - self.probs) * off

    @property
    def variance(self) -> Tensor:
        r"""Variance of the continuous code :math:`\zeta`."""
        on, off = self.moments(2)
        return self.probs * on + (1 - self.probs) * off - self.mean**2

    def binary_log_prob(self, z: Tensor) -> Tensor:
        """Log-probability of binary states, elementwise.

        Parameters
        ----------
        z
            0 and 1, a shape that broadcasts with the logits. Values between give the expectation
            of the log-probability over independent units of these means.

        Returns
        -------
        torch.Tensor
            In nats; sum over units for the log-probability of a code.
        """
        return z * logsigmoid(self.logits) + (1 - z) * logsigmoid(-self.logits)

    def _uniform(self, sample_shape: torch.Size) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)

    @torch.no_grad()
    def sample_joint(self, sample_shape: torch.Size = _SCALAR) -> tuple[Tensor, Tensor]:
        r"""Draw :math:`(z, \zeta)` together, as importance weights need them.

        Parameters
        ----------
        sample_shape
            Put before the batch shape.

        Returns
        -------
        z : torch.Tensor
            0 and 1, float, ``(*sample_shape, *batch_shape)``; without gradients.
        zeta : torch.Tensor
            In [0, 1], the same shape, drawn given ``z``; without gradients.
        """
        z = (self._uniform(sample_shape) < self.probs).to(self.logits.dtype)
        return z, self.sample_given(z)

    @torch.no_grad()
    def sample_given(self, z: Tensor) -> Tensor:
        r"""Draw :math:`\zeta \sim r(\zeta | z)` for binary states, whatever the logits.

        Parameters
        ----------
        z
            0 and 1, a shape that broadcasts with ``beta``.

        Returns
        -------
        torch.Tensor
            In [0, 1], shape of ``z``; without gradients.
        """
        u = torch.rand(z.shape, dtype=self.logits.dtype, device=self.logits.device)
        return torch.where(z > 0, self._icdf_on(u), self._icdf_off(u))

    @torch.no_grad()
    def sample_binary(self, value: Tensor) -> Tensor:
        r"""Draw z given :math:`\zeta`, by :math:`q(z | x)\, r(\zeta | z)`.

        With :math:`\zeta` a draw of this distribution, :math:`(z, \zeta)` is one of the joint
        distribution.

        Parameters
        ----------
        value
            :math:`\zeta` in [0, 1], a shape that broadcasts with the logits.

        Returns
        -------
        torch.Tensor
            0 and 1, float; without gradients.

        Raises
        ------
        NotImplementedError
            In a relaxation that does not say how; only importance weights need it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement sample_binary.")

    def rsample(self, sample_shape: torch.Size = _SCALAR) -> Tensor:
        return self.icdf(self._uniform(sample_shape))

    @abc.abstractmethod
    def icdf(self, value: Tensor) -> Tensor:
        r"""Inverse CDF of :math:`\zeta`, differentiable in the logits.

        Parameters
        ----------
        value
            Levels in [0, 1], a shape that broadcasts with the logits.

        Returns
        -------
        torch.Tensor
            :math:`\zeta` in [0, 1].
        """

    @abc.abstractmethod
    def _icdf_on(self, u: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _icdf_off(self, u: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def moments(self, order: int) -> tuple[Tensor, Tensor]:
        r""":math:`E[\zeta^k | z]` for z = 1 and z = 0.

        Parameters
        ----------
        order
            k, 1 or 2.

        Returns
        -------
        on, off : torch.Tensor
            Shape of the logits.
        """


class TwoLevel(BinaryRelaxation):
    r"""A relaxation without its noise: :math:`\zeta` is ``on`` where z = 1, and ``off`` elsewhere.

    Draws carry no gradient, so nothing trains through it.

    Parameters
    ----------
    logits
        Log-odds of z = 1, any shape.
    off, on
        Its values, :math:`E[\zeta | z]` of the relaxation, in [0, 1]; shape of the logits.
    validate_args
        As :class:`BinaryRelaxation`.
    """

    arg_constraints = {
        "logits": constraints.real,
        "off": constraints.unit_interval,
        "on": constraints.unit_interval,
    }

    def __init__(
        self, logits: Tensor, off: Tensor, on: Tensor, validate_args: bool | None = None
    ) -> None:
        self.logits, self.off, self.on = broadcast_all(logits, off, on)
        if validate_args is None and not self.logits.is_cpu:
            validate_args = False
        Distribution.__init__(self, self.logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: BinaryRelaxation | None = None):
        new = TwoLevel(*(x.expand(batch_shape) for x in (self.logits, self.off, self.on)), False)
        new._probs = None if self._probs is None else self._probs.expand(batch_shape)
        return new

    @torch.no_grad()
    def icdf(self, value: Tensor) -> Tensor:
        return torch.where(value > 1 - self.probs, self.on, self.off)

    def _icdf_on(self, u: Tensor) -> Tensor:
        return self.on.expand_as(u)

    def _icdf_off(self, u: Tensor) -> Tensor:
        return self.off.expand_as(u)

    @torch.no_grad()
    def sample_binary(self, value: Tensor) -> Tensor:
        return (2 * value > self.off + self.on).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.binary_log_prob(self.sample_binary(value))

    def moments(self, order: int) -> tuple[Tensor, Tensor]:
        return self.on**order, self.off**order
