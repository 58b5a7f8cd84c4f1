"""Pictures of a model, its training and its samplers: matplotlib axes out."""

from .labels import confusion, reliability
from .model import (
    attractors,
    coupling_graph,
    coupling_matrix,
    energy,
    generation_quality,
    programs,
)
from .samplers import amplitude_trajectories, tempering_diagnostics
from .training import training_curves

__all__ = [
    "amplitude_trajectories",
    "attractors",
    "confusion",
    "coupling_graph",
    "coupling_matrix",
    "energy",
    "generation_quality",
    "programs",
    "reliability",
    "tempering_diagnostics",
    "training_curves",
]
