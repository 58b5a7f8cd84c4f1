"""The page that ``scvi-qbm fit`` writes beside the data."""

from __future__ import annotations

import argparse
import io
import shlex
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.figure import Figure
from pandas.api.types import is_float_dtype
from scipy import sparse
from scvi import REGISTRY_KEYS

from scvi_qbm import pl
from scvi_qbm.benchmark.report.html import Html, join, page, picture, table, tag
from scvi_qbm.data.normalise import log_cp10k
from scvi_qbm.data.on_disk import reads_from_disk
from scvi_qbm.model import QBMVI
from scvi_qbm.pl.model import most_frequent

_DOCS = "https://github.com/scvi-qbm/scvi-qbm/blob/main/docs"
_MANY = 30  # categories: more do not fit a legend
_PREDICTED = "predicted_label_qbmvi"
_SETTINGS = ("n_latent", "gene_likelihood", "recipe", "sampler", "representation", "seed")


def write_report(
    path: Path,
    model: QBMVI,
    summary: dict[str, Any],
    args: argparse.Namespace,
    *,
    genes_were_chosen: bool,
) -> None:
    """Write the page: numbers, pictures, clusters and programs; it needs no other file."""
    matplotlib.use("Agg")
    adata = model.adata
    # Groups are named by predictions, where there are any: all cells have one.
    names_key = _PREDICTED if _PREDICTED in adata.obs else args.labels_key
    sections = [
        ("cells", "Cells", _cells(adata, model, args.labels_key, names_key)),
        ("clusters", "Clusters", _clusters(adata, model, names_key)),
        ("programs", "Gene programs", _programs(adata)),
        ("training", "Training", _training(model, summary, args)),
        ("next", "Next steps", _next(model, args, genes_were_chosen)),
    ]
    made = f"Written by scvi-qbm {version('scvi-qbm')} on {date.today()}:"
    head = join([tag("p", made), tag("pre", "scvi-qbm " + shlex.join(args.argv))])
    title = f"{args.input.name}: {adata.n_obs:,} cells, {adata.n_vars:,} genes"
    path.write_text(page(title, sections, head))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, bbox_inches="tight")
    matplotlib.pyplot.close(figure)
    return buffer.getvalue()


def _cells(adata: AnnData, model: QBMVI, labels_key: str | None, names_key: str | None) -> Html:
    batch_key = model.registry_["setup_args"].get("batch_key")
    colors = ["leiden_qbmvi", "attractor_qbmvi", batch_key, labels_key]
    if names_key == _PREDICTED:
        colors += [_PREDICTED, f"{_PREDICTED}_probability"]
    shown = [
        c for c in dict.fromkeys(colors)
        if c is not None and (is_float_dtype(adata.obs[c]) or adata.obs[c].nunique() <= _MANY)
    ]  # fmt: skip
    figure = sc.pl.embedding(
        adata, "umap_qbmvi", color=shown, ncols=2, wspace=0.45, frameon=False, show=False,
        return_fig=True,
    )  # fmt: skip
    energy = pl.energy(adata, "free_energy_qbmvi", basis="umap_qbmvi").figure
    tree = pl.attractors(adata, "attractor_qbmvi", labels_key=names_key).figure
    return join([
        picture(_png(figure), 900, "UMAP by cluster, batch and label", "UMAP of obsm['X_qbmvi']."),
        picture(_png(energy), 450, "UMAP by free energy",
                "Free energy: low in states that the prior knows well, high in rare or "
                "transitional states."),
        picture(_png(tree), 600, "Tree of attractors",
                "Attractors: a stem is as long as the barrier to leave it."),
    ])  # fmt: skip


