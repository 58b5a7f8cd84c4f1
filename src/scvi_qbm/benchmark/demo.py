"""The demo: 700 real cells, nine tenths of their labels hidden, in two or three minutes."""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from anndata import AnnData
from numpy.typing import NDArray
from scvi.model import SCVI
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier

from scvi_qbm import pl, tl
from scvi_qbm._files import replacing
from scvi_qbm.benchmark.report.html import join, page, picture, table, tag
from scvi_qbm.data import pbmc68k
from scvi_qbm.model import QBMANVI

UNKNOWN = "Unknown"
_WHAT = "One cell in ten kept its label. QBMANVI saw the counts of all, and predicts the others."


def run_demo(out: Path, seed: int = 0, max_epochs: int | None = None) -> str:
    """Train on cells of which one in ten has a label, predict the others, draw and report.

    Everything goes to ``out``. ``max_epochs`` is the models' own if None.
    """
    matplotlib.use("Agg")
    out.mkdir(parents=True, exist_ok=True)
    adata = pbmc68k()
    types = adata.obs["cell_type"].astype(str).to_numpy()
    known = one_in_ten(types, seed)
    adata.obs["known"] = np.where(known, types, UNKNOWN)
    print(f"{adata.n_obs} blood cells; {known.sum()} keep their label, the others lose it.")

    print("QBMANVI: cell types are units of the Boltzmann prior.")
    scvi.settings.seed = seed
    started = time.perf_counter()
    QBMANVI.setup_anndata(adata, "known", UNKNOWN, layer="counts")
    model = QBMANVI(adata)
    model.train(max_epochs=max_epochs or 100)
    tl.predict(model)
    seconds = {"QBMANVI": time.perf_counter() - started}
    for tool in (tl.latent, tl.energy, tl.attractors):
        tool(model)
    sc.pp.neighbors(adata, use_rep="X_qbmvi", random_state=seed)
    sc.tl.umap(adata, random_state=seed)

    guesses = {"QBMANVI": adata.obs["predicted_label"].astype(str).to_numpy()}
    for name, guess in (("PCA, logistic regression", by_pca), ("scVI, 5 neighbours", by_scvi)):
        print(f"{name}: for comparison.")
        started = time.perf_counter()
        guesses[name] = guess(adata, types, known, seed, max_epochs)
        seconds[name] = time.perf_counter() - started
    hidden = ~known
    scores = pd.DataFrame(
        {
            "accuracy": [accuracy_score(types[hidden], g[hidden]) for g in guesses.values()],
            "macro F1": [
                f1_score(types[hidden], g[hidden], average="macro") for g in guesses.values()
            ],
            "seconds": [seconds[name] for name in guesses],
        },
        index=list(guesses),
    )
    _draw(adata, out / "demo.png")
    adata.write_h5ad(out / "pbmc68k.h5ad")
    sure = hidden & (adata.obs["predicted_label_probability"].to_numpy() >= 0.9)
    right = float((guesses["QBMANVI"] == types)[sure].mean()) if sure.any() else float("nan")
    said = (
        f"Of the {hidden.sum()} cells without a label QBMANVI is at least 90 % sure of "
        f"{sure.sum()}; {right:.0%} of these are right."
    )
    _write(out, scores, said, model)
    text: str = scores.to_string(
        formatters={"accuracy": "{:.3f}".format, "macro F1": "{:.3f}".format,
                    "seconds": "{:.0f}".format}
    )  # fmt: skip
    return f"{text}\n\n{said}\nThe page: {out / 'report.html'}"


def one_in_ten(types: NDArray[np.str_], seed: int) -> NDArray[np.bool_]:
    """Which cells keep their label: a tenth of each type, one cell at least."""
    rng = np.random.default_rng(seed)
    known = np.zeros(len(types), dtype=bool)
    for name in np.unique(types):
        cells = np.flatnonzero(types == name)
        known[rng.choice(cells, max(1, round(len(cells) / 10)), replace=False)] = True
    return known


def by_pca(
    adata: AnnData, types: NDArray[np.str_], known: NDArray[np.bool_], seed: int, _: int | None
) -> NDArray[np.str_]:
    """Logistic regression on 50 principal components."""
    cells = AnnData(adata.layers["counts"].copy())
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, random_state=seed)
    x = cells.obsm["X_pca"]
    found: NDArray[np.str_] = (
        LogisticRegression(max_iter=2000).fit(x[known], types[known]).predict(x)
    )
    return found


def by_scvi(
    adata: AnnData,
    types: NDArray[np.str_],
    known: NDArray[np.bool_],
    seed: int,
    max_epochs: int | None,
) -> NDArray[np.str_]:
    """The nearest labelled cells in scVI's embedding."""
    scvi.settings.seed = seed
    cells = AnnData(adata.layers["counts"].copy(), obs=adata.obs[[]].copy())
    SCVI.setup_anndata(cells)
    model = SCVI(cells, gene_likelihood="nb")
    model.train(max_epochs=max_epochs)
    x = model.get_latent_representation()
    found: NDArray[np.str_] = KNeighborsClassifier(5).fit(x[known], types[known]).predict(x)
    return found


def _draw(adata: AnnData, path: Path) -> None:
    import matplotlib.pyplot as plt

    # The same colour for a type, known or predicted.
    adata.obs["cell_type"] = adata.obs["cell_type"].astype("category")
    names = adata.obs["cell_type"].cat.categories
    predicted = adata.obs["predicted_label"].astype(str)
    adata.obs["predicted_label"] = pd.Categorical(predicted, categories=names)
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 7.6), layout="constrained")
    look = {"frameon": False, "show": False, "legend_fontsize": 7}
    for ax, color, title, legend in (
        (axes[0, 0], "cell_type", "cell types, as published", "none"),
        (axes[0, 1], "predicted_label", "predicted from one label in ten", "right margin"),
    ):
        sc.pl.umap(adata, color=color, title=title, ax=ax, legend_loc=legend, **look)
    sc.pl.umap(adata, color="predicted_label_probability", title="probability of the prediction",
               color_map="cividis", ax=axes[1, 0], **look)  # fmt: skip
    pl.energy(adata, ax=axes[1, 1], title="free energy: low in common states (nats)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _write(out: Path, scores: pd.DataFrame, said: str, model: QBMANVI) -> None:
    """``report.html``: the scores, the picture, and what to read next."""
    log_z = model.get_log_partition()
    body = [
        [name, f"{row['accuracy']:.3f}", f"{row['macro F1']:.3f}", f"{row['seconds']:.0f}"]
        for name, row in scores.iterrows()
    ]
    caption = "Cells whose label was hidden. Macro F1 counts every type alike, however rare."
    image = picture(
        (out / "demo.png").read_bytes(), 1050, "Four pictures of the cells",
        "UMAP of QBMANVI's embedding.",
    )  # fmt: skip
    more = (
        f"One data set, one seed. log Z of the prior: {log_z.value:.2f}, standard error "
        f"{log_z.standard_error:.2f} nats. The cells, with all results: pbmc68k.h5ad."
    )
    parts = [
        ("labels", "Labels from one cell in ten",
         join([table(["method", "accuracy", "macro F1", "seconds"], body, caption),
               tag("p", said)])),
        ("cells", "The cells", image),
        ("made", "How it was made", tag("p", more)),
    ]  # fmt: skip
    with replacing(out / "report.html") as temporary:
        temporary.write_text(page("QBMANVI on 700 blood cells", parts, tag("p", _WHAT)))
