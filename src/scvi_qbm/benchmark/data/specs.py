"""Data sets as the benchmark uses them: counts in X, columns checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import scanpy as sc
from anndata import AnnData

from scvi_qbm._checks import check_expression, check_setup_keys
from scvi_qbm.benchmark.config import DataSpec
from scvi_qbm.benchmark.data import describe, list_datasets, load
from scvi_qbm.benchmark.data.read import choose_cells

_FROM_TABLE = ("batch_key", "label_key", "fine_label_key", "root_key", "root_label")


def resolve(spec: DataSpec) -> DataSpec:
    """The data set with what :func:`scvi_qbm.benchmark.data.describe` knows of it."""
    if spec.path is not None:
        if not Path(spec.path).is_file():
            raise FileNotFoundError(f"no such file: {spec.path}")
        # As the command line and TOML files have it: one file, one data set.
        return replace(spec, path=str(Path(spec.path).resolve()))
    if spec.name not in list_datasets():
        raise ValueError(
            f"Data set {spec.name!r} has no path and is not one of ours: "
            f"{', '.join(list_datasets())}."
        )
    if spec.layer not in (None, "counts"):
        raise ValueError(
            f"Counts of {spec.name!r} are in the layer 'counts', not {spec.layer!r}. Give the "
            "path of a file to use a layer of yours."
        )
    info = describe(spec.name)
    known = {k: getattr(info, k) for k in _FROM_TABLE if getattr(spec, k) is None}
    return replace(spec, **known)


def load_data(spec: DataSpec) -> AnnData:
    """Read a data set: counts in ``X`` (CSR, float32), the columns of ``spec`` in ``obs``.

    Cells are drawn first (``max_cells``, seed 0), then genes (``n_top_genes``, by batch).
    """
    if spec.path is None:
        # Drawn while reading: a file of millions need not be read whole.
        adata, layer = load(spec.name, max_cells=spec.max_cells), "counts"
    else:
        adata, layer = anndata.read_h5ad(spec.path), spec.layer
    keys = [
        key
        for key in (spec.batch_key, spec.label_key, spec.fine_label_key, spec.root_key)
        if key is not None
    ]
    check_setup_keys(adata, layer, {"batch_key": spec.batch_key, "label_key": keys})
    missing = {key: int(adata.obs[key].isna().sum()) for key in keys}
    if any(missing.values()):
        text = ", ".join(f"{key} ({n} cells)" for key, n in missing.items() if n)
        raise ValueError(f"{spec.name}: missing values in {text}. Drop or name these cells first.")
    x = adata.X if layer is None else adata.layers[layer]
    data = AnnData(X=x, obs=adata.obs[list(dict.fromkeys(keys))].copy(), var=adata.var[[]].copy())
    for key in data.obs:
        data.obs[key] = data.obs[key].astype(str).astype("category")
    chosen = choose_cells(data.n_obs, spec.max_cells, seed=0)
    if chosen is not None:
        data = data[chosen].copy()
    where = f"{spec.name}: {'X' if layer is None else layer}"
    check_expression(data.X, likelihood="nb", where=where, strict=True)
    data.X = data.X.astype(np.float32)
    if spec.n_top_genes is not None and spec.n_top_genes < data.n_vars:
        logged = data.copy()
        sc.pp.normalize_total(logged, target_sum=1e4)
        sc.pp.log1p(logged)
        # By batch, as scIB does; a batch of a few cells has no dispersion to rank.
        batches = None if spec.batch_key is None else logged.obs[spec.batch_key]
        small = batches is not None and batches.value_counts().min() < 20
        sc.pp.highly_variable_genes(
            logged, n_top_genes=spec.n_top_genes, batch_key=None if small else spec.batch_key
        )
        data = data[:, logged.var["highly_variable"].to_numpy()].copy()
    for key in data.obs:
        data.obs[key] = data.obs[key].cat.remove_unused_categories()
    return data
