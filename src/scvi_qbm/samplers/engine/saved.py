"""Chains as plain arrays and numbers, for checkpoints; exact to the bit and the next draw."""

from __future__ import annotations

from typing import Any

import numpy as np

from scvi_qbm.ising import Ising
from scvi_qbm.samplers.engine.chains import Chains, start

_ARRAYS = (
    "spins", "fields", "energy", "lam", "rng", "lane_at", "heading", "accepted", "proposed",
    "mean_spins",
)  # fmt: skip
_NUMBERS = ("n_means", "round_trips", "sweeps", "n_updates")


def pack(chains: Chains) -> dict[str, Any]:
    """Everything that :func:`unpack` needs: arrays, numbers, lists of numbers."""
    entropy = chains.entropy.entropy
    return {
        "J": chains.ising.J.copy(),
        "b": chains.ising.b.copy(),
        "offset": float(chains.ising.offset),
        "base": chains.base.copy(),
        "ladder": chains.ladder.copy(),
        "n_chains": chains.n_chains,
        # 128 bits, which not every reader of checkpoints takes for a number.
        "entropy": [str(e) for e in np.atleast_1d(np.array(entropy, dtype=object))],
        "spawn_key": list(chains.entropy.spawn_key),
        "n_spawned": chains.entropy.n_children_spawned,
        # uint32, which torch stores only of late.
        "arrays": {
            k: getattr(chains, k).view(np.int32).copy()
            if k == "rng"
            else getattr(chains, k).copy()
            for k in _ARRAYS
        },
        "numbers": {k: int(getattr(chains, k)) for k in _NUMBERS},
    }


def unpack(saved: dict[str, Any], stream: int = 0) -> Chains:
    """The chains that :func:`pack` saw, in aligned memory of their own.

    With a ``stream`` other than 0 their states go on with other random numbers.
    """
    ising = Ising(np.asarray(saved["J"]), np.asarray(saved["b"]), offset=saved["offset"])
    entropy = [int(e) for e in saved["entropy"]]
    seeds = np.random.SeedSequence(
        entropy[0] if len(entropy) == 1 else entropy,
        spawn_key=tuple(saved["spawn_key"]),
        n_children_spawned=saved["n_spawned"],
    )
    chains = start(
        ising,
        np.asarray(saved["ladder"]),
        saved["n_chains"],
        np.random.SeedSequence([*entropy, stream]),
        np.asarray(saved["base"]),
    )
    if not stream:
        chains.entropy = seeds
    for key, value in saved["arrays"].items():
        if key == "rng" and stream:
            continue
        array = np.asarray(value)
        getattr(chains, key)[...] = array.view(np.uint32) if key == "rng" else array
    for key, value in saved["numbers"].items():
        setattr(chains, key, value)
    return chains
