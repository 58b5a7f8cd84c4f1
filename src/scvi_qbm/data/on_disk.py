"""Minibatches of cells that stay on disk: read in blocks, shuffled in a buffer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scvi import REGISTRY_KEYS, settings
from scvi.data import AnnDataManager, AnnTorchDataset
from scvi.data._utils import registry_key_to_default_dtype, scipy_to_torch_sparse
from scvi.dataloaders import DataSplitter
from torch import Tensor

from scvi_qbm._checks import as_positions
from scvi_qbm._jit import kernel
from scvi_qbm.data.rows import RowReader, is_on_disk

Positions = NDArray[np.int64]


def blocks_at_random(
    positions: Positions, block_size: int, generator: np.random.Generator
) -> Positions:
    """Blocks of neighbours in random order; in increasing order within a block.

    Neighbours are those next to each other after sorting.
    """
    blocks = np.split(np.sort(positions), np.arange(block_size, len(positions), block_size))
    return np.concatenate([blocks[k] for k in generator.permutation(len(blocks))])


def shuffled(positions: Positions, block_size: int, buffer_size: int, seed: int) -> Positions:
    """Order of an epoch: blocks of neighbours at random, then cells at random in each buffer.

    A buffer of at least all cells gives a uniform shuffle.
    """
    generator = np.random.default_rng(seed)
    order = blocks_at_random(positions, block_size, generator)
    for start in range(0, len(order), buffer_size):
        generator.shuffle(order[start : start + buffer_size])
    return order


def share_of_rank(order: Positions, rank: int, n_ranks: int, drop_tail: bool) -> Positions:
    """What one rank of several goes through: as many cells as every other.

    ``order`` is the same on every rank. Cells that do not divide evenly are left out with
    ``drop_tail``; else some come twice.
    """
    n = len(order) // n_ranks if drop_tail else math.ceil(len(order) / n_ranks)
    return np.resize(order, n * n_ranks)[rank * n : (rank + 1) * n]


class _Rows(NamedTuple):
    """Rows of a matrix, in an order that is not its own: they are not copied before their turn."""

    x: Any
    rows: Positions

    def part(self, of: slice) -> _Rows:
        return _Rows(self.x, self.rows[of])


@kernel(nogil=True)
def add_rows(data, indices, indptr, rows, out):  # type: ignore[no-untyped-def]
    """Add rows of a CSR matrix to a dense one; columns must be in range, they are not checked."""
    for i, row in enumerate(rows):
        for k in range(indptr[row], indptr[row + 1]):
            out[i, indices[k]] += data[k]


class OnDiskDataLoader:
    """Minibatches of an AnnData whose expression matrix stays on disk.

    The matrix is read a buffer at a time, in a thread beside the network's work; at most two
    buffers are in memory. What a minibatch holds is what scvi-tools' ``AnnDataLoader`` gives for
    the same cells.

    Parameters
    ----------
    adata_manager
        Of a registered AnnData with a backed ``X`` or layer.
    indices
        Cells, by position or as a mask; all of them if None.
    batch_size
        Cells a minibatch; of each rank's, if distributed.
    shuffle
        Whether to shuffle, anew for every pass, by a seed from torch's generator.
    drop_last
        Leave out a last minibatch that is not full.
    drop_dataset_tail
        If distributed, leave out cells that do not divide evenly over the ranks.
    data_and_attributes
        Registry keys to load, or their dtypes; all if None.
    distributed_sampler
        Share the cells out to the ranks of ``torch.distributed``.
    load_sparse_tensor
        Give the matrix as a sparse CSR tensor.
    block_size
        Neighbouring cells that are read together when shuffled. Cells of a file often come in
        the order of their samples: smaller blocks mix better, larger ones read faster.
    buffer_size
        Cells that are read, and shuffled together.
    num_workers, pin_memory, persistent_workers
        Accepted for scvi-tools' sake and not used: reading is done by a thread.

    Raises
    ------
    TypeError
        If the matrix is stored by columns.
    ValueError
        If a size is less than 1, or a mask is not as long as there are cells.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        indices: Any = None,
        batch_size: int = 128,
        shuffle: bool = False,
        drop_last: bool = False,
        drop_dataset_tail: bool = False,
        data_and_attributes: list[str] | dict[str, Any] | None = None,
        distributed_sampler: bool = False,
        load_sparse_tensor: bool = False,
        block_size: int = 64,
        buffer_size: int = 32_768,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("block_size", block_size),
            ("buffer_size", buffer_size),
        ):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.indices = as_positions(indices, adata_manager.adata.n_obs)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.block_size = block_size
        # In whole minibatches, so that none is put together from two buffers.
        self.buffer_size = math.ceil(buffer_size / batch_size) * batch_size
        self.load_sparse_tensor = load_sparse_tensor
        self._distributed, self._drop_tail = distributed_sampler, drop_dataset_tail
        keys = data_and_attributes or list(adata_manager.data_registry)
        dtypes = (
            keys if isinstance(keys, dict) else {k: registry_key_to_default_dtype(k) for k in keys}
        )
        # Everything else is in memory; scvi-tools knows how to slice it.
        self._dtype = dtypes.pop(REGISTRY_KEYS.X_KEY, None)
        self._rest = AnnTorchDataset(adata_manager, dtypes)
        self._reader = RowReader(adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY))

    def _world(self) -> tuple[int, int]:
        if not self._distributed:
            return 0, 1
        return torch.distributed.get_rank(), torch.distributed.get_world_size()

    def __len__(self) -> int:
        n_ranks = self._world()[1]
        n = len(self.indices)
        n = n // n_ranks if self._drop_tail else math.ceil(n / n_ranks)
        return n // self.batch_size if self.drop_last else math.ceil(n / self.batch_size)

    def _order(self) -> Positions:
        order = self.indices
        if self.shuffle:
            drawn = [int(torch.randint(2**62, ()).item())]
            if self._distributed:
                torch.distributed.broadcast_object_list(drawn)
            order = shuffled(order, self.block_size, self.buffer_size, seed=drawn[0])
        if self._distributed:
            order = share_of_rank(order, *self._world(), self._drop_tail)
        return order[: len(self) * self.batch_size]

    def _read(self, cells: Positions) -> dict[str, Any]:
        """The registered data of some cells, in their order."""
        try:
            rows, inverse = np.unique(cells, return_inverse=True)
            out = {k: torch.from_numpy(v[inverse]) for k, v in self._rest[rows].items()}
            if self._dtype is not None:
                x = self._reader.read(rows)
                if sparse.issparse(x):
                    x = x.astype(self._dtype, copy=False)
                out[REGISTRY_KEYS.X_KEY] = _Rows(x, inverse)
        except MemoryError as error:
            raise MemoryError(
                f"{len(cells)} cells of {self._reader.name} do not fit into memory. Read fewer at "
                f"once: datasplitter_kwargs={{'buffer_size': {max(len(cells) // 8, 1)}}} in "
                "train(), or buffer_size= in a loader of your own."
            ) from error
        return out

    def _tensor(self, part: _Rows) -> Tensor:
        x, rows = part
        if not sparse.issparse(x):
            return torch.from_numpy(np.ascontiguousarray(x[rows], dtype=self._dtype))
        if self.load_sparse_tensor:
            return scipy_to_torch_sparse(x[rows])
        out = np.zeros((len(rows), x.shape[1]), dtype=x.dtype)
        add_rows(x.data, x.indices, x.indptr, rows, out)
        return torch.from_numpy(out)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # torch's loader draws a seed for its workers: what follows must not depend on where the
        # cells are.
        torch.randint(2**62, ())
        # Not inside of the generator: the order is drawn here and now.
        return self._batches(self._order())

    def _batches(self, order: Positions) -> Iterator[dict[str, Tensor]]:
        ends = range(0, len(order), self.buffer_size)
        buffers = [order[start : start + self.buffer_size] for start in ends]
        with ThreadPoolExecutor(1, thread_name_prefix="scvi-qbm-reader") as reader:
            coming = [reader.submit(self._read, cells) for cells in buffers[:1]]
            try:
                for k, cells in enumerate(buffers):
                    data = coming.pop(0).result()
                    coming += [reader.submit(self._read, c) for c in buffers[k + 1 : k + 2]]
                    for start in range(0, len(cells), self.batch_size):
                        part = slice(start, start + self.batch_size)
                        yield {
                            key: self._tensor(value.part(part))
                            if isinstance(value, _Rows)
                            else value[part]
                            for key, value in data.items()
                        }
            finally:
                for future in coming:
                    future.cancel()


