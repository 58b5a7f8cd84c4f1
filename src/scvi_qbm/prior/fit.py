"""The machine's last fit: to the codes of an encoder that no longer moves."""

from __future__ import annotations

import torch
from torch import Tensor

from .bernoulli import BernoulliPrior
from .boltzmann import BoltzmannPrior
from .negative_phase import NegativePhase

__all__ = ["fit_prior"]


def fit_prior(
    prior: BoltzmannPrior | BernoulliPrior,
    negative_phase: NegativePhase | None,
    first: Tensor,
    second: Tensor,
    *,
    lr: float = 0.01,
    n_steps: int = 1000,
    weight_decay: float = 0.0,
) -> float:
    r"""Minimise KL(aggregated posterior || prior) over the prior's parameters, in place.

    Label units stay as they are: with p(y | z) fixed, p(z) is fitted.

    In training the machine follows an encoder that moves, and ends behind it. With the encoder at
    rest this is maximum likelihood of an exponential family, a convex problem. Its gradient is the
    difference of the moments of codes and machine, so the cells' moments are all that is needed.

    Parameters
    ----------
    prior
        The prior. Independent units get their optimum in closed form.
    negative_phase
        Its sampler, whose chains go on; None for independent units.
    first
        Mean of the posterior probabilities q over cells, ``(n_latent,)``.
    second
        Mean of ``q q'`` over cells, ``(n_latent, n_latent)``; the diagonal is not used.
    lr
        Learning rate of Adam, which falls to 0 along a cosine.
    n_steps
        Steps, each with one draw of the negative phase.
    weight_decay
        Of Adam.

    Returns
    -------
    float
        What the cells gain in the mean, in nats. If they do not, or if an error or Ctrl-C ends it,
        the prior is left as it was, and this is 0.
    """
    if not isinstance(prior, BoltzmannPrior) or negative_phase is None:
        assert isinstance(prior, BernoulliPrior)
        with torch.no_grad():
            before = prior.surrogate(first[None])
            prior.h.copy_(-torch.logit(first, eps=1e-6))
            return float(before - prior.surrogate(first[None]))
    kept = {name: value.clone() for name, value in prior.state_dict().items()}
    before = _cost(prior, first, second)
    optimizer = torch.optim.Adam([prior.h, prior.W_upper], lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(n_steps, 1))
    gain = 0.0
    try:
        for _ in range(n_steps):
            negative_phase.submit()
            z = negative_phase.collect().to(first)
            z = z[:, : len(first)]
            prior.h.grad = first - z.mean(0)
            prior.W_upper.grad = (second - z.T @ z / len(z)).triu(1)
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()
        negative_phase.refresh_log_z(final=True, over_ranks=False)
        gain = max(before - _cost(prior, first, second), 0.0)
    finally:
        if not gain > 0:  # no better, not finite, or interrupted
            prior.load_state_dict(kept)
    return gain


@torch.no_grad()
def _cost(prior: BoltzmannPrior, first: Tensor, second: Tensor) -> float:
    """Mean of -log p over the codes of the cells, in nats."""
    energy = prior.h @ first + (prior.W_upper * second.triu(1)).sum()
    return float(energy + prior.log_z)
