"""Saving without a moment in which there is neither the old model nor the new."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["SavingMixin"]


class SavingMixin:
    """:meth:`save`, which replaces a model only by a whole one."""

    def save(
        self,
        dir_path: str | os.PathLike[str],
        prefix: str | None = None,
        overwrite: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save the model; a model that is there already stays until the new one is complete.

        Parameters
        ----------
        dir_path
            Directory to write.
        prefix
            Prepended to the names of the files.
        overwrite
            Whether to replace what is there; other files in the directory are left alone.
        *args, **kwargs
            As :meth:`scvi.model.SCVI.save`.

        Raises
        ------
        ValueError
            If the directory exists, and ``overwrite`` is not given.
        OSError
            If the disk is full, for example; the directory is as it was then.
        """
        target = Path(dir_path)
        if target.exists() and not overwrite:
            raise ValueError(
                f"{dir_path} already exists. Pass overwrite=True, or another directory."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(
                prefix=f".{target.name}-", suffix=".tmp", dir=target.parent
            ) as folder:
                super().save(folder, prefix, True, *args, **kwargs)  # type: ignore[misc]
                target.mkdir(exist_ok=True)
                for file in sorted(Path(folder).iterdir()):
                    with file.open("rb+") as written:
                        os.fsync(written.fileno())
                    os.replace(file, target / file.name)
                    self._moved(file, target / file.name)
        except Exception as error:
            # torch's writer says of a full disk only that it failed.
            there = "the one there is as it was" if target.exists() else "nothing was written"
            error.add_note(f"The model could not be saved to {target}; {there}.")
            raise

    def _moved(self, before: Path, after: Path) -> None:
        """A backed AnnData goes on from the copy that was written last."""
        adata = self.adata  # type: ignore[attr-defined]
        name = getattr(adata, "filename", None)
        if name is not None and Path(name) == before:
            adata.file.filename = after
