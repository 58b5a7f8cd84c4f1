"""Predicted labels, written beside those that are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_qbm.model import QBMANVI

from .cells import note, target


def predict(
    model: QBMANVI,
    adata: AnnData | None = None,
    *,
    threshold: float = 0.0,
    adapt_proportions: bool = False,
    key_added: str = "predicted_label",
    copy: bool = False,
) -> AnnData | None:
    """Predict the cells' labels, with their probabilities.

    Parameters
    ----------
    model
        A trained model.
    adata
        Cells to label; the model's if None.
    threshold, adapt_proportions
        As :meth:`QBMANVI.predict`.
    key_added
        Column of ``obs`` for the result.
    copy
        Return a copy of ``adata`` instead of writing into it.

    Returns
    -------
    anndata.AnnData | None
        ``obs[key_added]``: categorical. ``obs[key_added + "_probability"]``: of that label; of the
        best one where the answer is the unlabelled category.
        ``obsm[key_added + "_probabilities"]``: float64 ``(n_cells, n_labels)``, of the labels in
        ``uns["qbm"][key_added]["labels"]``. For several levels of labels ``obs`` has two columns
        for each, ``key_added + "_" + level`` and the same with ``"_probability"``.

    Raises
    ------
    TypeError
        If the model is no QBMANVI.
    ValueError
        If ``threshold`` is not in [0, 1], or ``key_added`` holds something else.
    """
    if not isinstance(model, QBMANVI) and not isinstance(model, AnnData):
        raise TypeError(f"tl.predict needs a QBMANVI model, not a {type(model).__name__}.")
    levels = getattr(model, "label_keys_", [""])
    names = [key_added] if len(levels) == 1 else [f"{key_added}_{level}" for level in levels]
    beside = [("obs", f"{name}_probability") for name in names]
    beside += [("obs", name) for name in names if name != key_added]
    beside += [("obsm", f"{key_added}_probabilities")]
    adata = target(model, adata, copy, tool="predict", key_added=key_added, beside=beside)
    options = {"threshold": threshold, "adapt_proportions": adapt_proportions}
    hard, soft = model._hard_and_soft(adata, None, None, None, **options)
    if len(levels) == 1:
        parts = {key_added: (hard, soft)}
    else:
        parts = {
            name: (hard[level].to_numpy(), soft[level])
            for name, level in zip(names, levels, strict=True)
        }
        soft.columns = [f"{level}: {name}" for level, name in soft.columns]
    for key, (labels, probabilities) in parts.items():
        written = pd.Categorical(labels)
        if len({type(label) for label in written.categories}) > 1:  # h5ad takes one type
            written = pd.Categorical(labels.astype(str))
        adata.obs[key] = written
        place = probabilities.columns.get_indexer(labels)
        values = probabilities.to_numpy()
        best = values.max(axis=1)
        own = values[np.arange(len(values)), place]
        adata.obs[f"{key}_probability"] = np.where(place < 0, best, own)
    adata.obsm[f"{key_added}_probabilities"] = soft.to_numpy()
    options |= {"columns": list(parts), "labels": list(soft.columns.astype(str))}
    note(adata, key_added, "predict", unlabeled=str(model.unlabeled_category_), **options)
    return adata if copy else None
