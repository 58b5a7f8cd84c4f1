"""log Z while its machine changes: carried along from step to step, and estimated afresh."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scvi_qbm.ising import Ising
from scvi_qbm.logz import LogPartition, bar_from_chains, log_partition
from scvi_qbm.samplers.engine.torch_kernels import full_precision
from scvi_qbm.samplers.parallel_tempering import ParallelTempering

from .draws import Parameters
from .saved import pack_chains, unpack_chains

__all__ = ["NegativePhaseReport"]

_TARGET_SE = 0.2
_RELAX = 32
_BLOCK = 32
_MAX_SWEEPS = 128
# Steps whose energies are compared with those at equilibrium.
_RECENT = 16


class NegativePhaseReport(NamedTuple):
    """Do the training samples follow the prior? Energies in nats.

    Parameters
    ----------
    log_z, log_z_se
        log Z of the machine and its standard error.
    log_z_drift
        log Z tracked from step to step along the training samples, minus the estimate: chains
        that miss modes make it run away.
    energy_gap, energy_gap_se
        Mean energy of the training samples minus that of tempered chains at equilibrium.
    n_levels
        Temperatures in the uniform ladder.
    n_steps
        Training steps since the last estimate.
    beta_drawn, beta_drawn_se, beta_corrected
        Heuristic samplers: effective inverse temperature of their last draw, its standard error,
        and that of the training chains, in units of the prior's (1 is right); NaN before the
        first draw. None for other samplers, as are the next six.
    drawn_distance, drawn_floor
        Total variation between the last draw's states and the prior they were drawn for, and
        what as many independent states would show: of states up to 14 units, above of energies
        in ten bins (NaN where all energies are equal).
    machine_share
        What the Gibbs sweeps have left of the heuristic's states, on the average over the steps
        that used them, see :meth:`~scvi_qbm.samplers.corrected.Corrected.machine_share`. The
        rest is what Gibbs sampling from random states would have given alone.
    n_draws
        Draws asked for so far.
    distance, distance_floor
        Total variation of the training chains to the machine's distribution and what as many
        independent states would show; up to 14 units.
    """

    log_z: float
    log_z_se: float
    log_z_drift: float
    energy_gap: float
    energy_gap_se: float
    n_levels: float
    n_steps: float
    beta_drawn: float | None = None
    beta_drawn_se: float | None = None
    beta_corrected: float | None = None
    drawn_distance: float | None = None
    drawn_floor: float | None = None
    machine_share: float | None = None
    n_draws: float | None = None
    distance: float | None = None
    distance_floor: float | None = None

    @property
    def chains_mix(self) -> bool:
        """Gap below 2 nats or 4 standard errors; drift below 5 nats or 0.1 a step."""
        gap_ok = abs(self.energy_gap) <= max(2.0, 4 * self.energy_gap_se)
        return gap_ok and abs(self.log_z_drift) <= max(5.0, 0.1 * self.n_steps)


class LogZTracker:
    """Carries log Z along the training samples, and estimates it by tempered chains of its own.

    The reference chains temper from uniform spins, so that they take over nothing that the
    training chains have learned, and can find the modes that those miss.
    """

    def __init__(self) -> None:
        self.recent: deque[Tensor] = deque(maxlen=_RECENT)
        self.tracked: Parameters | None = None
        self.n_steps = 0
        self.reference: Any = None

    def follow(self, log_z: Tensor, parameters: Parameters, z: Tensor) -> None:
        r"""Carry ``log_z``, in place, from the parameters it is known for to those of ``z``.

        :math:`\Delta = -\log\langle e^{\Delta E}\rangle` over samples that were drawn for the
        *new* parameters. Those drawn before would give a biased value: they made the step, and a
        step raises the energies of the very samples that made it.
        """
        z = z.to(parameters[0].dtype)
        with full_precision(z.device):
            # At the parameters they were drawn for: the step that follows lifts these samples.
            self.recent.append(_energy(parameters, z))
            if self.tracked is not None:
                step = parameters[0] - self.tracked[0], parameters[1] - self.tracked[1]
                mean = torch.logsumexp(_energy(step, z), 0) - math.log(len(z))
                log_z.sub_(mean.to(log_z))
        self.tracked = parameters
        self.n_steps += 1

    def estimate(
        self, ising: Ising, seed: Callable[[], int], *, final: bool
    ) -> tuple[LogPartition, NDArray[np.float64]]:
        """Log Z by BAR on the reference chains, and the energies there, in nats.

        ``final``: from random states with a long burn-in instead, for what is reported in the end.
        """
        self._relax(ising, seed)
        value, energies = bar_from_chains(
            self.reference,
            _BLOCK,
            target_se=_TARGET_SE,
            max_sweeps=_MAX_SWEEPS,
            n_threads=torch.get_num_threads(),
        )
        if final:
            value = log_partition(ising, seed=seed())
        return value, energies + ising.offset

    def _relax(self, ising: Ising, seed: Callable[[], int]) -> None:
        tempering = ParallelTempering(n_chains=32, n_threads=torch.get_num_threads())
        if self.reference is None:
            self.reference = tempering.init(ising, seed=seed())
            self.reference = tempering.warm_up(self.reference, 8 * _RELAX)
        self.reference = tempering.retarget(self.reference, ising)
        self.reference = tempering.adapt(tempering.step(self.reference, _RELAX))
        tempering.step(self.reference, _RELAX // 4)

    def energy_gap(self, equilibrium: NDArray[np.float64]) -> tuple[float, float]:
        """Mean energy of the last steps' samples minus that at equilibrium, and its error."""
        if not self.recent:
            return 0.0, 0.0
        recent = [x.cpu().double().numpy() for x in self.recent]
        training = np.stack(recent).mean(axis=0)
        reference = equilibrium.mean(axis=0)
        variance = training.var() / training.size + reference.var() / reference.size
        return float(training.mean() - reference.mean()), float(np.sqrt(variance))

    def anchor(self, parameters: Parameters) -> int:
        """Log Z is known for these parameters now; returns the steps since the last time."""
        self.tracked = parameters
        self.recent.clear()
        n_steps, self.n_steps = self.n_steps, 0
        return n_steps

    def forget(self) -> None:
        """Other parameters have come from elsewhere, with a log Z of their own."""
        self.tracked = None
        self.recent.clear()

    def state(self) -> dict[str, Any]:
        """Tensors of the CPU, numbers and lists, for a checkpoint."""
        return {
            "recent": [x.cpu().clone() for x in self.recent],
            "tracked": self.tracked and [x.cpu().clone() for x in self.tracked],
            "n_steps": self.n_steps,
            "reference": pack_chains(self.reference),
        }

    def load(self, state: dict[str, Any], like: Parameters, stream: int) -> None:
        """Go on from :meth:`state`, in the place and precision of the parameters ``like``."""
        self.recent = deque((x.to(like[0]) for x in state["recent"]), maxlen=_RECENT)
        W_h = state["tracked"]
        self.tracked = W_h and (W_h[0].to(like[0]), W_h[1].to(like[1]))
        self.n_steps = state["n_steps"]
        saved = state["reference"]
        self.reference = None if saved is None else unpack_chains(saved, stream)


def _energy(parameters: Parameters, z: Tensor) -> Tensor:
    W, h = parameters
    return z @ h + 0.5 * ((z @ W) * z).sum(-1)
