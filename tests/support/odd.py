"""A small trained model, and whose error an error is."""

import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import scvi
from scipy import sparse

import scvi_qbm
from scvi_qbm.data import pbmc68k

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
OURS = str(Path(scvi_qbm.__file__).parent)


def cells(n_cells=150, n_genes=60):
    """Counts of real cells in X and in a layer, with columns of each kind."""
    adata = pbmc68k()[:, :n_genes].copy()
    adata.X = sparse.csr_matrix(adata.layers["counts"], dtype=np.float32)
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0][:n_cells].copy()
    rng = np.random.default_rng(0)
    adata.obs["batch"] = pd.Categorical([f"b{i % 3}" for i in range(adata.n_obs)])
    adata.obs["cov"] = rng.normal(size=adata.n_obs)
    adata.obs["size"] = rng.uniform(0.5, 2, adata.n_obs)
    adata.layers["counts"] = adata.X.copy()
    return adata


def trained(adata, cls=scvi_qbm.QBMVI, *, train=None, model=None, **setup):
    """One epoch of a small model."""
    scvi.settings.seed = 0
    cls.setup_anndata(adata, **setup)
    out = cls(adata, **{"n_latent": 6, "n_hidden": 16} | (model or {}))
    out.train(**QUIET | {"max_epochs": 1} | (train or {}))
    return out


def is_ours(error):
    """Whether this package raised it, rather than a library below."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(OURS)
