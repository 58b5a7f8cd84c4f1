"""What follows the encoder's training: the prior's last fit, and the alignment of batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from torch import Tensor

from scvi_qbm.alignment import Alignment, align, extend_alignment, fit_alignment
from scvi_qbm.prior import fit_prior

# Enough for 100 states and for 10,000 moments; both are found in seconds.
_MAX_CELLS = 50_000
_MAX_STEPS = 1000


class AlignmentMixin:
    """Fits, keeps and applies an :class:`~scvi_qbm.alignment.Alignment`; fits the prior."""

    # Parameters of the prior that the encoder was trained with; None while they are its own.
    _pull_: dict[str, Tensor] | None = None

    # Tensors by name, None before training. Saved with the model, as all that ends with "_".
    _alignment_: dict[str, Any] | None = None

    def _aligned(self, qz: Any, tensors: dict[str, Tensor]) -> Tensor:
        """The default representation of a minibatch, on the CPU."""
        known = 0 if self._alignment_ is None else len(self._alignment_["shifts"])
        if known < self.summary_stats.n_batch and self.adata is not None:
            self._fit_alignment()  # training was cut short
        x = self._middle(qz).cpu()
        if self._alignment_ is None:
            return x
        return align(Alignment(**self._alignment_), x, _batch(tensors))

    @torch.inference_mode()
    def _fit_alignment(self, loader: Iterable[dict[str, Tensor]] | None = None) -> None:
        """Find states and shifts; of a query's new batches only the shifts."""
        codes, batches = [], []
        for qz, tensors in self._posteriors(loader):
            codes.append(self._middle(qz).cpu())
            batches.append(_batch(tensors))
        x, batch = torch.cat(codes), torch.cat(batches)
        n_batches = max(self.summary_stats.n_batch, int(batch.max()) + 1)
        if self._alignment_ is not None and self.module.prior.is_frozen:
            found = extend_alignment(Alignment(**self._alignment_), x, batch, n_batches)
        else:
            found = fit_alignment(x, batch, n_batches)
        self._alignment_ = found._asdict()

    def _posteriors(
        self,
        loader: Iterable[dict[str, Tensor]] | None,
        indices: Any = None,
        limit: int = _MAX_CELLS,
    ) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        """Posteriors and minibatches of at most so many cells, of the model's data by default."""
        if loader is None:
            cells = np.arange(self.adata.n_obs) if indices is None else np.asarray(indices)
            if not len(cells):
                return
            chosen = np.random.default_rng(0).permutation(cells)[:limit]
            loader = self._make_data_loader(self.adata, indices=np.sort(chosen))
        n_seen = 0
        for tensors in loader:
            outputs = self.module.inference(**self.module._get_inference_input(tensors))
            yield outputs[MODULE_KEYS.QZ_KEY], tensors
            n_seen += len(tensors[REGISTRY_KEYS.X_KEY])
            if n_seen >= limit:
                return

    @torch.no_grad()
    def _fit_prior(
        self,
        loader: Callable[[], Iterable[dict[str, Tensor]]] | None,
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        """Bring the prior to the codes of the training cells; the embedding stays."""
        if not lr or self.module.prior.is_frozen:
            return
        prior = self.module.prior
        moments = torch.zeros(prior.n_latent + 1, prior.n_latent + 1, device=self.device)
        for qz, _ in self._posteriors(loader and loader(), getattr(self, "train_indices", None)):
            q = torch.nn.functional.pad(qz.probs, (0, 1), value=1.0)
            moments += q.T @ q
        moments /= moments[-1, -1].clone()
        pull = self._parameters_of_prior()
        phase = self.module.negative_phase
        steps = min(_MAX_STEPS, 10 * self.trainer.global_step)
        # A machine's draws may cost: as many as training took, and no more.
        rarer = -(-steps // max(self.trainer.global_step, 1))
        with contextlib.nullcontext() if phase is None else phase.fewer_draws(rarer):
            fit_prior(
                prior, phase, moments[-1, :-1], moments[:-1, :-1],
                lr=lr, n_steps=steps, weight_decay=weight_decay,
            )  # fmt: skip
        _from_first_rank(prior)
        self._pull_ = pull

    def _parameters_of_prior(self) -> dict[str, Tensor]:
        parameters = self.module.prior.named_parameters()
        return {name: value.detach().cpu().clone() for name, value in parameters}

    def _evidence(self, qz: Any) -> Tensor:
        """The posterior without the pull of the prior that the encoder was trained with."""
        # Where the ELBO is stationary, logit q = log-likelihood ratio - local field.
        return torch.sigmoid(qz.logits + self.module.prior.local_field(qz.probs, self._pull_))

    def _middle(self, qz: Any) -> Tensor:
        """Half way between what a cell says of each unit, and what the prior makes of that."""
        return (qz.probs + self._evidence(qz)) / 2


def _from_first_rank(prior: torch.nn.Module) -> None:
    """Distributed training leaves the same prior on all ranks."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        state = [{k: v.cpu() for k, v in prior.state_dict().items()}]
        distributed.broadcast_object_list(state, src=0)
        prior.load_state_dict(state[0])


def _batch(tensors: dict[str, Tensor]) -> Tensor:
    return tensors[REGISTRY_KEYS.BATCH_KEY].flatten().long().cpu()
