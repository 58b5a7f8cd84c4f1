"""Pictures of the benchmark: rows of scores in, matplotlib axes out."""

from .cells import confusion_matrix, confusion_zoom, embedding_grid, pseudotime_comparison
from .scores import cost, paired_differences, score_by_epoch, score_dots

__all__ = [
    "confusion_matrix",
    "confusion_zoom",
    "cost",
    "embedding_grid",
    "paired_differences",
    "pseudotime_comparison",
    "score_by_epoch",
    "score_dots",
]
