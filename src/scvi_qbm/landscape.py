r"""The energy landscape of a machine: minima, barriers between them, and their tree of merges.

A code :math:`z \in \{0,1\}^n` is a point, two codes that differ in one unit are neighbours, and
:math:`E(z) = h^\top z + \tfrac{1}{2} z^\top W z` is the height. Energies are in nats throughout.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scvi_qbm._jit import kernel
from scvi_qbm.ising import Ising

__all__ = ["Attractors", "find_attractors"]

MAX_ATTRACTORS = 2000

F64 = NDArray[np.float64]
Machine = Ising | tuple[ArrayLike, ArrayLike]


class Attractors(NamedTuple):
    """Local minima that codes fall into, largest basin first.

    Parameters
    ----------
    labels
        Attractor of each code, int64 (n_codes,), from 0.
    states
        The minima, int8 (n_attractors, n_units), 0 and 1.
    energies
        Their energies in nats, (n_attractors,).
    sizes
        Codes that fall into each, (n_attractors,), of those that the minima were found with.
    saddles
        Energy of the lowest pass found between two minima, (n_attractors, n_attractors), in nats:
        an upper bound of the true one, minima themselves on the diagonal. None if not computed.
    tree
        Merges in the order of their passes, as ``scipy.cluster.hierarchy`` stores a linkage,
        heights counted from the lowest minimum; no rows for one attractor. None if not computed.
    """

    labels: NDArray[np.int64]
    states: NDArray[np.int8]
    energies: F64
    sizes: NDArray[np.int64]
    saddles: F64 | None
    tree: F64 | None

    @property
    def barriers(self) -> F64:
        """Climb from each minimum (row) to the pass to another (column), in nats; at least 0.

        Raises
        ------
        ValueError
            If passes were not computed (``barriers=False``).
        """
        if self.saddles is None:
            raise ValueError("Barriers were not computed: leave out barriers=False.")
        return self.saddles - self.energies[:, None]

    def merged(self, barrier: float) -> NDArray[np.int64]:
        """Labels of the codes after merging minima that a climb of at most ``barrier`` joins.

        Parameters
        ----------
        barrier
            In nats. A minimum whose climb to a lower or equal one is at most this is no minimum of
            its own: noise of this size carries a cell across.

        Returns
        -------
        numpy.ndarray
            int64 ``(n_codes,)``, from 0, the group with the largest sum of ``sizes`` first.

        Raises
        ------
        ValueError
            If passes were not computed (``barriers=False``), or ``barrier`` is negative.
        """
        if self.saddles is None:
            raise ValueError("Barriers were not computed: leave out barriers=False.")
        groups = cut_tree(self.energies, self.saddles, barrier)
        totals = np.bincount(groups, self.sizes, minlength=len(groups))
        rank = np.empty(len(groups), dtype=np.int64)
        rank[np.argsort(-totals, kind="stable")] = np.arange(len(groups))
        return rank[groups[self.labels]]


def _parts(machine: Machine) -> tuple[F64, F64]:
    W, h = machine.to_boltzmann()[:2] if isinstance(machine, Ising) else machine
    W, h = np.ascontiguousarray(W, dtype=np.float64), np.ascontiguousarray(h, dtype=np.float64)
    n = h.shape[0] if h.ndim == 1 else -1
    if W.shape != (n, n) or not np.allclose(W, W.T) or np.diag(W).any():
        raise ValueError("W must be symmetric (n, n) with zero diagonal, and h (n,).")
    if not (np.isfinite(W).all() and np.isfinite(h).all()):
        raise ValueError("W and h must be finite.")
    return W, h


def _checked(codes: ArrayLike, n: int) -> F64:
    z = np.atleast_2d(np.asarray(codes))
    if z.ndim != 2 or z.shape[1] != n:
        raise ValueError(f"Codes must have shape (n_codes, {n}), got {np.shape(codes)}.")
    if not np.isin(z, (0, 1)).all():
        raise ValueError("Codes must be 0 or 1.")
    return np.ascontiguousarray(z, dtype=np.float64)


def _energies(W: F64, h: F64, z: F64) -> F64:
    out: F64 = z @ h + 0.5 * ((z @ W) * z).sum(1)
    return out


@kernel()
def _field(W: F64, h: F64, state: F64) -> F64:
    field = h.copy()
    for i in range(h.shape[0]):
        if state[i] > 0:
            field += W[i]
    return field


@kernel()
def _quench(W: F64, h: F64, z: F64) -> None:
    n = h.shape[0]
    for k in range(z.shape[0]):
        state = z[k]
        field = _field(W, h, state)
        while True:
            best, drop = -1, -1e-12
            for i in range(n):
                change = field[i] * (1 - 2 * state[i])
                if change < drop:
                    best, drop = i, change
            if best < 0:
                break
            step = 1 - 2 * state[best]
            state[best] += step
            field += step * W[best]


def quench(machine: Machine, codes: ArrayLike) -> NDArray[np.int8]:
    """Follow each code downhill to a local minimum, by the steepest single flip at a time.

    Codes are 0 and 1, ``(n_codes, n_units)``; so is what comes back, int8. Ties go to the first
    unit. Raises ValueError if shapes do not fit, codes are not binary or parameters not finite.
    """
    W, h = _parts(machine)
    z = _checked(codes, h.shape[0]).copy()
    _quench(W, h, z)
    return z.astype(np.int8)


@kernel()
def _climb(W: F64, h: F64, a: F64, b: F64, energy: float) -> float:
    """Highest energy on the way from a to b that always takes the cheapest differing flip."""
    n = h.shape[0]
    state = a.copy()
    field = _field(W, h, state)
    top = energy
    while True:
        best, least = -1, np.inf
        for i in range(n):
            if state[i] != b[i]:
                change = field[i] * (1 - 2 * state[i])
                if change < least:
                    best, least = i, change
        if best < 0:
            return top
        step = 1 - 2 * state[best]
        state[best] += step
        field += step * W[best]
        energy += least
        top = max(top, energy)


@kernel()
def _lowest_passes(
    W: F64, h: F64, z: F64, energies: F64, states: F64, heights: F64
) -> NDArray[np.int64]:
    """For each row of z the one of ``states`` with the lowest pass to it."""
    out = np.empty(z.shape[0], dtype=np.int64)
    for i in range(z.shape[0]):
        lowest = np.inf
        for j in range(states.shape[0]):
            there = _climb(W, h, z[i], states[j], energies[i])
            back = _climb(W, h, states[j], z[i], heights[j])
            if min(there, back) < lowest:
                lowest, out[i] = min(there, back), j
    return out


@kernel()
def _all_climbs(W: F64, h: F64, states: F64, energies: F64) -> F64:
    k = states.shape[0]
    out = np.empty((k, k))
    for i in range(k):
        out[i, i] = energies[i]
        for j in range(i):
            there = _climb(W, h, states[i], states[j], energies[i])
            back = _climb(W, h, states[j], states[i], energies[j])
            out[i, j] = out[j, i] = min(there, back)
    return out


def saddles(machine: Machine, states: ArrayLike) -> F64:
    """Lowest pass found between every two states, in nats.

    Direct paths flip only units in which the two differ, the cheapest first, in both directions;
    paths over other states of the list follow by the minimax rule. Both are paths, so the result
    bounds the true pass from above; finding that one is NP-hard. The matrix ``(k, k)`` is
    symmetric, with the states' own energies on the diagonal.
    """
    W, h = _parts(machine)
    z = _checked(states, h.shape[0])
    energies = _energies(W, h, z)
    out = _all_climbs(W, h, z, energies)
    order, heights = _spanning_tree(out)
    # Minimax over the list: the highest edge on the spanning tree's path.
    best: F64 = np.full_like(out, -np.inf)
    seen = [order[0][0]] if order else []
    for (parent, child), height in zip(order, heights, strict=True):
        best[child, seen] = best[seen, child] = np.maximum(best[parent, seen], height)
        best[child, parent] = best[parent, child] = height
        seen.append(child)
    np.fill_diagonal(best, energies)
    return best


def _spanning_tree(weights: F64) -> tuple[list[tuple[int, int]], list[float]]:
    """Prim's minimum spanning tree of a full matrix: edges in the order they were added."""
    k = len(weights)
    edges: list[tuple[int, int]] = []
    heights: list[float] = []
    reach, parent = weights[0].copy(), np.zeros(k, dtype=np.int64)
    outside = np.ones(k, dtype=bool)
    outside[0] = False
    for _ in range(k - 1):
        j = int(np.where(outside, reach, np.inf).argmin())
        edges.append((int(parent[j]), j))
        heights.append(float(reach[j]))
        outside[j] = False
        closer = outside & (weights[j] < reach)
        reach[closer], parent[closer] = weights[j][closer], j
    return edges, heights


