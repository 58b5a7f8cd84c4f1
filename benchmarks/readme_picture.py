"""The picture of README.md: ``python benchmarks/readme_picture.py docs/_static/overview.png``."""

import sys

import matplotlib.pyplot as plt
import scanpy as sc
import scvi

import scvi_qbm
from scvi_qbm import pl, tl
from scvi_qbm.data import pbmc68k


def main() -> None:
    scvi.settings.seed = 0
    adata = pbmc68k()
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts")
    model = scvi_qbm.QBMVI(adata)
    model.train(enable_progress_bar=False)
    for tool in (tl.latent, tl.energy, tl.attractors):
        tool(model)
    sc.pp.neighbors(adata, use_rep="X_qbmvi")
    sc.tl.umap(adata)
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), width_ratios=(1.2, 1.2, 0.8))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.16, wspace=0.25)
    look = {"legend_loc": "on data", "legend_fontsize": 5.5, "legend_fontoutline": 2}
    sc.pl.umap(adata, color="cell_type", ax=axes[0], frameon=False, show=False, **look)
    pl.energy(adata, ax=axes[1])
    pl.attractors(adata, ax=axes[2])
    axes[2].set_ylabel("height of the pass (nats)")
    titles = ("cells by type", "free energy (nats)", "attractors and passes")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=10)
    figure.savefig(sys.argv[1], dpi=150)


if __name__ == "__main__":
    main()
