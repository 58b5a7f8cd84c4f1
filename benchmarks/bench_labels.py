"""The tables of docs/labels.md. Run by ``make bench-labels``.

    python benchmarks/bench_labels.py [transfer|novelty|bound] [--sets a,b] [--seeds 0,1,2]
        [--methods "a; b"] [--data ../shared/data] [--out labels-output]

``transfer``: labels of some cells are hidden; accuracy, macro F1 and expected calibration error
on these. 10 % of the cells labelled; 50 or 10 cells a type (half of a type at most); one batch.
``novelty``: a type is left out of a reference whose other cells all have labels; AUROC of its
cells against those of the other types in the query, and how many of them are found at the
threshold that keeps 95 % of the others.
``bound``: nats a cell on held-out cells without labels, of QBMVI and of a QBMANVI that knows the
labels of half of the others.
Rows are kept as they are measured; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from label_tables import SCHEMES
from scipy import sparse
from scvi.model import SCANVI, SCVI
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from scvi_qbm import QBMANVI, QBMVI
from scvi_qbm.benchmark.config import Config, DataSpec
from scvi_qbm.benchmark.data.specs import load_data, resolve
from scvi_qbm.benchmark.methods import METHODS
from scvi_qbm.benchmark.methods.common import budget
from scvi_qbm.benchmark.methods.scvi_tools import scpoli
from scvi_qbm.benchmark.rows import Rows
from scvi_qbm.data.normalise import log_cp10k
from scvi_qbm.distributions import fast_counts
from scvi_qbm.novelty import fit_types, squared_distance

CONFIG = Path(__file__).with_name("labels.toml")
UNKNOWN, GIVEN = "unknown", "given"


def labelled(types: np.ndarray, batch: np.ndarray, scheme: str, seed: int) -> np.ndarray | None:
    """Which cells keep their labels."""
    rng = np.random.default_rng(1000 + seed)
    chosen = np.zeros(len(types), dtype=bool)
    if scheme == "10 %":
        chosen[rng.choice(len(types), max(len(types) // 10, 1), replace=False)] = True
    elif scheme == "one batch":
        names = np.unique(batch)
        if len(names) < 2:
            return None
        chosen = batch == names[seed % len(names)]
    else:
        most = int(scheme.split()[0])
        for name in np.unique(types):
            cells = np.flatnonzero(types == name)
            n = min(most, len(cells) // 2 or 1)
            chosen[rng.choice(cells, n, replace=False)] = True
    return chosen


def calibration_error(p: np.ndarray, right: np.ndarray, n_bins: int = 10) -> float:
    bins = np.clip((p * n_bins).astype(int), 0, n_bins - 1)
    gaps = [
        (bins == k).mean() * abs(p[bins == k].mean() - right[bins == k].mean())
        for k in np.unique(bins)
    ]
    return float(sum(gaps))


def scores(p: pd.DataFrame, truth: np.ndarray) -> dict[str, float]:
    found = p.columns.to_numpy()[p.to_numpy().argmax(1)].astype(str)
    right = found == truth
    return {
        "accuracy": float(right.mean()),
        "f1": float(f1_score(truth, found, average="macro", labels=np.unique(truth))),
        "ece": calibration_error(p.to_numpy().max(1), right),
    }


class Data:
    """A data set, and what is fitted to it without labels, once for all schemes."""

    def __init__(self, spec: DataSpec, seed: int) -> None:
        self.adata, self.spec, self.seed = load_data(spec), spec, seed
        self.types = self.adata.obs[spec.label_key].astype(str).to_numpy()
        one = np.zeros(self.adata.n_obs, dtype=int)
        key = spec.batch_key
        self.batch = self.adata.obs[key].astype(str).to_numpy() if key else one

    def given(self, known: np.ndarray, cells: np.ndarray | None = None) -> AnnData:
        adata = self.adata.copy()
        adata.obs[GIVEN] = np.where(known, self.types.astype(object), UNKNOWN)
        return adata if cells is None else adata[cells].copy()

    @cache  # noqa: B019 (lives as long as the data)
    def scvi(self) -> SCVI:
        return fitted_scvi(self.given(np.ones(len(self.types), bool)), self.spec, self.seed)

    @cache  # noqa: B019
    def embedding(self, name: str) -> np.ndarray:
        if name == "counts":
            x = sparse.csr_matrix(self.adata.X).astype(np.float32)
            return np.asarray(log_cp10k(x).todense())
        if name == "scVI":
            return self.scvi().get_latent_representation()
        method = METHODS[{"QBMVI": "qbmvi", "W = 0": "bernoulli", "Gaussian": "gaussian"}[name]]
        epochs = budget(method.max_epochs, self.adata.n_obs)
        key = self.spec.batch_key
        run = method.run(self.adata, batch_key=key, seed=self.seed, max_epochs=epochs)
        return run.embedding


def fitted_scvi(adata: AnnData, spec: DataSpec, seed: int) -> SCVI:
    scvi.settings.seed = seed
    SCVI.setup_anndata(adata, batch_key=spec.batch_key)
    model = SCVI(adata, gene_likelihood="nb")
    model.train(enable_progress_bar=False)
    return model


def fitted_scanvi(base: SCVI, adata: AnnData, seed: int) -> SCANVI:
    """As in scvi-tools' tutorial: an SCVI, then 20 epochs with labels."""
    scvi.settings.seed = seed
    model = SCANVI.from_scvi_model(base, UNKNOWN, labels_key=GIVEN, adata=adata)
    model.train(max_epochs=20, enable_progress_bar=False)
    return model


