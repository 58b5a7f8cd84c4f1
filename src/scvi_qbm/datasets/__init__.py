"""Data: real sets by name, the paper's preprocessing, and a simulator with known truth."""

from scvi_qbm.datasets._download import ChecksumError, DownloadError, data_dir, fetch
from scvi_qbm.datasets._info import DatasetInfo, RemoteFile
from scvi_qbm.datasets._load import describe, download, list_datasets, load
from scvi_qbm.datasets._pbmc68k import pbmc68k
from scvi_qbm.datasets._preprocess import preprocess_counts
from scvi_qbm.datasets._simulate import simulate

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
    "pbmc68k",
    "preprocess_counts",
    "simulate",
]
