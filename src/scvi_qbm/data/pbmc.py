"""Real data without a download."""

from __future__ import annotations

import warnings

import numpy as np
from anndata import AnnData
from scipy import sparse

__all__ = ["pbmc68k"]


def pbmc68k() -> AnnData:
    """700 peripheral blood mononuclear cells that ship inside scanpy, with their counts.

    scanpy keeps log(1 + CP10k) of 765 genes, rounded to about three digits, and the cells' total
    counts; together they give the integer counts back (checked here).

    Returns
    -------
    anndata.AnnData
        700 cells and 765 genes: ``X`` log(1 + CP10k), the paper's input; ``layers["counts"]``
        integer counts (CSR, float32); ``obs["cell_type"]`` 10 types.

    Raises
    ------
    RuntimeError
        If the shipped values are not what they were (another scanpy version).

    References
    ----------
    Zheng et al. (2017), Nat. Commun. 8, 14049; ``scanpy.datasets.pbmc68k_reduced``.
    """
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = sc.datasets.pbmc68k_reduced()
    logged = sparse.csr_matrix(source.raw.X, dtype=np.float32)
    counts = logged.astype(np.float64)
    counts.data = np.expm1(counts.data)
    per_cell = sparse.diags(source.obs["n_counts"].to_numpy(np.float64) / 1e4)
    counts = sparse.csr_matrix(per_cell @ counts)
    whole = np.rint(counts.data)
    if (whole < 1).any() or (np.abs(counts.data - whole) > 0.005 * whole).any():
        raise RuntimeError("scanpy's pbmc68k_reduced is not log(1 + CP10k) of counts any more.")
    counts.data = whole
    return AnnData(
        X=logged,
        obs=source.obs[["phase"]].assign(cell_type=source.obs["bulk_labels"].astype("category")),
        var=source.raw.var[[]],
        layers={"counts": counts.astype(np.float32)},
    )
