"""The experiments behind docs/evidence.md: variants of QBMVI on the development sets.

    SCVI_QBM_DATA_DIR=... python benchmarks/explore.py pbmc_10x_3techs --out explore.jsonl \
        --variants beta_0.5 beta_5 gaussian --seeds 0 1 --views

Rows are appended as they are ready, and those that are there are not run again. ``--views`` scores
several functions of one trained model's logits. ``--csv FILE`` writes all rows as a table.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import prototypes
import torch
from sklearn.decomposition import PCA

from scvi_qbm.benchmark.config import Config
from scvi_qbm.benchmark.data.specs import load_data, resolve
from scvi_qbm.benchmark.likelihood import held_out_likelihood
from scvi_qbm.benchmark.methods import MethodResult, gaussian_twin, qbmvi
from scvi_qbm.benchmark.methods import vae as _vae
from scvi_qbm.benchmark.scores import Reference, prepare_reference, score_embedding
from scvi_qbm.mixture import mean_field

GROUPS = ("scib", "scgraph", "clustering", "classify", "trajectory")
SCORES = (
    "scib_total", "scib_bio", "scib_batch", "nmi", "ari", "scgraph", "xgb_f1", "knn_f1", "lobo_f1",
    "trajectory",
)  # fmt: skip
HISTORY = ("kl_local_validation", "energy_gap", "log_z_drift")
Variant = tuple[Callable[..., MethodResult], dict[str, Any]]


def of(model: type, options: dict[str, float] | None = None, **kwargs: Any) -> Variant:
    """QBMVI's benchmark method with another model in QBMVI's place."""

    def run(*args: Any, **more: Any) -> MethodResult:
        with (
            mock.patch.object(_vae, "QBMVI", model),
            mock.patch.object(model._module_cls, "options", options or {}),
        ):
            return qbmvi(*args, **more)

    return run, kwargs


def plan(**kwargs: Any) -> dict[str, Any]:
    return {"train_kwargs": {"plan_kwargs": kwargs}}


def forget_faster(model: Any) -> None:
    """Batch norm with torch's momentum in the place of scvi-tools' 0.01."""
    for layer in model.module.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.momentum = 0.1


_decay = {
    "reduce_lr_on_plateau": True, "lr_factor": 0.5, "lr_patience": 4,
    "lr_scheduler_metric": "elbo_validation",
}  # fmt: skip
_averaged = {"train_kwargs": {"weight_averaging": True}}
_no_batch_norm = {"use_batch_norm": "none"}
_squashed, _half = prototypes.SquashedCodes, {"relaxation_beta": 0.5}
_codes = {"latent_distribution": "normal"}
VARIANTS: dict[str, Variant] = {
    **{
        f"beta_{beta:g}{f'_{n}' if n != 64 else ''}{'_W0' if prior == 'bernoulli' else ''}": (
            qbmvi, {"relaxation_beta": beta, "n_latent": n, "prior": prior},
        )
        for beta in (0.1, 0.5, 1.0, 2.0, 3.0, 5.0)
        for n in (32, 64, 128)
        for prior in ("boltzmann", "bernoulli")
    },
    "gaussian": (gaussian_twin, {}),
    "beta_1_bm_lr_0.005": (qbmvi, {"relaxation_beta": 1.0} | plan(bm_lr=5e-3)),
    "beta_1_encode_batch": (qbmvi, {"relaxation_beta": 1.0, "encode_covariates": True}),
    "beta_0.5_two_layers": (qbmvi, _half | {"n_layers": 2}),
    "beta_0.5_lr_decay": (
        qbmvi,
        _half | {"train_kwargs": {"plan_kwargs": _decay, "early_stopping_patience": 15}},
    ),
    "beta_0.5_batch_norm_0.1": (qbmvi, _half | {"on_model": forget_faster}),
    "gaussian_batch_norm_0.1": (gaussian_twin, {"on_model": forget_faster}),
    "overlapping_2": (
        qbmvi, {"relaxation": "overlapping_exponential", "relaxation_beta": 2.0}
    ),
    "hard": (qbmvi, {"relaxation": "hard"}),
    "hard_128": (qbmvi, {"relaxation": "hard", "n_latent": 128}),
    "codes": (qbmvi, _codes),
    "codes_W0": (qbmvi, _codes | {"prior": "bernoulli"}),
    "codes_32": (qbmvi, _codes | {"n_latent": 32}),
    "codes_128": (qbmvi, _codes | {"n_latent": 128}),
    "codes_bm_lr_0.005": (qbmvi, _codes | plan(bm_lr=5e-3)),
    "codes_apart": of(_squashed, {"separation": 2.0}, **_codes),
    "codes_close": of(_squashed, {"separation": 0.5, "sd": 0.9}, **_codes),
    "codes_squashed": of(
        _squashed, {"squash": 1.0, "separation": 2.0, "sd": 1.0}, **_codes
    ),
    "codes_squashed_2": of(_squashed, {"squash": 2.0}, **_codes),
    "codes_squashed_W0": of(
        _squashed, {"squash": 1.0, "separation": 2.0, "sd": 1.0}, **_codes, prior="bernoulli"
    ),
    "mean_field": of(prototypes.MeanFieldCodes, **_half),
    "grouped_2": of(prototypes.GroupedCodes, {"groups": 2}, **_half),
    "grouped_4": of(prototypes.GroupedCodes, {"groups": 4}, **_half),
    "beta_0.5_encode_batch": (qbmvi, _half | {"encode_covariates": True}),
    "chains_128": (qbmvi, _half | {"sampler_options": {"n_chains": 128}}),
    "chains_256": (qbmvi, _half | {"sampler_options": {"n_chains": 256}}),
    "chains_128_bm_lr_0.002": (
        qbmvi, _half | {"sampler_options": {"n_chains": 128}} | plan(bm_lr=2e-3),
    ),
    "slow_400": (qbmvi, {"recipe": "long", "max_epochs": 400}),
    "sloped": of(prototypes.SlopedCodes, **_half),
    "sloped_4": of(prototypes.SlopedCodes, {"bound": 4.0}, **_half),
    "sloped_W0": of(prototypes.SlopedCodes, **_half, prior="bernoulli"),
    "hybrid_8": of(prototypes.HybridCodes, {"beside": 8}, **_half),
    "hybrid_2": of(prototypes.HybridCodes, {"beside": 2}, **_half),
    "depth_2000": of(prototypes.ChangedInput, {"depth": 2000.0}, **_half),
    "mask_0.2": of(prototypes.ChangedInput, {"mask": 0.2}, **_half),
    "shallow_0.7": of(prototypes.ChangedInput, {"shallow": 0.7}, **_half),
    "dropout_0.2": (qbmvi, _half | {"dropout_rate": 0.2}),
    "layer_norm": (qbmvi, _half | _no_batch_norm | {"use_layer_norm": "both"}),
    "layer_norm_encoder": (
        qbmvi, _half | {"use_batch_norm": "decoder", "use_layer_norm": "encoder"}
    ),
    "layer_norm_decoder": (
        qbmvi, _half | {"use_batch_norm": "encoder", "use_layer_norm": "decoder"}
    ),
    "layer_norm_two_layers": (
        qbmvi, _half | _no_batch_norm | {"use_layer_norm": "both", "n_layers": 2}
    ),
    "additive": of(prototypes.AdditiveCodes, **_half),
    "additive_slow": of(
        prototypes.AdditiveCodes, **_half, recipe="long", max_epochs=400
    ),
    "gaussian_kernel_3": (qbmvi, {"relaxation": "gaussian_kernel", "relaxation_beta": 3.0}),
    "power_kernel_3": (qbmvi, {"relaxation": "power_kernel", "relaxation_beta": 3.0}),
    "hidden_64": of(prototypes.HiddenCodes, {"hidden": 64}, **_half, relaxation="hidden"),
    "hidden_64_alone": of(
        prototypes.HiddenCodes, {"hidden": 64, "beside": 0}, **_half, relaxation="hidden"
    ),
    **{
        f"beta_{start:g}_to_{stop:g}": (
            qbmvi, {"train_kwargs": {"callbacks": [prototypes.AnnealedBeta(start, stop)]}}
        )
        for start, stop in ((0.2, 2.0), (3.0, 0.5))
    },
    "bm_decay_0.01": (qbmvi, _half | plan(bm_weight_decay=1e-2)),
    "disarm": of(prototypes.DisArmCodes, relaxation="hard"),
    "averaged": (qbmvi, _half | _averaged),
    "gaussian_averaged": (gaussian_twin, _averaged),
    **{
        f"cycle_{weight:g}": of(prototypes.CycleCodes, {"weight": weight}, **_half)
        for weight in (2.0, 10.0)
    },
    **{
        f"aligned_{weight:g}{f'_{width:g}' if width else ''}": of(
            prototypes.AlignedCodes, {"weight": weight, "width": width}, **_half
        )
        for weight, width in (
            (10.0, 0.0), (40.0, 0.0), (40.0, 0.05), (40.0, 0.1), (160.0, 0.1), (160.0, 0.2),
        )
    },
    **{
        f"importance_{name}": of(prototypes.ImportanceCodes, options, **_half)
        for name, options in {
            "1": {"samples": 1},
            "8": {"samples": 8},
            "8_wake": {"samples": 8, "wake": 0.5},
            "1_decoder": {"samples": 1, "machine": 0.0},
            "8_decoder": {"samples": 8, "machine": 0.0},
        }.items()
    },
    "centred": of(prototypes.CentredCodes, **_half),
    "zinb": (qbmvi, _half | {"gene_likelihood": "zinb"}),
    "slow_400_256": (qbmvi, {"recipe": "long", "max_epochs": 400, "n_latent": 256}),
    "mean_field_2": of(prototypes.MeanFieldCodes, {"passes": 2, "damping": 0.0}, **_half),
}  # fmt: skip


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def components(x: np.ndarray, n: int, *, whiten: bool = False) -> np.ndarray:
    return PCA(n, whiten=whiten, svd_solver="full").fit_transform(x)


def pulled(model: Any, evidence: np.ndarray, strength: float) -> np.ndarray:
    """Posterior of the evidence under the prior to the power of ``strength``, by mean field."""
    prior = model.module.prior
    weaker = SimpleNamespace(local_field=lambda z: strength * prior.local_field(z))
    return sigmoid(mean_field(weaker, torch.from_numpy(evidence), passes=200).numpy())


def views(model: Any) -> dict[str, np.ndarray]:
    """Functions of the logits, by name."""
    logits = model.get_latent_representation(representation="logits")
    q = sigmoid(logits)
    W, h = model.prior
    field = h + q @ W
    layer, norm = model.module.decoder.px_decoder.fc_layers[0][:2]
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
    seen = (layer.weight.detach().numpy()[:, : q.shape[1]] * scale[:, None]).T
    return {
        "probabilities": q,
        "logits": logits,
        "logits within 3": np.clip(logits, -3, 3),
        "sigmoid(logits / 3)": sigmoid(logits / 3),
        "arcsin sqrt": np.arcsin(np.sqrt(q)),
        "local field": -field,
        "as the decoder sees it": q @ seen,
        "principal components of probabilities": components(q, 20),
        "principal components of probabilities, whitened": components(q, 20, whiten=True),
        "evidence": sigmoid(logits + field),
        "evidence log-odds": logits + field,
        "evidence within 3": np.clip(logits + field, -3, 3),
        "half the field taken out": sigmoid(logits + field / 2),
        "mean of probabilities and evidence": (q + sigmoid(logits + field)) / 2,
        "evidence, as the decoder sees it": sigmoid(logits + field) @ seen,
        **{
            f"posterior under the prior to the power of {strength:g}": pulled(
                model, logits + field, strength
            )
            for strength in (0.25, 0.5, 0.75, 0.9, 1.25)
        },
        "posterior under the prior to the power of 4 / largest eigenvalue of -W": pulled(
            model, logits + field, 4 / float(np.linalg.eigvalsh(-W).max())
        ),
    }


def scored(embedding: np.ndarray, reference: Reference, seed: int) -> dict[str, float]:
    scores, _ = score_embedding(
        embedding.astype(np.float32), reference, groups=GROUPS, seed=seed, n_jobs=1
    )
    return {name: scores[name] for name in SCORES if name in scores}


def measure(
    name: str,
    adata: Any,
    batch_key: str | None,
    reference: Reference,
    seed: int,
    wanted: list[str] | None,
) -> list[dict[str, Any]]:
    run, kwargs = VARIANTS[name]
    kwargs = dict(kwargs)
    train = kwargs.pop("train_kwargs", {}) | {"enable_progress_bar": False}
    budget = kwargs.pop("max_epochs", 100)
    started = time.process_time()
    result = run(
        adata, batch_key=batch_key, seed=seed, max_epochs=budget, train_kwargs=train, **kwargs
    )
    model, history = result.model, result.model.history
    row = {"view": "", "cpu_seconds": time.process_time() - started}
    row |= {"validation_elbo": result.validation_elbo, "epochs": len(history["elbo_train"])}
    row |= held_out_likelihood(model)
    row |= {key: float(history[key].iloc[-1, 0]) for key in HISTORY if key in history}
    rows = [row | scored(result.embedding, reference, seed)]
    if wanted is not None:
        rows += [
            {"view": view} | scored(x, reference, seed)
            for view, x in views(model).items()
            if not wanted or view in wanted
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*", help="names of benchmarks/shared.toml")
    parser.add_argument("--variants", nargs="+", default=[], choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--views", nargs="*", metavar="VIEW", help="names, or all")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    config = Config.from_toml(Path(__file__).parent / "shared.toml")
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    done = {(r["data"], r["variant"], r["seed"]) for r in map(json.loads, lines)}
    for data in args.data:
        spec = resolve(config.spec(data))
        adata = load_data(spec)
        keys = ("batch_key", "label_key", "fine_label_key", "root_key", "root_label")
        reference = prepare_reference(
            adata, layer=None, **{key: getattr(spec, key) for key in keys}
        )
        for seed in args.seeds:
            for name in args.variants:
                if (data, name, seed) in done:
                    continue
                rows = measure(name, adata, spec.batch_key, reference, seed, args.views)
                with args.out.open("a") as file:
                    for row in rows:
                        key = {"data": data, "variant": name, "seed": seed}
                        file.write(json.dumps(key | row) + "\n")
                print(data, name, seed, {k: rows[0].get(k) for k in ("validation_elbo", *SCORES)})
    if args.csv is not None:
        rows = [json.loads(line) for line in args.out.read_text().splitlines()]
        pd.DataFrame(rows).round(4).to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
