"""Pictures: data frames and arrays in, matplotlib axes out."""

from .model import (
    attractor_tree,
    coupling_matrix,
    energy_landscape,
    gene_programs,
    generation_quality,
)
from .sampling import (
    amplitude_trajectories,
    sampling_law,
    sampling_optimum,
    sampling_reweighting,
    sampling_time,
)
from .training import embedding_scatter, training_curves

__all__ = [
    "amplitude_trajectories",
    "attractor_tree",
    "coupling_matrix",
    "embedding_scatter",
    "energy_landscape",
    "gene_programs",
    "generation_quality",
    "sampling_law",
    "sampling_optimum",
    "sampling_reweighting",
    "sampling_time",
    "training_curves",
]
