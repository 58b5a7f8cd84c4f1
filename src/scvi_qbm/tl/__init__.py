"""Tools in scanpy's shape: an AnnData in, results in ``obs``, ``obsm`` and ``uns``."""

from .pseudotime import diffusion_pseudotime, dpt

__all__ = ["diffusion_pseudotime", "dpt"]
