"""The label units' last fit: what the labelled cells say of each type, and no more."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from .labelled import LabelledPrior

__all__ = ["fit_labels"]

F64 = NDArray[np.float64]

_PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
_N_FOLDS = 5
_ROUGH = {"maxiter": 100, "ftol": 1e-5}  # enough to tell penalties apart
_MAX_CELLS = 5000  # for the choice of a penalty; with more it matters little
# A unit that is on in one cell in 400 may carry a label; a rarer one is treated as this.
_LEAST_VARIANCE = 0.0025
_BIAS_PENALTY = 1e-3  # next to none: biases carry the types' shares
# Nats by which a state without a label, or with two, is less likely than one with a label.
_MARGIN = 5.0


def fit_labels(
    prior: LabelledPrior,
    q: Tensor,
    allowed: Tensor,
    mean: Tensor,
    *,
    n_fixed: int = 0,
    seed: int = 0,
) -> float:
    r"""Fit biases a and couplings U of the label units to labelled cells, in place.

    Maximises :math:`\sum \log p(\mathrm{label} | q) - \frac\lambda2 \sum_{lk} s_l^2 U_{lk}^2`,
    a penalised multinomial logistic regression of labels on codes; with several levels of labels,
    one whose types share the couplings of their parent. ``s`` is the standard deviation of each
    unit. The penalty is that of seven whose labels of left-out cells are the most likely, in
    five folds. Few labels so give weak couplings, and probabilities that admit it.

    Parameters
    ----------
    prior
        The prior. What does not belong to label units stays as it is; label units that no cell
        speaks of get no couplings.
    q
        Posterior probabilities of labelled cells, ``(n_cells, n_latent)``.
    allowed
        Configurations that each may have, bool ``(n_cells, n_configurations)``.
    mean
        Mean of q over all cells, labelled or not, ``(n_latent,)``.
    n_fixed
        So many labels, the first, stay as they are.
    seed
        Of the folds.

    Returns
    -------
    float
        The penalty chosen.

    References
    ----------
    Lasserre, Bishop, Minka (2006), Principled hybrids of generative and discriminative models,
    CVPR: p(y | z) by the labelled cells, p(z) by all.
    """
    mean_of_all = _numpy(mean)
    scale = np.sqrt(np.maximum(mean_of_all * (1 - mean_of_all), _LEAST_VARIANCE))
    cells = _Labelled(
        (_numpy(q) - mean_of_all) / scale,
        allowed.cpu().numpy(),
        _numpy(prior.configurations),
    )
    rng = np.random.default_rng(seed)
    fixed = _fixed_labels(prior, mean_of_all, scale, n_fixed)
    some = cells.among(rng.permutation(len(q))[:_MAX_CELLS])
    penalty = _choose_penalty(some, fixed, rng)
    a, U = _maximise(cells, penalty, fixed)
    U = U / scale[:, None]
    with torch.no_grad():
        prior.U.copy_(torch.from_numpy(U))
        prior.a.copy_(torch.from_numpy(a - mean_of_all @ U))
        _keep_to_configurations(prior, q)
    return penalty


def _fixed_labels(prior: LabelledPrior, mean: F64, scale: F64, n_fixed: int) -> tuple[F64, F64]:
    """Biases and couplings of the first labels, in units of the scale."""
    U = _numpy(prior.U)[:, :n_fixed]
    return _numpy(prior.a)[:n_fixed] + mean @ U, U * scale[:, None]


class _Labelled(NamedTuple):
    """Standardised codes of labelled cells, what their labels allow, and the configurations."""

    x: F64
    allowed: NDArray[np.bool_]
    configurations: F64

    def among(self, cells: NDArray[np.int64]) -> _Labelled:
        return self._replace(x=self.x[cells], allowed=self.allowed[cells])


def _numpy(x: Tensor) -> F64:
    out: F64 = x.detach().cpu().double().numpy()
    return out


def _choose_penalty(cells: _Labelled, fixed: tuple[F64, F64], rng: np.random.Generator) -> float:
    """By the likelihood of left-out labels; folds of equal composition."""
    n_cells, allowed = len(cells.x), cells.allowed
    # Cells with the same label stand together, and are dealt out in turn.
    order = np.lexsort([rng.random(n_cells), *allowed.T])
    fold = np.empty(n_cells, dtype=int)
    fold[order] = np.arange(n_cells) % _N_FOLDS
    losses = np.zeros(len(_PENALTIES))
    for k in range(_N_FOLDS):
        inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        # A label that is not among the others' cannot be learned from them.
        seen = allowed[inside][~allowed[inside].all(1)].any(0)
        outside = outside[(allowed[outside] & seen).any(1)]
        if not len(outside):
            continue
        start = None
        for i, penalty in enumerate(_PENALTIES):
            start = _maximise(cells.among(inside), penalty, fixed, start, _ROUGH)
            losses[i] += _loss(*start, cells.among(outside))[0]
    return _PENALTIES[int(losses.argmin())]


def _loss(a: F64, U: F64, cells: _Labelled) -> tuple[float, F64]:
    """Cross-entropy of the labels, and its gradient in the configurations' logits."""
    logits = -(cells.x @ U + a) @ cells.configurations.T
    weights = np.exp(logits - logits.max(1, keepdims=True))
    known = weights * cells.allowed
    total, of_known = weights.sum(1), np.maximum(known.sum(1), 1e-300)
    residual = weights / total[:, None] - known / of_known[:, None]
    return float(np.log(total / of_known).sum()), residual


def _maximise(
    cells: _Labelled,
    penalty: float,
    fixed: tuple[F64, F64],
    start: tuple[F64, F64] | None = None,
    options: dict[str, float] | None = None,
) -> tuple[F64, F64]:
    """Biases ``(n_labels,)`` and couplings ``(n_latent, n_labels)`` in units of the scale."""
    n_latent, n_labels = cells.x.shape[1], cells.configurations.shape[1]
    a, U = np.zeros(n_labels), np.zeros((n_latent, n_labels))
    if start is not None:
        a, U = start
    n_fixed = len(fixed[0])
    both = np.vstack([a, U])
    both[:, :n_fixed] = np.vstack(fixed)
    x = np.column_stack([np.ones(len(cells.x)), cells.x])
    penalties = np.full((n_latent + 1, 1), penalty)
    penalties[0] = _BIAS_PENALTY

    def objective(values: F64) -> tuple[float, F64]:
        both[:, n_fixed:] = values.reshape(n_latent + 1, -1)
        loss, residual = _loss(both[0], both[1:], cells)
        gradient = penalties * both - x.T @ (residual @ cells.configurations)
        value = loss + 0.5 * (penalties * both**2).sum()
        return value, gradient[:, n_fixed:].ravel()

    first = both[:, n_fixed:].ravel()
    options = options or {"maxiter": 500}
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options=options).x
    both[:, n_fixed:] = found.reshape(n_latent + 1, -1)
    return both[0], both[1:]


def _keep_to_configurations(prior: LabelledPrior, q: Tensor) -> None:
    """Make a label present, and two of one level rare, without a change of p(y | z)."""
    S = prior.configurations
    # Added to a, this lowers every configuration by one nat: it cancels in p(y | z).
    one = torch.linalg.lstsq(S, torch.ones(len(S), 1).to(S)).solution[:, 0]
    weight = torch.logsumexp(prior.label_logits(q), -1)
    prior.a -= (_MARGIN - weight.min()) * one
    favour = -(q @ prior.U + prior.a).min()
    prior.repulsion.fill_(float(favour) + np.log(S.shape[1]) + _MARGIN)
