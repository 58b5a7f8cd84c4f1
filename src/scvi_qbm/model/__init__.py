"""QBMVI, put together from what it reads, decodes, draws and guards."""

from . import _latent
from ._landscape import PriorParameters
from ._qbmvi import QBMVI

__all__ = ["DEFAULT_REPRESENTATION", "QBMVI", "PriorParameters"]

#: What ``get_latent_representation`` returns unasked, by ``latent_distribution``.
DEFAULT_REPRESENTATION = _latent.DEFAULT_REPRESENTATION
