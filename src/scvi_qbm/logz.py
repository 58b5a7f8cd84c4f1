r"""The log partition function :math:`\log \sum_s e^{-\beta E(s)}`, with an error bar.

Three independent ways: enumeration (``exact``), Bennett's acceptance ratio along a tempering
ladder (``bar``) and annealed importance sampling (``ais``). :math:`\log Z` is never the mean
energy: :math:`\log Z = H(p) - \beta \langle E \rangle`, and the entropy is not small.

Chains that miss a mode agree with each other, and their error bar is small. So every estimate is
held against a lower bound, and says where its chains have not mixed.
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from scvi_qbm._numbers import as_seed, positive_int
from scvi_qbm.diagnostics import rhat_limit, split_rhat
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import engine
from scvi_qbm.samplers.chain import disagreement
from scvi_qbm.samplers.exact import all_energies
from scvi_qbm.samplers.parallel_tempering import ParallelTempering, blockades

__all__ = ["LogPartition", "log_partition"]

F64 = NDArray[np.float64]
Method = Literal["bar", "ais", "exact"]

# AIS: fewer runs than this tell nothing about the mean of their weights.
_LEAST_RUNS = 25
# States from which the lower bound climbs, beside the chains' own, and steps at most.
_N_STARTS = 64
_MAX_CLIMBS = 100
# Overlap of mean spins above which two climbs ended in the same mode, and the number of chains in
# a mode, by its share of Z, from which on it is no chance that there is none.
_SAME_MODE = 0.9
_EXPECTED = 10
# Nats that single precision may be off by.
_ROUNDING = 0.01
# R-hat of the energies: where chains of spin glasses exceeded it, log Z was off by several errors.
_RHAT = 1.05


class LogPartition(NamedTuple):
    """A log partition function and how far to trust it.

    Parameters
    ----------
    value
        log Z, in nats.
    standard_error
        In nats; 0 for an enumeration, infinite where the chains had not mixed or had missed a
        mode. The value is then the best that is known, most likely too low.
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


class _Run(NamedTuple):
    """An estimate, final states ``(n_chains, n)``, and signs that it cannot be trusted."""

    estimate: LogPartition
    states: NDArray[np.int8]
    faults: list[str]


def _bar(ising: Ising, entropy: np.random.SeedSequence, n_sweeps: int | None) -> _Run:
    sampler = ParallelTempering(n_chains=32)
    total = n_sweeps or 2000
    chains = sampler.init(ising, seed=int(entropy.generate_state(1, np.uint64)[0]))
    chains = sampler.warm_up(chains, total)
    estimate, energies = bar_from_chains(chains, total, n_threads=sampler.n_threads)
    faults = blockades(chains)
    if total >= 4:
        limit = rhat_limit(energies.shape[1], energies.shape[0], least=_RHAT)
        rhat = {"rhat_energy": split_rhat(energies.T), "rhat_limit": limit}
        faults = disagreement(rhat) + faults
    return _Run(estimate, chains.states(), faults)


def _ais(ising: Ising, entropy: np.random.SeedSequence, n_sweeps: int | None) -> _Run:
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
    effective = weights.sum() ** 2 / (weights**2).sum()
    few = effective < _LEAST_RUNS
    faults = [f"{effective:.0f} of {n_runs} runs carry the weight"] if few else []
    return _Run(LogPartition(value, float(error)), chains.states(), faults)


def mean_field(ising: Ising, starts: NDArray[np.int8]) -> tuple[F64, F64]:
    r"""Lower bounds of log Z by independent spins, climbing from each of the states.

    :math:`\log Z \ge H(q) - \langle E \rangle_q`, at least minus the energy of the state.
    Returns the bounds, ``(n_starts,)``, and the mean spins, ``(n_starts, n)``.
    Wainwright and Jordan (2008), Found. Trends Mach. Learn. 1, section 5.
    """
    m = starts.astype(np.float64)
    best = np.full(len(m), -np.inf)
    for _ in range(_MAX_CLIMBS):
        energy = -0.5 * ((m @ ising.J) * m).sum(1) - m @ ising.b + ising.offset
        bound = _entropy(m).sum(1) - energy
        if (bound - best).max() < 1e-3:
            break
        best = np.maximum(best, bound)
        for i in range(ising.n_spins):
            m[:, i] = np.tanh(m @ ising.J[i] + ising.b[i])
    return best, m


def _entropy(m: F64) -> F64:
    up, down = (1 + m) / 2, (1 - m) / 2
    out: F64 = -xlogy(up, up) - xlogy(down, down)
    return out


def _checked(run: _Run, ising: Ising, entropy: np.random.SeedSequence) -> LogPartition:
    """The estimate, if it passes: see :class:`LogPartition`."""
    value, error = run.estimate
    n_seen = len(run.states)
    random = np.random.default_rng(entropy).integers(0, 2, (_N_STARTS, ising.n_spins)) * 2 - 1
    bounds, m = mean_field(ising, np.concatenate([run.states, random.astype(np.int8)]))
    # A mode that no chain is in, though it holds so much of Z that some should be.
    closest = (m[n_seen:] @ m[:n_seen].T).max(1)
    missed = bounds[n_seen:][closest < _SAME_MODE * (m[n_seen:] ** 2).sum(1)]
    share = np.exp(np.minimum(missed.max(initial=-np.inf) - value, 0.0))
    faults = run.faults
    if bounds.max() > value + 4 * error + _ROUNDING or share * n_seen > _EXPECTED:
        faults = [*faults, f"they missed a mode of at least {bounds.max():.2f} nats"]
    if not faults:
        return run.estimate
    value = max(value, float(bounds.max()))
    warnings.warn(
        f"log Z = {value:.2f} may be too low, as its chains have not mixed: {', '.join(faults)}. "
        "Use more sweeps (n_sweeps). The standard error is infinite.",
        RuntimeWarning,
        stacklevel=3,
    )
    return LogPartition(value, float("inf"))


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
        between neighbours. ``"ais"``: 256 annealed importance runs, the independent check.
        ``"exact"``: enumeration, up to
        24 spins.
    seed
        Same seed, same estimate.
    n_sweeps
        Effort: recorded sweeps a ladder (``bar``; as many go before as burn-in), annealing steps
        a run (``ais``). 2,000 by default.

    Returns
    -------
    LogPartition
        ``(value, standard_error)`` in nats. Where the chains have not mixed, or a lower bound by
        independent spins around the best states is above the estimate, a RuntimeWarning says so
        and the standard error is infinite.

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
    entropy = np.random.SeedSequence(as_seed(seed))
    run = (_bar if method == "bar" else _ais)(target, entropy, n_sweeps)
    return _checked(run, target, entropy.spawn(1)[0])
