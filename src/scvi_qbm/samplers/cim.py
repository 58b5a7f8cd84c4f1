r"""Simulated coherent Ising machines.

Amplitudes :math:`x_i` are in units in which a free oscillator of net gain r saturates at
:math:`x^2 = r`; time is in units of the cavity's decay time. :math:`I = \xi (J x + h)` is the
injected field, normalised by :func:`normalisation`. Arrays are float32 ``(n_spins, n_replicas)``.
A step reads ``t``, the fraction of the run that is over, and its normal draws from ``noise``.
"""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scvi_qbm.ising import Ising
from scvi_qbm.samplers import engine

from .base import Law, Sampler
from .checks import one_of, positive, positive_int

__all__ = [
    "AmplitudeCorrectedCIM",
    "CIM",
    "ChaoticFeedbackCIM",
    "GaussianStateCIM",
    "MeanFieldCIM",
    "SeparatedFeedbackCIM",
]

F32 = NDArray[np.float32]
Couple = Callable[[F32], F32]
Noise = Callable[[], F32]

_FIELDS = ("ancilla", "scaled")
_VACUUM = np.float32(0.02)
_REPLICAS = 64
# Noise of the mean-field machine matched to beta: cap on sigma, below which coupling gives way,
# and a^2 / r, chosen on SK and dense peaked machines of 14 spins (effective beta 0.9 to 1.04).
_MAX_SIGMA, _SATURATION = 1.5, 0.85


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