def merge_tree(energies: ArrayLike, passes: ArrayLike) -> F64:
    """Tree of merges as the level rises: a disconnectivity graph, as a scipy linkage.

    Heights are energies of passes above the lowest minimum, in nats. See Becker and Karplus
    (1997), J. Chem. Phys. 106, 1495.
    """
    energies, passes = np.asarray(energies, dtype=float), np.asarray(passes, dtype=float)
    k = len(energies)
    if k < 2:
        return np.empty((0, 4))
    edges, heights = _spanning_tree(passes)
    group, size = list(range(k)), dict.fromkeys(range(k), 1)
    rows = []
    for step, e in enumerate(np.argsort(heights, kind="stable")):
        a, b = (_root(group, i) for i in edges[e])
        new = k + step
        group.append(new)
        group[a] = group[b] = new
        size[new] = size[a] + size[b]
        rows.append((min(a, b), max(a, b), heights[e] - energies.min(), size[new]))
    return np.array(rows)


def cut_tree(energies: ArrayLike, passes: ArrayLike, barrier: float) -> NDArray[np.int64]:
    """Merge each minimum into a lower one that a climb of at most ``barrier`` nats reaches.

    Minima are taken from the highest to the lowest; each joins the neighbour of lowest pass among
    those not above it. What is left are valleys more than ``barrier`` deep; 0 joins only minima on
    one level. Returns for each minimum the index of the one that stands for its valley.
    """
    if not barrier >= 0:
        raise ValueError(f"`barrier` must be at least 0 nats, got {barrier}.")
    energies, passes = np.asarray(energies, dtype=float), np.asarray(passes, dtype=float)
    order = np.argsort(energies, kind="stable")
    group = list(range(len(energies)))
    for rank in range(len(order) - 1, 0, -1):
        i, lower = order[rank], order[:rank]
        j = lower[passes[i, lower].argmin()]
        if passes[i, j] - energies[i] <= barrier:
            group[i] = int(j)
    return np.array([_root(group, i) for i in range(len(group))])


