"""Checks of the user's data that raise before anything is changed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

_ROWS = 8192
# What the columns of obs must be that setup_anndata names.
_RULES = {
    "batch_key": "given",
    "categorical_covariate_keys": "given",
    "size_factor_key": "positive",
    "continuous_covariate_keys": "finite",
}
_MEANING = {
    "given": "there for every cell",
    "positive": "a finite number above 0",
    "finite": "a finite number",
}
# Squares of larger values overflow in single precision.
_LARGEST = 1e18


def as_positions(indices: Any, n_obs: int) -> NDArray[np.int64]:
    """Positions of cells from positions, a Boolean mask, or None for all.

    A ValueError says what is wrong with anything else: names, fractions, a mask of other cells.
    """
    if indices is None:
        return np.arange(n_obs)
    out = np.asarray(indices)
    if out.dtype == object and out.size:  # as pandas has masks and numbers with gaps
        kinds = {type(value) for value in out.ravel()}
        if kinds <= {bool, np.bool_}:
            out = out.astype(bool)
        elif bool not in kinds and all(issubclass(kind, int | np.integer) for kind in kinds):
            out = out.astype(np.int64)
    if out.ndim != 1:
        raise ValueError(
            f"`indices` must be a list of positions or a mask, not of shape {out.shape}."
        )
    if out.dtype == bool:
        if len(out) != n_obs:
            raise ValueError(f"The mask has {len(out)} entries, but there are {n_obs} cells.")
        return np.flatnonzero(out)
    if not len(out):
        return np.array([], dtype=np.int64)
    if out.dtype.kind not in "iu":
        raise ValueError(
            f"`indices` are positions of cells (integers) or a Boolean mask, not "
            f"{out.tolist()[0]!r}. For names: adata.obs_names.get_indexer(names)."
        )
    if out.min() < -n_obs or out.max() >= n_obs:
        worst = out.max() if out.max() >= n_obs else out.min()
        raise ValueError(f"`indices` has {worst}, but there are {n_obs} cells.")
    out = out.astype(np.int64)
    return np.where(out < 0, out + n_obs, out)


def check_setup_keys(
    adata: AnnData, layer: str | None, obs_keys: dict[str, str | list[str] | None]
) -> None:
    """Raise where a layer or a column of ``obs`` is missing, or has values of no use.

    ``obs_keys`` maps an argument's name to the key or keys to look for, if any. A KeyError names
    the keys there are; a ValueError the column, and its first cell without a proper value.
    """
    if layer is None and getattr(adata, "X", None) is None:
        raise KeyError(
            "The data have no X. Pass layer= with the name of the layer that has the counts"
            f" (available: {_listed(_layers(adata))}). scvi-tools' CollectionAdapter hands on "
            "layers only: there every AnnData needs it."
        )
    if layer is not None and layer not in _layers(adata):
        raise KeyError(
            f"layer={layer!r} is not in adata.layers. Available: {_listed(_layers(adata))}."
        )
    for argument, keys in obs_keys.items():
        for key in _each(keys):
            if key not in adata.obs:
                raise KeyError(
                    f"{argument}: {key!r} is not in adata.obs. Available: {_listed(adata.obs)}."
                )
    check_columns(adata, obs_keys)
    values = getattr(adata, "X", None) if layer is None else adata.layers[layer]
    if sparse.issparse(values) and not hasattr(values, "collection"):
        check_structure(values, "adata.X" if layer is None else f"adata.layers[{layer!r}]")


def _each(keys: str | list[str] | None) -> list[str]:
    return [keys] if isinstance(keys, str) else keys or []


def _layers(adata: Any) -> list[str]:
    # By keys(): a CollectionAdapter cannot tell what its layers contain. anndata 0.13 lists X
    # among them, as None.
    try:
        return [key for key in adata.layers.keys() if key is not None]
    except AttributeError:  # of a collection without any
        return []


def check_columns(adata: AnnData, obs_keys: dict[str, str | list[str] | None]) -> None:
    """Raise ValueError where a column of ``obs`` that a model reads has values of no use."""
    for argument, keys in obs_keys.items():
        rule = _RULES.get(argument)
        if rule is None:
            continue
        for key in _each(keys):
            if key not in adata.obs:
                continue
            column = adata.obs[key]
            if column.ndim > 1:
                raise ValueError(f"{argument}: adata.obs has several columns called {key!r}.")
            if rule == "given":
                bad = column.isna()
                hint = "Fill it (adata.obs[{key!r}].astype(object).fillna('unknown'))"
            else:
                values = _numbers(column)
                bad = ~np.isfinite(values) | ((values <= 0) if rule == "positive" else False)
                hint = "Correct it"
            if (n_bad := int(np.sum(bad))) == 0:
                continue
            first = int(np.flatnonzero(bad)[0])
            name, value = column.index[first], column.tolist()[first]
            raise ValueError(
                f"{argument}: obs[{key!r}] must be {_MEANING[rule]}, but {n_bad} of {len(column)} "
                f"cells have other values (the first: {value!r} in cell {name!r}). "
                f"{hint.format(key=key)}, or leave out these cells."
            )


def _numbers(column: pd.Series) -> NDArray[np.float64]:
    """The column's numbers, NaN for text, dates and missing values."""
    kinds = pd.api.types
    if kinds.is_complex_dtype(column) or not (
        kinds.is_numeric_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype)
        or column.dtype == object
    ):  # fmt: skip
        return np.full(len(column), np.nan)
    real = column.astype(object).map(lambda value: None if isinstance(value, complex) else value)
    numbers = pd.to_numeric(real, errors="coerce")
    out: NDArray[np.float64] = numbers.to_numpy(dtype=float, na_value=np.nan)
    return out


