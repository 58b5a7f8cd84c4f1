"""How far cells are from the types that are known."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

F64 = NDArray[np.float64]


def fit_types(
    codes: NDArray[Any], types: Sequence[Hashable], before: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Centres of types and the precision of cells around them, which all types share.

    Parameters
    ----------
    codes
        Embedding of cells whose type is known, ``(n_cells, n)``.
    types
        Their types.
    before
        An earlier result, to which only the centres of new types are added.

    Returns
    -------
    dict[str, Any]
        ``types``, ``centres`` ``(n_types, n)`` and ``precision`` ``(n, n)``.
    """
    codes = np.asarray(codes, np.float64)
    rows: dict[Hashable, list[int]] = {}
    for row, name in enumerate(types):
        rows.setdefault(name, []).append(row)
    centres = {name: codes[own].mean(0) for name, own in rows.items()}
    if before is None:
        around = codes - np.array([centres[name] for name in types])
        n = codes.shape[1]
        covariance = LedoitWolf(assume_centered=True).fit(around).covariance_
        spread = float(np.trace(covariance)) / n
        # Of one cell a type nothing is known but the distance itself.
        covariance = covariance + 1e-9 * spread * np.eye(n) if spread else np.eye(n)
        precision = np.linalg.inv(covariance)
    else:
        precision = before["precision"]
        centres |= dict(zip(before["types"], before["centres"], strict=True))
    return {
        "types": list(centres),
        "centres": np.array(list(centres.values())),
        "precision": precision,
    }


def squared_distance(codes: NDArray[Any], known: dict[str, Any]) -> F64:
    """Squared Mahalanobis distance to the nearest centre, ``(n_cells,)``."""
    whiten = np.linalg.cholesky(known["precision"])
    x, centres = np.asarray(codes, np.float64) @ whiten, known["centres"] @ whiten
    out = np.full(len(x), np.inf)
    for centre in centres:
        np.minimum(out, np.square(x - centre).sum(1), out=out)
    return out
