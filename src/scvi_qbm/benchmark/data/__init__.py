"""Data sets of the benchmark: collections by name, their download, the paper's preprocessing."""

from .catalogue import describe, download, list_datasets, load
from .preprocess import preprocess_counts
from .remote import data_dir

__all__ = ["data_dir", "describe", "download", "list_datasets", "load", "preprocess_counts"]
