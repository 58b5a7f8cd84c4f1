"""Pictures of a model, its training and its samplers: matplotlib axes out."""

from .model import (
    attractor_tree,
    coupling_graph,
    coupling_matrix,
    energy_landscape,
    gene_programs,
    generation_quality,
)
from .samplers import amplitude_trajectories, tempering_diagnostics
from .training import embedding_scatter, training_curves

__all__ = [
    "amplitude_trajectories",
    "attractor_tree",
    "coupling_graph",
    "coupling_matrix",
    "embedding_scatter",
    "energy_landscape",
    "gene_programs",
    "generation_quality",
    "tempering_diagnostics",
    "training_curves",
]
