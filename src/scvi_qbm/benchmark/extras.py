"""Optional packages, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(name: str, extra: str = "benchmark") -> ModuleType:
    """Import an optional package; its absence raises ImportError that names the extra."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f'`{name}` could not be imported: pip install "scvi-qbm[{extra}]".'
        ) from error
