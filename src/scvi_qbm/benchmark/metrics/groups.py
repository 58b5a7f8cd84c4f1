"""What the scores of one embedding are computed from, and how a group of them says its columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scib_metrics.nearest_neighbors import NeighborsResults


class Metric(NamedTuple):
    """A column of scores; ``higher_is_better`` is None where neither direction is."""

    name: str
    label: str
    group: str
    summary: str
    higher_is_better: bool | None = True


@dataclass
class Reference:
    """What is known of a data set before any method, computed once; None where nothing is."""

    labels: NDArray[np.str_] | None
    batch: NDArray[np.str_] | None
    fine_labels: NDArray[np.str_] | None
    # Principal components of log counts per 10,000, (n_cells, 50).
    unintegrated: NDArray[np.float32]
    # As metrics.scgraph.scgraph_reference returns it.
    scgraph: Any = None
    pseudotime: NDArray[np.float64] | None = None
    # Groups of which the earliest is where the trajectory starts anew in an embedding.
    trajectory_labels: NDArray[np.str_] | None = None
    # Whether each batch has its own pseudotime, and is scored by itself.
    pseudotime_per_batch: bool = False


@dataclass
class Embedded:
    """An embedding on its way through the groups, which add ``scores`` and ``artifacts``.

    ``neighbors`` are those of the embedding: one search serves all groups.
    """

    x: NDArray[np.float32]
    known: Reference
    seed: int
    n_jobs: int
    neighbors: NeighborsResults | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, NDArray[Any]] = field(default_factory=dict)


class Group(NamedTuple):
    """Scores that are computed together; ``described`` are columns that do not rank."""

    name: str
    compute: Callable[[Embedded], None]
    metrics: tuple[Metric, ...]
    described: tuple[str, ...]
    needs_neighbors: bool


def group(
    name: str,
    *columns: tuple[str, str, str],
    described: tuple[str, ...] = (),
    needs_neighbors: bool = True,
) -> Callable[[Callable[[Embedded], None]], Group]:
    """Make a function the group of that name; ``columns`` are (name, label, summary)."""
    metrics = tuple(Metric(column, label, name, summary) for column, label, summary in columns)
    return lambda compute: Group(name, compute, metrics, described, needs_neighbors)
