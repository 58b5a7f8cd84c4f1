"""The picture of README.md: ``python benchmarks/readme_picture.py docs/_static/overview.png``."""

import sys

import matplotlib.pyplot as plt
import scanpy as sc
import scvi

import scvi_qbm
from scvi_qbm import pl
from scvi_qbm.data import pbmc68k


def main() -> None:
    scvi.settings.seed = 0
    adata = pbmc68k()
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts")
    model = scvi_qbm.QBMVI(adata)
    model.train(enable_progress_bar=False)
    adata.obsm["X_qbmvi"] = model.get_latent_representation()
    sc.pp.neighbors(adata, use_rep="X_qbmvi")
    sc.tl.umap(adata)
    figure, axes = plt.subplots(
        1, 3, figsize=(11, 3.3), layout="constrained", width_ratios=(1.6, 1, 1)
    )
    pl.embedding_scatter(adata.obsm["X_umap"], adata.obs["cell_type"], ax=axes[0])
    pl.energy_landscape(adata.obsm["X_umap"], model.get_energy()["free_energy"], ax=axes[1])
    pl.attractor_tree(model.get_attractors().tree, ax=axes[2])
    axes[2].set_ylabel("height of the pass (nats)")
    titles = ("cells by type", "energy of their codes", "attractors and passes")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=10)
    figure.savefig(sys.argv[1], dpi=150)


if __name__ == "__main__":
    main()
