"""Minibatches for training: in memory as scvi-tools gives them, or from disk."""

from ._in_memory import ResumableDataLoader
from ._on_disk import OnDiskDataLoader, OnDiskDataSplitter, reads_from_disk
from ._rows import RowReader, is_on_disk, open_on_disk
from ._splitter import QBMDataSplitter

__all__ = [
    "OnDiskDataLoader",
    "OnDiskDataSplitter",
    "QBMDataSplitter",
    "ResumableDataLoader",
    "RowReader",
    "is_on_disk",
    "open_on_disk",
    "reads_from_disk",
]
