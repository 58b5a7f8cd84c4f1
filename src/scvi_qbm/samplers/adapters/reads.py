r"""What machines read out: the matrix they get, what their answers are worth, states of a model.

Machines of the Kaiwu family minimise :math:`H(\tilde s) = -\tilde s^\top M \tilde s`, without a
half, over n + 1 spins of which the last is an ancilla that carries the fields. With
:math:`A` = :meth:`Ising.to_ancilla <scvi_qbm.ising.Ising.to_ancilla>`,
:math:`E(s) - c = -\frac{1}{2} \tilde s^\top A \tilde s`, so that :math:`M = \beta A / 2` makes
:math:`H = \beta (E - c)`; the states of the model are :math:`s = \tilde s_{1..n} \tilde s_{n+1}`.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from scvi_qbm.diagnostics import effective_beta
from scvi_qbm.ising import Ising

# Pairs of equal reads expected at least, before their absence is called de-duplication.
EXPECTED_PAIRS = 10
_FEW_STATES = 20
# Factor in the inverse temperature from which reads are of another machine than the one wanted.
_FAR = 3.0
# From a warning here to the caller of ``sample``.
_STACK = 5

F64 = NDArray[np.float64]
Reads = NDArray[np.int8]


def machine_matrix(ising: Ising, scale: float = 1.0) -> F64:
    r""":math:`M` with :math:`-\tilde s^\top M \tilde s` = ``scale * (E(s) - offset)``."""
    return 0.5 * scale * ising.to_ancilla()


def n_distinct(spins: Reads) -> int:
    """Number of different states."""
    return len(np.unique(np.packbits(spins > 0, axis=1), axis=0))


def energy_scale(ising: Ising) -> float:
    """The largest that energies could be, for comparing them."""
    return float(np.abs(ising.J).sum() / 2 + np.abs(ising.b).sum() + abs(ising.offset))


def states(
    blocks: list[Reads],
    matrix: F64,
    ising: Ising,
    scale: float,
    n_samples: int,
    rng: np.random.Generator,
    who: str,
    told: set[str],
) -> tuple[Reads, dict[str, Any]]:
    """``n_samples`` states of the model from blocks of reads, and what :func:`audit` says.

    ``told`` holds the kinds of faults that were warned of: each is told once.
    """
    target = ising.scaled(scale)
    report = audit(blocks, who, told, cold=is_cold(target, np.concatenate(blocks)))
    reads = thin(np.concatenate(blocks), n_samples, rng)
    spins = unfold(reads, matrix, ising, scale, who, told)
    return spins, report | audit_distribution(target, spins, who, told)


def unfold(
    reads: Reads, matrix: F64, ising: Ising, scale: float, who: str, told: set[str]
) -> Reads:
    """States of the model from a machine's reads.

    A RuntimeError if ``-s'Ms`` of one is not ``scale * (energy - offset)``: a wrong mapping.
    """
    spins: Reads = reads[:, :-1] * reads[:, -1:]
    machine = -np.einsum("ri,ri->r", reads @ matrix, reads)
    model = scale * (ising.energy(spins) - ising.offset)
    size = np.abs(matrix).sum() + scale * abs(ising.offset)
    if not np.allclose(machine, model, rtol=0, atol=1e-9 * size):
        worst = float(np.abs(machine - model).max())
        raise RuntimeError(f"Energies of {who} differ from the model's by up to {worst:.3g}.")
    # Uniform states have mean 0 and variance 2 |M|^2: nothing that looks for low energies is
    # above that, unless it has the other sign.
    noise = np.sqrt(2 / len(reads)) * np.linalg.norm(matrix)
    if machine.mean() > 5 * noise:
        sign = "they have higher energies than random states: does it minimise -s'Ms?"
        _warn({"sign": sign}, who, told)
    return spins


def audit_distribution(target: Ising, spins: Reads, who: str, told: set[str]) -> dict[str, Any]:
    """The temperature of states; warns where no Boltzmann distribution could give them.

    Reports ``effective_beta`` and ``effective_beta_se``, 1 for a right machine: the target has
    its temperature already. Warns of energies that are avoided, of another temperature, and of
    spins that never turn although at that temperature, given the others, they would have.
    """
    beta, error = effective_beta(target, spins)
    faults = {}
    found = f"effective beta {beta:.3g} +- {error:.2g} times the one asked for"
    if n_distinct(spins) < _FEW_STATES:
        pass  # they have no temperature
    elif beta < -4 * error:
        faults["sign"] = f"low energies are avoided ({found}): is a sign turned around?"
    elif np.isfinite(beta):
        if beta + 4 * error < 1 / _FAR:
            faults["hot"] = f"they are much too hot, or random ({found})"
        elif beta - 4 * error > _FAR:
            faults["cold"] = f"they are much too cold ({found}): is its temperature another one?"
        turns = expit(-2 * beta * spins * target.local_fields(spins)).sum(axis=0)
        frozen = np.flatnonzero((spins == spins[0]).all(axis=0) & (turns > EXPECTED_PAIRS))
        if 0 < len(frozen) < spins.shape[1]:
            faults["frozen"] = (
                f"spins {frozen[:10].tolist()} never turn, though their fields are weak"
            )
    _warn(faults, who, told)
    return {"effective_beta": beta, "effective_beta_se": error}


def is_cold(target: Ising, reads: Reads) -> bool:
    """Whether reads of the target would all be the same: hardly a spin should ever turn."""
    spins = reads if reads.shape[1] == target.n_spins else reads[:, :-1] * reads[:, -1:]
    return float(expit(-2 * spins * target.local_fields(spins)).sum()) < 1


def _warn(faults: dict[str, str], who: str, told: set[str]) -> None:
    for kind, fault in faults.items():
        if kind not in told:
            told.add(kind)
            end = "" if fault.endswith("?") else "."
            warnings.warn(f"Reads of {who}: {fault}{end}", RuntimeWarning, stacklevel=_STACK)


def audit(
    blocks: list[Reads],
    who: str,
    told: set[str],
    *,
    ancilla: bool = True,
    cold: bool = False,
) -> dict[str, Any]:
    """Whether blocks of reads, one a call, could be independent draws; warns where not.

    Reports ``n_distinct``; ``deduplicated``, no state twice within a block although equal pairs
    were to be expected, from pairs across blocks or from the number of states; ``repeated``, two
    blocks are equal read for read.
    """
    reads = np.concatenate(blocks)
    # Pools are made unique before the ancilla is folded away, or after: look at reads as they are.
    _, ids = np.unique(reads, axis=0, return_inverse=True)
    ids = ids.reshape(-1)
    labels = np.split(ids, np.cumsum([len(block) for block in blocks])[:-1])

    def pairs(counts: NDArray[np.int64]) -> float:
        return float((counts * (counts - 1.0)).sum() / 2)

    sizes = np.array([len(block) for block in blocks])
    equal_within = sum(pairs(np.unique(x, return_counts=True)[1]) for x in labels)
    across = pairs(np.array([len(ids)])) - pairs(sizes)
    equal_across = pairs(np.bincount(ids)) - equal_within
    n_free = reads.shape[1] - (ancilla and bool((reads[:, -1] == reads[0, -1]).all()))
    chance = max(0.5**n_free, equal_across / across if across else 0.0)
    deduplicated = equal_within == 0 and chance * pairs(sizes) >= EXPECTED_PAIRS

    # Equal blocks by chance: every read must meet its like, with the chance seen within blocks.
    meets = (equal_within + 1) / (pairs(sizes) + 1)
    telling = [x.tobytes() for x in labels if len(x) * np.log(meets) < np.log(1e-6)]
    repeated = len(set(telling)) < len(telling)
    distinct = n_distinct(reads * reads[:, -1:] if ancilla else reads)

    faults = {}
    if cold:
        pass  # one state is all there is
    elif distinct == 1 and len(ids) > 1 and reads.shape[1] > 2:
        faults["one state"] = f"all {len(ids)} reads are the same state"
    elif sizes.max() > 1 and all((x == x[0]).all() for x in labels):
        faults["one state a call"] = "each call returned one state only"
    if deduplicated:
        faults["deduplicated"] = (
            "no state comes twice: the pool is de-duplicated, frequencies mean nothing"
        )
    if repeated:
        faults["repeated"] = "two calls returned the same reads"
    _warn(faults, who, told)
    return {"n_distinct": distinct, "deduplicated": deduplicated, "repeated": repeated}


def thin(reads: Reads, n_samples: int, rng: np.random.Generator) -> Reads:
    """``n_samples`` reads in their order, left out at random: pools may come sorted by energy."""
    kept = np.sort(rng.permutation(len(reads))[:n_samples])
    return reads[kept]
