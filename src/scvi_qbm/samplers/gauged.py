"""Spin reversals: an analog machine's bias towards up or down averages out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scvi_qbm._numbers import positive_int
from scvi_qbm.ising import Ising

from .base import Guarantee, Sampler
from .registry import get_sampler

__all__ = ["Gauged"]


class Gauged(Sampler):
    """States of another sampler, drawn after random spins were turned around.

    With signs g of -1 and +1, the model with couplings ``g J g`` and fields ``g b`` has the state
    ``g s`` where the given one has ``s``, at the same energy. A sampler that samples does not
    notice; a machine whose spins prefer one direction, or whose couplers are stronger in one,
    errs differently under each g, and the errors average out.

    Parameters
    ----------
    sampler
        Name or instance of the sampler. Its ``guarantee`` holds for the states.
    sampler_options
        Its options, where it is given by name.
    n_gauges
        Choices of g in one sample, each of which is a call of its own.

    Raises
    ------
    ValueError
        If ``n_gauges`` < 1, or the sampler is unknown.

    Notes
    -----
    ``info`` has ``gauges``, the sampler's own reports, one a choice.

    References
    ----------
    Boixo et al. (2013), Nat. Commun. 4, 2067 (gauge transformations); D-Wave's name for it is
    spin-reversal transform.
    """

    name: ClassVar[str] = "gauged"
    guarantee: Guarantee = "heuristic"  # type: ignore[misc]
    conformance: ClassVar[dict[str, Any]] = {"sampler": "exact"}

    def __init__(
        self,
        sampler: str | Sampler,
        sampler_options: dict[str, Any] | None = None,
        n_gauges: int = 4,
    ) -> None:
        self.source = get_sampler(sampler, **(sampler_options or {}))
        self.n_gauges = positive_int(n_gauges, "n_gauges")
        self.guarantee = self.source.guarantee
        self.touches_global_state = self.source.touches_global_state  # type: ignore[misc]

    def cancel(self) -> None:
        """End what is under way in the sampler."""
        self.source.cancel()

    def keep_draws(self, directory: Path) -> None:
        self.source.keep_draws(directory)

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        rng = np.random.default_rng(entropy)
        drawn, reports = [], []
        for share in np.array_split(np.arange(n_samples), min(self.n_gauges, n_samples)):
            g = rng.choice(np.array([-1, 1], np.int8), ising.n_spins)
            turned = Ising(ising.J * np.outer(g, g), ising.b * g, offset=ising.offset)
            out = self.source.sample(turned, beta, len(share), seed=int(rng.integers(2**62)))
            drawn.append(out.spins * g)
            reports.append(out.info)
        return np.concatenate(drawn), {"gauges": reports}
