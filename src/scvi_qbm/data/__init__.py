"""What a model reads: loaders from memory and disk, a real data set, and a simulator.

The loaders are imported on first use: whoever only wants data does not wait for scvi-tools.
"""

from importlib import import_module
from typing import Any

from .pbmc import pbmc68k
from .simulator import simulate

_LAZY = {
    "OnDiskDataLoader": "on_disk",
    "OnDiskDataSplitter": "on_disk",
    "open_on_disk": "rows",
    "reads_from_disk": "on_disk",
}

__all__ = ["OnDiskDataLoader", "OnDiskDataSplitter", "open_on_disk", "pbmc68k", "simulate"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
