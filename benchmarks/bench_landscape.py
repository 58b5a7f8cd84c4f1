"""The tables of docs/landscape.md. Run by ``make bench-landscape``.

    python benchmarks/bench_landscape.py [outliers|generation|attractors|limits]
                                         [--data ../shared/data] [--out landscape-output]

``outliers``: AUROC of a cell type left out of training against held-out cells of the others.
``generation``: new cells against held-out ones, QBMVI's Boltzmann prior beside its W = 0 twin and
SCVI's N(0, I) at its own and at QBMVI's size. ``attractors``: ARI with cell types, beside Leiden.
``limits``: what outlier scores make of cells whose genes were shuffled, and the shares of batches
among generated cells. Rows are kept as they are measured; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from anndata import AnnData, read_h5ad
from scvi.model import SCVI
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from scvi_qbm import QBMVI
from scvi_qbm.benchmark.methods import METHODS
from scvi_qbm.benchmark.metrics.generation import generation_scores
from scvi_qbm.benchmark.rows import Rows

SETS = ("pbmc_10x_3techs", "cellmix_lines_6batches_2kgenes", "paul15_myeloid")
SEEDS = (0, 1, 2)
EPOCHS = 100


def scvi_default(adata: AnnData, seed: int) -> SCVI:
    scvi.settings.seed = seed
    data = adata.copy()
    SCVI.setup_anndata(data, batch_key="batch")
    model = SCVI(data, gene_likelihood="nb")
    # Its own warm-up of 400 epochs would leave the KL weight at a quarter.
    model.train(
        max_epochs=EPOCHS,
        early_stopping=True,
        plan_kwargs={"n_epochs_kl_warmup": 20},
        enable_progress_bar=False,
    )
    return model


def models(adata: AnnData, seed: int) -> dict:
    common = {"batch_key": "batch", "seed": seed, "max_epochs": EPOCHS}
    return {
        "QBMVI": lambda: METHODS["qbmvi"].run(adata, **common).model,
        "QBMVI, W = 0": lambda: METHODS["bernoulli"].run(adata, **common).model,
        "SCVI": lambda: scvi_default(adata, seed),
        "SCVI, QBMVI's size and optimiser": lambda: METHODS["gaussian"].run(adata, **common).model,
    }


@torch.inference_mode()
def losses(model: SCVI, adata: AnnData) -> dict[str, np.ndarray]:
    kl, reconstruction = [], []
    for tensors in model._make_data_loader(adata=model._validate_anndata(adata)):
        out = model.module(tensors)[2]
        kl.append(sum(out.kl_local.values()).cpu())
        reconstruction.append(next(iter(out.reconstruction_loss.values())).cpu())
    kl, reconstruction = (torch.cat(x).numpy() for x in (kl, reconstruction))
    return {"elbo": kl + reconstruction, "kl": kl, "reconstruction": reconstruction}


def outliers(rows: Rows, data: Path) -> None:
    for name in SETS:
        adata = read_h5ad(data / f"{name}.h5ad")
        counts = adata.obs["cell_type"].value_counts()
        usual = counts[(counts >= 30) & (counts <= 0.4 * adata.n_obs)].index[:3]
        for left_out in usual:
            strange = (adata.obs["cell_type"] == left_out).to_numpy()
            for model_name in ("QBMVI", "SCVI", "SCVI, QBMVI's size and optimiser"):
                key = {"data": name, "type": str(left_out), "model": model_name}
                if key in rows:
                    continue
                model = models(adata[~strange].copy(), 0)[model_name]()
                usual_cells = model.adata[model.validation_indices].copy()
                usual_cells = adata[usual_cells.obs_names].copy()
                a = losses(model, usual_cells)
                b = losses(model, adata[strange].copy())
                y = np.repeat([0, 1], [len(a["kl"]), len(b["kl"])])
                scores = {k: float(roc_auc_score(y, np.concatenate([a[k], b[k]]))) for k in a}
                rows.add(key, scores | {"n_outliers": int(strange.sum())})


@torch.inference_mode()
def from_gaussian(model: SCVI, n_cells: int, seed: int) -> np.ndarray:
    """SCVI's N(0, I), decoded as QBMVI.generate does: depth and batch by q(z | x)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    mean, variance = (
        torch.from_numpy(x).double() for x in model.get_latent_representation(return_dist=True)
    )
    z = torch.randn(n_cells, mean.shape[1], dtype=torch.float64)
    precision = 1 / variance
    log_q = -0.5 * (z**2 @ precision.T - 2 * z @ (mean * precision).T)
    log_q -= 0.5 * (mean**2 * precision + variance.log()).sum(1)
    weights = torch.softmax(log_q, 1).cumsum(1).numpy()
    templates = (weights < rng.random(n_cells)[:, None] * weights[:, -1:]).sum(1)
    out = []
    loader = model._make_data_loader(adata=model.adata, indices=templates, batch_size=256)
    for tensors, part in zip(loader, z.float().split(256), strict=True):
        inference = model.module.inference(**model.module._get_inference_input(tensors))
        inputs = model.module._get_generative_input(tensors, inference | {"z": part})
        out.append(model.module.generative(**inputs)["px"].sample().cpu().numpy())
    return np.concatenate(out)


