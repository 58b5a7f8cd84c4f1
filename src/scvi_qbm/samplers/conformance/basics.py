"""What holds for every sampler, at the extremes too, and what holds for chains.

A check is a function of a sampler and a seed. It raises an AssertionError where the sampler
fails, and returns what it measured, with another outcome than ``"passed"`` where there is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple, get_args

import numpy as np
from scipy import stats

from scvi_qbm.ising import Ising
from scvi_qbm.samplers.base import ChainSampler, Guarantee, Sampler, SampleSet
from scvi_qbm.samplers.exact import all_energies


class Found(NamedTuple):
    """What a check measured."""

    detail: str = ""
    outcome: str = "passed"


Check = Callable[[Sampler, int], Found]


def require(condition: object, message: str) -> None:
    """``assert``, under ``python -O`` too."""
    if not condition:
        raise AssertionError(message)


# --- models ------------------------------------------------------------------------------------


def random_model(n_spins: int, seed: int, sd: float = 0.7, field_sd: float = 0.4) -> Ising:
    """Normal couplings and fields; peaked, so that a wrong distribution shows."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(size=(n_spins, n_spins)) * sd, 1)
    return Ising(upper + upper.T, rng.normal(size=n_spins) * field_sd, offset=rng.normal())


def only_fields(fields: list[float]) -> Ising:
    """Spins without couplings."""
    return Ising(np.zeros((len(fields), len(fields))), np.array(fields))


