"""Numba kernels: sequential sweeps and replica swaps on a chunk of replicas ("lanes").

A chunk holds W lanes that share the couplings; lane r sits at inverse temperature ``lam[r]`` of
the path ``p_lam(s) ~ exp(base.s - lam * U(s))``, with ``U(s) = -s'Js/2 - c.s``. Layout:

* ``spins``  float32 (n, W), entries -1 and +1, lanes fastest: decisions are SIMD over lanes;
* ``fields`` float32 (W, stride), ``(J s + c)`` of each lane: updates are SIMD over spins;
* ``energy`` float64 (W,), ``U`` of each lane, kept up to date.

Spins are decided in blocks of ``BLOCK``. Inside a block each decision first adds what the block's
earlier spins changed; the fields get the rows of J of the spins that flipped afterwards, summed in
registers. A sweep is thus an exact sequential heat bath (or Metropolis), at the cost of
``n * (flips + n_block)`` instead of ``n * n`` multiply-adds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scvi_qbm._jit import kernel

from .rng import fill_symmetric, next_uniform
from .simd import LANE, TILE, add_rows, add_rows_narrow, add_rows_wide, heat_bath
from .simd import metropolis as decide_metropolis

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]

BLOCK = 32
_REFRESH_ROWS = 128


@kernel(nogil=True)
def _scratch(n_rows: int, width: int) -> F32:
    """Zeros that start at a cache line."""
    raw = np.zeros(n_rows * width + 16, dtype=np.float32)
    first = (-raw.ctypes.data % 64) // 4
    return raw[first : first + n_rows * width].reshape((n_rows, width))


@kernel(nogil=True, fastmath=True)
def sweep_chunk(
    J: F32,
    base: F32,
    lam: F32,
    spins: F32,
    fields: F32,
    energy: F64,
    rng: U32,
    used: int,
    metropolis: bool = False,
) -> None:
    """One sequential sweep of the first ``used`` lanes of a chunk, in place.

    Parameters
    ----------
    J
        float32 (n, stride), couplings padded by zero columns.
    base
        float32 (n,), field that is not tempered.
    lam
        float32 (W,), inverse temperature of each lane.
    spins, fields, energy, rng
        The chunk's state, see the module's docstring.
    used
        Lanes beyond this one only pad the SIMD width; their fields are not kept up to date.
    metropolis
        Metropolis decisions instead of heat bath. Where spins are free these flip all of them at
        every sweep, which does not mix.
    """
    n, width = spins.shape
    filled = -(-n // LANE) * LANE
    fb = _scratch(BLOCK, width)
    change = _scratch(BLOCK, width)
    draw = _scratch(BLOCK, width)
    delta = np.zeros(width, dtype=np.float32)
    earlier = np.arange(BLOCK)
    rows = np.empty((width, BLOCK + 1), dtype=np.int64)
    coef = np.empty((width, BLOCK + 1), dtype=np.float32)
    count = np.empty(width, dtype=np.int64)
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        fill_symmetric(rng, size, draw)
        for k in range(size):
            for r in range(width):
                fb[k, r] = fields[r, start + k]
        for k in range(size):
            add_rows(fb[k], change, earlier, J[start + k, start:], k)
            field, now, u, flip, fixed = (
                fb[k],
                spins[start + k],
                draw[k],
                change[k],
                base[start + k],
            )
            for at in range(0, width, LANE):
                if metropolis:
                    decide_metropolis(field, lam, fixed, u, now, flip, delta, at)
                else:
                    heat_bath(field, lam, fixed, u, now, flip, delta, at)
        for r in range(used):
            c = 0
            for k in range(size):
                rows[r, c] = start + k
                coef[r, c] = change[k, r]
                c += change[k, r] != 0
            count[r] = c
        # Columns outside, lanes inside: a tile of the block's rows of J stays in the first cache.
        column = 0
        while column + TILE <= filled:
            for r in range(used):
                add_rows_wide(fields[r], J, column, rows[r], coef[r], count[r])
            column += TILE
        while column < filled:
            for r in range(used):
                add_rows_narrow(fields[r], J, column, rows[r], coef[r], count[r])
            column += LANE
    for r in range(used):
        energy[r] += delta[r]


@kernel(nogil=True, fastmath=True)
def refresh_chunk(J: F32, linear: F32, spins: F32, fields: F32, energy: F64, used: int) -> None:
    """Fields and energies of the first ``used`` lanes anew from their spins, in place."""
    n = spins.shape[0]
    filled = -(-n // LANE) * LANE
    rows = np.arange(n)
    coef = np.empty((used, n), dtype=np.float32)
    for r in range(used):
        fields[r, :] = 0
        for i in range(n):
            fields[r, i] = linear[i]
            coef[r, i] = spins[i, r]
    # Lanes inside: a tile of J, 128 rows by 64 columns, stays in the first cache.
    for start in range(0, n, _REFRESH_ROWS):
        count = min(_REFRESH_ROWS, n - start)
        some = rows[start : start + count]
        column = 0
        while column + TILE <= filled:
            for r in range(used):
                add_rows_wide(fields[r], J, column, some, coef[r, start:], count)
            column += TILE
        while column < filled:
            for r in range(used):
                add_rows_narrow(fields[r], J, column, some, coef[r, start:], count)
            column += LANE
    for r in range(used):
        total = 0.0
        for i in range(n):
            total += coef[r, i] * (fields[r, i] + linear[i])
        energy[r] = -0.5 * total


@kernel(nogil=True)
def anneal_chunk(
    J: F32,
    base: F32,
    linear: F32,
    betas: F64,
    spins: F32,
    fields: F32,
    energy: F64,
    lam: F32,
    rng: U32,
    used: int,
    refresh_every: int,
    metropolis: bool = False,
) -> None:
    """One sweep of all lanes at each of ``betas`` in turn, in place."""
    for t in range(betas.shape[0]):
        lam[:] = np.float32(betas[t])
        sweep_chunk(J, base, lam, spins, fields, energy, rng, used, metropolis)
        if (t + 1) % refresh_every == 0:
            refresh_chunk(J, linear, spins, fields, energy, used)


@kernel(nogil=True)
def swap_levels(
    ladder: F64,
    parity: int,
    lane_at: I64,
    lam: F32,
    energy: F64,
    rng: U32,
    accepted: F64,
) -> None:
    """Propose to exchange the levels of neighbours ``(k, k + 1)``, k of one parity, in place.

    Levels move, states stay. ``lane_at[l, k]`` is the lane at level k of ladder l; ``accepted[k]``
    gathers the acceptance probabilities (not the outcomes: less noise at no cost).
    """
    n_ladders, n_levels = lane_at.shape
    for ladder_index in range(n_ladders):
        lanes = lane_at[ladder_index]
        for k in range(parity, n_levels - 1, 2):
            a, b = lanes[k], lanes[k + 1]
            log_ratio = (ladder[k] - ladder[k + 1]) * (energy[a] - energy[b])
            probability = 1.0 if log_ratio >= 0.0 else np.exp(log_ratio)
            accepted[k] += probability
            if next_uniform(rng, a) < probability:
                lanes[k], lanes[k + 1] = b, a
                lam[a] = np.float32(ladder[k + 1])
                lam[b] = np.float32(ladder[k])


@kernel(nogil=True)
def _count_round_trips(lane_at: I64, heading: I64) -> int:
    """Round trips hot -> cold -> hot that end now. ``heading``: 0 unknown, 1 to cold, 2 to hot."""
    trips = 0
    last = lane_at.shape[1] - 1
    for ladder_index in range(lane_at.shape[0]):
        hot, cold = lane_at[ladder_index, 0], lane_at[ladder_index, last]
        if heading[hot] == 2:
            trips += 1
        heading[hot] = 1
        if heading[cold] == 1:
            heading[cold] = 2
    return trips


@kernel(nogil=True)
def run_chunk(
    J: F32,
    base: F32,
    ladder: F64,
    spins: F32,
    fields: F32,
    energy: F64,
    lam: F32,
    rng: U32,
    lane_at: I64,
    heading: I64,
    accepted: F64,
    n_sweeps: int,
    first_parity: int,
    trace: F64,
) -> int:
    """Sweep, swap (even and odd pairs in turn) and record; returns the round trips completed.

    ``trace`` takes the energies by level after each sweep, float64 (n_sweeps, n_ladders,
    n_levels), or nothing if its first axis is shorter.
    """
    n_ladders, n_levels = lane_at.shape
    trips = 0
    for t in range(n_sweeps):
        sweep_chunk(J, base, lam, spins, fields, energy, rng, n_ladders * n_levels)
        if t < trace.shape[0]:
            for ladder_index in range(n_ladders):
                for k in range(n_levels):
                    trace[t, ladder_index, k] = energy[lane_at[ladder_index, k]]
        if n_levels > 1:
            swap_levels(ladder, (first_parity + t) % 2, lane_at, lam, energy, rng, accepted)
            trips += _count_round_trips(lane_at, heading)
    return trips
