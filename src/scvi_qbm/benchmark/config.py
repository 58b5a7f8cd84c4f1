"""What a benchmark compares: data sets, methods, seeds; from TOML or Python."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from .methods import get_method, select_methods
from .scores import GROUPS

__all__ = ["Config", "DataSpec"]


@dataclass(frozen=True)
class DataSpec:
    """A data set and its columns.

    Parameters
    ----------
    name
        Its name in the tables; without ``path``, one of
        :func:`scvi_qbm.benchmark.data.list_datasets`.
    path
        An h5ad file.
    layer
        Layer with the counts; default ``X``.
    batch_key, label_key
        Columns of ``obs``; scores that need a missing one are left out.
    fine_label_key
        Finer cell types to score against as well.
    root_key, root_label
        Column and value of the cells where the trajectory starts; without them no trajectory is
        scored.
    pseudotime_per_batch
        Compare with a pseudotime of each batch's own, as scIB did, not one of all cells: for
        batches that differ much and are large.
    n_top_genes
        Keep so many highly variable genes; default all.
    max_cells
        Keep so many cells, drawn once with seed 0.
    max_epochs
        Budget of the models on this set, in place of the benchmark's.
    """

    name: str
    path: str | None = None
    layer: str | None = None
    batch_key: str | None = None
    label_key: str | None = None
    fine_label_key: str | None = None
    root_key: str | None = None
    root_label: str | None = None
    pseudotime_per_batch: bool = False
    n_top_genes: int | None = None
    max_cells: int | None = None
    max_epochs: int | None = None


class Task(NamedTuple):
    """One row to measure: names of the data set and the method, and the seed, from 0 on."""

    data: str
    method: str
    seed: int


@dataclass(frozen=True)
class Config:
    """A benchmark.

    Parameters
    ----------
    data
        Data sets.
    methods
        Names of methods or groups (``core``, ``all``, a block).
    seeds
        Number of seeds, 0 to ``seeds - 1``; some methods take fewer (``Method.n_seeds``).
    max_epochs
        Epochs at most, for every model alike; default each method's own
        (on 20,000 cells and more fewer, by scvi-tools' rule).
    groups
        Groups of metrics; default all.
    seeds_of
        Method -> number of seeds, in place of the above.

    Raises
    ------
    ValueError
        If there is no data set, two have one name, a name cannot be a folder's, a number is below
        1, or a method or group is unknown.
    """

    data: tuple[DataSpec, ...]
    methods: tuple[str, ...] = ("core",)
    seeds: int = 5
    max_epochs: int | None = None
    groups: tuple[str, ...] | None = None
    seeds_of: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("A benchmark needs a data set.")
        names = [spec.name for spec in self.data]
        if len(set(names)) < len(names):
            raise ValueError(f"Two data sets have one name: {', '.join(names)}.")
        for name in names:
            if not name or set(name) & set('/\\:*?"<>|\0') or name.startswith("."):
                raise ValueError(f"{name!r} cannot name a data set: it becomes a folder's name.")
        for name in ("seeds", "max_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if unknown := [group for group in self.groups or () if group not in GROUPS]:
            raise ValueError(
                f"Unknown groups {', '.join(unknown)}. Available: {', '.join(GROUPS)}."
            )
        object.__setattr__(self, "methods", tuple(select_methods(self.methods)))
        for name in self.seeds_of:
            get_method(name)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Config:
        """Read a file with the fields above, and a table ``[[data]]`` for each data set.

        Relative paths are relative to the file.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        Config
            What it says.

        Raises
        ------
        ValueError
            If it is not TOML, or a field is unknown or of another type.
        """
        path = Path(path)
        try:
            content = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not valid TOML: {error}") from error
        specs = []
        for entry in content.pop("data", []):
            if entry.get("path"):
                entry["path"] = str((path.parent / entry["path"]).resolve())
            specs.append(_build(DataSpec, entry, f"{path}, [[data]]"))
        for name in ("methods", "groups"):
            if isinstance(content.get(name), list):
                content[name] = tuple(content[name])
        return _build(cls, {"data": tuple(specs), **content}, str(path))

    def tasks(self) -> list[Task]:
        """All rows, by seed, then data set, then method: a run cut short is balanced.

        Returns
        -------
        list[Task]
            One a data set, method and seed.
        """

        def wanted(method: str) -> int:
            limit = self.seeds_of.get(method, get_method(method).n_seeds)
            return self.seeds if limit is None else min(limit, self.seeds)

        return [
            Task(spec.name, method, seed)
            for seed in range(self.seeds)
            for spec in self.data
            for method in self.methods
            if seed < wanted(method)
        ]


_TYPES: dict[str, tuple[type, ...]] = {
    "seeds": (int,), "max_epochs": (int,), "n_top_genes": (int,), "max_cells": (int,),
    "pseudotime_per_batch": (bool,), "methods": (tuple,), "groups": (tuple,),
    "seeds_of": (dict,), "data": (tuple,),
}  # fmt: skip


def _build(kind: Any, content: Mapping[str, Any], where: str) -> Any:
    known = [f.name for f in fields(kind)]
    for name, value in content.items():
        if name not in known:
            raise ValueError(f"{where}: unknown field {name!r}. Available: {', '.join(known)}.")
        expected = _TYPES.get(name, (str,))
        if not isinstance(value, expected) or isinstance(value, bool) != (expected == (bool,)):
            kinds = " or ".join(k.__name__.replace("tuple", "list") for k in expected)
            raise ValueError(f"{where}: {name} = {value!r} must be {kinds}.")
    try:
        return kind(**content)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
