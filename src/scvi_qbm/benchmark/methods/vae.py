"""QBMVI, its W = 0 twin and its Gaussian twin."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import scvi
from anndata import AnnData
from scvi.model import SCVI

from scvi_qbm.benchmark.methods.common import MethodResult, bare, fit, log_normalised
from scvi_qbm.model import QBMVI
from scvi_qbm.module import ExpressionVAE
from scvi_qbm.recipes import get_recipe, resolve_plan

__all__ = ["GaussianTwin", "gaussian_twin", "qbmvi"]


class GaussianTwin(SCVI):
    """SCVI with QBMVI's likelihoods: the twin that differs in its latent space alone."""

    _module_cls = ExpressionVAE


def _input(adata: AnnData, layer: str | None, batch_key: str | None, likelihood: str) -> AnnData:
    prepare = log_normalised if likelihood == "normal" else bare
    return prepare(adata, layer, batch_key)


def qbmvi(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
    recipe: str = "default",
    representation: str | None = None,
    train_kwargs: dict[str, Any] | None = None,
    on_model: Callable[[Any], None] | None = None,
    **model_kwargs: Any,
) -> MethodResult:
    """QBMVI with the recipe's defaults.

    Parameters
    ----------
    adata
        The data; not changed.
    layer, batch_key
        As in ``setup_anndata``; the matrix holds counts. A recipe with a normal likelihood gets
        log(1 + CP10k) of them.
    seed
        Of initialisation, batches, sampler and the held-out tenth of the cells.
    max_epochs
        At most so many epochs; early stopping is on.
    recipe
        Name of a recipe; ``prior="bernoulli"`` gives its W = 0 twin.
    representation
        As :meth:`QBMVI.get_latent_representation` takes it.
    train_kwargs
        Further arguments of ``QBMVI.train``.
    on_model
        Called with the model before it is trained.
    **model_kwargs
        Arguments of :class:`~scvi_qbm.QBMVI`.

    Returns
    -------
    scvi_qbm.benchmark.methods.MethodResult
        The representation, ``(n_cells, n_latent)``, and the model.
    """
    scvi.settings.seed = seed
    likelihood = model_kwargs.get("gene_likelihood") or get_recipe(recipe).model["gene_likelihood"]
    data, started = _input(adata, layer, batch_key, likelihood), time.perf_counter()
    QBMVI.setup_anndata(data, batch_key=batch_key)
    model = QBMVI(data, recipe=recipe, **model_kwargs)
    return fit(
        model,
        started,
        on_model=on_model,
        embed={"representation": representation},
        max_epochs=max_epochs,
        **(train_kwargs or {}),
    )


def gaussian_twin(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
    recipe: str = "default",
    train_kwargs: dict[str, Any] | None = None,
    on_model: Callable[[Any], None] | None = None,
    **model_kwargs: Any,
) -> MethodResult:
    """The Gaussian VAE of QBMVI's size, likelihood, optimiser, budget and stopping rule.

    Parameters
    ----------
    adata, layer, batch_key, seed, max_epochs
        As :func:`qbmvi`.
    recipe
        Recipe to be the twin of.
    train_kwargs, on_model
        As :func:`qbmvi`.
    **model_kwargs
        Arguments of :class:`scvi.model.SCVI`.

    Returns
    -------
    scvi_qbm.benchmark.methods.MethodResult
        Means of the posterior, ``(n_cells, n_latent)``, and the model.
    """
    scvi.settings.seed = seed
    chosen = get_recipe(recipe)
    names = ("n_hidden", "n_latent", "n_layers", "gene_likelihood", "normal_variance")
    defaults = {k: chosen.model[k] for k in (*names, "use_batch_norm", "use_layer_norm")}
    kwargs = defaults | model_kwargs
    kwargs["log_variational"] = kwargs["gene_likelihood"] != "normal"
    data = _input(adata, layer, batch_key, kwargs["gene_likelihood"])
    started = time.perf_counter()
    GaussianTwin.setup_anndata(data, batch_key=batch_key)
    plan = resolve_plan(recipe, {}, max_epochs)
    plan.pop("bm_lr", None)
    warmup = plan["n_epochs_kl_warmup"]
    stopping = {"early_stopping": True, "early_stopping_warmup_epochs": warmup or 0}
    return fit(
        GaussianTwin(data, **kwargs),
        started,
        on_model=on_model,
        max_epochs=max_epochs,
        plan_kwargs=plan,
        **(stopping | chosen.train | (train_kwargs or {})),
    )
