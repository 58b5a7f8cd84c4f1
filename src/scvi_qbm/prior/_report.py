"""Is the negative phase honest?"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["NegativePhaseReport"]


class NegativePhaseReport(NamedTuple):
    """Is the negative phase honest? From :meth:`BoltzmannPrior.refresh_log_z`; energies in nats.

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
    beta_drawn, beta_corrected
        Heuristic samplers: effective inverse temperatures of their last draw and of the training
        chains, in units of the machine's (1 is right); NaN before the first draw. None for other
        samplers, as are the next two.
    distance, distance_floor
        Total variation of the training chains to the machine's law and what as many independent
        states would show; up to 14 units.
    """

    log_z: float
    log_z_se: float
    log_z_drift: float
    energy_gap: float
    energy_gap_se: float
    n_levels: float
    n_steps: float
    beta_drawn: float | None = None
    beta_corrected: float | None = None
    distance: float | None = None
    distance_floor: float | None = None

    @property
    def is_honest(self) -> bool:
        """Gap below 2 nats or 4 standard errors; drift below 5 nats or 0.1 a step."""
        gap_ok = abs(self.energy_gap) <= max(2.0, 4 * self.energy_gap_se)
        return gap_ok and abs(self.log_z_drift) <= max(5.0, 0.1 * self.n_steps)
