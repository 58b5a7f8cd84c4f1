"""The ELBO and the importance-weighted log-likelihood, with their errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scvi.utils import unsupported_if_adata_minified
from torch import Tensor

from scvi_qbm._numbers import positive_int


class LikelihoodMixin:
    """:meth:`get_elbo` and :meth:`get_marginal_ll`."""

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        return_mean: bool = True,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        data_loader_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> np.float64 | Tensor:
        # Upstream's mean is that of its minibatches, of which the last may be a small one.
        out: Tensor = super().get_marginal_ll(  # type: ignore[misc]
            adata, indices, n_mc_samples, batch_size, False, dataloader, data_loader_kwargs,
            **kwargs,
        )  # fmt: skip
        return np.mean(out.double().numpy()) if return_mean else out

    @torch.inference_mode()
    @unsupported_if_adata_minified
    def get_elbo(  # type: ignore[override]
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        return_mean: bool = True,
        data_loader_kwargs: dict[str, Any] | None = None,
        *,
        n_samples: int = 5,
        return_error: bool = False,
        **kwargs: Any,
    ) -> Tensor | tuple[float, float]:
        """Evidence lower bound, log Z included: nats a cell, higher is better.

        ``history["elbo_validation"]`` is scvi-tools' and has the other sign (lower is better); it
        is of one draw of the codes, and so noisier.

        Parameters
        ----------
        adata, indices, batch_size, dataloader
            As :meth:`scvi.model.SCVI.get_elbo`.
        return_mean
            If False, a value for each cell.
        data_loader_kwargs
            As :meth:`scvi.model.SCVI.get_elbo`.
        n_samples
            Draws of the codes to average over.
        return_error
            Also return the standard error of the mean, from the draws and from log Z. It does not
            include the variation between cells.
        **kwargs
            Of the module's ``forward``.

        Returns
        -------
        torch.Tensor | tuple[float, float]
            The mean, of shape ``()``; ``(n_cells,)`` without ``return_mean``; mean and error with
            ``return_error``.

        Raises
        ------
        ValueError
            If there are fewer draws than the result needs, or ``return_error`` is asked for
            single cells.
        """
        if positive_int(n_samples, "n_samples") < 1 + return_error:
            raise ValueError(
                f"`n_samples` is {n_samples}: at least 1, or 2 for an error, are needed."
            )
        if return_error and not return_mean:
            raise ValueError("return_error=True is for the mean: leave out return_mean=False.")
        self._check_if_trained()  # a query has an ELBO before it is trained
        loader = self._minibatches(
            adata, indices, batch_size, dataloader, **(data_loader_kwargs or {})
        )
        inputs = {"full_forward_pass": True}
        parts = []
        for tensors in loader:
            draws = []
            for _ in range(n_samples):
                loss = self.module(tensors, get_inference_input_kwargs=inputs, **kwargs)[2]
                negative = loss.dict_sum(loss.reconstruction_loss) + loss.dict_sum(loss.kl_local)
                draws.append(-negative.cpu())
            parts.append(torch.stack(draws).double())
        draws = torch.cat(parts, dim=1)
        if not return_mean:
            return draws.mean(0).float()
        means = draws.mean(1)
        if not return_error:
            return means.mean()
        variance = float(means.var()) / n_samples + float(self.module.prior.log_z_se) ** 2
        return float(means.mean()), math.sqrt(variance)
