"""One door to all sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from anndata import AnnData
from scipy import sparse

from scvi_qbm.benchmark.data.collections import COLLECTIONS
from scvi_qbm.benchmark.data.info import DatasetInfo
from scvi_qbm.benchmark.data.preprocess import preprocess_counts
from scvi_qbm.benchmark.data.read import check_columns, choose_cells, read_counts
from scvi_qbm.benchmark.data.remote import fetch
from scvi_qbm.benchmark.data.shared import SHARED, find_shared
from scvi_qbm.data.normalise import log_cp10k
from scvi_qbm.data.pbmc import pbmc68k

_PBMC68K = DatasetInfo(
    name="pbmc68k",
    title="700 blood cells that ship inside scanpy: no download, no batches",
    kind="bundled",
    file_name=None,
    label_key="cell_type",
    counts="layers/counts",
    citation="Zheng et al. (2017), Nat. Commun. 8, 14049",
    licence="BSD-3-Clause (scanpy); 10x data CC BY 4.0",
    source="scanpy.datasets.pbmc68k_reduced",
    remarks="700 x 765; counts recovered from log(1 + CP10k), exactly.",
)
_ALL = {_PBMC68K.name: _PBMC68K} | SHARED | COLLECTIONS


def list_datasets() -> list[str]:
    """Names that :func:`describe` and :func:`load` take.

    Returns
    -------
    list[str]
        The bundled set, then the shared ones, then the downloads.
    """
    return list(_ALL)


def describe(name: str) -> DatasetInfo:
    """What is known of a set: columns, addresses, paper, licence, sources, remarks.

    Parameters
    ----------
    name
        One of :func:`list_datasets`.

    Returns
    -------
    DatasetInfo
        Its line of the table.

    Raises
    ------
    KeyError
        If there is no such set; the message lists those there are.
    """
    if name not in _ALL:
        raise KeyError(f"No data set {name!r}. There are: {', '.join(_ALL)}.")
    return _ALL[name]


def load(
    name: str,
    *,
    preprocess: bool = False,
    n_top_genes: int = 4000,
    max_cells: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AnnData:
    """A data set with integer counts in ``layers["counts"]`` and log(1 + CP10k) in ``X``.

    Parameters
    ----------
    name
        One of :func:`list_datasets`.
    preprocess
        Whether to apply :func:`preprocess_counts`, with the set's own batches. The bundled and
        shared sets hold chosen genes of cells that passed quality control, so for them the
        minimum of genes per cell is not applied.
    n_top_genes
        Highly variable genes to keep, if ``preprocess``.
    max_cells
        Random subset of this many cells, without replacement, in the file's order. Only their
        counts are read.
    seed
        Of the subset.
    progress
        Whether a download draws a bar.

    Returns
    -------
    anndata.AnnData
        Cells by genes: ``X`` and ``layers["counts"]`` (both CSR, float32), ``obs`` with the
        columns that :func:`describe` names, ``uns["dataset"]`` name, title, citation. Cells
        without any counts are dropped, and ``uns["dataset"]["n_empty"]`` says how many.

    Raises
    ------
    KeyError
        If there is no such set, or its file lacks a column that the table promises.
    FileNotFoundError
        If the file must be put in place by hand and is not there.
    DownloadError
        If it could not be had; ``ChecksumError`` where it is not the published file.
    ValueError
        If the file holds no counts where they should be, or the subset is not positive.
    """
    info = describe(name)
    if max_cells is not None and max_cells < 1:
        raise ValueError(f"max_cells must be positive, not {max_cells}.")
    keys = {
        "batch_key": info.batch_key,
        "label_key": info.label_key,
        "root_key": info.root_key,
    }
    if info.kind == "bundled" or info.parts:
        adata = pbmc68k() if info.kind == "bundled" else _assemble(info, progress)
        check_columns(adata.obs, keys, name)
        cells = choose_cells(adata.n_obs, max_cells, seed)
        adata = adata if cells is None else adata[cells].copy()
    else:
        adata = read_counts(
            _path(info, progress),
            counts=info.counts,
            keys=keys,
            features=info.features,
            rounded=info.rounded,
            max_cells=max_cells,
            seed=seed,
        )
    counts = sparse.csr_matrix(adata.layers.get("counts", adata.X), dtype=np.float32)
    full = np.flatnonzero(np.asarray(counts.sum(axis=1)).ravel() > 0)
    n_empty = adata.n_obs - full.size
    if n_empty:
        adata, counts = adata[full].copy(), counts[full]
    if "counts" not in adata.layers:
        adata.layers["counts"], adata.X = counts, log_cp10k(counts)
    adata.uns["dataset"] = {
        "name": info.name,
        "title": info.title,
        "citation": info.citation,
        "n_empty": n_empty,
    }
    if preprocess:
        return preprocess_counts(
            adata,
            layer="counts",
            batch_key=info.batch_key,
            n_top_genes=n_top_genes,
            min_genes=200 if info.kind == "download" else 1,
        )
    return adata


def _path(info: DatasetInfo, progress: bool) -> Path:
    if info.kind == "shared":
        return find_shared(info.file_name)
    return fetch(
        info.url,
        info.file_name,
        sha256=info.sha256,
        unpack=info.unpack,
        portal=info.portal,
        progress=progress,
    )


def download(name: str, *, progress: bool = True) -> list[Path]:
    """Have the files of a set on this machine, before several processes ask for them.

    Parameters
    ----------
    name
        One of :func:`list_datasets`.
    progress
        Whether a download draws a bar.

    Returns
    -------
    list[pathlib.Path]
        The files; none of the set that comes with this package.

    Raises
    ------
    KeyError
        If there is no such set.
    FileNotFoundError
        If the file must be put in place by hand and is not there.
    DownloadError
        If it could not be had; ``ChecksumError`` where it is not the published file.
    """
    info = describe(name)
    if info.kind == "bundled":
        return []
    parts = [
        fetch(part.url, part.file_name, sha256=part.sha256, progress=progress)
        for part in info.parts
    ]
    return [_path(info, progress), *parts]


def _assemble(info: DatasetInfo, progress: bool) -> AnnData:
    from scvi_qbm.benchmark.data.pbmc12k import build_pbmc12k

    return build_pbmc12k(*download(info.name, progress=progress))
