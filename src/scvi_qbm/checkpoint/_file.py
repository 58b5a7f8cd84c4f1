"""One file that is either the old checkpoint or the new one, whatever happens."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from scvi_qbm._files import replacing

__all__ = ["CheckpointError", "read_checkpoint", "write_checkpoint"]


_DO = "Put a copy of it back, or remove it to train from the start."


class CheckpointError(ValueError):
    """A checkpoint that is there, but cannot be read."""


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name beside it, then rename.

    Parameters
    ----------
    path
        File to write; the one that is there stays until the new one is complete on disk.
    checkpoint
        What ``torch.save`` takes.

    Raises
    ------
    OSError
        If the disk is full, or the directory cannot be written; the old file is as it was.
    """
    # In memory first: torch's own writer says of a full disk only that it failed.
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, alone=True) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Parameters
    ----------
    path
        A file that :func:`write_checkpoint` wrote.

    Returns
    -------
    dict[str, Any]
        What it was given, on the CPU.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    what = "it is damaged, or no checkpoint at all"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch does not look at checksums
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: {what} ({why}). {_DO}"
        ) from error
    if broken is not None or not isinstance(checkpoint, dict):
        raise CheckpointError(f"The checkpoint {path} cannot be used: {what}. {_DO}")
    return checkpoint