@dataclass(eq=False)
class CIM(Sampler):
    """What the simulated machines share: the injected field, replicas, and the read-out of signs.

    A run starts near vacuum, raises the pump through threshold, and reads the signs of the
    amplitudes once; every sample is a run of its own. Runs minimise the energy: their states are
    *not* Boltzmann samples at any temperature (docs/samplers.md has distances). Training and
    :class:`~scvi_qbm.samplers.corrected.Corrected` finish them with Gibbs sweeps.

    Parameters
    ----------
    n_steps
        Euler steps of a run.
    dt
        Length of a step in cavity decay times.
    gain
        Net gain (pump minus loss) at the start and after 90 % of the run. A free oscillator is
        at threshold where it is 0.
    fields
        How linear terms enter. ``"ancilla"``: as couplings to one more spin, by whose sign the
        state is multiplied. ``"scaled"``: injected directly, times the root-mean-square
        amplitude, so that they keep their weight against the couplings.
    trajectories
        Number of runs whose amplitudes are recorded, in ``info["trajectories"]``, float32
        (trajectories, n_records, n_oscillators), at the times ``info["times"]`` (cavity decay
        times), with the net gain ``info["gains"]``.
    n_threads
        Threads over blocks of runs; ``OMP_NUM_THREADS`` or all processors by default. Results do
        not depend on it.

    Raises
    ------
    ValueError
        If an option is unknown or out of range.
    FloatingPointError
        From ``sample``: amplitudes that are not finite, where ``dt`` is too large.
    """

    law: ClassVar[Law] = "heuristic"

    n_steps: int = 1000
    dt: float = 0.1
    gain: tuple[float, float] = (-2.0, 0.0)
    fields: str = "ancilla"
    trajectories: int = 0
    n_threads: int | None = None
    x: F32 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.n_steps = positive_int(self.n_steps, "n_steps")
        self.dt, self.gain = positive(self.dt, "dt"), _pair(self.gain, "gain")
        self.fields = one_of(self.fields, _FIELDS, "fields")
        self.trajectories = positive_int(self.trajectories, "trajectories", 0)
        self.n_threads = engine.checked_threads(self.n_threads)

    def _start(self, noise: Noise) -> None:
        self.x = _VACUUM * noise()

    @abc.abstractmethod
    def _step(self, t: float, couple: Couple, noise: Noise) -> None:
        """Advance by one Euler step."""

    def _gain(self, t: float) -> np.float32:
        return np.float32(ramp(t, *self.gain))

    def _clip(self, bound: float) -> None:
        # Euler steps of a cubic overshoot once amplitudes are far outside the physical range.
        np.clip(self.x, -bound, bound, out=self.x)

    def _matched(self, beta: float, strength: float) -> tuple[CIM, float]:
        """The machine at this beta, and its coupling, the normalised ``strength`` or weaker."""
        return self, strength

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        machine, strength = self._matched(beta, normalisation(ising.J, ising.b))
        ancilla = self.fields == "ancilla" and bool(np.any(ising.b))
        matrix = ising.to_ancilla() if ancilla else ising.J
        J = np.ascontiguousarray(strength * matrix, dtype=np.float32)
        h = None
        if not ancilla and np.any(ising.b):
            h = (strength * ising.b).astype(np.float32)[:, None]
        n_blocks = -(-n_samples // _REPLICAS)
        seeds = entropy.spawn(n_blocks)

        def run(k: int) -> tuple[NDArray[np.int8], F32]:
            followed = max(0, min(self.trajectories, n_samples) - k * _REPLICAS)
            return _run(copy.copy(machine), J, h, self.n_steps, seeds[k], min(followed, _REPLICAS))

        # One BLAS thread a block: ours are over blocks, and more would only wait for each other.
        with engine.one_blas_thread():
            parts = engine.spread(run, range(n_blocks), engine.checked_threads(self.n_threads))
        spins = np.concatenate([part[0] for part in parts])[:n_samples]
        if ancilla:
            spins = spins[:, :-1] * spins[:, -1:]
        info: dict[str, Any] = {"n_steps": self.n_steps, "coupling_strength": strength}
        if isinstance(machine, MeanFieldCIM):
            info["sigma"] = machine.sigma
        if self.trajectories:
            steps = np.arange(0, self.n_steps, _record_every(self.n_steps))
            info["trajectories"] = np.concatenate([part[1] for part in parts if len(part[1])])
            info["times"] = machine.dt * steps
            info["gains"] = np.array([ramp(t / self.n_steps, *machine.gain) for t in steps])
        return spins, info


def _record_every(n_steps: int) -> int:
    return max(1, n_steps // 200)


def _run(
    machine: CIM,
    J: F32,
    h: F32 | None,
    n_steps: int,
    seed: np.random.SeedSequence,
    followed: int,
) -> tuple[NDArray[np.int8], F32]:
    """Run one block; signs (replicas, n) and the followed runs' amplitudes."""
    rng = np.random.Generator(np.random.SFC64(seed))
    # Always full blocks, so that a run does not depend on how many others there are.
    shape = (len(J), _REPLICAS)

    def noise() -> F32:
        return rng.standard_normal(shape, dtype=np.float32)

    def couple(x: F32) -> F32:
        out: F32 = J @ x
        if h is not None:
            # Never below vacuum's amplitude: fields that fade with it cannot turn a spin round.
            out += h * np.sqrt(np.mean(x * x, axis=0, keepdims=True) + _VACUUM**2)
        return out

    machine._start(noise)
    every = _record_every(n_steps)
    records = []
    for step in range(n_steps):
        if followed and step % every == 0:
            records.append(machine.x[:, :followed].T.copy())
        machine._step(step / n_steps, couple, noise)
    if not np.isfinite(machine.x).all():
        raise FloatingPointError(
            "The machine's amplitudes are not finite: use a smaller step `dt`."
        )
    spins = np.where(machine.x >= 0, 1, -1).astype(np.int8).T
    if not followed:
        return spins, np.empty((0, 0, len(J)), dtype=np.float32)
    return spins, np.stack(records, axis=1)


def _pair(value: tuple[float, float], name: str) -> tuple[float, float]:
    try:
        first, last = (float(v) for v in value)
    except TypeError:
        raise ValueError(f"`{name}` must be a pair (start, end), got {value!r}.") from None
    if not (math.isfinite(first) and math.isfinite(last)):
        raise ValueError(f"`{name}` must be two finite numbers, got {value}.")
    return first, last


@dataclass(eq=False)
class MeanFieldCIM(CIM):
    r"""Mean-field coherent Ising machine with noise, whose temperature follows ``beta``.

    :math:`dx = [(r - x^2) x + I]\,dt + \sigma\,dW`: Langevin motion in
    :math:`V = \sum_i (x_i^4/4 - r x_i^2/2) + \xi E(x)` at temperature :math:`\sigma^2/2`. Were all
    amplitudes :math:`a`, its law over signs would be Boltzmann's at
    :math:`\beta = 2 \xi a^2/\sigma^2`; they are not, hence a heuristic.

    With ``sigma=None`` the noise is matched to the inverse temperature asked for,
    :math:`\sigma^2 = 2 \xi a^2 / \beta` with saturation amplitude :math:`a`; where that would
    exceed 1.5 the coupling is weakened instead. On densely coupled machines near beta = 1 the
    effective temperature is then within some 25 % of it; where fields dominate, at low
    temperature or with large machines it can be off by a factor of 2 and more. The law is not
    Boltzmann's at any.

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
