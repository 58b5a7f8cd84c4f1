"""Chains of heuristic samplers, which ``BoltzmannPrior.training_state`` leaves out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from scvi_qbm.ising import Ising
from scvi_qbm.prior._plain import to_arrays, to_tensors
from scvi_qbm.samplers import engine
from scvi_qbm.samplers.corrected import CorrectedState

__all__ = ["load_own_chains", "own_chains"]

_NUMBERS = ("beta_drawn", "beta_corrected", "requested", "drawn_with", "steps")


def own_chains(prior: Any) -> dict[str, Any] | None:
    """The chains of a heuristic sampler, which the prior's own state has not; None for others."""
    state = getattr(prior, "_chains", None)
    if not isinstance(state, CorrectedState):
        return None
    return {
        "chains": to_tensors(engine.pack(state.chains)),
        "target": [
            torch.from_numpy(state.target.J.copy()),
            torch.from_numpy(state.target.b.copy()),
        ],
        "offset": float(state.target.offset),
        # Its numbers have 128 bits.
        "entropy": json.dumps(state.entropy.bit_generator.state),
        "numbers": {name: getattr(state, name) for name in _NUMBERS},
    }


def load_own_chains(prior: Any, saved: dict[str, Any] | None) -> None:
    """Put :func:`own_chains` back.

    Parameters
    ----------
    prior
        Its training state is loaded.
    saved
        From :func:`own_chains`.
    """
    if saved is None:
        return
    J, b = (x.cpu().numpy() for x in saved["target"])
    entropy = np.random.default_rng()
    entropy.bit_generator.state = json.loads(saved["entropy"])
    prior._chains = CorrectedState(
        engine.unpack(to_arrays(saved["chains"])),
        Ising(J, b, offset=saved["offset"]),
        entropy,
        **saved["numbers"],
    )
