"""Real data without a download."""

from __future__ import annotations

import warnings

import numpy as np
from anndata import AnnData
from scipy import sparse

__all__ = ["pbmc68k"]

#: Azimuth's markers of the types of its human PBMC reference, level 1 (platelets: level 2).
#: Hao et al. (2021), Cell 184, 3573; azimuth.hubmapconsortium.org.
PBMC_MARKERS = {
    "B": "CD79A RALGPS2 CD79B MS4A1 BANK1 CD74 TNFRSF13C HLA-DQA1 IGHM MEF2C",
    "NK": "NKG7 KLRD1 TYROBP GNLY FCER1G PRF1 CD247 KLRF1 CST7 GZMB",
    "Mono": "CTSS FCN1 NEAT1 LYZ PSAP S100A9 AIF1 MNDA SERPINA1 TYROBP",
    "CD4_T": "IL7R MAL LTB CD4 LDHB TPT1 TRAC TMSB10 CD3D CD3G",
    "CD8_T": "CD8B CD8A CD3D TMSB10 HCST CD3G LINC02446 CTSW CD3E TRAC",
    "DC": "CD74 HLA-DPA1 HLA-DPB1 HLA-DQA1 CCDC88A HLA-DRA HLA-DMA CST3 HLA-DQB1 HLA-DRB1",
    "Platelet": "GNG11 PPBP NRGN PF4 CAVIN2 SDPR TUBB1 HIST1H2AC PRKAR2B CLU F13A1",
}


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