def generation(rows: Rows, data: Path) -> None:
    for name in SETS:
        whole = read_h5ad(data / f"{name}.h5ad")
        for seed in SEEDS:
            order = np.random.default_rng(seed).permutation(whole.n_obs)
            n_test = min(2000, whole.n_obs // 5)
            test, train = whole[order[:n_test]].copy(), whole[order[n_test:]].copy()
            key = {"data": name, "seed": seed, "model": "training cells"}
            if key not in rows:
                rows.add(key, generation_scores(test.X, train.X[:n_test]))
            for model_name, fit in models(train, seed).items():
                key = {"data": name, "seed": seed, "model": model_name}
                if key in rows:
                    continue
                model = fit()
                if isinstance(model, QBMVI):
                    made = model.generate(n_test, seed=seed).X
                else:
                    made = from_gaussian(model, n_test, seed)
                rows.add(key, generation_scores(test.X, made))


def attractors(rows: Rows, data: Path) -> None:
    for name in SETS:
        adata = read_h5ad(data / f"{name}.h5ad")
        types = adata.obs["cell_type"].astype(str).to_numpy()
        for seed in SEEDS:
            key = {"data": name, "seed": seed}
            if key in rows:
                continue
            model = models(adata, seed)["QBMVI"]()
            out = model.get_attractors(barriers=False)
            row = {
                "n_attractors": len(out.sizes),
                "ari": float(adjusted_rand_score(types, out.labels)),
            }
            if len(out.sizes) <= 2000:
                out = model.get_attractors()
                for barrier in (1.0, 2.0, 4.0, 8.0):
                    merged = out.merged(barrier)
                    row[f"n_merged_{barrier:g}"] = int(merged.max() + 1)
                    row[f"ari_merged_{barrier:g}"] = float(adjusted_rand_score(types, merged))
            frame = AnnData(model.get_latent_representation())
            sc.pp.neighbors(frame, use_rep="X", random_state=seed)
            sc.tl.leiden(frame, flavor="igraph", n_iterations=2, random_state=seed)
            row["n_leiden"] = int(frame.obs["leiden"].nunique())
            row["ari_leiden"] = float(adjusted_rand_score(types, frame.obs["leiden"]))
            energy = model.get_energy()["free_energy"].to_numpy()
            rare = pd.Series(types).map(pd.Series(types).value_counts()).to_numpy()
            row["rank_correlation_energy_rarity"] = float(
                pd.Series(energy).corr(pd.Series(-rare), method="spearman")
            )
            rows.add(key, row)


def limits(rows: Rows, data: Path) -> None:
    name = SETS[0]
    adata = read_h5ad(data / f"{name}.h5ad")
    for seed in SEEDS:
        key = {"data": name, "seed": seed}
        if key in rows:
            continue
        model = models(adata, seed)["QBMVI"]()
        real = adata[model.validation_indices].copy()
        noise = real.copy()
        rng = np.random.default_rng(seed)
        noise.X = np.stack([rng.permutation(row) for row in real.X.toarray()])
        a, b = losses(model, real), losses(model, noise)
        y = np.repeat([0, 1], real.n_obs)
        row = {f"auroc_{k}": float(roc_auc_score(y, np.concatenate([a[k], b[k]]))) for k in a}
        row |= {"rarest": adata.obs["batch"].value_counts().idxmin()}
        made = model.generate(2000, seed=seed).obs["batch"].astype(str)
        row["share"] = float((adata.obs["batch"] == row["rarest"]).mean())
        row["share_generated"] = float((made == row["rarest"]).mean())
        of_b = adata.obs["cell_type"] == "B"
        row["share_of_b_cells"] = float((adata.obs["batch"][of_b] == row["rarest"]).mean())
        rows.add(key, row)


def main() -> None:
    parts = {
        "outliers": outliers,
        "generation": generation,
        "attractors": attractors,
        "limits": limits,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("landscape-output"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for part in args.parts or parts:
        rows = Rows(args.out, part)
        parts[part](rows, args.data)
        frame = rows.frame()
        frame.to_csv(args.out / f"{part}.csv", index=False)
        groups = [c for c in ("data", "model") if c in frame]
        print(f"### {part}\n{frame.groupby(groups, sort=False).mean(numeric_only=True).round(3)}")


if __name__ == "__main__":
    main()
