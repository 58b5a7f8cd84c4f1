"""Chains as tensors, numbers, lists and strings: what a checkpoint may hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvi_qbm.ising import Ising
from scvi_qbm.samplers.corrected import CorrectedState
from scvi_qbm.samplers.engine import Chains, pack, unpack

_NUMBERS = (
    "beta_drawn", "beta_drawn_se", "beta_corrected", "requested", "drawn_with", "steps", "n_draws",
)  # fmt: skip


def pack_chains(state: Any) -> dict[str, Any] | None:
    """The state of a chain sampler; None if it is not of our engine: such chains start anew."""
    if isinstance(state, Chains):
        return {"plain": to_tensors(pack(state))}
    if not isinstance(state, CorrectedState):
        return None
    return {
        "corrected": {
            "chains": to_tensors(pack(state.chains)),
            "target": _pack_ising(state.target),
            "drawn_for": _pack_ising(state.drawn_for),
            "reads": torch.from_numpy(state.reads.copy()),
            # Its numbers have 128 bits.
            "entropy": json.dumps(state.entropy.bit_generator.state),
            "numbers": {name: getattr(state, name) for name in _NUMBERS},
        }
    }


def unpack_chains(saved: dict[str, Any], stream: int = 0) -> Chains | CorrectedState:
    """The state that :func:`pack_chains` saw; with another ``stream`` by other random numbers."""
    if "plain" in saved:
        return unpack(to_arrays(saved["plain"]), stream)
    saved = saved["corrected"]
    entropy = np.random.default_rng()
    entropy.bit_generator.state = json.loads(saved["entropy"])
    if stream:
        entropy = np.random.default_rng([stream, int(entropy.integers(2**62))])
    return CorrectedState(
        unpack(to_arrays(saved["chains"]), stream),
        _unpack_ising(saved["target"]),
        entropy,
        saved["reads"].cpu().numpy(),
        _unpack_ising(saved["drawn_for"]),
        **saved["numbers"],
    )


def _pack_ising(model: Ising) -> Any:
    return to_tensors({"J": model.J.copy(), "b": model.b.copy(), "offset": float(model.offset)})


def _unpack_ising(saved: Any) -> Ising:
    arrays = to_arrays(saved)
    return Ising(arrays["J"], arrays["b"], offset=arrays["offset"])


def n_units(saved: dict[str, Any]) -> int:
    """Units of a machine whose chains :func:`pack_chains` or a device's ``pack`` saw."""
    saved = saved.get("corrected", saved)
    saved = saved.get("plain", saved.get("chains", saved))
    return len(saved["b"])


def to_tensors(saved: Any) -> Any:
    """Arrays as tensors, through dictionaries."""
    if isinstance(saved, dict):
        return {k: to_tensors(v) for k, v in saved.items()}
    return torch.from_numpy(saved) if isinstance(saved, np.ndarray) else saved


def to_arrays(saved: Any) -> Any:
    """Tensors as arrays, through dictionaries."""
    if isinstance(saved, dict):
        return {k: to_arrays(v) for k, v in saved.items()}
    return saved.cpu().numpy() if isinstance(saved, Tensor) else saved
