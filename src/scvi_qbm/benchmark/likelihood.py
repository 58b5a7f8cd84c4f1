"""How well does a model explain the cells that were held out, in nats?"""

from __future__ import annotations

from typing import Any

import numpy as np

from scvi_qbm.model import QBMVI

__all__ = ["held_out_likelihood"]


def held_out_likelihood(
    model: Any, *, n_samples: int = 100, max_cells: int = 256
) -> dict[str, float]:
    """Importance-weighted bound on held-out cells, and the error of log Z behind it.

    Parameters
    ----------
    model
        A trained model of scvi-tools with ``get_marginal_ll``. Models trained with one seed on
        one data set hold out the same cells, so that their numbers are paired.
    n_samples
        Samples a cell. With few the bound is loose, and looser for a posterior that fits badly;
        it never exceeds the likelihood in expectation.
    max_cells
        At most so many of the held-out cells, the first of their random order.

    Returns
    -------
    dict[str, float]
        ``validation_iwae`` in nats per cell (Burda et al. 2016, arXiv:1509.00519); ``log_z_se`` in
        nats, for a Boltzmann prior: the same error in every cell, hence in the mean.
    """
    out = {}
    held_out = model.validation_indices
    if held_out is not None and len(held_out):
        value = model.get_marginal_ll(
            indices=np.sort(held_out[:max_cells]), n_mc_samples=n_samples, return_mean=True
        )
        out["validation_iwae"] = float(value)
    if isinstance(model, QBMVI):
        out["log_z_se"] = float(model.get_log_partition().standard_error)
    return out
