"""QBMVI, put together from what it reads, decodes, draws and guards."""

from ._landscape import PriorParameters
from ._qbmvi import QBMVI

__all__ = ["QBMVI", "PriorParameters"]
