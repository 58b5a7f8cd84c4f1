"""Batches brought together within states: fitted once, then applied to any cell."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn.functional import normalize, one_hot

__all__ = ["Alignment", "align", "extend_alignment", "fit_alignment"]

# Width, shrinkage and cells a state are Harmony's. Its penalty of 2 mixed too much where batches
# hold different types (facs, logbook/defaults.md).
_WIDTH, _PENALTY, _SHRINKAGE = 0.1, 0.5, 0.2
_MAX_STATES, _CELLS_A_STATE = 100, 30
_N_ROUNDS = 1
_TINY = 1e-8


class Alignment(NamedTuple):
    """Where each batch lies in each state, and how far it is moved.

    Parameters
    ----------
    means
        Of the states, batches aligned: ``(n_states, n_dimensions)``.
    shifts
        Of the batches within the states: ``(n_batches, n_states, n_dimensions)``. A cell is moved
        by the mean of its batch's shifts over its states. Zero for batches without cells.
    log_weights
        Of the states in each batch: ``(n_batches, n_states)``.
    sizes
        Cells in each state: ``(n_states,)``.
    n_fitted
        Number of batches that the states were found from; those after them came later.
    """

    means: Tensor
    shifts: Tensor
    log_weights: Tensor
    sizes: Tensor
    n_fitted: int


def _states_in(alignment: Alignment, x: Tensor, b: int) -> Tensor:
    """Share of each state in cells of batch ``b``, by where that batch lies in it."""
    centres = normalize(alignment.means + alignment.shifts[b], dim=1)
    cosine = normalize(x, dim=1) @ centres.T
    return torch.softmax(2 * cosine / _WIDTH + alignment.log_weights[b], 1)


def align(alignment: Alignment, x: Tensor, batch: Tensor) -> Tensor:
    """Take the batches' shifts out; what a cell becomes depends on this cell alone.

    Parameters
    ----------
    alignment
        Of :func:`fit_alignment`.
    x
        float32 ``(n_cells, n_dimensions)``.
    batch
        Number of each cell's batch, ``(n_cells,)``. Batches that the alignment does not know stay
        where they are.

    Returns
    -------
    torch.Tensor
        As ``x``.
    """
    out = x.clone()
    for b in batch[batch < len(alignment.shifts)].unique().tolist():
        rows = batch == b
        out[rows] -= _states_in(alignment, x[rows], b) @ alignment.shifts[b]
    return out


def fit_alignment(x: Tensor, batch: Tensor, n_batches: int, seed: int = 0) -> Alignment:
    r"""Find states that batches share, and each batch's shift within them.

    Harmony's soft clusters and corrections (Korsunsky et al. 2019), with one difference: a cell's
    states are told by where its own batch lies in them. So a new cell is mapped by what is kept,
    as Symphony does it for Harmony (Kang et al. 2021).

    .. math::
        r_{ik} \propto e^{2 \cos(x_i, \mu_k + w_{bk}) / \sigma}
        \left( \frac{E_{bk} + 1}{O_{bk} + 1} \right)^\theta, \qquad
        w_{bk} = \frac{O_{bk}}{O_{bk} + \alpha E_{bk}} (m_{bk} - \mu_k)

    for cell i of batch b, whose mean in state k is :math:`m_{bk}`, with :math:`O_{bk}` cells there
    and :math:`E_{bk}` if batches were mixed evenly.

    Parameters
    ----------
    x
        float32 ``(n_cells, n_dimensions)``.
    batch
        Number of each cell's batch, ``(n_cells,)``, from 0 to ``n_batches - 1``.
    n_batches
        Number of batches. With one, nothing moves.
    seed
        Of the k-means that it starts from.

    Returns
    -------
    Alignment
        What :func:`align` needs.

    References
    ----------
    Korsunsky et al. (2019), Nat. Methods 16, 1289 (doi:10.1038/s41592-019-0619-0); Kang et al.
    (2021), Nat. Commun. 12, 5890 (doi:10.1038/s41467-021-25957-x).
    """
    n_states = min(len(x), max(2, min(_MAX_STATES, round(len(x) / _CELLS_A_STATE))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct cells than states
        start = KMeans(n_states, n_init=1, max_iter=25, random_state=seed)
        labels = torch.from_numpy(start.fit_predict(normalize(x, dim=1).numpy())).long()
    found = _fit(x, batch, n_batches, one_hot(labels, n_states).to(x))
    for _ in range(_N_ROUNDS):
        states = x.new_empty(len(x), n_states)
        for b in batch.unique().tolist():
            rows = batch == b
            states[rows] = _states_in(found, x[rows], b)
        found = _fit(x, batch, n_batches, states)
    return found


def _fit(x: Tensor, batch: Tensor, n_batches: int, states: Tensor) -> Alignment:
    """Means and shifts for given states, Harmony's ridge regression in closed form."""
    sizes = states.sum(0)
    observed = x.new_zeros(n_batches, len(sizes))
    sums = x.new_zeros(n_batches, len(sizes), x.shape[1])
    for b in batch.unique().tolist():
        rows = batch == b
        observed[b], sums[b] = states[rows].sum(0), states[rows].T @ x[rows]
    expected = torch.bincount(batch, minlength=n_batches)[:, None] / len(x) * sizes
    batch_means = sums / observed.clamp_min(_TINY)[..., None]
    kept = _kept(observed, expected)
    weights = (expected * kept)[..., None]
    means = (weights * batch_means).sum(0) / weights.sum(0).clamp_min(_TINY)
    shifts = kept[..., None] * (batch_means - means)
    if n_batches == 1:
        shifts.zero_()
    return Alignment(means, shifts, _log_weights(observed, expected), sizes, n_batches)


