"""Models of scvi-tools and its relatives."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import scvi
from anndata import AnnData
from scvi.model import SCVI

from scvi_qbm.benchmark.extras import require
from scvi_qbm.benchmark.methods.common import (
    UNKNOWN,
    MethodResult,
    bare,
    dense,
    fit,
    log_normalised,
    need_batches,
)
from scvi_qbm.recipes import get_recipe, resolve_plan
from scvi_qbm.runner import QBMTrainRunner


class _BestEpoch(SCVI):
    """SCVI that ends with the weights of its best epoch, as QBMVI does."""

    _train_runner_cls = QBMTrainRunner


def _training(optimiser: str, max_epochs: int | None) -> dict[str, Any]:
    """``default``: as ``model.train()``; ``qbmvi``: the recipe's warm-up, Adam and early stopping.

    scvi-tools' warm-up of 400 epochs is cut to the budget: the KL weight is 1 in the end.
    """
    if optimiser == "default":
        warmup = min(400, max_epochs or 400)
        return {"max_epochs": max_epochs, "plan_kwargs": {"n_epochs_kl_warmup": warmup}}
    if optimiser != "qbmvi":
        raise ValueError(f"Unknown optimiser {optimiser!r}. Available: default, qbmvi.")
    plan = resolve_plan("default", {}, max_epochs)
    return {
        "max_epochs": max_epochs,
        "plan_kwargs": plan,
        "early_stopping": True,
        "early_stopping_warmup_epochs": plan["n_epochs_kl_warmup"] or 0,
        **get_recipe("default").train,
    }


def _fit_counts(
    cls: Any,
    adata: AnnData,
    batch_key: str | None,
    seed: int,
    max_epochs: int | None,
    *,
    optimiser: str = "default",
    bound: bool = True,
    **model_kwargs: Any,
) -> MethodResult:
    """Register counts, build ``cls``, and train it within the budget."""
    scvi.settings.seed = seed
    data, started = bare(adata, batch_key), time.perf_counter()
    cls.setup_anndata(data, batch_key=batch_key)
    model = cls(data, **model_kwargs)
    return fit(model, started, bound=bound, **_training(optimiser, max_epochs))


def scvi_model(
    adata: AnnData,
    *,
    batch_key: str | None,
    seed: int,
    max_epochs: int | None,
    optimiser: str = "default",
    **model_kwargs: Any,
) -> MethodResult:
    """``scvi.model.SCVI``, negative binomial unless said otherwise."""
    cls = SCVI if optimiser == "default" else _BestEpoch
    kwargs = {"gene_likelihood": "nb", "optimiser": optimiser} | model_kwargs
    return _fit_counts(cls, adata, batch_key, seed, max_epochs, **kwargs)


def ldvae(
    adata: AnnData, *, batch_key: str | None, seed: int, max_epochs: int | None
) -> MethodResult:
    """LDVAE (``scvi.model.LinearSCVI``, Svensson et al. 2020) at its defaults."""
    from scvi.model import LinearSCVI

    return _fit_counts(LinearSCVI, adata, batch_key, seed, max_epochs)


def autozi(
    adata: AnnData, *, batch_key: str | None, seed: int, max_epochs: int | None
) -> MethodResult:
    """AUTOZI (``scvi.model.AUTOZI``, Clivio et al. 2019) at its defaults.

    Its likelihood has a prior over zero inflation of its own: its ELBO is not comparable and is
    not reported.
    """
    from scvi.model import AUTOZI

    return _fit_counts(AUTOZI, adata, batch_key, seed, max_epochs, bound=False)


def sysvi(
    adata: AnnData, *, batch_key: str | None, seed: int, max_epochs: int | None
) -> MethodResult:
    """SysVI with its VampPrior (``scvi.external.SysVI``, Hrovatin et al. 2025) at its defaults.

    On log(1 + CP10k), as its authors ask, so that its ELBO is on another scale.
    """
    from scvi.external import SysVI

    need_batches(batch_key, "SysVI")
    scvi.settings.seed = seed
    data, started = log_normalised(adata, batch_key), time.perf_counter()
    dense(data)
    SysVI.setup_anndata(data, batch_key=batch_key)
    model = SysVI(data)
    model.train(max_epochs=max_epochs, check_val_every_n_epoch=1)
    embedding = np.asarray(model.get_latent_representation(adata=data))
    return MethodResult(embedding, float("nan"), time.perf_counter() - started, model)


def drvi(
    adata: AnnData, *, batch_key: str | None, seed: int, max_epochs: int | None
) -> MethodResult:
    """DRVI (Moinfar and Theis 2024), from ``drvi-py`` or scvi-tools 1.5, at its defaults."""
    try:
        from scvi.external import DRVI
    except ImportError:
        DRVI = require("drvi.model", "benchmark").DRVI
    scvi.settings.seed = seed
    data, started = bare(adata, batch_key), time.perf_counter()
    DRVI.setup_anndata(data, batch_key=batch_key)
    # On its own plan: its ELBO is not read.
    training = _training("default", max_epochs)
    return fit(DRVI(data), started, bound=False, early_stopping=False, **training)


def scanvi(
    adata: AnnData, *, label_key: str, batch_key: str | None, seed: int, max_epochs: int | None
) -> MethodResult:
    """A fitted scVI turned into scANVI (Xu et al. 2021); it sees every cell's label."""
    from scvi.model import SCANVI, SCVI

    scvi.settings.seed = seed
    data, started = bare(adata, batch_key, label_key), time.perf_counter()
    SCVI.setup_anndata(data, batch_key=batch_key, labels_key=label_key)
    base = SCVI(data, gene_likelihood="nb")
    base.train(**_training("default", max_epochs))
    model = SCANVI.from_scvi_model(base, unlabeled_category=UNKNOWN)
    return fit(model, started, bound=False, max_epochs=min(20, max_epochs or 20))


def scpoli(
    adata: AnnData,
    *,
    label_key: str,
    batch_key: str | None,
    seed: int,
    max_epochs: int | None,
    unlabeled: str = UNKNOWN,
) -> MethodResult:
    """Prototypes of scPoli (De Donno et al. 2023, ``scarches``); ``unlabeled`` cells have none."""
    import anndata

    # scarches 0.6.1 imports a name that anndata dropped (scarches issue 276).
    if not hasattr(anndata, "read"):
        anndata.read = anndata.read_h5ad
    scPoli = require("scarches.models.scpoli", "scpoli").scPoli
    scvi.settings.seed = seed
    data, started = bare(adata, batch_key, label_key), time.perf_counter()
    dense(data)
    data.X = data.X.astype(np.float32)
    if batch_key is None:
        batch_key = "batch"
        data.obs[batch_key] = "one"
    model = scPoli(
        data,
        condition_keys=batch_key,
        cell_type_keys=label_key,
        unknown_ct_names=[unlabeled],
        labeled_indices=np.flatnonzero(data.obs[label_key] != unlabeled),
        recon_loss="nb",
    )
    n_epochs = max(50, math.ceil(3000 * 128 / data.n_obs))
    n_epochs = min(n_epochs, max_epochs or n_epochs)
    model.train(n_epochs=n_epochs, pretraining_epochs=int(0.8 * n_epochs), eta=5, seed=seed)
    model.model.eval()
    embedding = np.asarray(model.get_latent(data, mean=True))
    return MethodResult(embedding, float("nan"), time.perf_counter() - started, model)