class Splitter(DataSplitter):
    """scvi-tools' splitter; in training a last minibatch of one cell is left out.

    Batch normalisation cannot take it. Cells are shuffled, so it is another one in each epoch.
    """

    def __init__(self, adata_manager: AnnDataManager, **kwargs: Any) -> None:
        super().__init__(adata_manager, **kwargs)
        if self.n_train < 2:
            raise ValueError(
                f"{self.n_train} cells to train on, of {adata_manager.adata.n_obs}: at least 2 "
                "are needed. With few cells pass train_size=1.0."
            )
        size = self.data_loader_kwargs.get("batch_size") or settings.batch_size
        if self.drop_last is False and self.n_train % size == 1 and self.n_train > 1:
            self.drop_last = True


class OnDiskDataSplitter(Splitter):
    """scvi-tools' splitter for data on disk; cells are held out by blocks of neighbours.

    Single cells at random would have to be read with all their neighbours.

    Parameters
    ----------
    adata_manager
        Of a registered AnnData with a backed ``X`` or layer.
    block_size
        Neighbouring cells that are read, and held out, together.
    **kwargs
        As :class:`scvi.dataloaders.DataSplitter` and :class:`OnDiskDataLoader`.
    """

    data_loader_cls = OnDiskDataLoader

    def __init__(self, adata_manager: AnnDataManager, block_size: int = 64, **kwargs: Any) -> None:
        super().__init__(adata_manager, block_size=block_size, **kwargs)
        self._block_size = block_size

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if self.external_indexing is not None or not self.shuffle_set_split:
            return
        n_obs, generator = self.adata_manager.adata.n_obs, np.random.default_rng(settings.seed)
        order = blocks_at_random(np.arange(n_obs), self._block_size, generator)
        n_val, n_train = self.n_val, self.n_train
        self.val_idx = np.sort(order[:n_val])
        self.train_idx = np.sort(order[n_val : n_val + n_train])
        self.test_idx = np.sort(order[n_val + n_train :])


def reads_from_disk(adata_manager: AnnDataManager) -> bool:
    """Whether a manager's expression matrix is on disk; False for minified data, too."""
    return is_on_disk(adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY))