def _clusters(adata: AnnData, model: QBMVI, labels_key: str | None) -> Html:
    """Sizes, most frequent label and marker genes of each cluster."""
    cells = None if reads_from_disk(model.adata_manager) else _log_normalised(model)
    parts = []
    for key in ("leiden_qbmvi", "attractor_qbmvi"):
        clusters = adata.obs[key]
        head = [key.removesuffix("_qbmvi"), "cells"]
        columns: list[pd.Series] = [clusters.value_counts(sort=False)]
        if labels_key is not None:
            head.append(f"most frequent {labels_key}")
            columns.append(most_frequent(adata, key, labels_key))
        if cells is not None and len(clusters.cat.categories) > 1:
            head.append("marker genes (t test against the rest)")
            columns.append(_markers(cells, key))
        rows = pd.concat(columns, axis=1).reset_index().to_numpy().tolist()
        parts.append(table(head, rows))
    if labels_key is not None and adata.obs[labels_key].nunique() <= _MANY:
        counts = pd.crosstab(adata.obs[labels_key], adata.obs["attractor_qbmvi"])
        rows = counts.reset_index().to_numpy().tolist()
        caption = f"Cells by {labels_key} and attractor"
        parts.append(table([labels_key, *counts.columns], rows, caption))
    return join(parts)


def _log_normalised(model: QBMVI) -> AnnData:
    values = sparse.csr_matrix(model.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY))
    if model.module.gene_likelihood != "normal":
        values = log_cp10k(values)
    cells = AnnData(values, obs=model.adata.obs, var=model.adata.var[[]])
    cells.uns["log1p"] = {}  # as after sc.pp.log1p
    return cells


def _markers(cells: AnnData, key: str) -> pd.Series:
    sizes = cells.obs[key].value_counts()
    groups = [g for g in cells.obs[key].cat.categories if sizes[g] > 1]
    sc.tl.rank_genes_groups(cells, key, groups=groups, method="t-test", n_genes=8)
    names = cells.uns["rank_genes_groups"]["names"]
    return pd.Series({g: ", ".join(names[g]) for g in groups}).reindex(sizes.index, fill_value="")


def _programs(adata: AnnData) -> Html:
    kept = adata.uns["qbm"]["programs_qbmvi"]
    rows = []
    for unit in kept["up"].index[:15]:
        up, down = (", ".join(kept[side].loc[unit].iloc[:6]) for side in ("up", "down"))
        rows.append([unit, f"{kept['on'].loc['all cells', unit]:.0%}", up, down])
    head = ["unit", "on in", "genes up when it is on", "genes down"]
    words = "The genes that each of the strongest latent units switches, strongest first."
    return join([tag("p", words), table(head, rows)])


def _training(model: QBMVI, summary: dict[str, Any], args: argparse.Namespace) -> Html:
    axes = pl.training_curves(model.history)
    curves = picture(
        _png(np.ravel(axes)[0].figure), 900, "Training curves", "Dashed: held-out cells."
    )
    elbo, log_z = (
        f"{summary[key]:.2f} ± {summary[f'{key}_se']:.2f}" for key in ("validation_elbo", "log_z")
    )
    cut = ", as --max-epochs says: may be too few" if summary["epochs"] == args.max_epochs else ""
    rows = [
        ["epochs", f"{summary['epochs']} in {summary['seconds']:,.0f} seconds{cut}"],
        ["held-out ELBO", f"{elbo} nats a cell, with standard error (higher is better)"],
        ["log Z", f"{log_z} nats"],
        ["prior", model.summary(silent=True)["negative_phase", "verdict"]],
        *([name.replace("_", " "), summary[name]] for name in _SETTINGS),
    ]
    guide = tag("a", "How to read them", href=f"{_DOCS}/training.md")
    return join([curves, tag("p", guide), table(["", ""], rows)])


def _next(model: QBMVI, args: argparse.Namespace, genes_were_chosen: bool) -> Html:
    genes = 'adata[:, adata.var["highly_variable_qbmvi"]].copy()' if genes_were_chosen else "adata"
    load = f"model = scvi_qbm.{type(model).__name__}.load({str(args.model_dir)!r}, {genes})"
    lines = [
        "import scanpy, scvi_qbm",
        "",
        f"adata = scanpy.read_h5ad({str(args.out)!r})",
        'scanpy.pl.embedding(adata, "umap_qbmvi", color="leiden_qbmvi")',
        'scvi_qbm.pl.energy(adata, "free_energy_qbmvi", basis="umap_qbmvi")',
        'scvi_qbm.pl.attractors(adata, "attractor_qbmvi")',
        'scvi_qbm.pl.programs(adata, "programs_qbmvi")',
        load if args.model_dir else "# The model was not saved: --model-dir DIR saves it.",
    ]
    return tag("pre", "\n".join(lines))
