"""The picture of README.md, of 1,200 blood cells by three chemistries.

SCVI_QBM_DATA_DIR=../shared/data python benchmarks/readme_picture.py docs/_static/overview.png
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import scvi

from scvi_qbm import QBMANVI, QBMVI, pl, tl
from scvi_qbm.benchmark.config import DataSpec
from scvi_qbm.benchmark.data.specs import load_data, resolve
from scvi_qbm.benchmark.demo import one_in_ten


def umap(adata, key):
    sc.pp.neighbors(adata, use_rep=key, key_added=key)
    sc.tl.umap(adata, neighbors_key=key)
    adata.obsm[f"umap_{key}"] = adata.obsm.pop("X_umap")


def main() -> None:
    adata = load_data(resolve(DataSpec("pbmc_10x_3techs")))
    types = adata.obs["cell_type"].astype(str).to_numpy()
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    peer = scvi.model.SCVI(adata, gene_likelihood="nb")
    peer.train(enable_progress_bar=False)
    adata.obsm["scvi"] = peer.get_latent_representation()

    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata)
    model.train(max_epochs=100, enable_progress_bar=False)
    tl.latent(model)
    tl.energy(model)
    tl.attractors(model)

    scvi.settings.seed = 0
    known = one_in_ten(types, 0)
    adata.obs["known"] = np.where(known, types, "Unknown")
    QBMANVI.setup_anndata(adata, "known", "Unknown", batch_key="batch")
    labelled = QBMANVI(adata)
    labelled.train(max_epochs=100, enable_progress_bar=False)
    tl.predict(labelled)
    predicted = adata.obs["predicted_label"].astype(str)
    adata.obs["predicted"] = pd.Categorical(predicted, adata.obs["cell_type"].cat.categories)
    right = (predicted.to_numpy() == types)[~known].mean()

    for key in ("scvi", "X_qbmvi"):
        umap(adata, key)
    figure, axes = plt.subplots(2, 4, figsize=(15, 6.6), layout="constrained")
    look = {"frameon": False, "show": False, "size": 14}
    on = {"legend_loc": "on data", "legend_fontsize": 6.5, "legend_fontoutline": 2}
    for row, key, name in ((0, "umap_scvi", "scVI"), (1, "umap_X_qbmvi", "QBMVI")):
        sc.pl.embedding(
            adata,
            key,
            color="batch",
            ax=axes[row, 0],
            title=f"{name}: chemistry",
            legend_loc="best" if row else "none",
            legend_fontsize=7,
            **look,
        )
        sc.pl.embedding(
            adata,
            key,
            color="cell_type",
            ax=axes[row, 1],
            title=f"{name}: cell type",
            **on,
            **look,
        )
    ours = "umap_X_qbmvi"
    sc.pl.embedding(
        adata,
        ours,
        color="predicted",
        ax=axes[0, 2],
        title=f"predicted from one label in ten: {right:.0%} right",
        **on,
        **look,
    )
    sc.pl.embedding(
        adata,
        ours,
        color="predicted_label_probability",
        ax=axes[1, 2],
        title="probability of the prediction",
        color_map="cividis",
        **look,
    )
    pl.energy(adata, basis=ours, ax=axes[0, 3], size=14)
    pl.attractors(adata, labels_key="cell_type", ax=axes[1, 3])
    axes[1, 3].set_title("attractors, and the barriers between them", fontsize=10)
    axes[1, 3].set(xlabel="", ylabel="energy (nats)")
    axes[1, 3].tick_params(axis="x", labelsize=8)
    for ax in axes.flat:
        ax.title.set_fontsize(10)
        ax.set_facecolor("white")
    figure.savefig(sys.argv[1], dpi=110)


if __name__ == "__main__":
    main()
