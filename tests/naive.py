"""Slow twins of the numba kernels: plain Python, one lane at a time, from the definitions."""

import numpy as np

MASK = 0xFFFFFFFF


class Xoshiro128Plus:
    """Blackman and Vigna's xoshiro128+ on Python integers."""

    def __init__(self, state):
        self.s = [int(word) for word in state]

    def next(self):
        s = self.s
        result = (s[0] + s[3]) & MASK
        t = (s[1] << 9) & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = ((s[3] << 11) | (s[3] >> 21)) & MASK
        return result

    def symmetric(self):
        return (self.next() >> 8) * 2.0**-23 - 1.0

    def uniform(self):
        return (self.next() >> 8) * 2.0**-24


def energy(J, linear, s):
    total = 0.0
    n = len(s)
    for i in range(n):
        total -= linear[i] * s[i]
        for j in range(i):
            total -= J[i][j] * s[i] * s[j]
    return total


def sweep(J, linear, base, lam, s, rng, metropolis=False):
    """One sequential sweep of one lane, in place, blocks of 32 drawing ahead."""
    n = len(s)
    for start in range(0, n, 32):
        draws = [rng.symmetric() for _ in range(min(32, n - start))]
        for k, draw in enumerate(draws):
            i = start + k
            field = linear[i] + sum(J[i][j] * s[j] for j in range(n))
            drive = lam * field + base[i]
            if not metropolis:
                s[i] = 1 if draw < np.tanh(drive) else -1
            elif (draw + 1) / 2 < min(1.0, np.exp(-2 * s[i] * drive)):
                s[i] = -s[i]


def swaps(ladder, parity, lane_at, J, linear, spins, rngs):
    """Exchange levels of neighbours in one ladder, in place; returns acceptance probabilities."""
    probabilities = {}
    for k in range(parity, len(ladder) - 1, 2):
        a, b = lane_at[k], lane_at[k + 1]
        difference = energy(J, linear, spins[a]) - energy(J, linear, spins[b])
        probabilities[k] = min(1.0, np.exp((ladder[k] - ladder[k + 1]) * difference))
        if rngs[a].uniform() < probabilities[k]:
            lane_at[k], lane_at[k + 1] = b, a
    return probabilities


def flip_matrix(ising, i, metropolis=False):
    """Transition matrix of one decision on spin i over all 2**n states (bit i of the index)."""
    n = ising.n_spins
    states = np.array([[2 * ((x >> k) & 1) - 1 for k in range(n)] for x in range(2**n)])
    out = np.zeros((2**n, 2**n))
    for x, s in enumerate(states):
        field = ising.b[i] + ising.J[i] @ s
        if metropolis:
            flip = min(1.0, np.exp(-2 * s[i] * field))
            out[x, x ^ (1 << i)] += flip
            out[x, x] += 1 - flip
            continue
        up = 1 / (1 + np.exp(-2 * field))
        out[x, x | (1 << i)] += up
        out[x, x & ~(1 << i)] += 1 - up
    return out


def sweep_matrix(ising, metropolis=False):
    """Transition matrix of one sequential sweep."""
    out = np.eye(2**ising.n_spins)
    for i in range(ising.n_spins):
        out = out @ flip_matrix(ising, i, metropolis)
    return out
