"""What the model knows of each cell's code: representations, posteriors, abundance."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scvi.module._constants import MODULE_KEYS
from scvi.utils import track
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily
from torch.nn.functional import logsigmoid

from scvi_qbm._checks import as_positions
from scvi_qbm._files import check_target, replacing

Representation = Literal["aligned", "probabilities", "logits", "zeta", "binary", "evidence"]


def _check_representation(representation: str) -> None:
    if representation not in get_args(Representation):
        raise ValueError(
            f"Unknown representation {representation!r}. Available: "
            f"{', '.join(get_args(Representation))}."
        )


class RepresentationMixin:
    """Methods that read the posterior of the cells' binary units."""

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
        representation: Representation = "aligned",
        **data_loader_kwargs: Any,
    ) -> NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]:
        r"""Latent representation of the cells, by default with batches aligned.

        Parameters
        ----------
        adata, indices
            As :meth:`scvi.model.SCVI.get_latent_representation`.
        give_mean
            If False, a random draw of the continuous code instead of a representation.
        mc_samples
            Not used: every representation has a closed form.
        batch_size
            Cells at once; ``scvi.settings.batch_size`` if None.
        return_dist
            If True, mean and variance of the binary units.
        dataloader
            As :meth:`scvi.model.SCVI.get_latent_representation`.
        representation
            ``"aligned"``: for neighbours, clusters, UMAP and label transfer. The mean of
            ``"probabilities"`` and ``"evidence"``, without the shift of each batch within each
            cell state, see :func:`scvi_qbm.alignment.fit_alignment`. Shifts are estimated once,
            after training, and applied to new cells. With one batch nothing is shifted. Values
            can be slightly outside [0, 1].
            ``"probabilities"``: :math:`q(z = 1 | x)`, in [0, 1]. ``"logits"``: their log-odds.
            ``"evidence"``: what the cell says about each unit without the prior, in [0, 1]:
            :math:`\sigma(\mathrm{logit}\, q + h + W q)`, with W and h from before the final fit
            of the prior. ``"zeta"``: the mean of the continuous code that the decoder sees.
            ``"binary"``: the most probable code, 0 or 1; equal codes tie in neighbour graphs,
            which breaks clustering and UMAP.

            For pseudotime use any of them with :func:`scvi_qbm.tl.dpt`.
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
        loader = self._minibatches(
            adata, indices, batch_size, dataloader, empty_is_fine=True, **data_loader_kwargs
        )
        means, variances = [], []
        for tensors in loader:
            outputs = self.module.inference(**self.module._get_inference_input(tensors))
            qz = outputs[MODULE_KEYS.QZ_KEY]
            if return_dist:
                means.append(qz.loc.cpu())
                variances.append(qz.scale.square().cpu())
            elif not give_mean:
                means.append(outputs[MODULE_KEYS.Z_KEY].cpu())
            else:
                means.append(self._represent(qz, tensors, representation).cpu())
        none = [torch.empty(0, self.module.n_latent)]  # of no cells
        if return_dist:
            return torch.cat(means or none).numpy(), torch.cat(variances or none).numpy()
        return torch.cat(means or none).numpy()

    @torch.inference_mode()
    def write_latent_representation(
        self,
        path: str | os.PathLike[str],
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        representation: Representation = "aligned",
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
        check_target(path)
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
                codes = self._represent(qz, tensors, representation).cpu()
                file.write(codes.numpy().astype(np.float32).tobytes())

    def _represent(self, qz: Any, tensors: dict[str, Tensor], representation: str) -> Tensor:
        if representation == "aligned":
            return self._aligned(qz, tensors)
        if representation == "logits":
            return qz.logits
        if representation == "zeta":
            return qz.mean
        if representation == "binary":
            return (qz.logits > 0).to(qz.logits.dtype)
        if representation == "evidence":
            return self._evidence(qz)
        return qz.probs

    @torch.inference_mode()
    def get_aggregated_posterior(
        self,
        adata: AnnData | None = None,
        indices: ArrayLike | None = None,
        batch_size: int | None = None,
        dof: float | None = None,
    ) -> MixtureSameFamily:
        """Mixture of the cells' posteriors over binary codes.

        Parameters
        ----------
        adata, indices, batch_size
            As :meth:`scvi.model.SCVI.get_aggregated_posterior`; all cells if ``indices`` is empty.
        dof
            Not used: binary codes have no tails to fatten.

        Returns
        -------
        torch.distributions.MixtureSameFamily
            Product distributions with equal weights, one a cell; ``log_prob`` takes codes, 0 and
            1, shape ``(..., n_latent)``, and gives nats.
        """
        if indices is not None and not np.size(indices):
            indices = None  # as upstream
        cells = {"indices": indices, "batch_size": batch_size}
        logits = self.get_latent_representation(adata, representation="logits", **cells)
        distribution = Bernoulli(logits=torch.from_numpy(logits).to(self.device))
        weights = Categorical(logits=torch.zeros(distribution.batch_shape[0], device=self.device))
        return MixtureSameFamily(weights, Independent(distribution, 1))

    @torch.inference_mode()
    def differential_abundance(
        self,
        adata: AnnData | None = None,
        adata_sub: AnnData | None = None,
        sample_key: str | None = None,
        batch_size: int = 128,
        num_cells_posterior: int | None = None,
        dof: float | None = None,
    ) -> None:
        r"""How likely each cell's code is in each sample; large differences mark abundance.

        ``adata_sub.obsm["da_log_probs"]`` gets a data frame, cells by samples:
        :math:`\log \frac1M \sum_m \exp E_{q(z|x)} \log q(z | x_m)` over the sample's cells m, in
        nats. A cell is left out of its own sample's
        mixture: posteriors are so sharp that every cell would otherwise be at home in its own
        sample only. NaN where it is alone there.

        Parameters
        ----------
        adata
            The data whose samples are compared. Defaults to the model's.
        adata_sub
            The cells to score, if not those of ``adata``; known there by their names. The column
            name ``sample_key`` is taken here too, its place before scvi-tools 1.5.
        sample_key
            Column of ``adata.obs`` that names the samples.
        batch_size
            Cells at once.
        num_cells_posterior
            At most so many cells a sample, drawn at random.
        dof
            Not used, see :meth:`get_aggregated_posterior`.

        Raises
        ------
        KeyError
            If ``sample_key`` is not in ``adata.obs``.
        ValueError
            If ``adata_sub`` is given and names of cells in ``adata`` are not unique.
        """
        if isinstance(adata_sub, str):
            adata_sub, sample_key = None, adata_sub
        adata = self._validate_anndata(adata)
        if sample_key not in adata.obs:
            raise KeyError(
                f"sample_key={sample_key!r} is not in adata.obs. Available: "
                f"{', '.join(map(repr, adata.obs))}."
            )
        queries, *components = self._log_density(adata, batch_size)
        if adata_sub is None:
            adata_sub, places = adata, np.arange(adata.n_obs)
        else:
            if not adata.obs_names.is_unique:
                raise ValueError(
                    "adata.obs_names are not unique, and adata_sub's cells are known by their "
                    "names: adata.obs_names_make_unique() first."
                )
            queries = self._log_density(adata_sub, batch_size)[0]
            places = adata.obs_names.get_indexer(adata_sub.obs_names)
        samples = adata.obs[sample_key]
        codes, names = pd.factorize(samples)
        if samples.isna().any():
            warnings.warn(
                f"{samples.isna().sum()} cells have no {sample_key!r} and belong to no sample.",
                UserWarning,
                stacklevel=2,
            )
        out = np.empty((adata_sub.n_obs, len(names)))
        for column in track(range(len(names)), description="Abundance"):
            members = np.flatnonzero(codes == column)
            if num_cells_posterior is not None and num_cells_posterior < len(members):
                members = np.random.choice(members, num_cells_posterior, replace=False)
            out[:, column] = _log_mixture(
                queries,
                torch.from_numpy(places),
                components,
                torch.from_numpy(members),
                batch_size,
            )
        adata_sub.obsm["da_log_probs"] = pd.DataFrame(
            out, index=adata_sub.obs_names, columns=names
        )

    def _log_density(self, adata: AnnData, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, components and offsets: E log q(z|x_m) = queries @ components.T + offsets."""
        logits = self.get_latent_representation(
            adata, batch_size=batch_size, representation="logits"
        )
        components = torch.from_numpy(logits).double().to(self.device)
        return torch.sigmoid(components), components, logsigmoid(-components).sum(1)


def _log_mixture(
    queries: Tensor,
    places: Tensor,
    distributions: Sequence[Tensor],
    members: Tensor,
    batch_size: int,
) -> NDArray[np.float64]:
    """Log-density of every query in the mixture of ``members``; a cell at its place left out."""
    components, offsets = (x[members] for x in distributions)
    places, members = places.to(components.device), members.to(components.device)
    out = []
    for start in range(0, len(queries), batch_size):
        rows = slice(start, start + batch_size)
        density = queries[rows] @ components.T + offsets
        own = places[rows, None] == members
        density = density.masked_fill(own, -torch.inf)
        n_others = (len(members) - own.sum(1)).double()
        n_others[n_others == 0] = torch.nan  # alone in its sample: nothing to compare with
        out.append(torch.logsumexp(density, 1) - torch.log(n_others))
    return torch.cat(out).cpu().numpy()
