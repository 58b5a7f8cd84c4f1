"""The tables of docs/landscape.md. Run by ``make bench-landscape``.

    python benchmarks/bench_landscape.py [attractors|programs|potency|outliers|generation|limits]
                                         [--data ../shared/data] [--out landscape-output]

``attractors``: ARI with cell types at several depths, beside Leiden on QBMVI's and on SCVI's
embedding. ``programs``: markers of blood cell types among the top five genes of units, beside
NMF and LDVAE. ``potency``: rank correlation of energies with a known order of states.
``outliers``: AUROC of a cell type left out of training against held-out cells of the others.
``generation``: new cells against held-out ones, QBMVI's Boltzmann prior beside its W = 0 twin and
SCVI's N(0, I) at its own and at QBMVI's size. ``limits``: what outlier scores make of cells whose
genes were shuffled, shares of batches among generated cells, and the round trip of generated
cells to their valleys. Rows are kept as they are measured; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from anndata import AnnData, read_h5ad
from scipy import sparse
from scipy.stats import spearmanr
from scvi.model import SCVI, LinearSCVI
from sklearn.decomposition import NMF
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from scvi_qbm import QBMVI
from scvi_qbm.benchmark.config import Config, DataSpec
from scvi_qbm.benchmark.data.specs import load_data, resolve
from scvi_qbm.benchmark.methods import METHODS, MethodResult
from scvi_qbm.benchmark.methods.common import budget
from scvi_qbm.benchmark.metrics.generation import generation_scores
from scvi_qbm.benchmark.rows import Rows
from scvi_qbm.data import pbmc68k
from scvi_qbm.data.normalise import log_cp10k
from scvi_qbm.data.pbmc import PBMC_MARKERS
from scvi_qbm.landscape import find_attractors

SETS = ("pbmc_10x_3techs", "cellmix_lines_6batches_2kgenes", "paul15_myeloid")
SEEDS = (0, 1, 2)
EPOCHS = 100
CONFIG = Path(__file__).with_name("alignment.toml")  # seven sets, as docs/benchmark.md has them
DEPTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)

# Stages from least to most differentiated: Bastidas-Ponce (2019), Development 146, dev173849;
# Paul (2015), Cell 163, 1663, the erythroid course.
STAGES = {
    "pancreas_endocrinogenesis_e15": (
        "cell_type",
        ["Ductal", "Ngn3 low EP", "Ngn3 high EP", "Pre-endocrine", "Alpha Beta Delta Epsilon"],
    ),
    "paul15_myeloid": (
        "paul15_cluster",
        ["7MEP", "6Ery", "5Ery", "4Ery", "3Ery", "2Ery", "1Ery"],
    ),
}


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


def leiden(embedding: np.ndarray, seed: int) -> np.ndarray:
    """scanpy's, at its default resolution."""
    cells = AnnData(np.asarray(embedding, np.float32))
    sc.pp.neighbors(cells, use_rep="X", random_state=seed)
    sc.tl.leiden(cells, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    return cells.obs["leiden"].to_numpy()


def specs(names: Iterable[str] | None = None) -> Iterator[DataSpec]:
    for spec in Config.from_toml(CONFIG).data:
        if names is None or spec.name in names:
            yield resolve(spec)


def run(name: str, adata: AnnData, spec: DataSpec, seed: int) -> MethodResult:
    method = METHODS[name]
    epochs = budget(method.max_epochs, adata.n_obs)
    return method.run(adata, seed=seed, max_epochs=epochs, batch_key=spec.batch_key)


def attractors(rows: Rows, data: Path) -> None:
    for spec in specs():
        adata = load_data(spec)
        types = adata.obs[spec.label_key].astype(str).to_numpy()
        for seed in SEEDS:
            key = {"data": spec.name, "seed": seed}
            if key in rows:
                continue
            result = run("qbmvi", adata, spec, seed)
            row = attractor_row(result.model.prior, codes(result.model), types)
            for name, x in (
                ("qbmvi", result.embedding),
                ("scvi", run("scvi", adata, spec, seed).embedding),
            ):
                clusters = leiden(x, seed)
                row[f"n_leiden_{name}"] = len(set(clusters))
                row[f"ari_leiden_{name}"] = float(adjusted_rand_score(types, clusters))
            rows.add(key, row)


def codes(model: QBMVI, adata: AnnData | None = None) -> np.ndarray:
    return model.get_latent_representation(adata, representation="binary")


def attractor_row(machine: tuple, codes: np.ndarray, types: np.ndarray) -> dict[str, float]:
    """ARI of attractors by the least depth of a valley."""
    found = find_attractors(tuple(machine), codes)
    row: dict[str, float] = {}
    for depth in DEPTHS:
        labels = found.labels if depth == 0 else found.merged(depth)
        row[f"n_{depth:g}"] = int(labels.max()) + 1
        row[f"ari_{depth:g}"] = float(adjusted_rand_score(types, labels))
    return row


def programs(rows: Rows, data: Path) -> None:
    sets = {
        "pbmc68k": (pbmc68k(), "counts", None),
        "pbmc_10x_3techs": (read_h5ad(data / "pbmc_10x_3techs.h5ad"), None, "batch"),
    }
    for spec in specs(("pbmc_3k_4k_facs", "pbmc_kang_ctrl_8donors")):
        sets[spec.name] = (load_data(spec), None, spec.batch_key)
    for name, (adata, layer, batch_key) in sets.items():
        counts = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer])
        expressed = np.asarray((counts > 0).mean(0)).ravel() >= 0.01
        logged = log_cp10k(counts.astype(np.float32)).toarray()
        setup = {"layer": layer, "batch_key": batch_key}
        for seed in SEEDS:
            factors = {"QBMVI": partial(qbmvi_programs, adata, setup, seed)}
            peers = adata.n_obs < 2000 or seed == 0
            for n in (7, 10, 20, 64) if peers else ():
                factors[f"NMF, {n}"] = partial(nmf, logged, expressed, n, seed)
            for n in (10, 64) if peers else ():
                factors[f"LDVAE, {n}"] = partial(ldvae, adata, setup, n, seed)
            for method, found in factors.items():
                key = {"data": name, "model": method, "seed": seed}
                if key not in rows:
                    rows.add(key, recovery(found(), adata.var_names, expressed))


