"""Machines and samplers to test with."""

import io

import numpy as np
import torch

from scvi_qbm.ising import Ising
from scvi_qbm.prior import BoltzmannPrior, NegativePhase
from scvi_qbm.samplers import ChainSampler
from scvi_qbm.samplers.exact import all_states


def peaked_ising(n, seed, sd=0.6, field_sd=0.4):
    """A random machine with couplings strong enough to expose a wrong law."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(size=(n, n)) * sd, 1)
    return Ising(upper + upper.T, rng.normal(size=n) * field_sd, offset=rng.normal())


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
