"""Data sets of the benchmark: collections by name, their download, the paper's preprocessing."""

from .catalogue import describe, download, list_datasets, load
from .info import DatasetInfo, RemoteFile
from .preprocess import preprocess_counts
from .remote import ChecksumError, DownloadError, data_dir, fetch

__all__ = [
    "ChecksumError",
    "DatasetInfo",
    "DownloadError",
    "RemoteFile",
    "data_dir",
    "describe",
    "download",
    "fetch",
    "list_datasets",
    "load",
    "preprocess_counts",
]
