"""Methods to compare: each a function from AnnData to an embedding and what it knows of itself."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import scanpy as sc
import scvi
from anndata import AnnData
from numpy.typing import NDArray
from scvi.model import SCVI

from scvi_qbm.model import QBMVI
from scvi_qbm.module import ExpressionVAE
from scvi_qbm.recipes import get_recipe

__all__ = ["GaussianTwin", "MethodResult", "gaussian_twin", "pca", "qbmvi"]


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


class GaussianTwin(SCVI):
    """SCVI with QBMVI's likelihoods: the twin that differs in its latent space alone."""

    _module_cls = ExpressionVAE


def _bare(adata: AnnData, layer: str | None, batch_key: str | None) -> AnnData:
    """A light copy for a model to register, so that the caller's object stays as it is."""
    x = adata.X if layer is None else adata.layers[layer]
    obs = adata.obs[[] if batch_key is None else [batch_key]].copy()
    return AnnData(X=x, obs=obs, var=adata.var[[]].copy())


def _fit(model: Any, started: float, **kwargs: Any) -> MethodResult:
    model.train(**kwargs)
    embedding = model.get_latent_representation()
    held_out = model.validation_indices
    elbo = float(model.get_elbo(indices=held_out)) if len(held_out) else float("nan")
    return MethodResult(embedding, elbo, time.perf_counter() - started, model)


def qbmvi(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
    **model_kwargs: Any,
) -> MethodResult:
    """QBMVI with the recipe's defaults.

    Parameters
    ----------
    adata
        The data; not changed.
    layer, batch_key
        As in ``setup_anndata``.
    seed
        Of initialisation, batches, sampler and the held-out tenth of the cells.
    max_epochs
        At most so many epochs; early stopping is on.
    **model_kwargs
        Arguments of :class:`~scvi_qbm.QBMVI`.
    """
    scvi.settings.seed = seed
    data, started = _bare(adata, layer, batch_key), time.perf_counter()
    QBMVI.setup_anndata(data, batch_key=batch_key)
    return _fit(QBMVI(data, **model_kwargs), started, max_epochs=max_epochs)


def gaussian_twin(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
    recipe: str = "default",
    **model_kwargs: Any,
) -> MethodResult:
    """The Gaussian VAE of QBMVI's size, likelihood, optimiser, budget and stopping rule.

    Parameters
    ----------
    adata, layer, batch_key, seed, max_epochs
        As :func:`qbmvi`.
    recipe
        Recipe to be the twin of.
    **model_kwargs
        Arguments of :class:`scvi.model.SCVI`.
    """
    scvi.settings.seed = seed
    chosen = get_recipe(recipe)
    names = ("n_hidden", "n_latent", "n_layers", "gene_likelihood", "normal_variance")
    defaults = {k: chosen.model[k] for k in (*names, "use_batch_norm", "use_layer_norm")}
    kwargs = defaults | model_kwargs
    kwargs["log_variational"] = kwargs["gene_likelihood"] != "normal"
    data, started = _bare(adata, layer, batch_key), time.perf_counter()
    GaussianTwin.setup_anndata(data, batch_key=batch_key)
    plan = {k: v for k, v in chosen.plan.items() if k != "bm_lr"}
    return _fit(
        GaussianTwin(data, **kwargs),
        started,
        max_epochs=max_epochs,
        early_stopping=True,
        early_stopping_warmup_epochs=plan["n_epochs_kl_warmup"] or 0,
        plan_kwargs=plan,
        **chosen.train,
    )


def pca(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    seed: int = 0,
    n_comps: int = 50,
) -> MethodResult:
    """Principal components of log(1 + CP10k); no batch correction.

    Parameters
    ----------
    adata, layer, batch_key, seed
        As :func:`qbmvi`; the registered matrix must hold counts.
    n_comps
        Number of components.
    """
    data, started = _bare(adata, layer, batch_key), time.perf_counter()
    data.X = data.X.astype(np.float32, copy=True)
    sc.pp.normalize_total(data, target_sum=1e4)
    sc.pp.log1p(data)
    n_comps = min(n_comps, data.n_obs - 1, data.n_vars - 1)
    sc.pp.pca(data, n_comps=n_comps, random_state=seed)
    return MethodResult(data.obsm["X_pca"], float("nan"), time.perf_counter() - started)
