"""Measured rows that survive an interruption."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from scvi_qbm._files import replacing


class Rows:
    """Rows of one part, each with its key, kept in ``DIR/PART.jsonl`` as they come."""

    def __init__(self, directory: Path, part: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"{part}.jsonl"
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            for n, line in enumerate(self.path.read_text().splitlines(), 1):
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    row = None
                if isinstance(row, dict):
                    self.rows.append(row)
                else:
                    warnings.warn(
                        f"{self.path}: line {n} is damaged and left out; its row is measured "
                        "again.",
                        UserWarning,
                        stacklevel=2,
                    )

    def __contains__(self, key: dict[str, Any]) -> bool:
        return self.find(key) is not None

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The row with this key, if it was measured."""
        return next((r for r in self.rows if key.items() <= r.items()), None)

    def add(self, key: dict[str, Any], values: dict[str, Any]) -> None:
        """Append a row, or replace the one that has this key, and write the file."""
        row, before = {**key, **values}, self.find(key)
        if before is None:
            self.rows.append(row)
        else:
            self.rows[self.rows.index(before)] = row
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def frame(self) -> pd.DataFrame:
        """All rows, as a data frame."""
        return pd.DataFrame(self.rows)


def folder_of(method: str) -> str:
    """Name of a method's folder, without what Windows refuses."""
    return method.replace(":", ".")
