"""The default representation's batches: aligned after training, by what is kept with the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from torch import Tensor

from scvi_qbm.alignment import Alignment, align, extend_alignment, fit_alignment

# Enough for 100 states; they are found in seconds.
_MAX_CELLS = 50_000


class AlignmentMixin:
    """Fits, keeps and applies an :class:`~scvi_qbm.alignment.Alignment`."""

    # Tensors by name, None before training. Saved with the model, as all that ends with "_".
    _alignment_: dict[str, Any] | None = None

    def _aligned(self, qz: Any, tensors: dict[str, Tensor]) -> Tensor:
        """The default representation of a minibatch, on the CPU."""
        known = 0 if self._alignment_ is None else len(self._alignment_["shifts"])
        if known < self.summary_stats.n_batch and self.adata is not None:
            self._fit_alignment()  # training was cut short
        x = middle(qz, self.module.prior).cpu()
        if self._alignment_ is None:
            return x
        return align(Alignment(**self._alignment_), x, _batch(tensors))

    @torch.inference_mode()
    def _fit_alignment(self, loader: Iterable[dict[str, Tensor]] | None = None) -> None:
        """Find states and shifts; of a query's new batches only the shifts."""
        if loader is None:
            n_cells = self.adata.n_obs
            chosen = np.random.default_rng(0).permutation(n_cells)[:_MAX_CELLS]
            loader = self._make_data_loader(self.adata, indices=np.sort(chosen))
        codes, batches, n_seen = [], [], 0
        for tensors in loader:
            outputs = self.module.inference(**self.module._get_inference_input(tensors))
            codes.append(middle(outputs[MODULE_KEYS.QZ_KEY], self.module.prior).cpu())
            batches.append(_batch(tensors))
            n_seen += len(codes[-1])
            if n_seen >= _MAX_CELLS:
                break
        x, batch = torch.cat(codes), torch.cat(batches)
        n_batches = max(self.summary_stats.n_batch, int(batch.max()) + 1)
        if self._alignment_ is not None and self.module.prior.is_frozen:
            found = extend_alignment(Alignment(**self._alignment_), x, batch, n_batches)
        else:
            found = fit_alignment(x, batch, n_batches)
        self._alignment_ = found._asdict()


def middle(qz: Any, prior: Any) -> Tensor:
    """Half way between what a cell says of each unit, and what the prior makes of that."""
    return (qz.probs + evidence(qz, prior)) / 2


def evidence(qz: Any, prior: Any) -> Tensor:
    """The posterior without the prior's pull."""
    # Where the bound is stationary, logit q = log-likelihood ratio - local field.
    return torch.sigmoid(qz.logits + prior.local_field(qz.probs))


def _batch(tensors: dict[str, Tensor]) -> Tensor:
    return tensors[REGISTRY_KEYS.BATCH_KEY].flatten().long().cpu()
