"""Checks of the user's data that raise before anything is changed."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

_ROWS = 8192


def as_positions(indices: Any, n_obs: int) -> NDArray[np.int64]:
    """Positions of cells from positions, a Boolean mask, or None for all."""
    if indices is None:
        return np.arange(n_obs)
    out = np.asarray(indices)
    if out.dtype != bool:
        return out.astype(np.int64)
    if out.shape != (n_obs,):
        raise ValueError(f"The mask has shape {out.shape}, but there are {n_obs} cells.")
    return np.flatnonzero(out)


def check_setup_keys(
    adata: AnnData, layer: str | None, obs_keys: dict[str, str | list[str] | None]
) -> None:
    """Raise KeyError where a layer or a column of ``obs`` is missing, naming those there are.

    ``obs_keys`` maps an argument's name to the key or keys to look for, if any.
    """
    if layer is None and not hasattr(adata, "X"):
        raise KeyError(
            "The data have no X: scvi-tools' CollectionAdapter hands on layers only. Put the "
            "counts into a layer of every AnnData, and pass layer=."
        )
    if layer is not None:
        # By keys(): a CollectionAdapter cannot tell what its layers contain. anndata 0.13 lists X
        # among them, as None.
        layers = [key for key in adata.layers.keys() if key is not None]
        if layer not in layers:
            raise KeyError(
                f"layer={layer!r} is not in adata.layers. Available: {_listed(layers)}."
            )
    for argument, keys in obs_keys.items():
        for key in [keys] if isinstance(keys, str) else keys or []:
            if key not in adata.obs:
                raise KeyError(
                    f"{argument}: {key!r} is not in adata.obs. Available: {_listed(adata.obs)}."
                )


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"


def check_expression(x: Any, *, likelihood: str, where: str) -> None:
    """Raise ValueError where expression values cannot be modelled.

    ``x``, called ``where`` in messages, is an array, a sparse matrix, or anything backed that
    slices by rows. ``likelihood="normal"`` takes any non-negative values, the others counts.
    """
    counts = likelihood != "normal"
    empty: list[int] = []
    # A CollectionAdapter's layer passes for a sparse matrix, but only slices.
    collection = getattr(x, "collection", None)
    n_rows = x.shape[0] if collection is None else len(collection)
    whole = sparse.issparse(x) and collection is None
    step = n_rows if whole else _ROWS
    for start in range(0, n_rows, max(step, 1)):
        block = x if whole else x[start : start + step]
        if hasattr(block, "compute"):
            block = block.compute()
        values = block.data if sparse.issparse(block) else np.asarray(block)
        if not np.isfinite(values).all():
            n_bad = int((~np.isfinite(values)).sum())
            raise ValueError(
                f"{where} has {n_bad} NaN or infinite values. Remove or replace them first."
            )
        if values.size and values.min() < 0:
            hint = (
                "For gene_likelihood='normal' pass log-normalised values, not scaled ones."
                if not counts
                else "Register raw counts: setup_anndata(adata, layer='counts')."
            )
            raise ValueError(f"{where} has negative values (smallest {values.min():g}). {hint}")
        if counts and values.dtype.kind == "f" and (values != np.rint(values)).any():
            raise ValueError(
                f"{where} has values that are not integers, but gene_likelihood={likelihood!r} "
                "models counts. Register raw counts (setup_anndata(adata, layer='counts')), or "
                "use gene_likelihood='normal' for log-normalised values."
            )
        totals = np.asarray(block.sum(axis=1)).ravel()
        empty.extend((start + np.nonzero(totals == 0)[0]).tolist())
    if empty:
        raise ValueError(
            f"{len(empty)} cells have no expression at all in {where} (the first is number "
            f"{empty[0]}). Remove them: sc.pp.filter_cells(adata, min_counts=1), or "
            "adata = adata[adata.X.sum(1) > 0].copy(), and run setup_anndata again."
        )
