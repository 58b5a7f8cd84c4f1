"""Stretches of an HDF5 array that is stored as it is, without HDF5's work for each of them."""

from __future__ import annotations

import os
import weakref
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

# Bytes a read: some systems refuse more than 2 GiB.
_MOST = 2**30


class PlainArray:
    """One-dimensional HDF5 array whose values are read from where they lie in the file.

    It has extents, that is, chunks that follow each other in the file: ``starts`` are their first
    elements, ``offsets`` their places in bytes. The file's descriptor is duplicated: HDF5 may
    close its own, and its number then stands for another file.
    """

    def __init__(
        self,
        dataset: h5py.Dataset,
        starts: NDArray[np.int64],
        offsets: NDArray[np.int64],
        descriptor: int,
    ) -> None:
        self._starts, self._offsets = starts, offsets
        self._descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self._descriptor)
        self.dtype: np.dtype[Any] = dataset.dtype
        self._ends = np.append(starts[1:], len(dataset))

    def read_into(self, out: NDArray[Any], start: int) -> None:
        """Fill a contiguous array of the same dtype with what begins at element ``start``.

        An OSError says that the file ends before it does, a ValueError that the array does.
        """
        start = int(start)  # in 32 bits, offsets in bytes would overflow
        if not 0 <= start <= start + len(out) <= int(self._ends[-1]):
            raise ValueError(f"{self._ends[-1]} values, none at {start + len(out) - 1}")
        # A hand-made slice of bytes: each call of NumPy's costs as much as the read.
        view, size, done = memoryview(out).cast("B"), self.dtype.itemsize, 0
        k = int(self._starts.searchsorted(start, "right")) - 1
        while done < len(out):
            first = start + done
            n = min(len(out) - done, int(self._ends[k]) - first)
            at = int(self._offsets[k]) + (first - int(self._starts[k])) * size
            self._fill(view[done * size : (done + n) * size], at)
            done, k = done + n, k + 1

    def _fill(self, view: memoryview, at: int) -> None:
        while len(view):
            n = os.preadv(self._descriptor, [view[:_MOST]], at)
            if n == 0:
                raise OSError(f"the file ends at byte {at}")
            view, at = view[n:], at + n


def _as_numpy(dataset: h5py.Dataset) -> bool:
    """Whether numbers are stored as NumPy has them: HDF5 converts others, with odd bits."""
    return bool(dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype)))


def plain(dataset: Any) -> PlainArray | None:
    """The array that reads a dataset from where it lies, if there is such a thing.

    None unless it is a one-dimensional HDF5 array that is stored as it is: not compressed nor
    filtered, of numbers in the machine's byte order, all of it in one local file that is open for
    reading only.
    """
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or not len(dataset):
        return None
    properties, dtype = dataset.id.get_create_plist(), dataset.dtype
    if (
        not hasattr(os, "preadv")
        or dataset.file.driver != "sec2"
        or dataset.file.mode != "r"
        or dataset.file.userblock_size
        or properties.get_nfilters()
        or dtype.kind not in "iuf"
        or not dtype.isnative
        or not _as_numpy(dataset)
    ):
        return None
    descriptor = dataset.file.id.get_vfd_handle()
    if properties.get_layout() == h5py.h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        if offset is None or properties.get_external_count():
            return None
        return PlainArray(dataset, np.array([0]), np.array([offset]), descriptor)
    if properties.get_layout() != h5py.h5d.CHUNKED or not hasattr(dataset.id, "chunk_iter"):
        return None
    found: list[tuple[int, int]] = []
    dataset.id.chunk_iter(lambda chunk: found.append((chunk.chunk_offset[0], chunk.byte_offset)))
    starts, offsets = np.array(sorted(found), dtype=np.int64).reshape(-1, 2).T
    length = dataset.chunks[0]
    # A chunk that was never written is none of the file's.
    if not np.array_equal(starts, np.arange(0, len(dataset), length)):
        return None
    new = np.append(True, np.diff(offsets) != length * dtype.itemsize)
    return PlainArray(dataset, starts[new], offsets[new], descriptor)
