"""Tools in scanpy's shape: results go to ``obs``, ``obsm``, ``varm`` and ``uns["qbm"]``."""

from .cells import attractors, energy, latent, outliers
from .labels import predict
from .pseudotime import diffusion_pseudotime, dpt
from .units import couplings, programs

__all__ = [
    "attractors", "couplings", "diffusion_pseudotime", "dpt", "energy", "latent", "outliers",
    "predict", "programs",
]  # fmt: skip