def fitted(cls: type[Any], adata: AnnData, spec: DataSpec, seed: int) -> Any:
    """A QBMVI, or a QBMANVI that sees the labels given."""
    scvi.settings.seed = seed
    labels = {"labels_key": GIVEN, "unlabeled_category": UNKNOWN} if cls is QBMANVI else {}
    cls.setup_anndata(adata, batch_key=spec.batch_key, **labels)
    model = cls(adata)
    model.train(enable_progress_bar=False)
    return model


def from_embedding(name: str, kind: str) -> Callable[[Data, np.ndarray], pd.DataFrame]:
    def predict(data: Data, known: np.ndarray) -> pd.DataFrame:
        x = data.embedding(name)
        if kind == "kNN":
            model = KNeighborsClassifier(min(15, int(known.sum())))
        else:
            x = StandardScaler().fit_transform(x)
            model = LogisticRegression(C=0.01 if name == "counts" else 1.0, max_iter=300, tol=1e-3)
        model.fit(x[known], data.types[known])
        return pd.DataFrame(model.predict_proba(x[~known]), columns=model.classes_)

    return predict


def by_qbmanvi(data: Data, known: np.ndarray) -> pd.DataFrame:
    model = fitted(QBMANVI, data.given(known), data.spec, data.seed)
    return model.predict(soft=True)[~known]


def by_scanvi(data: Data, known: np.ndarray) -> pd.DataFrame:
    model = fitted_scanvi(data.scvi(), data.given(known), data.seed)
    return model.predict(soft=True)[~known]


def by_scpoli(data: Data, known: np.ndarray) -> pd.DataFrame:
    epochs = budget(METHODS["scpoli"].max_epochs, data.adata.n_obs)
    adata, key = data.given(known), data.spec.batch_key
    model = scpoli(
        adata, label_key=GIVEN, batch_key=key, seed=data.seed, max_epochs=epochs, unlabeled=UNKNOWN
    ).model
    p = model.classify(model.adata, get_prob=True)[GIVEN]["weighted_distances"]
    return pd.DataFrame(p[~known], columns=list(model.cell_types_))


def by_celltypist(data: Data, known: np.ndarray) -> pd.DataFrame:
    import celltypist

    adata = AnnData(data.embedding("counts"), var=data.adata.var[[]])
    # SGD, since its other solver calls scikit-learn < 1.8 (celltypist 1.7.1).
    model = celltypist.train(
        adata[known], data.types[known], check_expression=False, n_jobs=1, use_SGD=True,
        random_state=data.seed,
    )  # fmt: skip
    return celltypist.annotate(adata[~known], model=model).probability_matrix


PREDICTORS: dict[str, Callable[[Data, np.ndarray], pd.DataFrame]] = {
    "QBMANVI": by_qbmanvi,
    "scANVI": by_scanvi,
    "regression, QBMVI": from_embedding("QBMVI", "regression"),
    "regression, W = 0": from_embedding("W = 0", "regression"),
    "regression, Gaussian": from_embedding("Gaussian", "regression"),
    "regression, scVI": from_embedding("scVI", "regression"),
    "regression, counts": from_embedding("counts", "regression"),
    "kNN, QBMVI": from_embedding("QBMVI", "kNN"),
    "kNN, scVI": from_embedding("scVI", "kNN"),
    "scPoli": by_scpoli,
    "CellTypist": by_celltypist,
}


def datasets(sets: list[str] | None, seeds: list[int]) -> Iterator[tuple[str, int, DataSpec]]:
    specs = {s.name: resolve(s) for s in Config.from_toml(CONFIG).data}
    for seed in seeds:
        for name in sets or specs:
            yield name, seed, specs[name]


def transfer(rows: Rows, sets: list[str] | None, seeds: list[int], methods: list[str]) -> None:
    for name, seed, spec in datasets(sets, seeds):
        data = None
        for scheme in SCHEMES:
            for method in methods:
                key = {"data": name, "scheme": scheme, "method": method, "seed": seed}
                if key in rows:
                    continue
                data = data or Data(spec, seed)
                known = labelled(data.types, data.batch, scheme, seed)
                if known is None:
                    continue
                start = time.process_time()
                found = scores(PREDICTORS[method](data, known), data.types[~known])
                found |= {"n_labelled": int(known.sum()), "cpu": time.process_time() - start}
                rows.add(key, found)


