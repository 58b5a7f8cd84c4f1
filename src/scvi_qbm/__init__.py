"""Boltzmann-machine priors for single-cell VAEs, and Boltzmann samplers one can trust.

Attributes are loaded on first use: someone who only wants a sampler pays neither for torch nor
for scvi-tools.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_qbm.ising import Ising
    from scvi_qbm.model import QBMANVI, QBMVI
    from scvi_qbm.samplers.conformance import check_sampler
    from scvi_qbm.samplers.registry import get_sampler, list_samplers, register_sampler

__all__ = [
    "QBMANVI", "QBMVI", "Ising", "check_sampler", "get_sampler", "list_samplers",
    "register_sampler",
]  # fmt: skip

_LAZY = {
    "Ising": "scvi_qbm.ising",
    "QBMANVI": "scvi_qbm.model",
    "QBMVI": "scvi_qbm.model",
    "check_sampler": "scvi_qbm.samplers.conformance",
    "get_sampler": "scvi_qbm.samplers.registry",
    "list_samplers": "scvi_qbm.samplers.registry",
    "register_sampler": "scvi_qbm.samplers.registry",
}


# Rooms that scanpy's users expect as attributes.
_ROOMS = ("data", "pl", "tl")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("scvi-qbm")
    if name in _ROOMS:
        return import_module(f"scvi_qbm.{name}")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
