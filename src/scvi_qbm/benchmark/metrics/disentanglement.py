"""Does one latent dimension say one cell type? DRVI's own scores, by its package."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from scvi_qbm.benchmark.extras import require
from scvi_qbm.benchmark.metrics.groups import Embedded, group

# How dimensions and types are matched (rows) and by what similarity (columns).
_AGGREGATIONS, _SIMILARITIES = ("LMS", "MSAS", "MSGS"), ("SMI", "SPN")


def disentanglement_scores(x: NDArray[np.float32], labels: NDArray[np.str_]) -> dict[str, float]:
    """DRVI's disentanglement scores of an embedding; the mean of all six as ``disentanglement``.

    Types of fewer than 10 cells do not count: their similarities are noise.

    References
    ----------
    Moinfar & Theis (2024), Unsupervised Deep Disentangled Representation of Single-Cell Omics,
    bioRxiv 2024.11.06.622266.
    """
    names, counts = np.unique(labels, return_counts=True)
    types = names[counts >= 10]
    if len(types) < 2:
        raise ValueError("Fewer than two types have 10 cells.")
    make = require("drvi.utils.metrics").DiscreteDisentanglementBenchmark
    state = np.random.get_state()
    np.random.seed(0)  # it shuffles the cells, which decides between equal values
    try:
        benchmark = make(
            np.asarray(x, dtype=np.float64),
            one_hot_target=(labels[:, None] == types).astype(float),
            metrics=_SIMILARITIES,
            aggregation_methods=_AGGREGATIONS,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of scikit-learn, about its caller
            benchmark.evaluate()
    finally:
        np.random.set_state(state)
    found = benchmark.get_results()
    out = {name.lower().replace("-", "_"): float(value) for name, value in found.items()}
    return {"disentanglement": float(np.mean(list(out.values())))} | out


@group(
    "disentanglement",
    ("disentanglement", "Disentanglement", "Mean of DRVI's six scores that follow."),
    ("lms_smi", "LMS-SMI", "Each type's own dimension: scaled mutual information."),
    ("lms_spn", "LMS-SPN", "Each type's own dimension: order along it keeps a type together."),
    ("msas_smi", "MSAS-SMI", "Each type's best dimension: scaled mutual information."),
    ("msas_spn", "MSAS-SPN", "Each type's best dimension: order along it keeps a type together."),
    ("msgs_smi", "MSGS-SMI", "Its lead over the second dimension, by mutual information."),
    ("msgs_spn", "MSGS-SPN", "Its lead over the second dimension, by order."),
    needs_neighbors=False,
)
def disentanglement(cells: Embedded) -> None:
    """Scores of the embedding's dimensions as they are, without any rotation."""
    labels = cells.known.labels
    if labels is not None and np.sum(np.unique(labels, return_counts=True)[1] >= 10) >= 2:
        cells.scores |= disentanglement_scores(cells.x, labels)
