"""model.summary() says what the model says."""

import math

import numpy as np
import pandas as pd
import pytest
import scvi

from scvi_qbm.data import simulate
from scvi_qbm.model import QBMVI

PARTS = ["data", "model", "prior", "training", "train", "held_out", "negative_phase"]


@pytest.fixture(scope="module")
def adata():
    adata = simulate(n_cells=200, n_genes=40, n_types=3, n_batches=2, seed=0)
    adata.obs["depth"] = np.log(adata.obs["library_size"])
    return adata


def make(adata, **kwargs):
    scvi.settings.seed = 0
    QBMVI.setup_anndata(
        adata, layer="counts", batch_key="batch", continuous_covariate_keys=["depth"]
    )
    return QBMVI(adata, **({"n_latent": 6, "n_hidden": 16} | kwargs))


@pytest.fixture(scope="module")
def trained(adata):
    model = make(adata)
    model.train(max_epochs=3, enable_progress_bar=False)
    return model


def test_before_training(adata, capsys):
    model = make(adata, n_layers=2, relaxation_beta=3.0)
    out = model.summary()
    assert (
        isinstance(out, pd.Series) and list(dict.fromkeys(out.index.get_level_values(0))) == PARTS
    )
    assert out["data"].to_dict() == {
        "cells": 200, "genes": 40, "batches": 2, "labels": 1, "categorical_covariates": 0,
        "continuous_covariates": 1, "layer": "counts", "minified": False,
    }  # fmt: skip
    assert out["model"].to_dict() == {
        "recipe": "default", "n_latent": 6, "n_hidden": 16, "n_layers": 2, "dropout_rate": 0.1,
        "n_parameters": sum(p.numel() for p in model.module.parameters()),
        "relaxation": "spike_exponential",
        "relaxation_beta": 3.0, "gene_likelihood": "nb",
        "dispersion": "gene", "library": "observed",
    }  # fmt: skip
    sampler = model.module.negative_phase.sampler
    prior = out["prior"].to_dict()
    assert math.isclose(prior.pop("log_z"), 6 * math.log(2), rel_tol=1e-6)
    assert prior == {
        "kind": "boltzmann", "units": 6, "sampler": "parallel_tempering", "guarantee": "mcmc",
        "n_chains": sampler.n_chains, "n_sweeps": sampler.n_sweeps, "frozen": False,
        "strongest_coupling": 0.0, "log_z_se": 0.0,
    }  # fmt: skip
    assert out["training"].to_dict() == {
        "trained": False, "epochs": 0, "best_epoch": None, "cells": None,
        "cells_held_out": None, "device": "cpu",
    }  # fmt: skip
    assert out["train"].isna().all() and out["held_out"].isna().all()
    assert out["negative_phase", "verdict"] == "no report yet"
    shown = capsys.readouterr().out
    assert "parallel_tempering" in shown and "elbo" not in shown


def test_after_training(trained, capsys):
    out = trained.summary(silent=True)
    assert capsys.readouterr().out == ""
    history = {name: float(frame.iloc[-1, 0]) for name, frame in trained.history.items()}
    best = int(history["best_epoch"])
    bound = ("elbo", "reconstruction_loss", "kl_local")
    for name in (f"{part}_{end}" for part in bound for end in ("train", "validation")):
        history[name] = float(trained.history[name].loc[best].iloc[0])
    for part, end in (("train", "train"), ("held_out", "validation")):
        assert out[part].to_dict() == {
            "elbo": -history[f"elbo_{end}"],
            "reconstruction": history[f"reconstruction_loss_{end}"],
            "kl": history[f"kl_local_{end}"],
        }
        total = out[part, "reconstruction"] + out[part, "kl"]
        assert math.isclose(-out[part, "elbo"], total, rel_tol=1e-5)
    assert out["training"].to_dict() == {
        "trained": True, "epochs": 3, "best_epoch": best, "cells": len(trained.train_indices),
        "cells_held_out": len(trained.validation_indices), "device": "cpu",
    }  # fmt: skip
    log_z = trained.get_log_partition()
    assert (out["prior", "log_z"], out["prior", "log_z_se"]) == tuple(log_z)
    assert out["prior", "strongest_coupling"] == np.abs(trained.prior.W).max() > 0
    phase = out["negative_phase"]
    for name in ("energy_gap", "energy_gap_se", "log_z_drift", "n_levels"):
        assert phase[name] == history[name]
    assert phase["verdict"].startswith("the prior's chains mix: energy gap")
    trained.summary()
    shown = capsys.readouterr().out
    assert f"{-history['elbo_validation']:,.2f}" in shown and "chains mix" in shown


def test_a_bad_reports_phase_is_called_so(trained, monkeypatch):
    def verdict(*gaps):
        index = trained.history["log_z"].index[-len(gaps) :]
        gap = pd.DataFrame({"energy_gap": gaps}, index=index)
        monkeypatch.setattr(trained, "history_", trained.history | {"energy_gap": gap})
        return trained.summary(silent=True)["negative_phase", "verdict"]

    assert verdict(20.0, 9.0, 17.3).startswith("the prior's chains do not mix: energy gap +17.3")
    # As training, which warns of three in a row.
    for gaps in [(0.0, 9.0, 17.3), (9.0, 17.3)]:
        assert verdict(*gaps).startswith("in doubt, which may be noise: energy gap +17.3")
    assert verdict(20.0, 9.0, 0.0).startswith("the prior's chains mix")


def test_it_survives_saving_and_says_when_data_are_minified(trained, tmp_path):
    trained.save(tmp_path / "model", save_anndata=True)
    loaded = QBMVI.load(tmp_path / "model")
    before = trained.summary(silent=True)
    pd.testing.assert_series_equal(loaded.summary(silent=True), before)
    mean, variance = loaded.get_latent_representation(return_dist=True)
    loaded.adata.obsm["X_latent_qzm"], loaded.adata.obsm["X_latent_qzv"] = mean, variance
    loaded.minify_adata()
    assert loaded.summary(silent=True)["data", "minified"] is True


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"prior": "bernoulli"}, {"kind": "bernoulli", "sampler": None, "n_chains": None}),
        ({"sampler": "exact"}, {"sampler": "exact", "guarantee": "exact", "n_sweeps": None}),
        (
            {"sampler": "cim"},
            {"sampler": "cim", "guarantee": "heuristic, followed by Gibbs sweeps"},
        ),
    ],
)
def test_other_priors_and_samplers(adata, options, wanted):
    out = make(adata, **options).summary(silent=True)
    prior = out["prior"].to_dict()
    assert {name: prior[name] for name in wanted} == wanted
    exact = out["negative_phase", "verdict"] == "exact: units without couplings need no samples"
    assert exact == (prior["kind"] == "bernoulli")


def test_a_mapped_query_has_a_frozen_machine(trained, adata):
    query = adata[:50].copy()
    query.obs["batch"] = "new"
    out = QBMVI.load_query_data(query, trained).summary(silent=True)
    assert out["prior", "frozen"] is True and out["data", "cells"] == 50
    assert out["train"].isna().all() and out["training", "epochs"] == 0
    assert out["negative_phase", "verdict"] == "no report: the prior is frozen"


def test_without_adata_of_its_own(trained):
    model = QBMVI(registry=trained.registry, n_latent=6, n_hidden=16)
    out = model.summary(silent=True)
    assert (out["data", "genes"], out["data", "minified"]) == (40, False)
