"""QBMVI: the class in ``_qbmvi``, and a file for each group of its methods."""

from ._landscape import PriorParameters
from ._qbmanvi import QBMANVI
from ._qbmvi import QBMVI

__all__ = ["QBMANVI", "QBMVI", "PriorParameters"]
