r"""What simulated coherent Ising machines share: the field injected, the run, the read-out.

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

from scvi_qbm._numbers import one_of, positive, positive_int
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import engine

from .base import Guarantee, Sampler

F32 = NDArray[np.float32]
Couple = Callable[[F32], F32]
Noise = Callable[[], F32]

_FIELDS = ("ancilla", "scaled")
_VACUUM = np.float32(0.02)
_REPLICAS = 64


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

    guarantee: ClassVar[Guarantee] = "heuristic"
    #: Constants that ``info`` shows.
    reported: ClassVar[tuple[str, ...]] = ()

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
        info |= {name: getattr(machine, name) for name in self.reported}
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
