r"""Equations of motion of coherent Ising machines, one class a model.

Amplitudes :math:`x_i` are in units in which a free oscillator of net gain r saturates at
:math:`x^2 = r`; time is in units of the cavity's decay time. :math:`I = \xi (J x + h)` is the
injected field, normalised by :func:`normalisation`. Arrays are float32 ``(n_spins, n_replicas)``.
A step reads ``t``, the fraction of the run that is over, and its normal draws from ``noise``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Couple = Callable[[F32], F32]
Noise = Callable[[], F32]

_START = 0.02


def normalisation(J: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    r"""Coupling strength :math:`\xi = \sqrt{2 n / (\sum_{ij} J_{ij}^2 + 2 \sum_i b_i^2)}`.

    The amplitude-heterogeneity literature's choice, in which models of any size and scale reach
    threshold at about the same pump; 1 for a model without couplings and fields.
    """
    squares = float((J**2).sum() + 2 * (b**2).sum())
    return math.sqrt(2 * len(b) / squares) if squares > 0 else 1.0


def ramp(t: float, start: float, end: float, fraction: float = 0.9) -> float:
    """A line from start to end over the first ``fraction`` of the run, then constant."""
    return start + (end - start) * min(t / fraction, 1.0)


@dataclass
class Dynamics:
    """What the models share: amplitudes, their start, and the pump's ramp.

    ``dt`` is the step in cavity decay times, ``gain`` the net gain (pump minus loss) at the start
    and after 90 % of the run. A free oscillator is at threshold where it is 0.
    """

    dt: float = 0.02
    gain: tuple[float, float] = (0.0, 2.0)
    x: F32 = field(init=False, repr=False)

    def start(self, noise: Noise) -> None:
        """Amplitudes near vacuum."""
        self.x = np.float32(_START) * noise()

    def step(self, t: float, couple: Couple, noise: Noise) -> None:
        """Advance one Euler step of length ``dt``."""
        raise NotImplementedError

    def _gain(self, t: float) -> np.float32:
        return np.float32(ramp(t, *self.gain))

    def _clip(self, bound: float) -> None:
        # Euler steps of a cubic overshoot once amplitudes are far outside the physical range.
        np.clip(self.x, -bound, bound, out=self.x)


@dataclass
class MeanField(Dynamics):
    r"""Mean field with noise: :math:`dx = [(r - x^2) x + I]\,dt + \sigma\,dW`.

    Langevin motion in :math:`V = \sum_i (x_i^4/4 - r x_i^2/2) + \xi E(x)` at temperature
    :math:`\sigma^2/2`. Were all amplitudes :math:`a`, its law over signs would be Boltzmann's at
    :math:`\beta = 2 \xi a^2/\sigma^2`; they are not, hence a heuristic.
    """

    sigma: float = 0.3

    def step(self, t: float, couple: Couple, noise: Noise) -> None:
        x, dt = self.x, np.float32(self.dt)
        drift = couple(x)
        drift += (self._gain(t) - x * x) * x
        x += dt * drift
        x += np.float32(self.sigma * math.sqrt(self.dt)) * noise()
        self._clip(3.0 * math.sqrt(max(1.0, self.gain[1])))


@dataclass
class AmplitudeCorrected(Dynamics):
    r"""Amplitude-heterogeneity correction (CAC), whose errors hold all amplitudes at one height.

    :math:`\dot x = (r - x^2) x + e I`, :math:`\dot e = -\beta e (x^2 - \alpha)`, target
    :math:`\alpha` from 1 to 3.
    """

    dt: float = 0.075
    gain: tuple[float, float] = (-1.5, 0.0)
    rate: float = 0.3
    target: tuple[float, float] = (1.0, 3.0)
    e: F32 = field(init=False, repr=False)

    def start(self, noise: Noise) -> None:
        super().start(noise)
        self.e = np.ones_like(self.x)

    def step(self, t: float, couple: Couple, noise: Noise) -> None:
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


@dataclass
class ChaoticFeedback(AmplitudeCorrected):
    r"""Chaotic feedback control (CFC), whose errors hold the *injected field* at one height.

    :math:`z = e I`, :math:`\dot x = (r - x^2) x + z`, :math:`\dot e = -\beta e (z^2 - \alpha)`.
    """

    dt: float = 0.1
    gain: tuple[float, float] = (-2.0, 0.0)
    rate: float = 0.15
    target: tuple[float, float] = (1.0, 1.0)

    def _held(self, square: F32, injected: F32) -> F32:
        return injected * injected


@dataclass
class SeparatedFeedback(Dynamics):
    r"""Separated feedback control (SFC), a saturated injection beside a slow memory of it.

    :math:`\dot x = (r - x^2) x + \tanh(c I) + k (I - e)`, :math:`\dot e = -\beta (e - I)`, with
    c from 1 to 3 and :math:`\beta` from 0.3 to 0.
    """

    dt: float = 0.1
    gain: tuple[float, float] = (-2.0, 0.0)
    k: float = 0.2
    rate: tuple[float, float] = (0.3, 0.0)
    slope: tuple[float, float] = (1.0, 3.0)
    e: F32 = field(init=False, repr=False)

    def start(self, noise: Noise) -> None:
        super().start(noise)
        self.e = np.zeros_like(self.x)

    def step(self, t: float, couple: Couple, noise: Noise) -> None:
        x, e, dt = self.x, self.e, np.float32(self.dt)
        injected = couple(x)
        drift = (self._gain(t) - x * x) * x
        drift += np.tanh(np.float32(ramp(t, *self.slope, 1.0)) * injected)
        drift += np.float32(self.k) * (injected - e)
        e += dt * np.float32(ramp(t, *self.rate, 1.0)) * (injected - e)
        x += dt * drift
        self._clip(1.5)


@dataclass
class GaussianState(Dynamics):
    r"""Measurement feedback on Gaussian states: the model that carries the quantum noise.

    Each pulse is a Gaussian state of mean :math:`\mu = x/g` and variance s (vacuum: 1/2). It is
    measured at rate j, which squeezes it towards the outcome, and the field is computed from
    the noisy outcomes :math:`\tilde x = x + g\,\dot W/\sqrt{4j}`:

    .. math::
        dx &= [(r - x^2) x + I(\tilde x)]\,dt + g \sqrt{j}\,(s - 1/2)\,dW \\
        \dot s &= 2 (r - 3 x^2) s - 2 j (s - 1/2)^2 + (1 + j) + 2 x^2

    with the net gain :math:`r = p - 1 - j`.
    """

    gain: tuple[float, float] = (-2.0, 0.0)
    g: float = 0.2
    j: float = 1.0
    s: F32 = field(init=False, repr=False)

    def start(self, noise: Noise) -> None:
        self.x = np.float32(0) * noise()
        self.s = np.full_like(self.x, 0.5)

    def step(self, t: float, couple: Couple, noise: Noise) -> None:
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
