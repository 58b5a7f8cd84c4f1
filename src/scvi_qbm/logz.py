r"""The log partition function :math:`\log \sum_s e^{-\beta E(s)}`, with an error bar.

Three independent ways: enumeration (``exact``), Bennett's acceptance ratio along a tempering
ladder (``bar``) and annealed importance sampling (``ais``). :math:`\log Z` is never the mean
energy: :math:`\log Z = H(p) - \beta \langle E \rangle`, and the entropy is not small.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from scvi_qbm.ising import Ising
from scvi_qbm.samplers import engine
from scvi_qbm.samplers.checks import positive_int
from scvi_qbm.samplers.exact import all_energies
from scvi_qbm.samplers.parallel_tempering import ParallelTempering

__all__ = ["LogPartition", "log_partition"]

F64 = NDArray[np.float64]
Method = Literal["bar", "ais", "exact"]


class LogPartition(NamedTuple):
    """A log partition function and how far to trust it.

    Parameters
    ----------
    value
        log Z, in nats.
    standard_error
        In nats; 0 for an enumeration.
    """

    value: float
    standard_error: float


def bar(trace: F64, ladder: F64) -> tuple[float, float]:
    r"""Bennett's acceptance ratio between neighbours of :math:`p_\lambda \propto e^{-\lambda U}`.

    ``trace`` holds energies U ``(n_draws, n_chains, n_levels)``. Chains are independent, draws of
    one chain may be correlated: the standard error of the log ratio of the last Z to the first is
    the sandwich estimate with chains as clusters, so autocorrelation along a chain and correlation
    between its levels are in it.

    Bennett (1976), J. Comput. Phys. 22, 245; Shirts and Chodera (2008), J. Chem. Phys. 129.
    """
    if trace.ndim != 3 or trace.shape[2] != len(ladder):
        raise ValueError(f"`trace` has shape {trace.shape} for {len(ladder)} levels.")
    n_chains = trace.shape[1]
    if n_chains < 2 or trace.shape[0] < 1:
        raise ValueError("BAR needs at least 2 independent chains and 1 draw.")
    widths = np.diff(ladder)
    forward = widths * trace[:, :, :-1]
    backward = widths * trace[:, :, 1:]
    steps = -0.5 * (forward.mean(axis=(0, 1)) + backward.mean(axis=(0, 1)))
    low = -np.maximum(forward.max(axis=(0, 1)), backward.max(axis=(0, 1))) - 1
    high = -np.minimum(forward.min(axis=(0, 1)), backward.min(axis=(0, 1))) + 1
    for _ in range(100):
        # g decreases in the step; safeguarded Newton from the mean of the two one-sided values.
        a, b = _fermi(forward + steps), _fermi(-backward - steps)
        g = a.sum(axis=(0, 1)) - b.sum(axis=(0, 1))
        low, high = np.where(g > 0, steps, low), np.where(g <= 0, steps, high)
        slope = (a * (1 - a)).sum(axis=(0, 1)) + (b * (1 - b)).sum(axis=(0, 1))
        move = g / np.maximum(slope, 1e-300)
        proposal = steps + move
        outside = (proposal <= low) | (proposal >= high)
        proposal = np.where(outside, 0.5 * (low + high), proposal)
        done = np.abs(proposal - steps).max(initial=0.0) < 1e-9
        steps = proposal
        if done:
            break
    a, b = _fermi(forward + steps), _fermi(-backward - steps)
    slope = (a * (1 - a)).sum(axis=(0, 1)) + (b * (1 - b)).sum(axis=(0, 1))
    per_chain = (a - b).sum(axis=0) / np.maximum(slope, 1e-300)
    influence = per_chain.sum(axis=1)
    variance = n_chains / (n_chains - 1) * float((influence**2).sum())
    return float(steps.sum()), float(np.sqrt(variance))


def _fermi(x: F64) -> F64:
    out: F64 = 0.5 * (1 - np.tanh(0.5 * x))
    return out


def bar_from_chains(
    chains: engine.Chains,
    n_sweeps: int,
    *,
    target_se: float = 0.0,
    max_sweeps: int | None = None,
    n_threads: int = 1,
) -> tuple[LogPartition, F64]:
    """Log Z of the chains' target from more sweeps of their ladders, which must be at equilibrium.

    The chains are advanced in place, by blocks of ``n_sweeps`` until the standard error is below
    ``target_se`` or ``max_sweeps`` are recorded (``n_sweeps`` by default). Returns, too, the
    tempered energies recorded at the target level, ``(n_draws, n_chains)``.
    """
    if chains.ladder[0] != 0.0 or chains.ladder[-1] != 1.0:
        raise ValueError("The ladder must run from 0 to 1.")
    blocks: list[F64] = []
    while True:
        trace = engine.run(chains, n_sweeps, record=True, n_threads=n_threads)
        assert trace is not None
        blocks.append(trace)
        everything = np.concatenate(blocks)
        log_ratio, standard_error = bar(everything, chains.ladder)
        enough = standard_error <= target_se
        if enough or everything.shape[0] + n_sweeps > (max_sweeps or n_sweeps):
            break
    value = chains.log_z_base + log_ratio - chains.ising.offset
    return LogPartition(value, standard_error), everything[:, :, -1]


def _bar(ising: Ising, entropy: np.random.SeedSequence, n_sweeps: int | None) -> LogPartition:
    sampler = ParallelTempering(n_chains=32)
    total = n_sweeps or 2000
    chains = sampler.init(ising, seed=int(entropy.generate_state(1, np.uint64)[0]))
    chains = sampler.warm_up(chains, total)
    return bar_from_chains(chains, total, n_threads=sampler.n_threads)[0]


def _ais(ising: Ising, entropy: np.random.SeedSequence, n_sweeps: int | None) -> LogPartition:
    r"""Annealed importance sampling, uniform spins to the target in even steps of beta."""
    n_runs, n_steps = 256, n_sweeps or 2000
    chains = engine.start(ising, np.zeros(1), n_runs, entropy)
    threads = engine.default_threads()
    log_weights = np.zeros(chains.energy.shape)
    levels = np.linspace(0.0, 1.0, n_steps + 1)
    for before, after in zip(levels[:-1], levels[1:], strict=True):
        log_weights -= (after - before) * chains.energy
        if after < 1.0:
            chains.lam[:] = after
            engine.run(chains, 1, n_threads=threads)
    used = np.take_along_axis(log_weights, chains.lane_at[:, :, 0], axis=1).ravel()[:n_runs]
    top = used.max()
    weights = np.exp(used - top)
    mean = float(weights.mean())
    error = float(weights.std(ddof=1)) / np.sqrt(n_runs) / mean
    value = float(top + np.log(mean)) + chains.log_z_base - ising.offset
    return LogPartition(value, float(error))


def log_partition(
    ising: Ising,
    beta: float = 1.0,
    method: Method = "bar",
    seed: int | None = None,
    n_sweeps: int | None = None,
) -> LogPartition:
    r"""Estimate :math:`\log Z_\beta = \log \sum_s e^{-\beta E(s)}`.

    Parameters
    ----------
    ising
        The model.
    beta
        Inverse temperature, >= 0.
    method
        ``"bar"``: 32 tempering ladders that tune themselves, then Bennett's acceptance ratio
        between neighbours. ``"ais"``: 256 annealed importance runs, the independent check; its
        error bar is too small where the annealing is too fast. ``"exact"``: enumeration, up to
        24 spins.
    seed
        Same seed, same estimate.
    n_sweeps
        Effort: recorded sweeps a ladder (``bar``; as many go before as burn-in), annealing steps
        a run (``ais``). 2,000 by default.

    Returns
    -------
    LogPartition
        ``(value, standard_error)`` in nats.

    Raises
    ------
    ValueError
        If the method is unknown, beta is negative or not finite, ``n_sweeps`` < 1, or an exact
        answer is asked for more than 24 spins.
    TypeError
        If ``ising`` is not an :class:`~scvi_qbm.ising.Ising`.

    References
    ----------
    Bennett (1976), J. Comput. Phys. 22, 245; Neal (2001), Stat. Comput. 11, 125.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_qbm.ising import Ising
    >>> free = Ising(np.zeros((3, 3)), np.zeros(3))
    >>> round(log_partition(free, method="exact").value, 4)  # 3 log 2
    2.0794
    """
    if not isinstance(ising, Ising):
        raise TypeError(f"`ising` must be a scvi_qbm.ising.Ising, got {type(ising).__name__}.")
    beta = float(beta)
    if not (np.isfinite(beta) and beta >= 0):
        raise ValueError(f"`beta` must be finite and >= 0, got {beta}.")
    if n_sweeps is not None:
        positive_int(n_sweeps, "n_sweeps")
    if method not in get_args(Method):
        raise ValueError(f"Unknown method {method!r}. Available: {', '.join(get_args(Method))}.")
    target = ising.scaled(beta)
    if method == "exact":
        return LogPartition(float(np.logaddexp.reduce(-all_energies(target))), 0.0)
    entropy = np.random.SeedSequence(seed)
    return (_bar if method == "bar" else _ais)(target, entropy, n_sweeps)
