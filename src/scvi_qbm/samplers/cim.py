"""Simulated coherent Ising machines, as samplers; their equations: ``engine/cim_dynamics.py``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scvi_qbm.ising import Ising
from scvi_qbm.samplers import engine
from scvi_qbm.samplers.engine import cim_dynamics as dynamics

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

_FIELDS = ("ancilla", "scaled")
_VACUUM = np.float32(0.02)
_REPLICAS = 64
# Noise of the mean-field machine matched to beta: cap on sigma, below which coupling gives way,
# and a^2 / r, chosen on SK and dense peaked machines of 14 spins (effective beta 0.9 to 1.04).
_MAX_SIGMA, _SATURATION = 1.5, 0.85


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
        Net gain (pump minus loss) at the start and after 90 % of the run.
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
    #: The equations of motion.
    model: ClassVar[type[dynamics.Dynamics]]

    n_steps: int = 1000
    dt: float = 0.1
    gain: tuple[float, float] = (-2.0, 0.0)
    fields: str = "ancilla"
    trajectories: int = 0
    n_threads: int | None = None

    def __post_init__(self) -> None:
        self.n_steps = positive_int(self.n_steps, "n_steps")
        self.dt, self.gain = positive(self.dt, "dt"), _pair(self.gain, "gain")
        self.fields = one_of(self.fields, _FIELDS, "fields")
        self.trajectories = positive_int(self.trajectories, "trajectories", 0)
        self.n_threads = engine.checked_threads(self.n_threads)

    def _dynamics(self, beta: float, strength: float) -> tuple[dynamics.Dynamics, float]:
        """Fresh dynamics, and the coupling strength; ``strength`` is the normalised one."""
        known = {field.name for field in dataclasses.fields(self.model)}
        constants = {name: value for name, value in vars(self).items() if name in known}
        return self.model(**constants), strength

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        normal = dynamics.normalisation(ising.J, ising.b)
        machine, strength = self._dynamics(beta, normal)
        ancilla = self.fields == "ancilla" and bool(np.any(ising.b))
        matrix = ising.to_ancilla() if ancilla else ising.J
        J = np.ascontiguousarray(strength * matrix, dtype=np.float32)
        h = None
        if not ancilla and np.any(ising.b):
            h = (strength * ising.b).astype(np.float32)[:, None]
        n_blocks = -(-n_samples // _REPLICAS)
        seeds = entropy.spawn(n_blocks)

        def run(k: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
            followed = max(0, min(self.trajectories, n_samples) - k * _REPLICAS)
            fresh = self._dynamics(beta, normal)[0]
            return _run(fresh, J, h, self.n_steps, seeds[k], min(followed, _REPLICAS))

        # One BLAS thread a block: ours are over blocks, and more would only wait for each other.
        with engine.one_blas_thread():
            parts = engine.spread(run, range(n_blocks), engine.checked_threads(self.n_threads))
        spins = np.concatenate([part[0] for part in parts])[:n_samples]
        if ancilla:
            spins = spins[:, :-1] * spins[:, -1:]
        info: dict[str, Any] = {"n_steps": self.n_steps, "coupling_strength": strength}
        if isinstance(machine, dynamics.MeanField):
            info["sigma"] = machine.sigma
        if self.trajectories:
            steps = np.arange(0, self.n_steps, _record_every(self.n_steps))
            info["trajectories"] = np.concatenate([part[1] for part in parts if len(part[1])])
            info["times"] = machine.dt * steps
            info["gains"] = np.array(
                [dynamics.ramp(t / self.n_steps, *machine.gain) for t in steps]
            )
        return spins, info


def _record_every(n_steps: int) -> int:
    return max(1, n_steps // 200)


def _run(
    machine: dynamics.Dynamics,
    J: NDArray[np.float32],
    h: NDArray[np.float32] | None,
    n_steps: int,
    seed: np.random.SeedSequence,
    followed: int,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Run one block; signs (replicas, n) and the followed runs' amplitudes."""
    rng = np.random.Generator(np.random.SFC64(seed))
    # Always full blocks, so that a run does not depend on how many others there are.
    shape = (len(J), _REPLICAS)

    def noise() -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    def couple(x: NDArray[np.float32]) -> NDArray[np.float32]:
        out: NDArray[np.float32] = J @ x
        if h is not None:
            # Never below vacuum's amplitude: fields that fade with it cannot turn a spin round.
            out += h * np.sqrt(np.mean(x * x, axis=0, keepdims=True) + _VACUUM**2)
        return out

    machine.start(noise)
    every = _record_every(n_steps)
    records = []
    for step in range(n_steps):
        if followed and step % every == 0:
            records.append(machine.x[:, :followed].T.copy())
        machine.step(step / n_steps, couple, noise)
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
    model: ClassVar[type[dynamics.Dynamics]] = dynamics.MeanField

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

    def _dynamics(self, beta: float, strength: float) -> tuple[dynamics.Dynamics, float]:
        if self.sigma is not None:
            return super()._dynamics(beta, strength)
        height = _SATURATION * self.gain[1]
        strength = min(strength, beta * _MAX_SIGMA**2 / (2 * height))
        sigma = math.sqrt(2 * strength * height / beta) if strength > 0 else _MAX_SIGMA
        return dynamics.MeanField(self.dt, self.gain, sigma), strength


@dataclass(eq=False)
class GaussianStateCIM(CIM):
    """Measurement-feedback coherent Ising machine on Gaussian states: the physics' own noise.

    ``beta`` plays no part: the spread of the states is set by ``g`` and the pump.

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
    model: ClassVar[type[dynamics.Dynamics]] = dynamics.GaussianState
    conformance: ClassVar[dict[str, Any]] = {"n_steps": 1000}

    n_steps: int = 2000
    dt: float = 0.02
    g: float = 0.2
    j: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.g, self.j = positive(self.g, "g"), positive(self.j, "j")


@dataclass(eq=False)
class AmplitudeCorrectedCIM(CIM):
    """Coherent Ising machine with amplitude-heterogeneity correction (CAC); ignores ``beta``.

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
    model: ClassVar[type[dynamics.Dynamics]] = dynamics.AmplitudeCorrected

    dt: float = 0.075
    gain: tuple[float, float] = (-1.5, 0.0)
    rate: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rate = positive(self.rate, "rate")


@dataclass(eq=False)
class ChaoticFeedbackCIM(AmplitudeCorrectedCIM):
    """Coherent Ising machine with chaotic feedback control (CFC); ignores ``beta``.

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
    model: ClassVar[type[dynamics.Dynamics]] = dynamics.ChaoticFeedback

    dt: float = 0.1
    gain: tuple[float, float] = (-2.0, 0.0)
    rate: float = 0.15


@dataclass(eq=False)
class SeparatedFeedbackCIM(CIM):
    """Coherent Ising machine with separated feedback control (SFC); ignores ``beta``.

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
    model: ClassVar[type[dynamics.Dynamics]] = dynamics.SeparatedFeedback

    k: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.k = positive(self.k, "k")
