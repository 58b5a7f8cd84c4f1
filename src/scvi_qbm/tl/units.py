"""What a model says of its units: gene programs and couplings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from .cells import LARGE, note, target

if TYPE_CHECKING:
    from scvi_qbm.model import QBMVI


def programs(
    model: QBMVI,
    adata: AnnData | None = None,
    *,
    n_genes: int = 10,
    min_share: float = 0.01,
    key_added: str = "programs",
    copy: bool = False,
) -> AnnData | None:
    """The genes that each latent unit switches on and off.

    Parameters
    ----------
    model
        A trained model.
    adata
        Cells to look at; the model's if None.
    n_genes
        Length of the lists of genes.
    min_share
        Leave out genes that fewer than this share of the cells express.
    key_added
        Key of ``varm`` for the result.
    copy
        Return a copy of ``adata`` instead of writing into it.

    Returns
    -------
    anndata.AnnData | None
        ``varm[key_added]``: data frame, genes by units, the log fold change when the unit
        switches on, see :meth:`QBMVI.get_gene_programs`.
        ``uns["qbm"][key_added]``: ``up`` and ``down``, data frames with the strongest genes of
        each unit, strongest unit first; ``on``, a data frame with the share of cells that have
        the unit on; the parameters.

    Raises
    ------
    ValueError
        If ``n_genes`` is not positive, or ``min_share`` not in [0, 1).
    """
    if n_genes < 1:
        raise ValueError(f"`n_genes` must be at least 1, got {n_genes}.")
    adata = target(model, adata, copy)
    change = model.get_gene_programs(adata, min_share=min_share, silent=adata.n_obs <= LARGE)
    on = model.get_latent_representation(adata, representation="binary").mean(0)
    strength = change.pow(2).sum(axis=1)
    change = change.loc[strength.sort_values(ascending=False, kind="stable").index]
    adata.varm[key_added] = change.T
    note(
        adata,
        key_added,
        n_genes=n_genes,
        min_share=min_share,
        up=_strongest(change, n_genes),
        down=_strongest(-change, n_genes),
        on=pd.DataFrame({"share": on}, index=strength.index).loc[change.index],
    )
    return adata if copy else None


def _strongest(change: pd.DataFrame, n_genes: int) -> pd.DataFrame:
    """Names of the genes with the largest values in each row."""
    n_genes = min(n_genes, int(change.notna().sum(axis=1).min()))
    order = np.argsort(-change.to_numpy(), axis=1, kind="stable")[:, :n_genes]  # NaN last
    names = change.columns.to_numpy().astype(str)[order]
    return pd.DataFrame(names, index=change.index, columns=[str(i) for i in range(n_genes)])


def couplings(
    model: QBMVI,
    adata: AnnData | None = None,
    *,
    key_added: str = "couplings",
    copy: bool = False,
) -> AnnData | None:
    """The Boltzmann machine's couplings between units, for :func:`scvi_qbm.pl.coupling_graph`.

    Parameters
    ----------
    model
        A trained model.
    adata
        Where to write; the model's data if None.
    key_added
        Key of ``uns["qbm"]`` for the result.
    copy
        Return a copy of ``adata`` instead of writing into it.

    Returns
    -------
    anndata.AnnData | None
        ``uns["qbm"][key_added]``: ``pairs``, the data frame of :meth:`QBMVI.get_couplings`;
        ``n_latent``.
    """
    adata = target(model, adata, copy)
    note(adata, key_added, pairs=model.get_couplings(), n_latent=model.module.n_latent)
    return adata if copy else None
