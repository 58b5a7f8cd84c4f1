"""Methods without a neural network, and controls."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from scvi_qbm.benchmark.extras import require
from scvi_qbm.benchmark.methods.common import MethodResult, log_normalised, need_batches


def pca(
    adata: AnnData, *, batch_key: str | None, seed: int, max_epochs: int | None
) -> MethodResult:
    """Principal components of log(1 + CP10k); no batch correction."""
    data, started = log_normalised(adata), time.perf_counter()
    n_comps = min(50, data.n_obs - 1, data.n_vars - 1)
    sc.pp.pca(data, n_comps=n_comps, random_state=seed)
    return MethodResult(data.obsm["X_pca"], float("nan"), time.perf_counter() - started)


def harmonised(method: Callable[..., MethodResult]) -> Callable[..., MethodResult]:
    """The method, followed by Harmony (Korsunsky et al. 2019, ``harmonypy``)."""

    @wraps(method)
    def run(adata: AnnData, *, batch_key: str | None, seed: int, **options: Any) -> MethodResult:
        need_batches(batch_key, "Harmony")
        package = require("harmonypy", "benchmark")
        result = method(adata, batch_key=batch_key, seed=seed, **options)
        started = time.perf_counter()
        meta = pd.DataFrame({"batch": adata.obs[batch_key].astype(str).to_numpy()})
        before = np.asarray(result.embedding)
        out = package.run_harmony(before, meta, "batch", random_state=seed, verbose=False)
        # harmonypy 0.0.x keeps components in rows, 2.x cells.
        after = np.asarray(out.Z_corr)
        after = after if after.shape[0] == len(before) else after.T
        seconds = result.seconds + time.perf_counter() - started
        return result._replace(embedding=after, seconds=seconds)

    return run


def scanorama(
    adata: AnnData, *, batch_key: str | None, seed: int, max_epochs: int | None
) -> MethodResult:
    """Scanorama (Hie et al. 2019), its 100-dimensional embedding."""
    need_batches(batch_key, "Scanorama")
    package = require("scanorama", "scanorama")
    data, started = log_normalised(adata, batch_key), time.perf_counter()
    batch = data.obs[batch_key].astype(str).to_numpy()
    parts = [data[batch == name].copy() for name in np.unique(batch)]
    package.integrate_scanpy(parts, seed=seed, verbose=False)
    embedding = np.empty((data.n_obs, parts[0].obsm["X_scanorama"].shape[1]), np.float32)
    for name, part in zip(np.unique(batch), parts, strict=True):
        embedding[batch == name] = part.obsm["X_scanorama"]
    return MethodResult(embedding, float("nan"), time.perf_counter() - started)


def shuffled(
    adata: AnnData, *, batch_key: str | None, seed: int, max_epochs: int | None
) -> MethodResult:
    """Control: the principal components of another cell, so that nothing is left but mixing."""
    result = pca(adata, batch_key=None, seed=seed, max_epochs=None)
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    return result._replace(embedding=result.embedding[order])


def labels_embedded(
    adata: AnnData, *, label_key: str, batch_key: str | None, seed: int, max_epochs: int | None
) -> MethodResult:
    """Control: one-hot cell types with a little noise; perfect by every score of cell types."""
    started = time.perf_counter()
    codes, names = pd.factorize(adata.obs[label_key].astype(str))
    noise = np.random.default_rng(seed).normal(scale=0.1, size=(adata.n_obs, len(names)))
    embedding = np.eye(len(names))[codes] + noise
    return MethodResult(embedding, float("nan"), time.perf_counter() - started)
