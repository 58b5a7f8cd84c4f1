"""QBMVI, its W = 0 twin and its Gaussian VAE."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import scvi
from anndata import AnnData
from scvi.model import SCVI

from scvi_qbm.benchmark.methods.common import UNKNOWN, MethodResult, bare, fit, log_normalised
from scvi_qbm.model import QBMANVI, QBMVI
from scvi_qbm.module import ExpressionVAE
from scvi_qbm.recipes import get_recipe, resolve_plan
from scvi_qbm.runner import QBMTrainRunner


class GaussianTwin(SCVI):
    """SCVI with QBMVI's likelihoods: the twin that differs in its latent space alone."""

    _module_cls = ExpressionVAE
    _train_runner_cls = QBMTrainRunner


def _input(adata: AnnData, batch_key: str | None, likelihood: str) -> AnnData:
    prepare = log_normalised if likelihood == "normal" else bare
    return prepare(adata, batch_key)


def qbmvi(
    adata: AnnData,
    *,
    batch_key: str | None,
    seed: int,
    max_epochs: int | None,
    recipe: str = "default",
    train_kwargs: dict[str, Any] | None = None,
    on_model: Callable[[Any], None] | None = None,
    representation: str = "aligned",
    **model_kwargs: Any,
) -> MethodResult:
    """QBMVI with the recipe's defaults."""
    scvi.settings.seed = seed
    likelihood = get_recipe(recipe).model["gene_likelihood"]
    data, started = _input(adata, batch_key, likelihood), time.perf_counter()
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


def qbmanvi(
    adata: AnnData, *, label_key: str, batch_key: str | None, seed: int, max_epochs: int | None
) -> MethodResult:
    """QBMANVI whose embedding the labels of all cells shape."""
    scvi.settings.seed = seed
    data, started = bare(adata, batch_key, label_key), time.perf_counter()
    QBMANVI.setup_anndata(data, label_key, UNKNOWN, batch_key=batch_key)
    plan = {"classification_ratio": 50.0}
    return fit(QBMANVI(data), started, bound=False, max_epochs=max_epochs, plan_kwargs=plan)


def gaussian_twin(
    adata: AnnData,
    *,
    batch_key: str | None,
    seed: int,
    max_epochs: int | None,
    recipe: str = "default",
    train_kwargs: dict[str, Any] | None = None,
    on_model: Callable[[Any], None] | None = None,
    model_cls: type[GaussianTwin] = GaussianTwin,
    **model_kwargs: Any,
) -> MethodResult:
    """The Gaussian VAE of QBMVI's size, likelihood, optimiser, budget and stopping rule."""
    scvi.settings.seed = seed
    chosen = get_recipe(recipe)
    names = ("n_hidden", "n_latent", "n_layers", "gene_likelihood", "normal_variance")
    model = chosen.model_for(adata.n_obs)
    kwargs = {k: model[k] for k in (*names, "use_batch_norm", "use_layer_norm")}
    kwargs["log_variational"] = kwargs["gene_likelihood"] != "normal"
    data = _input(adata, batch_key, kwargs["gene_likelihood"])
    started = time.perf_counter()
    model_cls.setup_anndata(data, batch_key=batch_key)
    plan = resolve_plan(recipe, {}, max_epochs)
    plan.pop("bm_lr", None)
    warmup = plan["n_epochs_kl_warmup"]
    stopping = {"early_stopping": True, "early_stopping_warmup_epochs": warmup or 0}
    return fit(
        model_cls(data, **kwargs, **model_kwargs),
        started,
        on_model=on_model,
        max_epochs=max_epochs,
        plan_kwargs=plan,
        **(stopping | chosen.train | (train_kwargs or {})),
    )
