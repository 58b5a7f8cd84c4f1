"""What a model says of each cell, written where scanpy's tools look for it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_qbm.model import QBMANVI, QBMVI

if TYPE_CHECKING:
    from scvi_qbm.model._labels import LabelledOutlierScore
    from scvi_qbm.model._landscape import OutlierScore
    from scvi_qbm.model._representation import Representation

# A child of scvi-tools' logger, which is the one that users see.
logger = logging.getLogger("scvi.qbm")

#: From so many cells on there is a progress bar.
LARGE = 20_000


#: Where each tool writes by default.
DEFAULT_KEYS: dict[str, tuple[str | None, str]] = {
    "attractors": ("obs", "attractor"),
    "couplings": (None, "couplings"),
    "dpt": ("obs", "dpt_pseudotime"),
    "energy": ("obs", "free_energy"),
    "latent": ("obsm", "X_qbmvi"),
    "outliers": ("obs", "outlier_score"),
    "predict": ("obs", "predicted_label"),
    "programs": ("varm", "programs"),
}


def target(
    model: QBMVI, adata: AnnData | None, copy: bool, *, tool: str, key_added: str, **beside: Any
) -> AnnData:
    """The data to write into: ``adata`` or the model's, or a copy of them."""
    if isinstance(model, AnnData):
        raise TypeError(f"The model comes first, then the data: tl.{tool}(model, adata).")
    if not isinstance(model, QBMVI):
        raise TypeError(f"tl.{tool} needs a QBMVI model, not a {type(model).__name__}.")
    chosen = model.adata if adata is None else adata
    if chosen is None:
        raise ValueError("The model was made without data: pass adata=.")
    if not isinstance(chosen, AnnData):
        raise TypeError(f"tl.{tool}: `adata` is a {type(chosen).__name__}. Give keys by name.")
    return writable(chosen, copy, tool=tool, key_added=key_added, **beside)


def writable(
    adata: AnnData,
    copy: bool,
    *,
    tool: str,
    key_added: str,
    beside: Sequence[tuple[str, str]] = (),
) -> AnnData:
    """``adata`` or a copy, if nothing that others wrote is at ``key_added``.

    ``beside``: slots and keys that the tool writes as well. At its default key, a column that it
    did not write is replaced with a warning: notes of earlier results get lost in concatenation.
    """
    if not isinstance(key_added, str):
        raise TypeError(f"`key_added` is a name, not {key_added!r}.")
    notes = adata.uns.get("qbm", {})
    if not isinstance(notes, Mapping):
        raise ValueError("adata.uns['qbm'] is no dictionary; tl keeps its notes there: rename it.")
    slot, default = DEFAULT_KEYS[tool]
    kept = notes.get(key_added, {})
    author = kept.get("tool") if isinstance(kept, Mapping) else "another package"
    keys = [*beside] if slot is None else [(slot, key_added), *beside]
    there = [f"adata.{s}[{key!r}]" for s, key in keys if key in getattr(adata, s)]
    if (there and author is None and key_added != default) or author not in (None, tool):
        whose = ", ".join(there) if author is None else f"A result of tl.{author}"
        raise ValueError(
            f"{whose} is there already, and tl.{tool} did not write it. Choose another key_added "
            f"than {key_added!r}."
        )
    if there and author is None:
        warnings.warn(
            f"tl.{tool} replaces {', '.join(there)}, which it did not write. To keep both, pass "
            "another key_added.",
            UserWarning,
            stacklevel=4,
        )
    return adata.copy() if copy else adata


def note(adata: AnnData, key: str, tool: str, **parameters: Any) -> None:
    """Keep under ``uns["qbm"][key]`` how a result came about."""
    adata.uns["qbm"] = {**adata.uns.get("qbm", {}), key: {"tool": tool, **parameters}}


def latent(
    model: QBMVI,
    adata: AnnData | None = None,
    *,
    representation: Representation = "aligned",
    key_added: str = "X_qbmvi",
    copy: bool = False,
) -> AnnData | None:
    """Embed the cells, for ``sc.pp.neighbors(adata, use_rep="X_qbmvi")``.

    Parameters
    ----------
    model
        A trained model.
    adata
        Cells to embed; the model's if None.
    representation
        As :meth:`QBMVI.get_latent_representation`.
    key_added
        Key of ``obsm`` for the result.
    copy
        Return a copy of ``adata`` instead of writing into it.

    Returns
    -------
    anndata.AnnData | None
        ``obsm[key_added]``: float32 ``(n_cells, n_latent)``.

    Raises
    ------
    TypeError
        If the model is no QBMVI.
    ValueError
        If the representation is unknown, or ``key_added`` holds something else.
    """
    adata = target(model, adata, copy, tool="latent", key_added=key_added)
    adata.obsm[key_added] = model.get_latent_representation(adata, representation=representation)
    note(adata, key_added, "latent", representation=representation)
    return adata if copy else None


