"""What was tried for QBMVI and not taken, kept so that docs/evidence.md can be run again."""

from .annealing import AnnealedBeta
from .centring import CentredCodes
from .gaussian_codes import SquashedCodes
from .hard_bits import DisArmCodes, HardBits
from .hidden_units import HiddenCodes
from .importance import ImportanceCodes
from .kernels import GaussianKernel, PowerKernel
from .networks import AdditiveCodes, AlignedCodes, ChangedInput, CycleCodes
from .posteriors import GroupedCodes, MeanFieldCodes
from .richer_codes import HybridCodes, SlopedCodes

__all__ = [
    "AdditiveCodes", "AlignedCodes", "AnnealedBeta", "CentredCodes", "ChangedInput", "CycleCodes",
    "DisArmCodes", "GaussianKernel", "GroupedCodes", "HardBits", "HiddenCodes", "HybridCodes",
    "ImportanceCodes", "MeanFieldCodes", "PowerKernel", "SlopedCodes", "SquashedCodes",
]  # fmt: skip