def qbmvi_programs(adata: AnnData, setup: dict, seed: int) -> np.ndarray:
    scvi.settings.seed = seed
    data = adata.copy()
    QBMVI.setup_anndata(data, **setup)
    model = QBMVI(data)
    model.train(enable_progress_bar=False)
    return model.get_gene_programs().to_numpy()


def nmf(logged: np.ndarray, expressed: np.ndarray, n: int, seed: int) -> np.ndarray:
    """As cNMF: counts per 10,000 scaled by gene, without its consensus over restarts."""
    x = np.expm1(logged) * expressed
    x /= x.std(0) + 1e-9
    return NMF(n, init="nndsvda", random_state=seed, max_iter=300).fit(x).components_


def ldvae(adata: AnnData, setup: dict, n: int, seed: int) -> np.ndarray:
    scvi.settings.seed = seed
    data = adata.copy()
    LinearSCVI.setup_anndata(data, **setup)
    model = LinearSCVI(data, n_latent=n)
    model.train(
        max_epochs=250,
        early_stopping=True,
        plan_kwargs={"lr": 5e-3},  # scvi-tools' tutorial on LDVAE
        enable_progress_bar=False,
    )
    return model.get_loadings().to_numpy().T


def recovery(factors: np.ndarray, names: pd.Index, expressed: np.ndarray) -> dict[str, float]:
    """Of each type, the share of markers among the top five genes of the best factor and sign."""
    factors = np.where(expressed, np.nan_to_num(factors), 0)
    names = np.asarray(names)
    tops = [set(names[np.argsort(-sign * f)[:5]]) for f in factors for sign in (1, -1)]
    out = {}
    for kind, genes in PBMC_MARKERS.items():
        known = set(genes.split()) & set(names)
        if len(known) >= 3:
            out[kind] = max(len(known & top) for top in tops) / 5
    return out | {"mean": float(np.mean(list(out.values())))}


def potency(rows: Rows, data: Path) -> None:
    for spec in specs(STAGES):
        adata = load_data(spec)
        column, stages = STAGES[spec.name]
        labels = adata.obs[column].astype(str)
        stage = labels.map({name: i for i, group in enumerate(stages) for name in names_in(group)})
        known = stage.notna().to_numpy()
        potential = -stage[known]
        counts = sparse.csr_matrix(adata.X)

        rare = -labels.map(labels.value_counts()).to_numpy()
        row = {
            "genes_detected": correlation(np.diff(counts.indptr)[known], potential),
            "rarity": correlation(rare[known], potential),
        }
        if (key := {"data": spec.name, "model": "none", "seed": 0}) not in rows:
            rows.add(key, row)
        for seed in SEEDS:
            for name in ("qbmvi", "bernoulli"):
                key = {"data": spec.name, "model": name, "seed": seed}
                if key not in rows:
                    energy = run(name, adata, spec, seed).model.get_energy()
                    rows.add(key, {c: correlation(energy[c]) for c in ("free_energy", "entropy")})


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b)[0])


def names_in(group: str) -> list[str]:
    return [group] if "EP" in group else group.split()


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
        row["share"] = float((adata.obs["batch"] == row["rarest"]).mean())
        cells = model.generate(2000, seed=seed)
        back = codes(model, cells)
        row["share_generated"] = float((cells.obs["batch"] == row["rarest"]).mean())
        both = find_attractors(tuple(model.prior), np.vstack([cells.obsm["code"], back]))
        start, end = np.split(both.merged(1.5), 2)
        row["same_valley"] = float((start == end).mean())
        row["same_valley_by_chance"] = float((rng.permutation(start) == end).mean())
        of_b = adata.obs["cell_type"] == "B"
        row["share_of_b_cells"] = float((adata.obs["batch"][of_b] == row["rarest"]).mean())
        rows.add(key, row)


def main() -> None:
    parts = {
        "attractors": attractors,
        "programs": programs,
        "potency": potency,
        "outliers": outliers,
        "generation": generation,
        "limits": limits,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("landscape-output"))
    args = parser.parse_args()
    os.environ.setdefault("SCVI_QBM_DATA_DIR", str(args.data))
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
