"""Pictures: data frames and arrays in, matplotlib axes out."""

from .benchmark import cost, paired_differences, score_by_epoch, score_dots, score_radar
from .benchmark_cells import (
    confused_groups,
    confusion_matrix,
    confusion_zoom,
    embedding_grid,
    pseudotime_comparison,
)
from .model import (
    attractor_tree,
    coupling_graph,
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
from .tempering import tempering_diagnostics
from .training import embedding_scatter, training_curves

__all__ = [
    "amplitude_trajectories",
    "attractor_tree",
    "confused_groups",
    "confusion_matrix",
    "confusion_zoom",
    "cost",
    "coupling_graph",
    "coupling_matrix",
    "embedding_grid",
    "embedding_scatter",
    "energy_landscape",
    "gene_programs",
    "generation_quality",
    "paired_differences",
    "pseudotime_comparison",
    "sampling_law",
    "sampling_optimum",
    "sampling_reweighting",
    "sampling_time",
    "score_by_epoch",
    "score_dots",
    "score_radar",
    "tempering_diagnostics",
    "training_curves",
]