def as_keys(keys: Any, argument: str) -> list[str] | None:
    """Names of columns as a list, from one name or several; each once."""
    if keys is None:
        return None
    out = [keys] if isinstance(keys, str) else list(keys)
    if len(set(out)) < len(out):
        raise ValueError(f"{argument} names a column twice: {out}.")
    return out


def check_registered(adata: AnnData, registry: Any) -> None:
    """Raise ValueError where columns do not fit the registry of a model's data.

    Values are of no use, or numbers where the model's categories are text, or the reverse.
    """
    check_columns(adata, registry.get("setup_args", {}))
    fields = registry.get("field_registries", {})
    known: dict[str, Any] = {}
    for field in ("batch", "extra_categorical_covs"):
        state = fields.get(field, {}).get("state_registry", {})
        known |= dict(state.get("mappings", {}))
        if "categorical_mapping" in state:
            known[state["original_key"]] = state["categorical_mapping"]
    for key, categories in known.items():
        if key not in adata.obs or not len(categories) or key.startswith("_scvi"):
            continue
        values = adata.obs[key].dropna().unique().tolist()
        there, here = (
            {isinstance(value, str) for value in some} for some in (list(categories), values)
        )
        if here and there.isdisjoint(here):
            kinds = ("text", "numbers") if True in there else ("numbers", "text")
            raise ValueError(
                f"obs[{key!r}] has {kinds[1]} ({values[0]!r}), but the model's categories are "
                f"{kinds[0]} ({list(categories)[0]!r}). Make them alike: adata.obs[{key!r}] = "
                f"adata.obs[{key!r}].astype({'str' if True in there else 'int'})."
            )


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"


