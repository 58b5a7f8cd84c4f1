"""QBMANVAE: QBMVAE whose Boltzmann machine has label units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import ArrayLike
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor

from scvi_qbm._signature import full_signature
from scvi_qbm.module import QBMVAE
from scvi_qbm.prior import LabelledPrior, NegativePhase
from scvi_qbm.samplers import Sampler

__all__ = ["QBMANVAE"]


class QBMANVAE(QBMVAE):
    r"""QBMVAE with cell types as units of the Boltzmann machine.

    One normalised model :math:`p(x, z, y) = p(x | z)\, p(z, y)`. The loss of a cell whose label is
    known bounds :math:`-\log p(x, y)`, that of one without bounds :math:`-\log p(x)`: the sum over
    labels has a closed form, so no label is decoded on its own.

    Parameters
    ----------
    n_input, n_batch
        As :class:`QBMVAE`.
    n_labels
        Number of categories of the label field, one of them that of unlabelled cells.
    sampler, sampler_options
        As :class:`QBMVAE`.
    **kwargs
        As :class:`QBMVAE`.

    Attributes
    ----------
    prior
        :class:`~scvi_qbm.prior.LabelledPrior`.
    allowed
        Which configurations of the labels each category allows, bool
        ``(n_labels, n_configurations)``.

    Raises
    ------
    ValueError
        If there are no labels.
    """

    prior: LabelledPrior
    allowed: Tensor
    _sees_labels = True

    def __init__(
        self,
        n_input: int,
        n_batch: int = 0,
        n_labels: int = 2,
        *,
        sampler: str | Sampler = "parallel_tempering",
        sampler_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if n_labels < 1:  # a data module
            raise ValueError("There are no labels: name their column where the data are set up.")
        super().__init__(
            n_input, n_batch, n_labels=n_labels, sampler=sampler,
            sampler_options=sampler_options, **kwargs,
        )  # fmt: skip
        self._sampling = sampler, sampler_options
        one_each = torch.eye(n_labels - 1)
        self.set_labels(one_each, torch.cat([one_each, torch.ones(1, n_labels - 1)]))

    def set_labels(self, configurations: ArrayLike | Tensor, allowed: ArrayLike | Tensor) -> None:
        """Say which label units go together; the prior starts anew.

        Parameters
        ----------
        configurations
            As :class:`~scvi_qbm.prior.LabelledPrior`.
        allowed
            Which of them each category of the label field allows, 0 and 1,
            ``(n_labels, n_configurations)``.
        """
        self.prior = LabelledPrior(self.n_latent, torch.as_tensor(configurations))
        self.negative_phase = NegativePhase(self.prior, *self._sampling)
        allowed = torch.as_tensor(allowed).bool()
        self.register_buffer("allowed", allowed, persistent=False)

    def _labels_of(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        codes = tensors[REGISTRY_KEYS.LABELS_KEY].flatten().long()
        allowed = self.allowed[codes]
        return {"allowed": allowed if self._sees_labels else torch.ones_like(allowed)}

    @contextmanager
    def labels_seen(self, seen: bool) -> Iterator[None]:
        """Within it, whether ELBOs are of codes and labels, or of codes alone.

        Parameters
        ----------
        seen
            Whether known labels count.

        Returns
        -------
        Iterator[None]
            A context manager.
        """
        before, self._sees_labels = self._sees_labels, seen
        try:
            yield
        finally:
            self._sees_labels = before

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float | Tensor = 1.0,
        classification_ratio: float = 0.0,
    ) -> LossOutput:
        """Negative ELBO, and the cross-entropy of known labels times ``classification_ratio``.

        Parameters
        ----------
        tensors, inference_outputs, generative_outputs, kl_weight
            As :meth:`QBMVAE.loss`.
        classification_ratio
            Weight of -log p(label | q) of each labelled cell, on top of its ELBO.

        Returns
        -------
        scvi.module.base.LossOutput
            As :meth:`QBMVAE.loss`; with the cross-entropy averaged over labelled cells, in nats,
            where there are any.
        """
        out = super().loss(tensors, inference_outputs, generative_outputs, kl_weight)
        allowed = self._labels_of(tensors)["allowed"]
        known = ~allowed.all(-1)
        if not known.any():
            return out
        q = inference_outputs[MODULE_KEYS.QZ_KEY].probs[known]
        cross_entropy = self.prior.classification_loss(q, allowed[known])
        out.classification_loss = cross_entropy.mean()
        if self.training and classification_ratio:
            out.loss = out.loss + classification_ratio * cross_entropy.sum() / len(allowed)
        exact = allowed[known].sum(-1) == 1
        out.true_labels = allowed[known][exact].int().argmax(-1)
        out.logits = self.prior.label_logits(q[exact]).detach()
        return out

    @auto_move_data
    def classify(
        self,
        x: Tensor,
        batch_index: Tensor | None = None,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        use_posterior_mean: bool = True,
    ) -> Tensor:
        """Probabilities of the configurations of the labels, p(y | x).

        Parameters
        ----------
        x, batch_index, cont_covs, cat_covs
            Of a minibatch.
        use_posterior_mean
            From the probabilities of the units; otherwise from one draw of their code.

        Returns
        -------
        torch.Tensor
            ``(n_cells, n_configurations)``.
        """
        z = self.inference(x, batch_index, cont_covs, cat_covs)[MODULE_KEYS.QZ_KEY].probs
        if not use_posterior_mean:
            z = torch.bernoulli(z)
        return torch.softmax(self.prior.label_logits(z), -1)


QBMANVAE.__signature__ = full_signature(QBMANVAE)  # type: ignore[attr-defined]
