"""Gene programs: what each unit of the code means in genes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.module._constants import MODULE_KEYS
from scvi.utils import track

from scvi_qbm._checks import as_positions
from scvi_qbm._numbers import as_seed, positive_int

F64 = NDArray[np.float64]

_ROWS = 4096  # cells read at once
_PSEUDOCOUNT = 0.1  # per 10,000


class ProgramsMixin:
    """:meth:`get_gene_programs`."""

    @torch.inference_mode()
    def get_gene_programs(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_cells: int = 256,
        min_share: float = 0.01,
        batch_size: int = 128,
        seed: int = 0,
        silent: bool = True,
    ) -> pd.DataFrame:
        r"""The genes that each unit switches, in the decoder and in the cells.

        A gene belongs to a unit's program if two log fold changes agree: the decoder's, when the
        unit alone is switched in the same cell, and the cells', between those that have the unit
        on and those that have it off, within each batch. The first alone names genes that the data
        do not show, the second alone those of every unit that goes with this one. The value is
        their geometric mean, with their sign, and 0 where the signs differ.

        How to read it: a value of 1 is a change by a factor of about 2.7. Genes with large
        negative values are those that the unit switches off. The units have no sign of their own,
        so look at both ends.

        Parameters
        ----------
        adata, indices
            Cells to look at; the model's by default.
        n_cells
            Cells drawn from them to decode, without replacement.
        min_share
            Leave out genes that fewer than this share of the cells express: among genes with next
            to no counts the largest changes are noise.
        batch_size
            Cells decoded at once.
        seed
            Of the draw.
        silent
            No progress bar; otherwise as ``scvi.settings.progress_bar_style`` says.

        Returns
        -------
        pandas.DataFrame
            ``(n_latent, n_genes)``: units ``unit_0``, ... in rows, genes in columns; natural
            logarithms. NaN for the genes left out. With ``gene_likelihood="normal"`` differences
            of the registered values. Minified data have no counts: there all genes stay, and the
            decoder's change is alone.

        Raises
        ------
        ValueError
            If ``min_share`` is not in [0, 1).
        """
        positive_int(n_cells, "n_cells")
        seed = as_seed(seed)
        if isinstance(min_share, str) or not 0 <= min_share < 1:
            raise ValueError(f"`min_share` must be from 0 to below 1, got {min_share}.")
        adata = self._validate_anndata(adata)
        cells = as_positions(indices, adata.n_obs)
        drawn = cells
        if len(cells) > n_cells:
            drawn = np.random.default_rng(seed).choice(cells, n_cells, replace=False)
        change = self._decoder_change(adata, drawn, batch_size, silent)
        if self.minified_data_type != ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
            observed, share = self._observed_change(adata, cells, silent)
            agree = change * observed > 0
            change = np.sign(change) * np.sqrt(np.where(agree, change * observed, 0.0))
            change[:, share < min_share] = np.nan
        units = [f"unit_{i}" for i in range(len(change))]
        return pd.DataFrame(change, index=units, columns=adata.var_names)

    def _decoder_change(
        self, adata: AnnData, cells: NDArray[np.int64], batch_size: int, silent: bool
    ) -> F64:
        """Mean change of decoded log expression when a unit alone switches on."""
        module = self.module
        change = torch.zeros(module.n_latent, module.n_input, dtype=torch.float64)
        loader = self._make_data_loader(adata=adata, indices=cells, batch_size=batch_size)
        for tensors in track(loader, description="Gene programs: decoder", disable=silent):
            inference = module.inference(**module._get_inference_input(tensors))
            qz = inference[MODULE_KEYS.QZ_KEY]
            on, off = qz.moments(1)
            for unit in range(module.n_latent):
                for level, sign in ((on, 1), (off, -1)):
                    zeta = qz.mean.clone()
                    zeta[:, unit] = level[:, unit]
                    outputs = inference | {MODULE_KEYS.Z_KEY: zeta}
                    px = module.generative(**module._get_generative_input(tensors, outputs))
                    values = px[MODULE_KEYS.PX_KEY].get_normalized("scale")
                    if module.gene_likelihood != "normal":
                        values = torch.log1p(1e4 * values)
                    change[unit] += sign * values.sum(0).cpu().double()
        out: F64 = (change / len(cells)).numpy()
        return out

    def _observed_change(
        self, adata: AnnData, cells: NDArray[np.int64], silent: bool
    ) -> tuple[F64, F64]:
        """Log fold change between cells with a unit on and off, batch by batch; share expressing.

        Batches count by the harmonic mean of their cells on and off, as in Mantel and Haenszel's
        estimator.
        """
        manager = self.get_anndata_manager(adata, required=True)
        batch = np.ravel(manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY))
        x = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        change = np.zeros((self.module.n_latent, adata.n_vars))
        weights = np.zeros((self.module.n_latent, 1))
        expressing = np.zeros(adata.n_vars)
        members = [cells[batch[cells] == b] for b in np.unique(batch[cells])]
        for there in track(members, description="Gene programs: cells", disable=silent):
            on, total, n_on = 0.0, 0.0, 0.0
            for rows in _blocks(np.sort(there)):
                q = self.get_latent_representation(
                    adata, indices=rows, representation="probabilities"
                ).astype(np.float64)
                values = sparse.csr_matrix(x[rows], dtype=np.float64)
                values.eliminate_zeros()
                expressing += values.getnnz(axis=0)
                if self.module.gene_likelihood != "normal":
                    depth = np.ravel(values.sum(axis=1))
                    values = sparse.diags(1e4 / np.where(depth > 0, depth, 1)) @ values
                on = on + (values.T @ q).T
                total = total + np.asarray(values.sum(axis=0))
                n_on = n_on + q.sum(axis=0)[:, None]
            n_off = len(there) - n_on
            means = on / np.maximum(n_on, 1e-9), (total - on) / np.maximum(n_off, 1e-9)
            if self.module.gene_likelihood != "normal":
                means = tuple(np.log(np.maximum(mean, 0) + _PSEUDOCOUNT) for mean in means)
            weight = n_on * n_off / len(there)
            change += weight * (means[0] - means[1])
            weights += weight
        return change / np.maximum(weights, 1e-9), expressing / len(cells)


def _blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), _ROWS):
        yield rows[start : start + _ROWS]