def doubts(data: Data, reference: np.ndarray, known: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Scores of all cells, larger for stranger ones, by models of the reference."""
    query = data.given(known)
    model = fitted(QBMANVI, data.given(known, reference), data.spec, data.seed)
    query.obs[GIVEN] = UNKNOWN
    for score in ("novelty", "entropy", "kl"):
        yield f"QBMANVI: {score}", model.get_outlier_scores(query, score=score).to_numpy()
    base = fitted_scvi(data.given(known, reference), data.spec, data.seed)
    other = fitted_scanvi(base, data.given(known, reference), data.seed)
    p = other.predict(query, soft=True).to_numpy()
    entropy = -(p * np.log(p.clip(1e-30))).sum(1)
    z = base.get_latent_representation(data.given(known))
    distance = squared_distance(z, fit_types(z[known], data.types[known].tolist()))
    yield "scANVI: entropy", entropy
    yield "scANVI: 1 - probability", 1 - p.max(1)
    yield "scVI: Mahalanobis", distance
    yield "scANVI, scVI: entropy x Mahalanobis", np.log(entropy.clip(1e-9)) + np.log(distance)


def novelty(rows: Rows, sets: list[str] | None, seeds: list[int]) -> None:
    """A third of the cells is the query; up to three types a set are left out, one at a time."""
    for name, seed, spec in datasets(sets, seeds):
        data = Data(spec, seed)
        counts = pd.Series(data.types).value_counts()
        usual = counts[(counts >= 30) & (counts <= 0.4 * len(data.types))].index[:3]
        for left_out in usual:
            key = {"data": name, "type": left_out, "seed": seed}
            if key in rows:
                continue
            new = data.types == left_out
            reference = ~new & (np.random.default_rng(seed).random(len(new)) < 2 / 3)
            query = ~reference
            row = {"n_new": int(new.sum())}
            for method, doubt in doubts(data, reference, reference):
                row[method] = float(roc_auc_score(new[query], doubt[query]))
                threshold = np.quantile(doubt[query & ~new], 0.95)
                row[f"{method}, found"] = float((doubt[new] > threshold).mean())
            rows.add(key, row)


def bound(rows: Rows, sets: list[str] | None, seeds: list[int]) -> None:
    """On a fifth of the cells, whose labels no model has seen."""
    for name, seed, spec in datasets(sets, seeds):
        if {"data": name, "seed": seed} in rows:
            continue
        data = Data(spec, seed)
        order = np.random.default_rng(seed).permutation(len(data.types))
        outside, some = order[: len(order) // 5], order[: 3 * len(order) // 5]
        known = np.ones(len(order), dtype=bool)
        known[some] = False
        adata = data.given(known, np.setdiff1d(order, outside))
        held_out = data.given(known, np.sort(outside))
        row = {}
        for cls in (QBMVI, QBMANVI):
            model = fitted(cls, adata, spec, seed)
            row[cls.__name__] = float(model.get_elbo(held_out))
            row[f"{cls.__name__}, ll"] = float(model.get_marginal_ll(held_out, n_mc_samples=100))
        rows.add({"data": name, "seed": seed}, row)


def main() -> None:
    parts: dict[str, Any] = {"transfer": transfer, "novelty": novelty, "bound": bound}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []])
    parser.add_argument("--sets", type=lambda x: x.split(","))
    parser.add_argument(
        "--seeds", type=lambda x: [int(s) for s in x.split(",")], default=[0, 1, 2]
    )
    parser.add_argument("--methods", type=lambda x: x.split("; "), default=[*PREDICTORS])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("labels-output"))
    args = parser.parse_args()
    parts["transfer"] = partial(transfer, methods=args.methods)
    os.environ.setdefault("SCVI_QBM_DATA_DIR", str(args.data))
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for part in args.parts or parts:
        rows = Rows(args.out, part)
        with fast_counts():
            parts[part](rows, args.sets, args.seeds)
        frame = rows.frame()
        frame.to_csv(args.out / f"{part}.csv", index=False)
        print(f"### {part}\n\n{mean_table(frame)}\n")


def mean_table(frame: pd.DataFrame) -> str:
    """Means over seeds and types, by data set (and method), and over all sets."""
    if "method" in frame:
        means = frame.groupby(["data", "scheme", "method"], sort=False).mean(numeric_only=True)
        return means.drop(columns="seed").round(3).to_string()
    by_set = frame.groupby("data", sort=False).mean(numeric_only=True).drop(columns="seed")
    return pd.concat([by_set, by_set.mean().to_frame("mean").T]).round(3).T.to_string()


if __name__ == "__main__":
    main()
