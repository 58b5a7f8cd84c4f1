"""From a directory of benchmark rows to CSV tables and one HTML page."""

from .page import write_report
from .read import read_report

__all__ = ["read_report", "write_report"]
