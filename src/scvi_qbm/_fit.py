"""What ``scvi-qbm fit`` does, apart from reading its arguments."""

from __future__ import annotations

import argparse
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import scvi
from anndata import AnnData
from anndata.io import write_elem

from scvi_qbm._checks import check_setup_keys
from scvi_qbm._files import replacing
from scvi_qbm.model import QBMVI


def fit_h5ad(adata: AnnData, args: argparse.Namespace) -> None:
    """Train, embed, and write the data with ``obsm["X_qbmvi"]`` and ``uns["qbmvi"]`` besides."""
    with _source(args.input) if args.on_disk else nullcontext() as source:
        _fit(adata, args, source)


def _fit(adata: AnnData, args: argparse.Namespace, source: BinaryIO | None) -> None:
    check_setup_keys(adata, args.layer, {"batch_key": args.batch_key})
    scvi.settings.seed = args.seed
    # The registration's columns and keys stay out of the user's file.
    layers = {} if args.layer is None else {args.layer: adata.layers[args.layer]}
    data = AnnData(X=adata.X, obs=adata.obs.copy(), var=adata.var.copy(), layers=layers)
    QBMVI.setup_anndata(data, layer=args.layer, batch_key=args.batch_key)
    model = QBMVI(
        data,
        recipe=args.recipe,
        gene_likelihood=args.likelihood,
        n_latent=args.n_latent,
        relaxation=args.relaxation,
        sampler=args.sampler,
    )
    started = time.perf_counter()
    model.train(
        max_epochs=args.max_epochs,
        enable_progress_bar=not args.no_progress,
        checkpoint_dir=args.checkpoint_dir,
    )
    seconds = time.perf_counter() - started
    embedding = model.get_latent_representation(representation=args.representation)
    log_z = model.get_log_partition()
    summary = {
        "n_cells": adata.n_obs,
        "n_genes": adata.n_vars,
        "n_latent": embedding.shape[1],
        "likelihood": model.module.gene_likelihood,
        "recipe": args.recipe,
        "sampler": args.sampler,
        "representation": args.representation,
        "seed": args.seed,
        "epochs": len(model.history["elbo_train"]),
        "seconds": round(seconds, 1),
        "validation_elbo": round(float(model.get_elbo(indices=model.validation_indices)), 3),
        "log_z": round(log_z.value, 3),
        "log_z_se": round(log_z.standard_error, 3),
    }
    if args.model_dir is not None:
        # First: should the disk be full, the model is what took long.
        model.save(args.model_dir, overwrite=args.overwrite)
    with replacing(args.out) as temporary:
        if source is not None:
            _write_copy(source, temporary, embedding, summary)
        else:
            adata.obsm["X_qbmvi"], adata.uns["qbmvi"] = embedding, summary
            adata.write_h5ad(temporary)
    for key, value in summary.items():
        print(f"{key:>16}  {value}")
    print(f"wrote {args.out}" + (f" and {args.model_dir}" if args.model_dir else ""))


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


def _write_copy(source: BinaryIO, target: Path, embedding: Any, summary: dict[str, Any]) -> None:
    """Copy an h5ad file and add the embedding; its matrices never come into memory."""
    with target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 2**24)
    try:
        with h5py.File(target, "r+") as file:
            for group, key, value in (("obsm", "X_qbmvi", embedding), ("uns", "qbmvi", summary)):
                if group not in file:
                    write_elem(file, group, {})
                write_elem(file[group], key, value)
    except RuntimeError as error:  # HDF5's, if the disk is full when it closes the file
        raise OSError(f"The embedding could not be written to {target.parent}: {error}") from error
