"""Counts out of an h5ad file, without reading the rest of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

_ROWS = 8192
_SAMPLE = 512


def choose_cells(n_cells: int, max_cells: int | None, seed: int) -> np.ndarray | None:
    """Positions of ``max_cells`` random cells, ascending, without replacement; None for all."""
    if max_cells is None:
        return None
    if max_cells < 1:
        raise ValueError(f"max_cells must be positive, not {max_cells}.")
    if max_cells >= n_cells:
        return None
    return np.sort(np.random.default_rng(seed).choice(n_cells, max_cells, replace=False))


def check_columns(obs: Any, keys: dict[str, str | None], where: str) -> None:
    """Raise KeyError where a column that the table promises is missing from ``obs``."""
    for argument, key in keys.items():
        if key is not None and key not in obs:
            raise KeyError(
                f"{where} has no column {key!r} ({argument}) in obs. It has: "
                f"{', '.join(map(repr, obs.columns)) or 'none'}. Is it the file that the table "
                "describes?"
            )


def count_fault(values: np.ndarray) -> str | None:
    """Why values cannot be counts, or None where they can."""
    if not np.isfinite(values).all():
        return "NaN or infinite values"
    if values.size and values.min() < 0:
        return f"negative values (smallest {values.min():g})"
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        return "values that are not integers"
    return None


def read_counts(
    path: Path,
    *,
    counts: str = "X",
    keys: dict[str, str | None],
    features: tuple[str, str] | None = None,
    rounded: bool = False,
    max_cells: int | None = None,
    seed: int = 0,
) -> AnnData:
    """Cells with their counts from an h5ad file, read in blocks of cells.

    Memory is that of the chosen cells' counts, however many other matrices the file holds and
    whether they are dense.
    """
    import h5py
    from anndata.io import read_elem

    with h5py.File(path, "r") as file:
        obs = read_elem(file["obs"])
        check_columns(obs, keys, path.name)
        place = _find_counts(file, path.name) if counts == "auto" else counts
        matrix, var = _matrix(file, place, path.name)
        genes = slice(None)
        if features is not None:
            check_columns(var, {"features": features[0]}, path.name)
            genes = np.flatnonzero((var[features[0]] == features[1]).to_numpy())
            var = var.iloc[genes]
        cells = choose_cells(len(obs), max_cells, seed)
        blocks = [block[:, genes] for block in _blocks(matrix, len(obs), cells)]
        source = read_elem(file["uns/source"]) if "uns/source" in file else None
    values = sparse.csr_matrix(sparse.vstack(blocks), dtype=np.float32)
    if rounded:
        values = _round(values, path.name)
    fault = count_fault(values.data)
    if fault is not None:
        raise ValueError(f"{place} of {path.name} should hold counts, but has {fault}.")
    if cells is not None:
        obs = obs.iloc[cells]
    adata = AnnData(X=values, obs=obs.copy(), var=var.copy())
    for name in ("obs_names", "var_names"):
        if not getattr(adata, name).is_unique:
            getattr(adata, f"{name}_make_unique")()
    if source is not None:
        adata.uns["source"] = source
    return adata


def _matrix(file: Any, place: str, name: str) -> tuple[Any, Any]:
    from anndata.io import read_elem, sparse_dataset

    where = {"raw": "raw/X"}.get(place, place)
    if where not in file:
        layers = [f"layers/{key}" for key in file.get("layers", ())]
        held = [key for key in ("X", "raw", *layers) if key in file]
        raise KeyError(f"{name} has no matrix {place!r}. It has: {', '.join(held) or 'none'}.")
    element = file[where]
    var = read_elem(file["raw/var" if place == "raw" else "var"])
    return (element if hasattr(element, "shape") else sparse_dataset(element)), var


def _find_counts(file: Any, name: str) -> str:
    """The first of layers/counts, raw and X whose first cells hold counts."""
    faults = []
    for place in ("layers/counts", "raw", "X"):
        if place in file:
            matrix, _ = _matrix(file, place, name)
            fault = count_fault(sparse.csr_matrix(matrix[:_SAMPLE]).data)
            if fault is None:
                return place
            faults.append(f"{place} has {fault}")
    raise ValueError(f"No counts in {name}: {'; '.join(faults)}.")


def _blocks(matrix: Any, n_cells: int, cells: np.ndarray | None) -> Any:
    """CSR blocks of the chosen rows in their order."""
    if cells is None:
        cells = np.arange(n_cells)
    for start in range(0, n_cells, _ROWS):
        rows = cells[np.searchsorted(cells, start) : np.searchsorted(cells, start + _ROWS)]
        if rows.size:
            block = sparse.csr_matrix(matrix[start : min(start + _ROWS, n_cells)])
            yield block[rows - start]


def _round(values: sparse.csr_matrix, name: str) -> sparse.csr_matrix:
    whole = np.rint(values.data)
    n_changed = int((whole != values.data).sum())
    if n_changed:
        warnings.warn(
            f"{n_changed} of {whole.size} entries of {name} were estimated counts, not integers; "
            "they are rounded to the nearest integer.",
            UserWarning,
            stacklevel=4,
        )
        values.data = whole
        values.eliminate_zeros()
    return values
