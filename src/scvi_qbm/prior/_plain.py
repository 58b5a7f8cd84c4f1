"""Arrays as tensors and back: a checkpoint holds tensors, numbers and lists only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["to_arrays", "to_tensors"]


def to_tensors(saved: Any) -> Any:
    if isinstance(saved, dict):
        return {k: to_tensors(v) for k, v in saved.items()}
    return torch.from_numpy(saved) if isinstance(saved, np.ndarray) else saved


def to_arrays(saved: Any) -> Any:
    if isinstance(saved, dict):
        return {k: to_arrays(v) for k, v in saved.items()}
    return saved.cpu().numpy() if isinstance(saved, Tensor) else saved
