"""Rows of a matrix that stays on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from anndata.io import read_elem, sparse_dataset
from numpy.typing import NDArray
from scipy import sparse

from scvi_qbm.data.hdf5 import plain

# Runs of rows with no more than so many others between them are read in one go.
_GAP = 16


def is_on_disk(x: Any) -> bool:
    """Whether a matrix is read from disk, or computed (dask), when it is indexed."""
    if isinstance(x, np.ndarray) or sparse.issparse(x):
        return False
    backed = isinstance(x, CSRDataset | CSCDataset | h5py.Dataset)
    return backed or hasattr(x, "compute") or type(x).__module__.startswith("zarr")


def open_on_disk(path: str | os.PathLike[str]) -> AnnData:
    """Open an AnnData file whose ``X`` and layers stay on disk; all else is read.

    ``anndata.read_h5ad(backed="r")`` leaves only ``X`` there.

    Parameters
    ----------
    path
        A file ``.h5ad``, or a directory ``.zarr``. It must stay where it is as long as the data
        are in use.

    Returns
    -------
    anndata.AnnData
        With backed matrices, for ``QBMVI.setup_anndata``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no AnnData file, or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    try:
        if path.is_dir():
            import zarr

            store: Any = zarr.open_group(path, mode="r")
        else:
            # Without a cache of chunks: blocks at random find nothing in it, and filling it takes
            # twice the time of reading.
            store = h5py.File(path, "r", rdcc_nbytes=0)
        parts = {key: read_elem(store[key]) for key in ("obs", "var")}
        parts |= {key: read_elem(store[key]) for key in ("obsm", "varm", "uns") if key in store}
        layers = {key: _backed(store["layers"][key]) for key in store.get("layers", {})}
        return AnnData(X=_backed(store["X"]) if "X" in store else None, layers=layers, **parts)
    except Exception as error:  # whatever h5py, zarr and anndata raise of an odd file
        raise ValueError(
            f"{path} cannot be read as an AnnData file: {error}. If it was copied or downloaded, "
            "the copy may be incomplete."
        ) from error


def _backed(element: Any) -> Any:
    encoding = dict(element.attrs).get("encoding-type", "array")
    if encoding == "array":
        return element
    _check_chunks(element)
    return sparse_dataset(element)


def _check_chunks(group: Any) -> None:
    """Raise an OSError where chunks of a zarr matrix are missing: zarr reads them as zeros.

    Of a sparse matrix. A dense one may have whole chunks of zeros, which zarr does not keep.
    """
    for name in ("data", "indices"):
        there, wanted = (
            getattr(group[name], key, 0) for key in ("nchunks_initialized", "nchunks")
        )
        if there < wanted:
            raise OSError(
                f"{wanted - there} of {wanted} chunks of {group[name].name} are missing in "
                f"{group.store}"
            )


class RowReader:
    """Reads rows of a backed CSR matrix, HDF5 or zarr array, or dask array, neighbours together.

    A TypeError says that a matrix is stored by columns, an OSError that it is damaged.
    """

    def __init__(self, x: Any) -> None:
        if isinstance(x, CSCDataset):
            raise TypeError(
                "The matrix is stored by columns (CSC), and a cell would cost a pass over the "
                "file. Write it by rows: adata.X = adata.X.tocsr(), and save again."
            )
        self.x = x
        self.shape: tuple[int, int] = x.shape
        # anndata's own slices cost 2 ms each, whatever their length, and to open the parts of the
        # group for each would cost a third of what is left.
        group = x.group if isinstance(x, CSRDataset) else None
        if group is not None:
            _check_chunks(group)
        self._parts = None if group is None else (group["data"], group["indices"])
        self._indptr = None if group is None else _row_starts(group)
        self._plain = [plain(part) for part in self._parts or ()]
        container = x if group is None else group
        file = getattr(getattr(container, "file", None), "filename", None)
        #: Where the matrix is, for messages.
        self.name = str(file or getattr(container, "store", None) or "the matrix")
        self._size = os.path.getsize(file) if file else None

    def read(self, rows: NDArray[np.int64]) -> sparse.csr_matrix | NDArray[Any]:
        """Rows at increasing positions, each once, in the matrix's own dtype.

        An OSError says that the file cannot be read there, or has become shorter.
        """
        # HDF5 takes what lies beyond the end of an open file for zeros.
        if self._size is not None and os.path.getsize(self.name) < self._size:
            raise OSError(f"{self.name} was truncated while it was read.")
        breaks = np.flatnonzero(np.diff(rows) > _GAP) + 1
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(rows, breaks)]
        covered = np.concatenate([np.arange(*run) for run in runs])
        out = self._dense(runs) if self._parts is None else self._sparse(runs, covered)
        return out if len(covered) == len(rows) else out[np.searchsorted(covered, rows)]

    def _dense(self, runs: list[tuple[int, int]]) -> Any:
        blocks = []
        for start, stop in runs:
            with self._explained(start, stop):
                block = self.x[start:stop]
                blocks.append(block.compute() if hasattr(block, "compute") else block)
        if sparse.issparse(blocks[0]):
            return sparse.vstack(blocks, format="csr")
        return np.concatenate(blocks)

    def _sparse(self, runs: list[tuple[int, int]], covered: NDArray[np.int64]) -> Any:
        assert self._parts is not None and self._indptr is not None
        lengths = self._indptr[covered + 1] - self._indptr[covered]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        data, indices = (np.empty(indptr[-1], dtype=part.dtype) for part in self._parts)
        filled = 0
        for start, stop in runs:
            part = slice(self._indptr[start], self._indptr[stop])
            here = slice(filled, filled := filled + part.stop - part.start)
            with self._explained(start, stop):
                for out, stored, direct in zip(
                    (data, indices), self._parts, self._plain, strict=True
                ):
                    if direct is None:
                        values = stored[part]
                        if len(values) != part.stop - part.start:
                            raise OSError(f"{len(values)} values for {part.stop - part.start}")
                        out[here] = values
                    else:
                        direct.read_into(out[here], part.start)
                _check(indices[here], self.shape[1])
        return sparse.csr_matrix((data, indices, indptr), shape=(len(covered), self.shape[1]))

    @contextmanager
    def _explained(self, start: int, stop: int) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            raise OSError(
                f"Cells {start} to {stop - 1} cannot be read from {self.name}: {error}. The file "
                "is truncated or damaged, or its disk is gone."
            ) from error


def _row_starts(group: Any) -> NDArray[np.int64]:
    """Where rows of a CSR matrix start, as numbers that take any file's length."""
    for name in ("indptr", "indices"):
        if group[name].dtype.kind not in "iu":
            raise OSError(f"{group.name}/{name} is damaged: it has no whole numbers.")
    starts = group["indptr"][:].astype(np.int64)
    stored = min(group[name].shape[0] for name in ("data", "indices"))
    if starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] != stored:
        raise OSError(
            f"{group.name}/indptr is damaged: rows do not follow each other from 0 to {stored}, "
            "the number of values."
        )
    return starts


def _check(indices: NDArray[Any], n_genes: int) -> None:
    if len(indices) and not 0 <= indices.min() <= indices.max() < n_genes:
        raise ValueError("gene numbers are out of range")
