"""What ``scvi-qbm fit`` does, apart from reading its arguments."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from anndata import AnnData
from anndata.io import write_elem
from lightning.pytorch.callbacks import Callback
from scipy import sparse

from scvi_qbm import tl
from scvi_qbm._checks import check_expression, check_setup_keys
from scvi_qbm._files import replacing
from scvi_qbm.benchmark.data.preprocess import variable_genes
from scvi_qbm.data.normalise import log_cp10k
from scvi_qbm.model import QBMANVI, QBMVI

_OBS_KEYS = (
    "batch_key", "labels_key", "size_factor_key", "categorical_covariate_keys",
    "continuous_covariate_keys",
)  # fmt: skip
# What is written ends in this, so nothing of the user's is replaced.
_OURS = "qbmvi"


def fit_h5ad(adata: AnnData, args: argparse.Namespace) -> None:
    """Train, embed, cluster and draw; write the data with the results besides."""
    with _source(args.input) if args.on_disk else nullcontext() as source:
        _fit(adata, args, source)


def _fit(adata: AnnData, args: argparse.Namespace, source: BinaryIO | None) -> None:
    keys = {name: getattr(args, name) for name in _OBS_KEYS}
    check_setup_keys(adata, args.layer, keys)
    scvi.settings.seed = args.seed
    # The registration's columns and keys stay out of the user's file.
    layers = {} if args.layer is None else {args.layer: adata.layers[args.layer]}
    data = AnnData(X=adata.X, obs=adata.obs.copy(), var=adata.var.copy(), layers=layers)
    chosen = None
    if args.n_top_genes is not None and args.n_top_genes >= data.n_vars:
        print(f"--n-top-genes {args.n_top_genes}: all {data.n_vars} genes are used")
    elif args.n_top_genes is not None:
        chosen = _variable_genes(data, args)
        data = data[:, chosen].copy()
    labels = args.unlabeled_category is not None
    if labels:
        keys["unlabeled_category"] = args.unlabeled_category
    kind = QBMANVI if labels else QBMVI
    kind.setup_anndata(data, layer=args.layer, **keys)
    model = kind(
        data,
        recipe=args.recipe,
        gene_likelihood=args.gene_likelihood,
        n_latent=args.n_latent,
        relaxation=args.relaxation,
        sampler=args.sampler,
    )
    started = time.perf_counter()
    on_terminal = sys.stdout.isatty()
    model.train(
        max_epochs=args.max_epochs,
        accelerator=args.accelerator,
        enable_progress_bar=on_terminal and not args.no_progress,
        callbacks=[] if on_terminal or args.no_progress else [_Log()],
        checkpoint_dir=args.checkpoint_dir,
    )
    seconds = time.perf_counter() - started
    failed = None
    if args.model_dir is not None:
        # First: should the disk be full, the model is what took long.
        try:
            model.save(args.model_dir, overwrite=args.overwrite)
        except OSError as error:
            failed = error  # told when the rest is written
    results = _results(model, args)
    if chosen is not None:
        results[f"var/highly_variable_{_OURS}"] = chosen
        for place in [place for place in results if place.startswith("varm/")]:
            results[place] = _for_all_genes(results[place], adata, chosen)
    summary = _summary(model, args, seconds)
    results["uns/qbm"] = {**adata.uns.get("qbm", {}), **data.uns.get("qbm", {}), "fit": summary}
    with replacing(args.out) as temporary:
        if source is not None:
            _write_copy(source, temporary, adata, results)
        else:
            _add(adata, results)
            adata.write_h5ad(temporary)
    for key, value in summary.items():
        print(f"{key:>18}  {value}")
    written = [args.out, args.model_dir]
    if not args.embedding_only:
        from scvi_qbm._fit_report import write_report

        written.insert(1, args.out.with_suffix(".html"))
        with replacing(written[1]) as temporary:
            write_report(temporary, model, summary, args, genes_were_chosen=chosen is not None)
    if failed is not None:
        raise OSError(f"{args.out} was written, but not the model: {failed}") from failed
    print("wrote " + ", ".join(str(path) for path in written if path is not None))


def _variable_genes(data: AnnData, args: argparse.Namespace) -> np.ndarray:
    values = sparse.csr_matrix(data.X if args.layer is None else data.layers[args.layer])
    if args.gene_likelihood != "normal":
        check_expression(values, likelihood="nb", where="the data")
        values = log_cp10k(values)
    genes = AnnData(values, obs=data.obs, var=data.var[[]])
    return variable_genes(genes, args.n_top_genes, args.batch_key)["highly_variable"].to_numpy()


def _for_all_genes(frame: pd.DataFrame, adata: AnnData, chosen: np.ndarray) -> pd.DataFrame:
    """NaN for genes that were not trained on; by position, as names need not be unique."""
    values = np.full((adata.n_vars, frame.shape[1]), np.nan)
    values[chosen] = frame
    return pd.DataFrame(values, adata.var_names, frame.columns)


def _results(model: QBMVI, args: argparse.Namespace) -> dict[str, Any]:
    """Where each result goes in a file, and what it is."""
    data, x = model.adata, f"X_{_OURS}"
    tl.latent(model, representation=args.representation, key_added=x)
    results = {f"obsm/{x}": data.obsm[x]}
    if isinstance(model, QBMANVI):
        predicted, outlier = f"predicted_label_{_OURS}", f"outlier_score_{_OURS}"
        tl.predict(model, key_added=predicted)
        tl.outliers(model, key_added=outlier)
        for name in (predicted, f"{predicted}_probability", outlier):
            results[f"obs/{name}"] = data.obs[name]
        results[f"obsm/{predicted}_probabilities"] = data.obsm[f"{predicted}_probabilities"]
    if args.embedding_only:
        return results
    names = {name: f"{name}_{_OURS}" for name in ("leiden", "attractor", "free_energy")}
    graph = f"neighbors_{_OURS}"
    sc.pp.neighbors(data, use_rep=x, key_added=graph, random_state=args.seed)
    sc.tl.leiden(
        data, key_added=names["leiden"], neighbors_key=graph, random_state=args.seed,
        flavor="igraph", n_iterations=2, directed=False,
    )  # fmt: skip
    sc.tl.umap(data, neighbors_key=graph, random_state=args.seed)
    data.obsm[f"X_umap_{_OURS}"] = data.obsm.pop("X_umap")
    tl.energy(model, key_added=names["free_energy"])
    tl.attractors(model, key_added=names["attractor"])
    tl.programs(model, key_added=f"programs_{_OURS}")
    results[f"obsm/X_umap_{_OURS}"] = data.obsm[f"X_umap_{_OURS}"]
    results |= {f"obs/{name}": data.obs[name] for name in names.values()}
    results |= {f"varm/programs_{_OURS}": data.varm[f"programs_{_OURS}"]}
    results |= {f"obsp/{key}": data.obsp[key] for key in data.obsp}
    return results | {f"uns/{graph}": data.uns[graph]}


def _summary(model: QBMVI, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    elbo, elbo_se = model.get_elbo(indices=model.validation_indices, return_error=True)
    log_z = model.get_log_partition()
    return {
        "n_cells": model.adata.n_obs,
        "n_genes": model.adata.n_vars,
        "n_latent": model.module.n_latent,
        "gene_likelihood": model.module.gene_likelihood,
        "recipe": args.recipe,
        "sampler": args.sampler,
        "representation": args.representation,
        "seed": args.seed,
        "epochs": len(model.history["elbo_train"]),
        "seconds": round(seconds, 1),
        "validation_elbo": round(elbo, 3),
        "validation_elbo_se": round(elbo_se, 3),
        "log_z": round(log_z.value, 3),
        "log_z_se": round(log_z.standard_error, 3),
    }


class _Log(Callback):
    """A line of progress now and then, where a bar would fill a log file."""

    every = 30.0  # seconds

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.next = time.monotonic() + self.every

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        loss = trainer.callback_metrics.get("elbo_validation")
        if trainer.sanity_checking or loss is None or time.monotonic() < self.next:
            return
        self.next = time.monotonic() + self.every
        print(
            f"epoch {trainer.current_epoch + 1} of at most {trainer.max_epochs}: "
            f"held-out ELBO {-float(loss):.1f} nats a cell",
            file=sys.stderr,
            flush=True,
        )


def _source(path: Path) -> BinaryIO:
    """The input, to be copied after training: what is opened now, whatever has its name then."""
    with h5py.File(path) as file:
        for name in ("obsm", "uns"):
            if name in file and not isinstance(file[name], h5py.Group):
                raise ValueError(
                    f"{path} is of an old format: its {name} is a table, to which nothing can be "
                    "added. Read it with anndata and write it again, or leave out --on-disk."
                )
    return path.open("rb")


def _add(adata: AnnData, results: dict[str, Any]) -> None:
    for place, value in results.items():
        slot, key = place.split("/", 1)
        # Without its index: cells may share a name, and would not find their rows by it.
        getattr(adata, slot)[key] = getattr(value, "array", value)


def _write_copy(source: BinaryIO, target: Path, adata: AnnData, results: dict[str, Any]) -> None:
    """Copy an h5ad file and add the results; its matrices never come into memory."""
    with target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 2**24)
    obs = adata.obs.copy()
    try:
        with h5py.File(target, "r+") as file:
            for place, value in results.items():
                slot, key = place.split("/", 1)
                if slot == "obs":
                    obs[key] = getattr(value, "array", value)
                    continue
                if slot not in file:
                    write_elem(file, slot, {})
                write_elem(file[slot], key, value)
            if len(obs.columns) > len(adata.obs.columns):
                write_elem(file, "obs", obs)
    except RuntimeError as error:  # HDF5's, if the disk is full when it closes the file
        raise OSError(f"The results could not be written to {target.parent}: {error}") from error