def energy(
    model: QBMVI,
    adata: AnnData | None = None,
    *,
    key_added: str = "free_energy",
    copy: bool = False,
) -> AnnData | None:
    """Free energy of each cell under the Boltzmann prior, in nats.

    It is low in states that the prior knows well, and high in rare or transitional ones. Compare
    cells of one model only. :meth:`QBMVI.get_energy` has its parts. Adding log Z gives the score
    ``"kl"`` of :func:`outliers`, so the two rank cells alike.

    Parameters
    ----------
    model
        A trained model.
    adata
        Cells to look at; the model's if None.
    key_added
        Column of ``obs`` for the result.
    copy
        Return a copy of ``adata`` instead of writing into it.

    Returns
    -------
    anndata.AnnData | None
        ``obs[key_added]``: float64, in nats. ``uns["qbm"][key_added]``: log Z and its standard
        error; free energy + log Z is the KL divergence that the cell costs.

    Raises
    ------
    TypeError
        If the model is no QBMVI.
    ValueError
        If ``key_added`` holds something else.
    """
    adata = target(model, adata, copy, tool="energy", key_added=key_added)
    adata.obs[key_added] = model.get_energy(adata)["free_energy"].to_numpy()
    log_z = model.get_log_partition()
    note(adata, key_added, "energy", log_z=log_z.value, log_z_se=log_z.standard_error)
    return adata if copy else None


def outliers(
    model: QBMVI,
    adata: AnnData | None = None,
    *,
    score: OutlierScore | LabelledOutlierScore | None = None,
    key_added: str = "outlier_score",
    copy: bool = False,
) -> AnnData | None:
    """Outlier score of each cell; higher means less like the training data.

    Parameters
    ----------
    model
        A trained model.
    adata
        Cells to score; the model's if None.
    score
        ``"kl"`` for states that the model has not seen: the free energy of :func:`energy` plus a
        constant. ``"elbo"`` for damaged cells. If the model is a :class:`QBMANVI`, ``"novelty"``
        for types that had no label, and ``"entropy"`` for uncertain labels. By default
        ``"novelty"`` where there is one, or ``"kl"``. See :meth:`QBMVI.get_outlier_scores`.
    key_added
        Column of ``obs`` for the result.
    copy
        Return a copy of ``adata`` instead of writing into it.

    Returns
    -------
    anndata.AnnData | None
        ``obs[key_added]``: float64, in nats (``"novelty"``: without unit).

    Raises
    ------
    TypeError
        If the model is no QBMVI.
    ValueError
        If the score is unknown, or needs counts and the data are minified; or if ``key_added``
        holds something else.
    """
    adata = target(model, adata, copy, tool="outliers", key_added=key_added)
    score = score or ("novelty" if isinstance(model, QBMANVI) else "kl")
    adata.obs[key_added] = model.get_outlier_scores(adata, score=score).to_numpy()
    note(adata, key_added, "outliers", score=score)
    return adata if copy else None


def attractors(
    model: QBMVI,
    adata: AnnData | None = None,
    *,
    depth: float = 1.5,
    key_added: str = "attractor",
    copy: bool = False,
) -> AnnData | None:
    """Cluster cells by the attractors of the prior.

    From each cell's most probable code, flips of single units lower the energy to a local
    minimum. Minima with a barrier below ``depth`` between them form one attractor. The default is
    1.5 nats: at the prior's temperature of 1, random fluctuations cross lower barriers.

    Parameters
    ----------
    model
        A trained model.
    adata
        Cells to cluster; the model's if None.
    depth
        Minima with a barrier below this are joined, in nats. 0 keeps every minimum.
    key_added
        Column of ``obs`` for the result.
    copy
        Return a copy of ``adata`` instead of writing into it.

    Returns
    -------
    anndata.AnnData | None
        ``obs[key_added]``: categorical, ``"0"`` for the largest attractor among the model's own
        cells. Attractors have the same names in other data. ``uns["qbm"][key_added]``: ``depth``;
        for each minimum its ``energies`` in nats, ``sizes`` in cells of ``adata``, ``states`` (0
        and 1), and the ``group`` that it belongs to; ``tree``, the merges as a scipy linkage. For
        :func:`scvi_qbm.pl.attractors`.

    Raises
    ------
    TypeError
        If the model is no QBMVI.
    ValueError
        If ``depth`` is negative, or ``key_added`` holds something else.

    References
    ----------
    Becker and Karplus (1997), J. Chem. Phys. 106, 1495 (doi:10.1063/1.473299).
    """
    if isinstance(depth, str) or not depth >= 0:
        raise ValueError(f"`depth` must be at least 0 nats, got {depth}.")
    adata = target(model, adata, copy, tool="attractors", key_added=key_added)
    found = model.get_attractors(adata)
    minima = np.arange(len(found.sizes))
    group = found._replace(labels=minima).merged(depth)
    labels = group[found.labels]
    names = np.unique(labels).astype(str)
    adata.obs[key_added] = pd.Categorical(labels.astype(str), categories=names)
    sizes = np.bincount(found.labels, minlength=len(minima))
    note(
        adata, key_added, "attractors", depth=depth, energies=found.energies, sizes=sizes,
        states=found.states, group=group, tree=found.tree,
    )  # fmt: skip
    adata.uns.pop(f"{key_added}_colors", None)  # of an earlier clustering
    logger.info(f"{len(names)} attractors of {len(minima)} minima, barriers above {depth:g} nats.")
    return adata if copy else None
