"""Random state per lane: xoshiro128+ (Blackman and Vigna 2021), vectorised over lanes.

Each lane (one replica of a chain) owns 128 bits, so results do not depend on how lanes are
grouped into chunks or spread over threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scvi_qbm._jit import kernel

U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]

_UNIT = np.float32(2.0**-23)
_ONE = np.float32(1.0)


def lane_states(seed: int | np.random.SeedSequence, n_lanes: int) -> U32:
    """Independent xoshiro128+ states, shape ``(4, n_lanes)``; lane l is the same for any count."""
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    words = sequence.generate_state(4 * n_lanes, dtype=np.uint32).reshape(n_lanes, 4)
    words[(words == 0).all(axis=1)] = 1
    return np.ascontiguousarray(words.T)


@kernel(nogil=True, fastmath=True)
def fill_symmetric(state: U32, n_rows: int, out: F32) -> None:
    """Fill ``out[:n_rows]`` with uniforms on [-1, 1), one xoshiro128+ step a row and lane."""
    s0, s1, s2, s3 = state[0], state[1], state[2], state[3]
    for k in range(n_rows):
        row = out[k]
        for r in range(row.shape[0]):
            a, b, c, d = s0[r], s1[r], s2[r], s3[r]
            total = np.uint32(a + d)
            row[r] = np.float32(np.int32(total >> np.uint32(8))) * _UNIT - _ONE
            t = np.uint32(b << np.uint32(9))
            c ^= a
            d ^= b
            s1[r] = np.uint32(b ^ c)
            s0[r] = np.uint32(a ^ d)
            s2[r] = np.uint32(c ^ t)
            d = np.uint32(d)
            s3[r] = np.uint32(d << np.uint32(11)) | np.uint32(d >> np.uint32(21))


@kernel(nogil=True)
def next_uniform(state: U32, lane: int) -> float:
    """One uniform on [0, 1) from a single lane's state."""
    a, b, c, d = state[0, lane], state[1, lane], state[2, lane], state[3, lane]
    total = np.uint32(a + d)
    t = np.uint32(b << np.uint32(9))
    c = np.uint32(c ^ a)
    d = np.uint32(d ^ b)
    state[1, lane] = np.uint32(b ^ c)
    state[0, lane] = np.uint32(a ^ d)
    state[2, lane] = np.uint32(c ^ t)
    state[3, lane] = np.uint32(d << np.uint32(11)) | np.uint32(d >> np.uint32(21))
    return float(total >> np.uint32(8)) * 2.0**-24