def _kept(observed: Tensor, expected: Tensor) -> Tensor:
    """How much the ridge regression leaves of a shift."""
    return observed / (observed + _SHRINKAGE * expected).clamp_min(_TINY)


def _log_weights(observed: Tensor, expected: Tensor) -> Tensor:
    return _PENALTY * torch.log((expected + 1) / (observed + 1))


def extend_alignment(alignment: Alignment, x: Tensor, batch: Tensor, n_batches: int) -> Alignment:
    """Bring new batches to the states that were found; these, and their batches, stay as they are.

    As :func:`fit_alignment`, with ``means`` kept (Symphony). New batches that were brought before
    are brought anew.

    Parameters
    ----------
    alignment
        What is known.
    x
        float32 ``(n_cells, n_dimensions)``.
    batch
        Number of each cell's batch, ``(n_cells,)``. Cells of the first ``n_fitted`` are not
        looked at.
    n_batches
        Number of batches, known and new.

    Returns
    -------
    Alignment
        With shifts for the new batches.
    """
    n_known = alignment.n_fitted
    shifts = alignment.means.new_zeros(n_batches, *alignment.means.shape)
    shifts[:n_known] = alignment.shifts[:n_known]
    log_weights = alignment.means.new_zeros(n_batches, len(alignment.sizes))
    log_weights[:n_known] = alignment.log_weights[:n_known]
    out = alignment._replace(shifts=shifts, log_weights=log_weights)
    share = alignment.sizes / alignment.sizes.sum()
    for b in batch[batch >= n_known].unique().tolist():
        own = x[batch == b]
        expected = len(own) * share
        for _ in range(1 + _N_ROUNDS):
            states = _states_in(out, own, b)
            observed = states.sum(0)
            mean = states.T @ own / observed.clamp_min(_TINY)[:, None]
            # In place: the next round sees them in ``out``.
            shifts[b] = _kept(observed, expected)[:, None] * (mean - alignment.means)
            log_weights[b] = _log_weights(observed, expected)
    return out
