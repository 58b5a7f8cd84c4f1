"""What was tried for QBMVI and not taken, kept so that docs/evidence.md can be run again."""

from .annealing import AnnealedBeta
from .gaussian_codes import SquashedCodes
from .hard_bits import DisArmCodes, HardBits
from .hidden_units import HiddenCodes
from .kernels import GaussianKernel, PowerKernel
from .networks import AdditiveCodes, ChangedInput, CycleCodes
from .posteriors import GroupedCodes, MeanFieldCodes
from .richer_codes import HybridCodes, SlopedCodes

__all__ = [
    "AdditiveCodes", "AnnealedBeta", "ChangedInput", "CycleCodes", "DisArmCodes", "GaussianKernel",
    "GroupedCodes", "HardBits", "HiddenCodes", "HybridCodes", "MeanFieldCodes", "PowerKernel",
    "SlopedCodes", "SquashedCodes",
]  # fmt: skip
