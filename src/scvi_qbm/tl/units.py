"""What a model says of its units: gene programs and couplings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_qbm._numbers import positive_int

from .cells import LARGE, logger, note, target

if TYPE_CHECKING:
    from scvi_qbm.model import QBMVI


def programs(
    model: QBMVI,
    adata: AnnData | None = None,
    *,
    n_genes: int = 10,
    min_share: float = 0.01,
    labels_key: str | None = None,
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
    labels_key
        Column of ``obs``, such as cell types or clusters: ``on`` then has a row for each.
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
        each unit on: of ``"all cells"``, and of each label's in further rows; the parameters.

    Raises
    ------
    KeyError
        If ``labels_key`` is not in ``obs``.
    TypeError
        If the model is no QBMVI.
    ValueError
        If ``n_genes`` is not positive, ``min_share`` not in [0, 1), or ``key_added`` holds
        something else.
    """
    positive_int(n_genes, "n_genes")
    adata = target(model, adata, copy, tool="programs", key_added=key_added)
    if labels_key is not None and not isinstance(labels_key, str):
        raise TypeError(f"`labels_key` is a column of obs, not {labels_key!r}.")
    if labels_key is not None and labels_key not in adata.obs:
        raise KeyError(
            f"{labels_key!r} is not in adata.obs. Available: {', '.join(map(repr, adata.obs))}."
        )
    change = model.get_gene_programs(adata, min_share=min_share, silent=adata.n_obs <= LARGE)
    codes = model.get_latent_representation(adata, representation="binary")
    on = pd.DataFrame(codes.mean(0)[None], ["all cells"], change.index)
    if labels_key is not None:
        # Labels name rows: as columns, h5ad would take a slash in one for a folder.
        labels = adata.obs[labels_key].dropna().astype(str)
        rows = adata.obs[labels_key].notna().to_numpy()
        by_label = (
            pd.DataFrame(codes[rows], columns=change.index).groupby(labels.to_numpy()).mean()
        )
        on = pd.concat([on, by_label])
    strength = change.pow(2).sum(axis=1)
    change = change.loc[strength.sort_values(ascending=False, kind="stable").index]
    adata.varm[key_added] = change.T
    note(
        adata,
        key_added,
        "programs",
        n_genes=n_genes,
        min_share=min_share,
        up=_strongest(change, n_genes),
        down=_strongest(-change, n_genes),
        on=on[change.index],
    )
    rare = int(change.isna().all().sum())
    if rare:
        logger.info(
            f"Gene programs: {rare} of {adata.n_vars} genes are in fewer than {min_share:.1%} of "
            "the cells and have no value (NaN); min_share=0 gives them one."
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
    """Couplings of the prior between latent units, for :func:`scvi_qbm.pl.coupling_graph`.

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

    Raises
    ------
    TypeError
        If the model is no QBMVI.
    ValueError
        If ``key_added`` holds something else.
    """
    adata = target(model, adata, copy, tool="couplings", key_added=key_added)
    note(
        adata, key_added, "couplings", pairs=model.get_couplings(), n_latent=model.module.n_latent
    )
    return adata if copy else None
