"""QBMVI, put together from what it reads, decodes, draws and guards."""

from ._landscape import PriorParameters
from ._latent import DEFAULT_REPRESENTATION
from ._qbmvi import QBMVI

__all__ = ["DEFAULT_REPRESENTATION", "QBMVI", "PriorParameters"]
