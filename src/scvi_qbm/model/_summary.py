"""One table of what a model is, what it was trained on, and how that went."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import rich
from rich import box
from rich.markup import escape
from rich.table import Table

from scvi_qbm.prior import NegativePhaseReport
from scvi_qbm.samplers.corrected import Corrected

_HEADINGS = {
    "train": "training cells, at the best epoch, before the prior's last fit (nats a cell)",
    "held_out": "held-out cells, at the best epoch, before the prior's last fit (nats a cell)",
    "negative_phase": "last report on the chains (nats)",
}
_BOUND = {
    "elbo": "elbo",
    "reconstruction": "reconstruction_loss",
    "kl": "kl_local",
}
_NATS = ("log_z", "log_z_se", "strongest_coupling")
_REPORT = [f for f in NegativePhaseReport._fields if f not in ("log_z", "log_z_se", "n_steps")]


def summarise(model: Any) -> pd.Series:
    """What a model is, what it was trained on, and how that went; see ``QBMVI.summary``."""
    # A query comes with its reference's history, until it is trained itself.
    history = (model.history or {}) if model.is_trained else {}
    parts = {
        "data": _data(model),
        "model": _model(model),
        "prior": _prior(model),
        "training": _training(model, history),
        "train": _bound(history, "train"),
        "held_out": _bound(history, "validation"),
        "negative_phase": _negative_phase(model, history),
    }
    rows = {(part, name): v for part, values in parts.items() for name, v in values.items()}
    out = pd.Series(rows, dtype=object, name=type(model).__name__)
    out.index.names = ["part", "name"]
    return out


def _data(model: Any) -> dict[str, Any]:
    stats = model.summary_stats
    return {
        "cells": stats.get("n_cells"),
        "genes": stats.get("n_vars"),
        "batches": stats.get("n_batch"),
        "labels": stats.get("n_labels"),
        "categorical_covariates": stats.get("n_extra_categorical_covs", 0),
        "continuous_covariates": stats.get("n_extra_continuous_covs", 0),
        "layer": model.registry_.get("setup_args", {}).get("layer") or "X",
        "minified": model.adata is not None and model.minified_data_type is not None,
    }


def _model(model: Any) -> dict[str, Any]:
    given, module = model.init_params_["non_kwargs"], model.module
    library = "observed" if module.use_observed_lib_size else "latent"
    library = "size factor" if module.use_size_factor_key else library
    names = ("n_latent", "n_hidden", "n_layers", "dropout_rate")
    return {
        "recipe": model.recipe_,
        **{name: given[name] for name in names},
        "n_parameters": sum(p.numel() for p in module.parameters()),
        "relaxation": given["relaxation"],
        "relaxation_beta": given["relaxation_beta"],
        "gene_likelihood": module.gene_likelihood,
        "dispersion": module.dispersion,
        "library": None if module.gene_likelihood == "normal" else library,
    }


def _prior(model: Any) -> dict[str, Any]:
    prior, n = model.module.prior, model.module.n_latent
    sampler = getattr(model.module.negative_phase, "sampler", None)
    source = getattr(sampler, "source", sampler)
    guarantee = getattr(source, "guarantee", None)
    if isinstance(sampler, Corrected):
        swept = "followed by Gibbs sweeps" if sampler.n_sweeps else "not corrected"
        guarantee = f"{guarantee}, {swept}"
    log_z = model.get_log_partition()
    return {
        "kind": "boltzmann" if model.module.negative_phase else "bernoulli",
        "units": prior.n_units,
        "sampler": getattr(source, "name", None),
        "guarantee": guarantee,
        "n_chains": getattr(sampler, "n_chains", None),
        "n_sweeps": getattr(sampler, "n_sweeps", None),
        "frozen": prior.is_frozen,
        "strongest_coupling": float(np.abs(model.prior.W[:n, :n]).max()),
        "log_z": log_z.value,
        "log_z_se": log_z.standard_error,
    }


def _training(model: Any, history: dict[str, pd.DataFrame]) -> dict[str, Any]:
    cells = {"cells": model.train_indices, "cells_held_out": model.validation_indices}
    return {
        "trained": bool(model.is_trained),
        # Without a logger nothing is recorded.
        "epochs": None if model.is_trained and not history else len(history.get("elbo_train", ())),
        "best_epoch": _best_epoch(history),
        **{name: None if of is None else len(of) for name, of in cells.items()},
        "device": str(model.device),
    }


def _best_epoch(history: dict[str, pd.DataFrame]) -> int | None:
    return int(history["best_epoch"].iloc[-1, 0]) if "best_epoch" in history else None


def _bound(history: dict[str, pd.DataFrame], cells: str) -> dict[str, float]:
    """At the epoch whose weights the model has; the last one where none was validated."""
    epoch = _best_epoch(history)
    until = {name: frame.loc[:epoch] for name, frame in history.items() if cells in name}
    out = {k: _last(until, f"{v}_{cells}") for k, v in _BOUND.items()}
    return out | {"elbo": -out["elbo"]}  # scvi-tools' history has its negative


def _negative_phase(model: Any, history: dict[str, pd.DataFrame]) -> dict[str, Any]:
    report: dict[str, Any] = {name: _last(history, name) for name in _REPORT}
    return report | {"verdict": _verdict(model, history)}


def _verdict(model: Any, history: dict[str, pd.DataFrame]) -> str:
    if model.module.negative_phase is None:
        return "exact: units without couplings need no samples"
    if "energy_gap" not in history:
        frozen = model.module.prior.is_frozen
        return "no report: the prior is frozen" if frozen else "no report yet"
    fields = [name for name in NegativePhaseReport._fields if name in history]
    looks = pd.concat([history[name].iloc[:, 0].rename(name) for name in fields], axis=1)
    looks = looks[looks["energy_gap"].notna()]
    # As training, which warns of three in a row: one may be noise.
    reports = [NegativePhaseReport(**look) for look in looks.tail(3).to_dict("records")]
    report = reports[-1]
    told = (
        f"energy gap {report.energy_gap:+.1f} (se {report.energy_gap_se:.1g}) nats, drift of "
        f"log Z {report.log_z_drift:+.1f} nats"
    )
    if report.chains_mix:
        return f"the prior's chains mix: {told}"
    if len(reports) < 3 or any(earlier.chains_mix for earlier in reports):
        return f"in doubt, which may be noise: {told}, but not in all of the last three reports"
    return f"the prior's chains do not mix: {told}, so its gradient is biased"


def _last(history: dict[str, pd.DataFrame], name: str) -> float:
    values = history[name].iloc[:, 0].dropna() if name in history else ()
    return float(values.iloc[-1]) if len(values) else math.nan


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = f"{value:,.2f}" if abs(value) >= 100 else f"{value:.4g}"
        return f"{text} nats" if name in _NATS else text
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(summary: pd.Series) -> None:
    """What is known, under the names that the entries have."""
    table = Table(title=summary.name, show_header=False, box=box.SIMPLE)
    for part, rows in summary.dropna().groupby(level="part", sort=False):
        table.add_section()
        table.add_row(f"[bold]{part}[/bold]", f"[bold]{_HEADINGS.get(part, '')}[/bold]")
        for (_, name), value in rows.items():
            table.add_row(f"  {name}", escape(_text(name, value)))
    rich.print(table)
