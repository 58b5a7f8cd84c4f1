"""Simulated coherent Ising machines: each with its equations of motion; see ``cim_base.py``."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from scvi_qbm._numbers import positive

from .cim_base import CIM, F32, Couple, Noise, ramp

__all__ = [
    "AmplitudeCorrectedCIM",
    "CIM",
    "ChaoticFeedbackCIM",
    "GaussianStateCIM",
    "MeanFieldCIM",
    "SeparatedFeedbackCIM",
]

# Noise of the mean-field machine matched to beta: cap on sigma, below which coupling gives way,
# and a^2 / r, chosen on SK and dense peaked machines of 14 spins (effective beta 0.9 to 1.04).
_MAX_SIGMA, _SATURATION = 1.5, 0.85


@dataclass(eq=False)
class MeanFieldCIM(CIM):
    r"""Mean-field coherent Ising machine with noise, whose temperature follows ``beta``.

    :math:`dx = [(r - x^2) x + I]\,dt + \sigma\,dW`: Langevin motion in
    :math:`V = \sum_i (x_i^4/4 - r x_i^2/2) + \xi E(x)` at temperature :math:`\sigma^2/2`. Were all
    amplitudes :math:`a`, its distribution over signs would be Boltzmann's at
    :math:`\beta = 2 \xi a^2/\sigma^2`; they are not, hence a heuristic.

    With ``sigma=None`` the noise is matched to the inverse temperature asked for,
    :math:`\sigma^2 = 2 \xi a^2 / \beta` with saturation amplitude :math:`a`; where that would
    exceed 1.5 the coupling is weakened instead. On densely coupled machines near beta = 1 the
    effective temperature is then within some 25 % of it; where fields dominate, at low
    temperature or with large machines it can be off by a factor of 2 and more. The distribution
    is not Boltzmann's at any.

    Parameters
    ----------
    n_steps, dt, gain, fields, trajectories, n_threads
        See :class:`CIM`.
    sigma
        Noise amplitude, >= 0; matched to ``beta`` by default, which a number overrides.

    Raises
    ------
    ValueError
        If an option is unknown or out of range, or ``sigma`` is to be matched and the
        final gain is not positive.

    References
    ----------
    Wang, Marandi, Wen, Byer and Yamamoto (2013), Phys. Rev. A 88, 063853; Tiunov, Ulanov and
    Lvovsky (2019), Opt. Express 27, 10288.
    """

    name: ClassVar[str] = "cim"
    reported: ClassVar[tuple[str, ...]] = ("sigma",)

    n_steps: int = 1500
    dt: float = 0.02
    gain: tuple[float, float] = (0.0, 2.0)
    sigma: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma is not None and not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"`sigma` must be >= 0, got {self.sigma}.")
        if self.sigma is None and self.gain[1] <= 0:
            raise ValueError("`sigma` can be matched to beta only if the final gain is positive.")

    def _matched(self, beta: float, strength: float) -> tuple[CIM, float]:
        if self.sigma is not None:
            return self, strength
        height = _SATURATION * self.gain[1]
        strength = min(strength, beta * _MAX_SIGMA**2 / (2 * height))
        machine = copy.copy(self)
        machine.sigma = math.sqrt(2 * strength * height / beta) if strength > 0 else _MAX_SIGMA
        return machine, strength

    def _step(self, t: float, couple: Couple, noise: Noise) -> None:
        assert self.sigma is not None
        x, dt = self.x, np.float32(self.dt)
        drift = couple(x)
        drift += (self._gain(t) - x * x) * x
        x += dt * drift
        x += np.float32(self.sigma * math.sqrt(self.dt)) * noise()
        self._clip(3.0 * math.sqrt(max(1.0, self.gain[1])))


@dataclass(eq=False)
class GaussianStateCIM(CIM):
    r"""Measurement-feedback coherent Ising machine on Gaussian states: the physics' own noise.

    ``beta`` plays no part: the spread of the states is set by ``g`` and the pump. Each pulse is
    a Gaussian state of mean :math:`\mu = x/g` and variance s (vacuum: 1/2). It is measured at
    rate j, which squeezes it towards the outcome, and the field is computed from the noisy
    outcomes :math:`\tilde x = x + g\,\dot W/\sqrt{4j}`:

    .. math::
        dx &= [(r - x^2) x + I(\tilde x)]\,dt + g \sqrt{j}\,(s - 1/2)\,dW \\
        \dot s &= 2 (r - 3 x^2) s - 2 j (s - 1/2)^2 + (1 + j) + 2 x^2

    with the net gain :math:`r = p - 1 - j`.

    Parameters
    ----------
    n_steps, dt, gain, fields, trajectories, n_threads
        See :class:`CIM`.
    g
        Square root of the single-photon saturation: a pulse holds some 1 / g^2 photons. Larger
        is noisier.
    j
        Rate at which pulses are measured, in units of the cavity's decay rate.

    References
    ----------
    Kako, Leleu, Inui, Khoyratee, Reifenstein and Yamamoto (2020), Adv. Quantum Technol. 3,
    2000045; Ng, Onodera, Kako, McMahon, Mabuchi and Yamamoto (2022), Phys. Rev. Research 4,
    013009.
    """

    name: ClassVar[str] = "cim_gaussian"
    conformance: ClassVar[dict[str, Any]] = {"n_steps": 1000}

    n_steps: int = 2000
    dt: float = 0.02
    g: float = 0.2
    j: float = 1.0
    s: F32 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.g, self.j = positive(self.g, "g"), positive(self.j, "j")

    def _start(self, noise: Noise) -> None:
        self.x = np.float32(0) * noise()
        self.s = np.full_like(self.x, 0.5)

    def _step(self, t: float, couple: Couple, noise: Noise) -> None:
        x, s, dt = self.x, self.s, np.float32(self.dt)
        j, gain = np.float32(self.j), self._gain(t)
        white = noise() * np.float32(self.g / math.sqrt(self.dt))
        measured = x + white * np.float32(1 / math.sqrt(4 * self.j))
        square = x * x
        off = s - np.float32(0.5)
        drift = couple(measured)
        drift += (gain - square) * x
        drift += np.float32(math.sqrt(self.j)) * off * white
        s += dt * (2 * (gain - 3 * square) * s - 2 * j * off * off + (1 + j) + 2 * square)
        np.clip(s, 1e-3, 1e3, out=s)
        x += dt * drift
        self._clip(3.0 * math.sqrt(max(1.0, self.gain[1])))


@dataclass(eq=False)
class AmplitudeCorrectedCIM(CIM):
    r"""Coherent Ising machine with amplitude-heterogeneity correction (CAC); ignores ``beta``.

    Errors hold all amplitudes at one height: :math:`\dot x = (r - x^2) x + e I`,
    :math:`\dot e = -\beta e (x^2 - \alpha)`, target :math:`\alpha` from 1 to 3.

    Parameters
    ----------
    n_steps, dt, gain, fields, trajectories, n_threads
        See :class:`CIM`.
    rate
        Rate of the error variables, which pull every amplitude to one height.

    References
    ----------
    Leleu, Yamamoto, McMahon and Aihara (2019), Phys. Rev. Lett. 122, 040607; Leleu et al. (2021),
    Commun. Phys. 4, 266.
    """

    name: ClassVar[str] = "cim_cac"

    dt: float = 0.075
    gain: tuple[float, float] = (-1.5, 0.0)
    rate: float = 0.3
    target: ClassVar[tuple[float, float]] = (1.0, 3.0)
    e: F32 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rate = positive(self.rate, "rate")

    def _start(self, noise: Noise) -> None:
        super()._start(noise)
        self.e = np.ones_like(self.x)

    def _step(self, t: float, couple: Couple, noise: Noise) -> None:
        x, e, dt = self.x, self.e, np.float32(self.dt)
        alpha = ramp(t, *self.target)
        injected = couple(x) * e
        square = x * x
        held = self._held(square, injected)
        drift = injected + (self._gain(t) - square) * x
        e += dt * np.float32(-self.rate) * e * (held - np.float32(alpha))
        # A machine's gain is bounded, and unbounded errors overflow.
        np.clip(e, 1e-3, 1e3, out=e)
        x += dt * drift
        self._clip(1.5 * math.sqrt(alpha))

    def _held(self, square: F32, injected: F32) -> F32:
        """What the errors hold at the target."""
        return square


@dataclass(eq=False)
class ChaoticFeedbackCIM(AmplitudeCorrectedCIM):
    r"""Coherent Ising machine with chaotic feedback control (CFC); ignores ``beta``.

    Errors hold the *injected field* at one height: :math:`z = e I`,
    :math:`\dot x = (r - x^2) x + z`, :math:`\dot e = -\beta e (z^2 - \alpha)`.

    Parameters
    ----------
    n_steps, dt, gain, fields, trajectories, n_threads
        See :class:`CIM`.
    rate
        Rate of the error variables, which pull every injected field to one height.

    References
    ----------
    Reifenstein, Kako, Khoyratee, Leleu and Yamamoto (2021), Adv. Quantum Technol. 4, 2100077.
    """

    name: ClassVar[str] = "cim_cfc"

    dt: float = 0.1
    gain: tuple[float, float] = (-2.0, 0.0)
    rate: float = 0.15
    target: ClassVar[tuple[float, float]] = (1.0, 1.0)

    def _held(self, square: F32, injected: F32) -> F32:
        return injected * injected


@dataclass(eq=False)
class SeparatedFeedbackCIM(CIM):
    r"""Coherent Ising machine with separated feedback control (SFC); ignores ``beta``.

    A saturated injection beside a slow memory of it:
    :math:`\dot x = (r - x^2) x + \tanh(c I) + k (I - e)`, :math:`\dot e = -\beta (e - I)`, with
    c from 1 to 3 and :math:`\beta` from 0.3 to 0.

    Parameters
    ----------
    n_steps, dt, gain, fields, trajectories, n_threads
        See :class:`CIM`.
    k
        Weight of the injected field against its slow memory.

    References
    ----------
    Reifenstein, Kako, Khoyratee, Leleu and Yamamoto (2021), Adv. Quantum Technol. 4, 2100077.
    """

    name: ClassVar[str] = "cim_sfc"

    k: float = 0.2
    rate: ClassVar[tuple[float, float]] = (0.3, 0.0)
    slope: ClassVar[tuple[float, float]] = (1.0, 3.0)
    e: F32 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.k = positive(self.k, "k")

    def _start(self, noise: Noise) -> None:
        super()._start(noise)
        self.e = np.zeros_like(self.x)

    def _step(self, t: float, couple: Couple, noise: Noise) -> None:
        x, e, dt = self.x, self.e, np.float32(self.dt)
        injected = couple(x)
        drift = (self._gain(t) - x * x) * x
        drift += np.tanh(np.float32(ramp(t, *self.slope, 1.0)) * injected)
        drift += np.float32(self.k) * (injected - e)
        e += dt * np.float32(ramp(t, *self.rate, 1.0)) * (injected - e)
        x += dt * drift
        self._clip(1.5)
