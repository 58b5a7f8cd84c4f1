"""Methods without a neural network, and controls."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from scvi_qbm.benchmark.methods.common import MethodResult, log_normalised, need_batches
from scvi_qbm.benchmark.metrics.extras import require

__all__ = ["harmony", "labels_embedded", "pca", "scanorama", "shuffled"]


def pca(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
    n_comps: int = 50,
) -> MethodResult:
    """Principal components of log(1 + CP10k); no batch correction.

    Parameters
    ----------
    adata, layer, batch_key, seed
        As :func:`~scvi_qbm.benchmark.methods.qbmvi`; the matrix must hold counts.
    max_epochs
        Ignored.
    n_comps
        Number of components.

    Returns
    -------
    scvi_qbm.benchmark.methods.MethodResult
        Components, ``(n_cells, n_comps)``; fewer in small data.
    """
    data, started = log_normalised(adata, layer), time.perf_counter()
    n_comps = min(n_comps, data.n_obs - 1, data.n_vars - 1)
    sc.pp.pca(data, n_comps=n_comps, random_state=seed)
    return MethodResult(data.obsm["X_pca"], float("nan"), time.perf_counter() - started)


def harmony(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
) -> MethodResult:
    """Harmony (Korsunsky et al. 2019, ``harmonypy``) on 50 principal components.

    Parameters
    ----------
    adata, layer, batch_key, seed, max_epochs
        As :func:`pca`.

    Raises
    ------
    ValueError
        If there is no batch column.
    """
    need_batches(batch_key, "Harmony")
    package = require("harmonypy", "benchmark")
    started = time.perf_counter()
    before = pca(adata, layer=layer, seed=seed).embedding
    meta = pd.DataFrame({"batch": adata.obs[batch_key].astype(str).to_numpy()})
    out = package.run_harmony(before, meta, "batch", random_state=seed, verbose=False)
    # harmonypy 0.0.x keeps components in rows, 2.x cells.
    after = np.asarray(out.Z_corr)
    after = after if after.shape[0] == len(before) else after.T
    return MethodResult(after, float("nan"), time.perf_counter() - started)


def scanorama(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
) -> MethodResult:
    """Scanorama (Hie et al. 2019), its 100-dimensional embedding.

    Parameters
    ----------
    adata, layer, batch_key, seed, max_epochs
        As :func:`pca`.

    Raises
    ------
    ValueError
        If there is no batch column.
    """
    need_batches(batch_key, "Scanorama")
    package = require("scanorama", "scanorama")
    data, started = log_normalised(adata, layer, batch_key), time.perf_counter()
    batch = data.obs[batch_key].astype(str).to_numpy()
    parts = [data[batch == name].copy() for name in np.unique(batch)]
    package.integrate_scanpy(parts, seed=seed, verbose=False)
    embedding = np.empty((data.n_obs, parts[0].obsm["X_scanorama"].shape[1]), np.float32)
    for name, part in zip(np.unique(batch), parts, strict=True):
        embedding[batch == name] = part.obsm["X_scanorama"]
    return MethodResult(embedding, float("nan"), time.perf_counter() - started)


def shuffled(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
) -> MethodResult:
    """Control: the principal components of another cell, so that nothing is left but mixing.

    Parameters
    ----------
    adata, layer, batch_key, seed, max_epochs
        As :func:`pca`.
    """
    result = pca(adata, layer=layer, seed=seed)
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    return result._replace(embedding=result.embedding[order])


def labels_embedded(
    adata: AnnData,
    *,
    label_key: str,
    layer: str | None = None,
    batch_key: str | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
) -> MethodResult:
    """Control: one-hot cell types with a little noise; perfect by every score of cell types.

    Parameters
    ----------
    adata, layer, batch_key, seed, max_epochs
        As :func:`pca`.
    label_key
        Column of cell types.
    """
    started = time.perf_counter()
    codes, names = pd.factorize(adata.obs[label_key].astype(str))
    noise = np.random.default_rng(seed).normal(scale=0.1, size=(adata.n_obs, len(names)))
    embedding = np.eye(len(names))[codes] + noise
    return MethodResult(embedding, float("nan"), time.perf_counter() - started)