def many_states(sampler: Sampler, n_spins: int, seed: int) -> Ising:
    """A model on which even a minimiser, by its free pairs, has reason to give many states."""
    if sampler.guarantee != "heuristic":
        return random_model(n_spins, seed, sd=0.1, field_sd=0.1)
    pair = np.array([[0.0, 1.0], [1.0, 0.0]])
    return Ising(np.kron(np.eye(n_spins // 2), pair), np.zeros(n_spins))


# --- what holds for every sampler --------------------------------------------------------------


def check_interface(sampler: Sampler, seed: int) -> Found:
    """Types, shapes, energies, and what ``info`` must say."""
    model = random_model(6, seed)
    out = sampler.sample(model, 0.7, 97, seed=seed)
    require(isinstance(out, SampleSet) and len(out) == 97, "97 samples were asked for")
    require(out.spins.dtype == np.int8, f"spins are {out.spins.dtype}, not int8")
    require((np.abs(out.spins) == 1).all(), "spins other than -1 and +1")
    np.testing.assert_allclose(out.energies, model.energy(out.spins), atol=1e-9)
    for key in ("sampler", "guarantee", "beta"):
        require(key in out.info, f"info lacks {key!r}")
    known = get_args(Guarantee)
    require(
        out.info["guarantee"] == sampler.guarantee,
        f"info says {out.info['guarantee']!r}, guarantee {sampler.guarantee!r}",
    )
    require(
        sampler.guarantee in known,
        f"guarantee is {sampler.guarantee!r}, not one of {known}",
    )
    return Found()


def check_signs(sampler: Sampler, seed: int) -> Found:
    """Spins follow strong fields, and each other by the sign of a strong coupling."""
    model = only_fields([3.0, -3.0, 3.0, -3.0])
    agree = float((sampler.sample(model, 2.0, 100, seed=seed).spins == np.sign(model.b)).mean())
    require(agree > 0.95, f"only {agree:.0%} of spins follow their field")
    for sign in (1, -1):
        pair = Ising(np.array([[0.0, sign], [sign, 0.0]]), np.zeros(2))
        spins = sampler.sample(pair, 4.0, 100, seed=seed).spins
        right = float((spins[:, 0] * spins[:, 1] == sign).mean())
        require(right > 0.95, f"a coupling of {sign:+} is obeyed in {right:.0%} of states only")
    return Found()


def check_seeds(sampler: Sampler, seed: int) -> Found:
    """Equal seeds give equal states, other seeds or none others."""
    model = many_states(sampler, 12, seed)
    first = sampler.sample(model, n_samples=64, seed=seed)
    fresh = [sampler.sample(model, n_samples=64).spins for _ in range(2)]
    require((fresh[0] != fresh[1]).any(), "without a seed two calls give the same states")
    if first.info.get("seeded") is False:
        return Found("the back end takes no seed, and info says so", "skipped")
    again = sampler.sample(model, n_samples=64, seed=seed).spins
    other = sampler.sample(model, n_samples=64, seed=seed + 1).spins
    require((first.spins == again).all(), "the same seed gives other states")
    require((first.spins != other).any(), "another seed gives the same states")
    return Found()


def check_distinct_reads(sampler: Sampler, seed: int) -> Found:
    """Not one read repeated, no spin frozen: nearly all of 200 states differ where many could."""
    spins = sampler.sample(many_states(sampler, 24, seed), n_samples=200, seed=seed).spins
    distinct = len(np.unique(spins, axis=0))
    # Twelve free pairs have 4,096 minima, of which 200 fair draws see 195.
    wanted = 120 if sampler.guarantee == "heuristic" else 190
    require(distinct >= wanted, f"{distinct} distinct states among 200 where nearly all should be")
    frozen = np.flatnonzero(np.abs(spins.mean(axis=0, dtype=float)) > 0.95)
    require(not len(frozen), f"spins {frozen.tolist()} never turn, though nothing holds them")
    return Found(f"{distinct} of 200")


def check_every_entry(sampler: Sampler, seed: int) -> Found:
    """Each field and each coupling of 16 spins is obeyed, by its sign."""
    rng = np.random.default_rng(seed)
    n = 16
    fields = rng.choice([-1.5, 1.5], n)
    spins = sampler.sample(only_fields(list(fields)), 4.0, 64, seed=seed).spins
    obeyed = (spins == np.sign(fields)).mean(axis=0)
    require(obeyed.min() > 0.9, f"spin {obeyed.argmin()} of {n} follows its field in "
            f"{obeyed.min():.0%} of states")  # fmt: skip
    worst = 1.0
    # The complete graph is 8 paths that visit every spin.
    for k in range(n // 2):
        path = np.array([(k + (-1) ** i * ((i + 1) // 2)) % n for i in range(n)])
        signs = rng.choice([-1.0, 1.0], n - 1)
        J = np.zeros((n, n))
        J[path[:-1], path[1:]] = J[path[1:], path[:-1]] = signs
        spins = sampler.sample(Ising(J, np.zeros(n)), 4.0, 64, seed=seed + k).spins
        obeyed = (spins[:, path[:-1]] * spins[:, path[1:]] == signs).mean(axis=0)
        worst, i = min(worst, float(obeyed.min())), int(obeyed.argmin())
        require(
            obeyed.min() > 0.7,
            f"the coupling of spins {path[i]} and {path[i + 1]} of {n} is obeyed in "
            f"{obeyed.min():.0%} of states",
        )
    return Found(f"each of 120 couplings obeyed in at least {worst:.0%} of states")


def check_global_state(sampler: Sampler, seed: int) -> Found:
    """Numpy's global generator is left alone."""
    before = _numpy_state()
    sampler.sample(random_model(6, seed), n_samples=8, seed=seed)
    require(before == _numpy_state(), "numpy's global generator was used")
    return Found()


def _numpy_state() -> str:
    with np.printoptions(threshold=10**6):
        return str(np.random.get_state())


def check_low_energies(sampler: Sampler, seed: int) -> Found:
    """Cold states are near the ground state."""
    model = random_model(12, seed)
    energies = all_energies(model)
    found = sampler.sample(model, 5.0, 64, seed=seed).energies.mean()
    depth = float((energies.mean() - found) / (energies.mean() - energies.min()))
    require(depth > 0.7, f"at beta = 5 states reach {depth:.0%} of the ground state's depth")
    found = sampler.sample(model, 1.0, 64, seed=seed).energies.mean()
    warm = float((energies.mean() - found) / (energies.mean() - energies.min()))
    require(warm > 0.3, f"at beta = 1 states reach {warm:.0%} of the ground state's depth")
    return Found(f"{depth:.1%} of the ground state's depth at beta = 5, {warm:.1%} at 1")


# --- extremes ----------------------------------------------------------------------------------


def check_one_spin(sampler: Sampler, seed: int) -> Found:
    """The mean of a single spin in a field, tanh(beta b)."""
    expected = float(np.tanh(0.5))
    n_samples = 256 if sampler.guarantee == "heuristic" else 4096
    spins = sampler.sample(only_fields([0.5]), 1.0, n_samples, seed=seed).spins
    if sampler.guarantee == "heuristic":
        require(spins.mean() > 0, "a single spin does not follow its field")
        return Found(f"mean {spins.mean():.3f}, Boltzmann's is {expected:.3f}", "noted")
    z = (spins.mean() - expected) / np.sqrt((1 - expected**2) / 4096)
    require(abs(z) < 5, f"mean spin is {z:.1f} standard errors off")
    return Found()


def check_free_spins(sampler: Sampler, seed: int) -> Found:
    """Without couplings and fields, or at beta = 0, spins have mean 0."""
    for model, beta in ((only_fields([0.0] * 5), 1.0), (random_model(5, seed), 0.0)):
        # Of a heuristic it is enough that it answers.
        n_samples = 16 if sampler.guarantee == "heuristic" else 4096
        mean = sampler.sample(model, beta, n_samples, seed=seed).spins.mean(axis=0)
        if sampler.guarantee != "heuristic":
            largest = float(np.abs(mean).max())
            require(largest < 5 / np.sqrt(4096), f"mean spin {largest:.3f} of free spins")
    return Found("zero couplings, beta = 0")


def check_cold_and_frozen(sampler: Sampler, seed: int) -> Found:
    """Fields of 60 are followed, and temperatures near 0 break nothing."""
    model = only_fields([60.0, -60.0, 60.0, -60.0])
    spins = sampler.sample(model, 1.0, 50, seed=seed).spins
    require((spins == np.sign(model.b)).all(), "spins in fields of 60 do not follow them")
    model = random_model(8, seed)
    # Machines have a range of entries.
    coldest = 30.0 if sampler.guarantee == "heuristic" else 1e6
    for beta in (10.0, coldest):
        with warnings.catch_warnings():
            # Frozen spins do not mix; a sampler may well say so.
            warnings.simplefilter("ignore", RuntimeWarning)
            out = sampler.sample(model, beta, 50, seed=seed)
        if sampler.guarantee == "exact":
            energies = all_energies(model)
            gaps = energies - energies.min()
            expected = float(np.exp(-beta * gaps[gaps > 1e-6]).sum())
            n_excited = int((out.energies - energies.min() > 1e-6).sum())
            p = float(stats.binom.sf(n_excited - 1, 50, expected / (1 + expected)))
            require(p > 1e-6, f"{n_excited} of 50 states are excited at beta = {beta:g}")
    return Found(f"fields of 60, beta = 10 and {coldest:g}")


# --- chains ------------------------------------------------------------------------------------


def check_chains(sampler: Sampler, seed: int) -> Found:
    """``init``, ``step``, ``adapt``, ``retarget`` and ``spins`` of a chain sampler."""
    if not isinstance(sampler, ChainSampler):
        return Found("not a ChainSampler", "skipped")
    free = many_states(sampler, 24, seed)
    first, again, other = (
        sampler.spins(sampler.init(free, seed=k)) for k in (seed, seed, seed + 1)
    )
    require((first == again).all(), "init() gives other chains for the same seed")
    require((first != other).any(), "init() gives the same chains for another seed")
    state = sampler.step(sampler.init(free, seed=seed))
    distinct = len(np.unique(sampler.spins(state), axis=0))
    most = min(sampler.n_chains, 1000)
    require(distinct >= 0.9 * most, f"{distinct} of {sampler.n_chains} chains are distinct")
    state = sampler.init(random_model(7, seed), seed=seed)
    before = sampler.spins(state).copy()
    for _ in range(3):
        state = sampler.adapt(sampler.step(state))
    spins = sampler.spins(state)
    wanted = (sampler.n_chains, 7)
    require(spins.shape == wanted, f"spins() has shape {spins.shape}, expected {wanted}")
    require((np.abs(spins) == 1).all(), "spins() other than -1 and +1")
    require((spins != before).any(), "step() moves nothing")
    state = sampler.step(sampler.retarget(state, random_model(7, seed + 1)))
    require(sampler.spins(state).shape == wanted, "retarget() changes the number of chains")
    state = sampler.step(sampler.retarget(state, only_fields([20.0] * 7)))
    require((sampler.spins(state) == 1).mean() > 0.99, "retarget() does not change the target")
    try:
        sampler.retarget(state, random_model(6, seed))
    except ValueError:
        return Found()
    raise AssertionError("retarget() takes a model of another size")
