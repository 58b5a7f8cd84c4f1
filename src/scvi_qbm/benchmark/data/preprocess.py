"""The paper's preprocessing."""

from __future__ import annotations

import copy
import logging
import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_qbm.benchmark.data.read import count_fault
from scvi_qbm.data.normalise import log_cp10k

_SMALLEST_BATCH = 20
logger = logging.getLogger("scvi.qbm")


def preprocess_counts(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    n_top_genes: int = 4000,
    min_genes: int = 200,
    min_cells: int = 3,
) -> AnnData:
    """Quality control, log(1 + CP10k) and highly variable genes, as in the QBM-VAE paper.

    In this order: cells with fewer than ``min_genes`` expressed genes go, then genes expressed in
    fewer than ``min_cells`` of the cells left; counts are scaled to 10,000 per cell over the genes
    left and log1p is taken; scanpy picks the highly variable genes (flavour ``"seurat"``), ranked
    by the number of batches that pick them where ``batch_key`` is given.

    Parameters
    ----------
    adata
        Cells by genes; left as it is.
    layer
        Layer that holds the counts; None for ``X``.
    batch_key
        Column of ``obs`` with the batch. Batches of fewer than 20 cells have no say in the choice
        of genes.
    n_top_genes
        Genes to keep. All are kept where there are no more.
    min_genes
        Expressed genes that a cell needs.
    min_cells
        Cells that a gene needs.

    Returns
    -------
    anndata.AnnData
        A new one: ``X`` log(1 + CP10k) and ``layers["counts"]`` counts (both CSR, float32),
        ``obs``, ``var`` with scanpy's columns, ``obsm`` and ``uns``; other layers, ``raw`` and
        graphs are left behind.

    Raises
    ------
    KeyError
        If the layer or the batch column is missing.
    ValueError
        If the values are negative or not integers, if a cell has no counts at all, or if no cell
        or no gene passes.
    """
    counts = _counts(adata, layer)
    if batch_key is not None and batch_key not in adata.obs:
        raise KeyError(
            f"batch_key {batch_key!r} is not in adata.obs. Available: "
            f"{', '.join(map(repr, adata.obs.columns)) or 'none'}."
        )
    if n_top_genes < 1:
        raise ValueError(f"n_top_genes must be positive, not {n_top_genes}.")
    cells = np.flatnonzero(np.diff(counts.indptr) >= min_genes)
    if not cells.size:
        raise ValueError(
            f"No cell expresses min_genes={min_genes} genes; the richest has "
            f"{np.diff(counts.indptr).max(initial=0)}. Is this a panel of few genes?"
        )
    if len(cells) < adata.n_obs:
        logger.info(
            f"{adata.n_obs - len(cells):,} of {adata.n_obs:,} cells express fewer than "
            f"min_genes={min_genes} genes and are left out."
        )
    counts = counts[cells]
    genes = np.flatnonzero(counts.getnnz(axis=0) >= min_cells)
    if not genes.size:
        raise ValueError(f"No gene is expressed in min_cells={min_cells} cells.")
    counts = counts[:, genes]
    if (counts.getnnz(axis=1) == 0).any():
        raise ValueError("A cell lost all its counts with the rare genes. Lower min_cells.")
    out = AnnData(
        X=log_cp10k(counts),
        obs=adata.obs.iloc[cells].copy(),
        var=adata.var.iloc[genes].copy(),
        layers={"counts": counts},
        obsm={key: value[cells] for key, value in adata.obsm.items()},
        uns=copy.deepcopy(dict(adata.uns)),
    )
    out.uns.pop("log1p", None)
    if out.n_vars <= n_top_genes:
        out.var["highly_variable"] = True
        return out
    found = variable_genes(out, n_top_genes, batch_key).reindex(out.var_names)
    out.var = out.var.drop(columns=found.columns.intersection(out.var.columns)).join(found)
    return out[:, out.var["highly_variable"].to_numpy(bool)].copy()


def _counts(adata: AnnData, layer: str | None) -> sparse.csr_matrix:
    if layer is not None and layer not in adata.layers:
        raise KeyError(
            f"layer {layer!r} is not in adata.layers. Available: "
            # anndata 0.13 lists X among them, as None.
            f"{', '.join(repr(k) for k in adata.layers.keys() if k is not None) or 'none'}."
        )
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise ValueError(f"{where} is empty. Pass layer= with the counts.")
    counts = sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    fault = count_fault(counts.data)
    if fault is not None:
        raise ValueError(f"{where} should hold raw counts, but has {fault}. Pass layer=.")
    empty = np.flatnonzero(np.diff(counts.indptr) == 0)
    if empty.size:
        raise ValueError(
            f"{empty.size} cells have no counts at all in {where} (the first is number "
            f"{empty[0]}). Remove them: sc.pp.filter_cells(adata, min_counts=1)."
        )
    return counts


def variable_genes(adata: AnnData, n_top_genes: int, batch_key: str | None) -> pd.DataFrame:
    """Scanpy's choice of genes, from log-normalised ``X``; batches of few cells have no say."""
    import scanpy as sc

    voters, key = _voters(adata, batch_key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sc.pp.highly_variable_genes(
            voters, n_top_genes=n_top_genes, batch_key=key, flavor="seurat", inplace=False
        )


def _voters(adata: AnnData, batch_key: str | None) -> tuple[AnnData, str | None]:
    """Cells and batch column for the choice of genes: scanpy cannot rank in a tiny batch."""
    if batch_key is None:
        return adata, None
    sizes = adata.obs[batch_key].value_counts()
    large = sizes.index[sizes >= _SMALLEST_BATCH]
    if len(large) < 2:
        return adata, None
    voters = adata[adata.obs[batch_key].isin(large).to_numpy()].copy()
    batches = voters.obs[batch_key].astype("category")
    voters.obs[batch_key] = batches.cat.remove_unused_categories()
    return voters, batch_key
