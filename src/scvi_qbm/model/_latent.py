"""Latent representations of the cells, in memory or in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scvi.data._utils import _validate_adata_dataloader_input
from scvi.module._constants import MODULE_KEYS
from scvi.utils import track
from torch import Tensor

from scvi_qbm._checks import as_positions
from scvi_qbm._files import replacing

__all__ = ["LatentMixin", "Representation"]

Representation = Literal["probabilities", "logits", "zeta", "binary", "evidence"]


def _check_representation(representation: str) -> None:
    if representation not in get_args(Representation):
        raise ValueError(
            f"Unknown representation {representation!r}. Available: "
            f"{', '.join(get_args(Representation))}."
        )


class LatentMixin:
    """Methods that read the code of each cell."""

    @torch.inference_mode()
    def get_latent_representation(  # type: ignore[override]
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        representation: Representation = "probabilities",
        **data_loader_kwargs: Any,
    ) -> NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]:
        r"""Latent representation of the cells, deterministic and continuous by default.

        Parameters
        ----------
        adata, indices
            As :meth:`scvi.model.SCVI.get_latent_representation`.
        give_mean
            If False, one draw of the continuous code instead of a representation.
        mc_samples
            Not used: every representation has a closed form.
        batch_size
            Cells at once; ``scvi.settings.batch_size`` if None.
        return_dist
            If True, mean and variance of the binary units.
        dataloader
            As :meth:`scvi.model.SCVI.get_latent_representation`.
        representation
            ``"probabilities"``: :math:`q(z = 1 | x)`, in [0, 1]. ``"logits"``: their log-odds.
            ``"zeta"``: the mean of the continuous code that the decoder sees. ``"binary"``: the
            most probable code, 0 or 1; mind that equal codes tie in neighbour graphs, which
            breaks clustering and UMAP. ``"evidence"``: what the cell itself says of each unit,
            :math:`\sigma(\mathrm{logit}\, q + h + W q)`, in [0, 1]. The prior's pull towards its
            attractors is taken out, which leaves room for cells between them: the one for
            :func:`scanpy.tl.dpt`. (On probabilities take
            :func:`scvi_qbm.benchmark.metrics.trajectory.diffusion_pseudotime`;
            docs/evidence.md.)
        **data_loader_kwargs
            As :meth:`scvi.model.SCVI.get_latent_representation`.

        Returns
        -------
        numpy.ndarray | tuple[numpy.ndarray, numpy.ndarray]
            float32 ``(n_cells, n_latent)``; two of them, mean and variance, with ``return_dist``.

        Raises
        ------
        ValueError
            If the representation is unknown.
        """
        _check_representation(representation)
        self._check_if_trained(warn=False)
        _validate_adata_dataloader_input(self, adata, dataloader)
        if dataloader is None:
            adata = self._validate_anndata(adata)
            dataloader = self._make_data_loader(
                adata=adata, indices=indices, batch_size=batch_size, **data_loader_kwargs
            )
        means, variances = [], []
        for tensors in dataloader:
            outputs = self.module.inference(**self.module._get_inference_input(tensors))
            qz = outputs[MODULE_KEYS.QZ_KEY]
            if return_dist:
                means.append(qz.loc.cpu())
                variances.append(qz.scale.square().cpu())
            elif not give_mean:
                means.append(outputs[MODULE_KEYS.Z_KEY].cpu())
            else:
                means.append(_represent(qz, representation, self.module.prior).cpu())
        if return_dist:
            return torch.cat(means).numpy(), torch.cat(variances).numpy()
        return torch.cat(means).numpy()

    @torch.inference_mode()
    def write_latent_representation(
        self,
        path: str | os.PathLike[str],
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        representation: Representation = "probabilities",
        silent: bool = False,
        **data_loader_kwargs: Any,
    ) -> None:
        """Write :meth:`get_latent_representation` to a file, a minibatch at a time.

        Memory does not grow with the number of cells. The file is there when all is written.

        Parameters
        ----------
        path
            A ``.npy`` file, float32 ``(n_cells, n_latent)``: ``numpy.load(path, mmap_mode="r")``.
        adata, indices, batch_size, representation
            As :meth:`get_latent_representation`.
        silent
            No progress bar.
        **data_loader_kwargs
            As :meth:`get_latent_representation`.

        Raises
        ------
        ValueError
            If the representation is unknown, or the file is not called ``.npy``.
        OSError
            If it cannot be written; a file that was there before is as it was.
        """
        _check_representation(representation)
        if Path(path).suffix != ".npy":
            raise ValueError(f"The file is numpy's: call it .npy, not {Path(path).name!r}.")
        self._check_if_trained(warn=False)
        adata = self._validate_anndata(adata)
        indices = as_positions(indices, adata.n_obs)
        loader = self._make_data_loader(
            adata=adata, indices=indices, batch_size=batch_size, **data_loader_kwargs
        )
        header = {
            "descr": np.dtype(np.float32).str,
            "fortran_order": False,
            "shape": (len(indices), self.module.n_latent),
        }
        # Not a memory map: where the disk is full, writing to one ends the process.
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for tensors in track(loader, description="Latent representation", disable=silent):
                outputs = self.module.inference(**self.module._get_inference_input(tensors))
                qz = outputs[MODULE_KEYS.QZ_KEY]
                codes = _represent(qz, representation, self.module.prior).cpu()
                file.write(codes.numpy().astype(np.float32).tobytes())


def _represent(qz: Any, representation: str, prior: Any) -> Tensor:
    if representation == "logits":
        return qz.logits
    if representation == "zeta":
        return qz.mean
    if representation == "binary":
        return (qz.logits > 0).to(qz.logits.dtype)
    if representation == "evidence":
        # Where the bound is stationary, logit q = log-likelihood ratio - local field.
        return torch.sigmoid(qz.logits + prior.local_field(qz.probs))
    return qz.probs
