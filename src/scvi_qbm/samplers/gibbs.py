"""Sequential heat-bath (Gibbs) chains at one temperature."""

from __future__ import annotations

from typing import Any, ClassVar

from .chain import LadderSampler

__all__ = ["Gibbs"]


class Gibbs(LadderSampler):
    """Heat-bath chains: every spin in turn is drawn from its distribution given all the others.

    Exact in the limit of many sweeps. At low temperature or with strong couplings a chain stays
    in its valley for very long. A RuntimeWarning says so where chains disagree; then use
    ``parallel_tempering``.

    Parameters
    ----------
    n_chains
        Independent chains, each started at a random state.
    n_sweeps
        Sweeps between kept samples; one sweep updates every spin once.
    n_burn_in
        Sweeps before the first kept sample.
    n_threads
        Threads over chains; ``OMP_NUM_THREADS`` or all processors by default. Results do not
        depend on it.

    Raises
    ------
    ValueError
        If an option is out of range.

    References
    ----------
    Geman and Geman (1984), IEEE TPAMI 6, 721.
    """

    name: ClassVar[str] = "gibbs"
    _advice = ", or parallel_tempering"
    conformance: ClassVar[dict[str, Any]] = {
        "n_chains": 2048,
        "n_sweeps": 500,
        "n_burn_in": 1500,
    }
