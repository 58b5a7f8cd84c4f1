"""Chains that ``BoltzmannPrior.load_training_state`` does not put back to the bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from scvi_qbm.ising import Ising
from scvi_qbm.samplers import _saved
from scvi_qbm.samplers.corrected import CorrectedState

__all__ = ["load_own_chains", "own_chains"]

_NUMBERS = ("beta_drawn", "beta_corrected", "requested", "drawn_with", "steps")


def own_chains(prior: Any) -> dict[str, Any] | None:
    """The chains of a heuristic sampler, which the prior's own state has not; None for others."""
    state = getattr(prior, "_chains", None)
    if not isinstance(state, CorrectedState):
        return None
    return {
        "chains": _tensors(_saved.pack(state.chains)),
        "target": [
            torch.from_numpy(state.target.J.copy()),
            torch.from_numpy(state.target.b.copy()),
        ],
        "offset": float(state.target.offset),
        # Its numbers have 128 bits.
        "entropy": json.dumps(state.entropy.bit_generator.state),
        "numbers": {name: getattr(state, name) for name in _NUMBERS},
    }


def load_own_chains(prior: Any, rank: int, state: Any, corrected: Any) -> None:
    """Put them back, and the others on ranks after 0, whose random numbers the prior changes.

    Parameters
    ----------
    prior
        Its training state is loaded.
    rank
        Of this process.
    state
        That training state, None for a prior without chains.
    corrected
        From :func:`own_chains`.
    """
    for name, saved in (state or {"chains": {}})["chains"].items():
        if rank and getattr(prior, f"_{name}", None) is not None:
            setattr(prior, f"_{name}", _saved.unpack(_arrays(saved)))
    if corrected is not None:
        J, b = (x.cpu().numpy() for x in corrected["target"])
        entropy = np.random.default_rng()
        entropy.bit_generator.state = json.loads(corrected["entropy"])
        prior._chains = CorrectedState(
            _saved.unpack(_arrays(corrected["chains"])),
            Ising(J, b, offset=corrected["offset"]),
            entropy,
            **corrected["numbers"],
        )


def _tensors(saved: Any) -> Any:
    if isinstance(saved, dict):
        return {k: _tensors(v) for k, v in saved.items()}
    return torch.from_numpy(saved) if isinstance(saved, np.ndarray) else saved


def _arrays(saved: Any) -> Any:
    if isinstance(saved, dict):
        return {k: _arrays(v) for k, v in saved.items()}
    return saved.cpu().numpy() if isinstance(saved, torch.Tensor) else saved
