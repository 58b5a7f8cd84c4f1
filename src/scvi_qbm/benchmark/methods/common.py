"""What all methods share."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from scvi_qbm.alignment import align, fit_alignment

# What no cell is labelled: methods that use labels see them all.
UNKNOWN = "__unlabelled__"


class MethodResult(NamedTuple):
    """What a method returns.

    Parameters
    ----------
    embedding
        Shape ``(n_cells, n_dimensions)``.
    validation_elbo
        In nats per cell on held-out cells, higher is better; NaN if the method has none.
    seconds
        Wall-clock time of fitting and embedding.
    model
        The fitted model, if any.
    """

    embedding: NDArray[Any]
    validation_elbo: float
    seconds: float
    model: Any = None


def bare(adata: AnnData, *keys: str | None) -> AnnData:
    """A light copy with these columns, so that the caller's object stays as it is."""
    obs = adata.obs[[key for key in keys if key is not None]].copy()
    return AnnData(X=adata.X, obs=obs, var=adata.var[[]].copy())


def log_normalised(adata: AnnData, *keys: str | None) -> AnnData:
    """As :func:`bare`, with log(1 + CP10k) of the counts."""
    data = bare(adata, *keys)
    data.X = data.X.astype(np.float32, copy=True)
    sc.pp.normalize_total(data, target_sum=1e4)
    sc.pp.log1p(data)
    return data


def fit(
    model: Any,
    started: float,
    *,
    bound: bool = True,
    on_model: Callable[[Any], None] | None = None,
    embed: dict[str, Any] | None = None,
    **kwargs: Any,
) -> MethodResult:
    """Train, embed, and estimate the likelihood of the cells that were held out.

    ``on_model`` gets the model before it is trained, ``get_latent_representation`` gets ``embed``;
    without ``bound`` the ELBO is NaN.
    """
    if on_model is not None:
        on_model(model)
    model.train(**kwargs)
    embedding = np.asarray(model.get_latent_representation(**(embed or {})))
    seconds = time.perf_counter() - started
    held_out = model.validation_indices if bound else None
    elbo = float("nan")
    if held_out is not None and len(held_out):
        elbo = float(model.get_elbo(indices=held_out))
    return MethodResult(embedding, elbo, seconds, model)


def aligned(method: Callable[..., MethodResult]) -> Callable[..., MethodResult]:
    """The method, followed by the alignment that QBMVI's default embedding has."""

    @wraps(method)
    def run(adata: AnnData, *, batch_key: str | None, **options: Any) -> MethodResult:
        result = method(adata, batch_key=batch_key, **options)
        if batch_key is None:
            return result
        started = time.perf_counter()
        x = torch.from_numpy(np.ascontiguousarray(result.embedding, dtype=np.float32))
        codes, names = pd.factorize(adata.obs[batch_key])
        batch = torch.from_numpy(codes)
        embedding = align(fit_alignment(x, batch, len(names)), x, batch).numpy()
        seconds = result.seconds + time.perf_counter() - started
        return result._replace(embedding=embedding, seconds=seconds)

    return run


def budget(max_epochs: int, n_cells: int) -> int:
    """``max_epochs``, or 400 for each 20,000 cells' share (scvi-tools' rule) if that is less."""
    return max(1, min(max_epochs, round(400 * 20_000 / n_cells)))


def dense(adata: AnnData) -> None:
    """Make ``X`` an array, for those who cannot read a sparse matrix."""
    if sparse.issparse(adata.X):
        adata.X = adata.X.toarray()


def need_batches(batch_key: str | None, method: str) -> None:
    """Raise ValueError where there is no batch column."""
    if batch_key is None:
        raise ValueError(f"{method} needs a batch column.")


def imported(name: str) -> Any:
    """What ``"module:attribute"`` names."""
    module, _, attribute = name.partition(":")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ImportError(
            f"No module {module!r} for the method {name!r}. Install it, or set PYTHONPATH to the "
            "folder that holds it; the processes of a benchmark import it afresh."
        ) from error
    if not hasattr(found, attribute):
        raise ValueError(f"{module} has no {attribute!r}, for the method {name!r}.")
    return getattr(found, attribute)


def completed(function: Callable[..., Any], name: str) -> Callable[..., MethodResult]:
    """A function of a user's on a copy of the data; what it returns becomes a result."""
    takes = signature(function).parameters
    missing = {"batch_key", "seed", "max_epochs"} - set(takes)
    if missing and not any(p.kind is Parameter.VAR_KEYWORD for p in takes.values()):
        raise ValueError(f"{name} does not take {', '.join(sorted(missing))}.")

    @wraps(function)
    def run(adata: AnnData, **options: Any) -> MethodResult:
        started = time.perf_counter()
        result = function(adata.copy(), **options)
        if isinstance(result, MethodResult):
            return result
        seconds = time.perf_counter() - started
        return MethodResult(np.asarray(result), float("nan"), seconds)

    return run
