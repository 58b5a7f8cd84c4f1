r"""Continuous relaxations of binary latents, as torch distributions.

A binary unit :math:`z \sim \mathrm{Bernoulli}(q)` is smoothed into :math:`\zeta \sim r(\zeta | z)`
on [0, 1], which is drawn by a differentiable inverse CDF, so that gradients pass from the decoder
to the encoder. The same :math:`r` stands in posterior and prior and cancels in their
Kullback-Leibler divergence (Rolfe 2017, arXiv:1609.02200).
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

__all__ = [
    "BinaryRelaxation",
    "OverlappingExponential",
    "SpikeExponential",
    "get_relaxation",
    "list_relaxations",
    "register_relaxation",
]


_SCALAR = torch.Size()


class BinaryRelaxation(Distribution, abc.ABC):
    r"""Law of :math:`\zeta` given the logits of :math:`z`; base class of the relaxations.

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
        """The law whose binary unit has this ``loc`` and squared ``scale``, as minified data do.

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
        """The same law with batch dimensions expanded to ``batch_shape``.

        Parameters
        ----------
        batch_shape
            The new batch shape.
        _instance
            torch's: what a subclass that overrides this method hands in to be filled.

        Returns
        -------
        BinaryRelaxation
            A view: memory is shared with this law.
        """
        new = self._get_checked_instance(type(self), _instance)
        new.logits, new.beta = self.logits.expand(batch_shape), self.beta.expand(batch_shape)
        if self._probs is not None:
            new._probs = self._probs.expand(batch_shape)
        super(BinaryRelaxation, new).__init__(batch_shape, validate_args=False)
        return new

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

        With :math:`\zeta` a draw of this law, :math:`(z, \zeta)` is one of the joint law.

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


class SpikeExponential(BinaryRelaxation):
    r"""Spike-and-exponential: the paper's relaxation (there with beta = 0.5).

    :math:`r(\zeta|0) = \delta(\zeta)` and :math:`r(\zeta|1) = \beta e^{\beta\zeta} / (e^\beta -
    1)`, with inverse CDF :math:`\frac1\beta \log[\max(\rho + q - 1, 0)\,(e^\beta - 1)/q + 1]`.
    Draws below the spike carry no gradient.

    Parameters
    ----------
    logits, beta, validate_args
        As :class:`BinaryRelaxation`; beta is 0.5 if None.

    References
    ----------
    Rolfe (2017), Discrete Variational Autoencoders, arXiv:1609.02200, appendix D.
    """

    default_beta = 0.5

    def icdf(self, value: Tensor) -> Tensor:
        q = self.probs.clamp_min(1e-7)
        # (rho + q - 1) / q without its cancellation at small q.
        return self._icdf_on((1 - (1 - value) / q).clamp_min(0.0))

    def _icdf_on(self, u: Tensor) -> Tensor:
        return torch.log1p(u * torch.expm1(self.beta)) / self.beta

    def _icdf_off(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)

    @torch.no_grad()
    def sample_binary(self, value: Tensor) -> Tensor:
        return (value > 0).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        slab = torch.log(self.beta) + self.beta * value - torch.log(torch.expm1(self.beta))
        return torch.where(value > 0, logsigmoid(self.logits) + slab, logsigmoid(-self.logits))

    def moments(self, order: int) -> tuple[Tensor, Tensor]:
        b, scale = self.beta, -torch.expm1(-self.beta)
        first = 1 / scale - 1 / b
        on = first if order == 1 else 1 / scale - 2 * first / b
        return on, torch.zeros_like(on)


class OverlappingExponential(BinaryRelaxation):
    r"""Two exponentials that lean to either end and overlap.

    :math:`r(\zeta|0) \propto e^{-\beta\zeta}`, :math:`r(\zeta|1) \propto e^{\beta(\zeta-1)}` on
    [0, 1]. Every draw carries a gradient, taken implicitly:
    :math:`d\zeta/dq = -\partial_q F(\zeta) / f(\zeta)`.

    Parameters
    ----------
    logits, beta, validate_args
        As :class:`BinaryRelaxation`; beta is 8 if None.

    References
    ----------
    Vahdat et al. (2018), DVAE++: Discrete Variational Autoencoders with Overlapping
    Transformations, arXiv:1802.04920.
    """

    default_beta = 8.0

    def icdf(self, value: Tensor) -> Tensor:
        q = self.probs
        with torch.no_grad():
            d = torch.exp(-self.beta)
            linear = value * (1 - d) + q * d - (1 - q)
            root = (linear**2 + 4 * (1 - q) * q * d).sqrt()
            tiny = torch.finfo(q.dtype).tiny
            m = torch.where(
                linear >= 0,
                2 * q * d / (linear + root).clamp_min(tiny),
                (root - linear) / (2 * (1 - q)).clamp_min(tiny),
            )
            zeta = (-torch.log(m.clamp_min(tiny)) / self.beta).clamp(0.0, 1.0)
            off = -torch.expm1(-self.beta * zeta) / (1 - d)
            on = (torch.exp(self.beta * (zeta - 1)) - d) / (1 - d)
            slope = (off - on) / self._density(zeta)
        return zeta + slope * (q - q.detach())

    def _density(self, value: Tensor) -> Tensor:
        norm = self.beta / -torch.expm1(-self.beta)
        off, on = torch.exp(-self.beta * value), torch.exp(self.beta * (value - 1))
        return norm * ((1 - self.probs) * off + self.probs * on)

    def _icdf_off(self, u: Tensor) -> Tensor:
        return (-torch.log1p(u * torch.expm1(-self.beta)) / self.beta).clamp(0.0, 1.0)

    def _icdf_on(self, u: Tensor) -> Tensor:
        return 1 - self._icdf_off(u)

    @torch.no_grad()
    def sample_binary(self, value: Tensor) -> Tensor:
        on = torch.sigmoid(self.logits + self.beta * (2 * value - 1))
        return (torch.rand_like(on) < on).to(on.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return torch.log(self._density(value))

    def moments(self, order: int) -> tuple[Tensor, Tensor]:
        b = self.beta
        first = 1 / b - 1 / torch.expm1(b)
        if order == 1:
            return 1 - first, first
        second = (2 * first - 1 / torch.expm1(b) * b) / b
        return 1 - 2 * first + second, second


_RELAXATIONS: dict[str, type[BinaryRelaxation]] = {
    "spike_exponential": SpikeExponential,
    "overlapping_exponential": OverlappingExponential,
}


def list_relaxations() -> list[str]:
    """Names that :func:`get_relaxation` knows.

    Returns
    -------
    list[str]
        In alphabetical order, registered ones included.
    """
    return sorted(_RELAXATIONS)


def register_relaxation(name: str, cls: type[BinaryRelaxation]) -> None:
    """Make a relaxation available as ``QBMVI(relaxation=name)``.

    Parameters
    ----------
    name
        A free name.
    cls
        A :class:`BinaryRelaxation` subclass.

    Raises
    ------
    ValueError
        If the name is taken.
    TypeError
        If ``cls`` is not a subclass of :class:`BinaryRelaxation`.
    """
    if not (isinstance(cls, type) and issubclass(cls, BinaryRelaxation)):
        raise TypeError("`cls` must be a subclass of scvi_qbm.relaxations.BinaryRelaxation.")
    if name in _RELAXATIONS:
        raise ValueError(f"A relaxation named {name!r} exists.")
    _RELAXATIONS[name] = cls


def get_relaxation(name: str) -> type[BinaryRelaxation]:
    """The relaxation of that name.

    Parameters
    ----------
    name
        One of :func:`list_relaxations`.

    Returns
    -------
    type[BinaryRelaxation]
        The class, to be called with logits and a sharpness.

    Raises
    ------
    ValueError
        If there is none of that name; the message lists those there are.
    """
    if name not in _RELAXATIONS:
        raise ValueError(
            f"Unknown relaxation {name!r}. Available: {', '.join(list_relaxations())}."
        )
    return _RELAXATIONS[name]