def _root(group: list[int], i: int) -> int:
    while group[i] != i:
        i = group[i]
    return i


def _by_size(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return rank[inverse.ravel()]


def nearest_attractor(machine: Machine, states: ArrayLike, codes: ArrayLike) -> NDArray[np.int64]:
    """Which of some minima, ``(k, n_units)``, each code falls into, int64 ``(n_codes,)``.

    A code that falls into another minimum gets the one of ``states`` with the lowest direct pass
    from there, see :func:`saddles`.
    """
    W, h = _parts(machine)
    known = _checked(states, h.shape[0])
    minima, inverse = np.unique(quench((W, h), codes), axis=0, return_inverse=True)
    place = {state.tobytes(): i for i, state in enumerate(known.astype(np.int8))}
    nearest = np.array([place.get(state.tobytes(), -1) for state in minima], dtype=np.int64)
    other = np.flatnonzero(nearest < 0)
    z = minima[other].astype(np.float64)
    nearest[other] = _lowest_passes(W, h, z, _energies(W, h, z), known, _energies(W, h, known))
    return nearest[inverse.ravel()]


def find_attractors(machine: Machine, codes: ArrayLike, *, barriers: bool = True) -> Attractors:
    """Quench codes, and order the minima they reach by barriers.

    Parameters
    ----------
    machine
        ``(W, h)`` of ``E = h.z + z'Wz/2``, or an :class:`~scvi_qbm.ising.Ising`.
    codes
        0 and 1, shape ``(n_codes, n_units)``.
    barriers
        Whether to search passes between all pairs of minima, up to 2,000 minima.

    Returns
    -------
    Attractors
        The minima, largest basin first; without passes and tree if ``barriers`` is False.

    Raises
    ------
    ValueError
        If shapes do not fit, codes are not binary or parameters not finite; if there are no
        codes; or if there are more than 2,000 minima and ``barriers`` is True.
    """
    W, h = _parts(machine)
    minima = quench((W, h), codes)
    if not len(minima):
        raise ValueError("There are no codes to quench.")
    states, inverse = np.unique(minima, axis=0, return_inverse=True)
    labels = _by_size(inverse.ravel().astype(np.int64))
    ordered = np.empty_like(states)
    ordered[labels] = minima
    k = len(states)
    if barriers and k > MAX_ATTRACTORS:
        raise ValueError(
            f"{k} local minima: barriers between all pairs would take too long. Pass "
            "barriers=False, or fewer cells."
        )
    energies = _energies(W, h, ordered.astype(np.float64))
    passes = saddles((W, h), ordered) if barriers else None
    return Attractors(
        labels,
        ordered,
        energies,
        np.bincount(labels, minlength=k),
        passes,
        None if passes is None else merge_tree(energies, passes),
    )
