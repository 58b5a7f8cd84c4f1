"""Machines and samplers to test with."""

import io

import numpy as np
import torch
from scipy.special import gammaln, logsumexp

from scvi_qbm.ising import Ising
from scvi_qbm.prior import BoltzmannPrior, NegativePhase
from scvi_qbm.samplers import ChainSampler
from scvi_qbm.samplers.exact import all_states


def peaked_ising(n, seed, sd=0.6, field_sd=0.4):
    """A random machine with couplings strong enough to expose a wrong distribution."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(size=(n, n)) * sd, 1)
    return Ising(upper + upper.T, rng.normal(size=n) * field_sd, offset=rng.normal())


def core_and_crowd(n_core=12, n_crowd=40):
    """A core that decides and a crowd that follows: at low temperature ladders miss its mode."""
    n = n_core + n_crowd
    J = np.zeros((n, n))
    J[:n_core, :n_core] = 0.4
    J[:n_core, n_core:] = J[n_core:, :n_core] = 0.8 / n_core
    np.fill_diagonal(J, 0.0)
    return Ising(J, np.repeat([-2.1, 0.8], [n_core, n_crowd]))


def log_z_of_core_and_crowd(beta, n_core=12, n_crowd=40):
    """Exact: a sum over the number of core spins that are up."""
    up = np.arange(n_core + 1)
    m = 2 * up - n_core
    field = beta * (0.8 + 0.8 / n_core * m)
    energy = beta * (-0.4 * (m**2 - n_core) / 2 + 2.1 * m)
    n_states = gammaln(n_core + 1) - gammaln(up + 1) - gammaln(n_core - up + 1)
    return logsumexp(n_states - energy + n_crowd * np.logaddexp(field, -field))


def edwards_anderson(width, length, seed):
    """A spin glass on a strip, normal couplings, no fields."""
    rng = np.random.default_rng(seed)
    J = np.zeros((width * length, width * length))
    for i in range(width * length):
        if (i + 1) % width:
            J[i, i + 1] = rng.normal()
        if i + width < width * length:
            J[i, i + width] = rng.normal()
    return Ising(J + J.T, np.zeros(width * length))


def log_z_of_strip(model, width, beta):
    """Exact, by a transfer matrix that adds one spin at a time."""
    frontier = np.arange(2**width)

    def spin(row):
        return 2.0 * (frontier >> row & 1) - 1

    log_weight = np.zeros(2**width)
    for i in range(model.n_spins):
        row = i % width
        if i >= width:
            pull = beta * model.J[i - width, i] * spin(row)
            up, down = frontier | 1 << row, frontier & ~(1 << row)
            log_weight = np.logaddexp(log_weight[up] + pull, log_weight[down] - pull)
        log_weight = log_weight + beta * model.b[i] * spin(row)
        if row:
            log_weight = log_weight + beta * model.J[i - 1, i] * spin(row - 1) * spin(row)
    return logsumexp(log_weight)


def fill(prior, seed=0, sd=0.8):
    """Give a prior peaked random parameters."""
    generator = torch.Generator().manual_seed(seed)
    n = prior.n_latent
    with torch.no_grad():
        prior.h.copy_(torch.randn(n, generator=generator, dtype=prior.h.dtype) * sd)
        if hasattr(prior, "W_upper"):
            values = torch.randn(n, n, generator=generator, dtype=prior.h.dtype) * sd
            prior.W_upper.copy_(values)
    return prior


def codes(n):
    """All binary codes, in the order of enumeration."""
    return torch.from_numpy((all_states(n) + 1) / 2).double()


class Stuck(ChainSampler):
    """A chain sampler that never moves: the fault that the report is there to show."""

    name = "stuck"
    n_chains, n_sweeps = 32, 1

    def init(self, ising, beta=1.0, seed=None):
        return np.ones((32, ising.n_spins), dtype=np.int8)

    def step(self, state, n_sweeps=None):
        return state

    def retarget(self, state, ising, beta=1.0):
        return state

    def spins(self, state):
        return state

    def _sample(self, ising, beta, n_samples, entropy):
        return np.ones((n_samples, ising.n_spins)), {}


def phase_of(n, sampler="parallel_tempering", options=None, *, seed=0, sd=0.8, double=False):
    """A negative phase whose prior has peaked random parameters; without ``sd``, zeros."""
    prior = BoltzmannPrior(n).double() if double else BoltzmannPrior(n)
    return NegativePhase(fill(prior, seed, sd) if sd else prior, sampler, options)


def saved(state):
    """What comes back from a file with no pickled objects."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
