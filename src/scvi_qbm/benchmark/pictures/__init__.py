"""Pictures of the benchmark: rows of scores in, matplotlib axes out."""

from .cells import (
    confused_groups,
    confusion_matrix,
    confusion_zoom,
    embedding_grid,
    pseudotime_comparison,
)
from .sampling import sampling_law, sampling_optimum, sampling_reweighting, sampling_time
from .scores import cost, paired_differences, score_by_epoch, score_dots, score_radar

__all__ = [
    "confused_groups",
    "confusion_matrix",
    "confusion_zoom",
    "cost",
    "embedding_grid",
    "paired_differences",
    "pseudotime_comparison",
    "sampling_law",
    "sampling_optimum",
    "sampling_reweighting",
    "sampling_time",
    "score_by_epoch",
    "score_dots",
    "score_radar",
]