def check_expression(
    x: Any,
    *,
    likelihood: str,
    where: str,
    most: int | None = None,
    strict: bool = False,
    only_read: bool = False,
) -> None:
    """Raise ValueError where expression values cannot be modelled; warn where they are no counts.

    ``x``, called ``where`` in messages, is an array, a sparse matrix, or anything backed that
    slices by rows. ``likelihood="normal"`` takes any non-negative values, the others counts.
    ``most``: look at so many rows only. ``strict``: raise for values that are not integers.
    ``only_read``: of a trained model; cells may have no counts, and values of a normal
    distribution be negative, as generated ones are.
    """
    counts = likelihood != "normal"
    nothing: list[int] = []
    # A CollectionAdapter's layer passes for a sparse matrix, but only slices.
    collection = getattr(x, "collection", None)
    n_rows = x.shape[0] if collection is None else len(collection)
    whole = sparse.issparse(x) and collection is None
    if whole:
        check_structure(x, where)
    n_rows = n_rows if most is None else min(n_rows, most)
    step = n_rows if whole else _ROWS
    largest, fraction = 0.0, None
    for start in range(0, n_rows, max(step, 1)):
        block = x if whole else _rows(x, start, min(start + step, n_rows), where)
        if sparse.issparse(block) and not whole:
            check_structure(block, where)
        values = block.data if sparse.issparse(block) else np.asarray(block)
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{where} must be real numbers, not {values.dtype}.")
        if not np.isfinite(values).all():
            n_bad = int((~np.isfinite(values)).sum())
            raise ValueError(
                f"{where} has {n_bad} NaN or infinite values. Remove or replace them first."
            )
        if values.size and values.min() < 0 and (counts or not only_read):
            hint = (
                "For gene_likelihood='normal' pass log-normalised values, not scaled ones."
                if not counts
                else "Register raw counts: setup_anndata(adata, layer='counts')."
            )
            raise ValueError(f"{where} has negative values (smallest {values.min():g}). {hint}")
        largest = max(largest, float(values.max(initial=0)))
        if counts and fraction is None and values.dtype.kind == "f":
            broken = values != np.rint(values)
            fraction = float(values[broken][0]) if broken.any() else None
        totals = np.asarray(block.sum(axis=1)).ravel()
        nothing.extend((start + np.nonzero(totals == 0)[0]).tolist())
    if largest > _LARGEST:
        raise ValueError(f"{where} has a value of {largest:g}, too large to compute with.")
    if nothing and not only_read:
        raise ValueError(
            f"{len(nothing)} cells have no expression at all in {where} (the first is number "
            f"{nothing[0]}). Remove them: sc.pp.filter_cells(adata, min_counts=1), or "
            "adata = adata[adata.X.sum(1) > 0].copy(), and run setup_anndata again."
        )
    if fraction is not None:
        told = (
            f"{where} has values that are not integers (such as {fraction:.4g}), but "
            f"gene_likelihood={likelihood!r} models counts. Corrected counts (SoupX, CellBender, "
            "RSEM) may stay as they are, or be rounded: adata.X = adata.X.round(). Normalised "
            "values are not counts: register raw ones (setup_anndata(adata, layer='counts')), or "
            "use gene_likelihood='normal'."
        )
        if strict:
            raise ValueError(told)
        warnings.warn(told, UserWarning, stacklevel=3)


def glimpse(x: Any) -> bytes:
    """A few of the values, by which changed data are told from those seen before."""
    if sparse.issparse(x) and not hasattr(x, "collection"):
        return np.asarray(x.data[:64]).tobytes()
    block = _rows(x, 0, 2, "The matrix")
    return np.asarray(block.data if sparse.issparse(block) else block).tobytes()


def _rows(x: Any, start: int, stop: int, where: str) -> Any:
    """Some rows in memory."""
    try:
        block = x[start:stop]
        return block.compute() if hasattr(block, "compute") else block
    except Exception as error:  # whatever h5py, zarr and SciPy raise of an odd file
        raise ValueError(
            f"{where} cannot be read: {error}. Its file is damaged, or has values of a type that "
            "SciPy cannot compute with; write them as float32."
        ) from error


def check_structure(x: Any, where: str) -> None:
    """Raise ValueError where a sparse matrix is damaged: SciPy would read beyond its arrays."""
    if x.dtype.kind == "f" and (x.dtype.itemsize not in (4, 8) or not x.dtype.isnative):
        raise ValueError(
            f"{where} has values of type {x.dtype.str}, with which SciPy cannot compute. First: "
            "convert it with .astype('float32')."
        )
    if not hasattr(x, "check_format"):
        return
    try:
        if hasattr(x, "indptr") and x.indptr[-1] < len(x.data):
            raise ValueError(f"rows end at value {x.indptr[-1]} of {len(x.data)}")
        x.check_format(full_check=True)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} is damaged: {error}. Its file may be incomplete; read it anew."
        ) from error
