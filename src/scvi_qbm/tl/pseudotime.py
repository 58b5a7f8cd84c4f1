"""Diffusion pseudotime by every component."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from scvi_qbm._numbers import positive_int

from .cells import logger, note, writable

#: scanpy takes eigenvalues from here on for those of separate pieces.
SCANPY_CUT = 0.9994
# 1 minus an eigenvalue of a graph in single precision is not known better than this.
_RESOLVED = 1e-6


def dpt(
    adata: AnnData,
    root: str | int | None = None,
    *,
    n_components: int = 15,
    neighbors_key: str | None = None,
    key_added: str = "dpt_pseudotime",
    copy: bool = False,
) -> AnnData | None:
    """Diffusion pseudotime with all diffusion components.

    :func:`scanpy.tl.dpt` nearly ignores components with an eigenvalue of 0.9994 or more, which it
    takes for separate pieces of the graph. In a trajectory with sharp transitions the leading
    component is one of them, and the order of the cells is lost without a warning. Here every
    component counts, see :func:`diffusion_pseudotime`. A message says where scanpy would have
    ignored one.

    Parameters
    ----------
    adata
        Cells with a graph of :func:`scanpy.pp.neighbors`.
    root
        The cell where the trajectory begins: its name, or its number. ``adata.uns["iroot"]`` if
        None, as in scanpy.
    n_components
        Diffusion components, the trivial one among them.
    neighbors_key
        As :func:`scanpy.tl.diffmap`.
    key_added
        Column of ``obs`` for the result.
    copy
        Return a copy of ``adata`` instead of writing into it.

    Returns
    -------
    anndata.AnnData | None
        ``obs[key_added]``: float64, 0 at the root to 1; NaN for cells that the graph does not
        connect with it. ``uns["qbm"][key_added]``: root, parameters and leading eigenvalue.

    Raises
    ------
    KeyError
        If there is no graph, or no cell of that name.
    TypeError
        If ``adata`` is no AnnData.
    ValueError
        If no root is given, the root is connected with too few cells, or ``key_added`` holds
        something else.

    References
    ----------
    Haghverdi et al. (2016), Nat. Methods 13, 845 (doi:10.1038/nmeth.3971).
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"tl.dpt takes the cells alone, not a {type(adata).__name__}.")
    n_components = positive_int(n_components, "n_components", 2)
    adata = writable(adata, copy, tool="dpt", key_added=key_added)
    key = "neighbors" if neighbors_key is None else neighbors_key
    if key not in adata.uns:
        raise KeyError(
            f"No graph in adata.uns[{key!r}]. First: "
            "scanpy.pp.neighbors(adata, use_rep='X_qbmvi')."
        )
    start = _root(adata, root)
    graph = adata.obsp[adata.uns[key].get("connectivities_key", "connectivities")]
    _, piece = connected_components(graph, directed=False)
    rows = np.flatnonzero(piece == piece[start])
    n_components = min(n_components, len(rows) - 2)
    if n_components < 2:
        raise ValueError(f"The root's piece of the graph has {len(rows)} cells: too few to order.")
    cells = with_graph(graph[rows][:, rows])
    sc.tl.diffmap(cells, n_comps=n_components)
    eigenvalues = cells.uns["diffmap_evals"]
    pseudotime = np.full(adata.n_obs, np.nan)
    pseudotime[rows] = diffusion_pseudotime(
        cells.obsm["X_diffmap"], eigenvalues, int(np.searchsorted(rows, start))
    )
    adata.obs[key_added] = pseudotime
    leading = float(eigenvalues[1])
    note(
        adata,
        key_added,
        "dpt",
        root=adata.obs_names[start],
        n_components=n_components,
        neighbors_key=key,
        leading_eigenvalue=leading,
    )
    if leading >= SCANPY_CUT:
        logger.info(
            f"scanpy.tl.dpt would leave out the leading diffusion component here (eigenvalue "
            f"{leading:.5f}, its limit is {SCANPY_CUT}); obs[{key_added!r}] counts it."
        )
    if len(rows) < adata.n_obs:
        logger.info(
            f"{adata.n_obs - len(rows)} of {adata.n_obs} cells are not connected with the root "
            "and have no pseudotime (NaN)."
        )
    return adata if copy else None


def _root(adata: AnnData, root: str | int | None) -> int:
    if root is None:
        if "iroot" not in adata.uns:
            raise ValueError(
                "Where does the course begin? Pass root, the name of a cell, or set "
                "adata.uns['iroot'] to its number."
            )
        root = adata.uns["iroot"]
    if isinstance(root, str):
        if root not in adata.obs_names:
            raise KeyError(f"No cell is called {root!r}.")
        return int(np.flatnonzero(adata.obs_names == root)[0])
    if isinstance(root, bool | np.bool_) or not isinstance(root, int | np.integer):
        raise TypeError(f"`root` is the name or the number of one cell, not {root!r}.")
    if not 0 <= root < adata.n_obs:
        raise ValueError(f"`root` is {root}: a cell from 0 to {adata.n_obs - 1}.")
    return int(root)


def diffusion_pseudotime(
    components: ArrayLike, eigenvalues: ArrayLike, root: int
) -> NDArray[np.float64]:
    r"""Diffusion pseudotime by every component of a diffusion map.

    .. math::
        d(x, y)^2 = \sum_{k \ge 1} \left( \frac{\lambda_k}{1 - \lambda_k} \right)^2
        (\psi_k(x) - \psi_k(y))^2

    If no eigenvalue exceeds scanpy's limit, the result is nearly that of
    :func:`scanpy.tl.dpt`, which adds the trivial component and leaves out those after the tenth.

    Parameters
    ----------
    components
        ``adata.obsm["X_diffmap"]`` of :func:`scanpy.tl.diffmap`, ``(n_cells, n_components)``, the
        trivial component first.
    eigenvalues
        ``adata.uns["diffmap_evals"]``, ``(n_components,)``, decreasing from 1.
    root
        Number of the cell where the trajectory begins.

    Returns
    -------
    numpy.ndarray
        float64 ``(n_cells,)``, from 0 at the root to 1. On a graph in several pieces, which have
        an eigenvalue of 1 each, the order within a piece has no meaning: take one at a time.

    Raises
    ------
    ValueError
        If shapes differ, there are fewer than two components, or the root is no cell.

    References
    ----------
    Haghverdi et al. (2016), Nat. Methods 13, 845 (doi:10.1038/nmeth.3971).
    """
    psi, values = np.asarray(components, np.float64), np.asarray(eigenvalues, np.float64)
    if psi.ndim != 2 or values.shape != psi.shape[1:] or len(values) < 2:
        raise ValueError(
            f"`components` {psi.shape} and `eigenvalues` {values.shape} should be (n_cells, n) "
            "and (n,), n of 2 or more: adata.obsm['X_diffmap'] and adata.uns['diffmap_evals']."
        )
    if not 0 <= root < len(psi):
        raise ValueError(f"`root` is {root}: a cell from 0 to {len(psi) - 1}.")
    weights = values[1:] / np.maximum(1 - values[1:], _RESOLVED)
    distance = np.linalg.norm((psi[:, 1:] - psi[root, 1:]) * weights, axis=1)
    farthest = distance.max()
    return distance / farthest if farthest > 0 else distance


def with_graph(connectivities: sparse.spmatrix) -> AnnData:
    """Cells and their graph, which is all that scanpy's diffusion maps read."""
    graph = sparse.csr_matrix(connectivities)
    cells = AnnData(obs=pd.DataFrame(index=np.arange(graph.shape[0]).astype(str)))
    cells.obsp["connectivities"] = cells.obsp["distances"] = graph
    cells.uns["neighbors"] = {
        "connectivities_key": "connectivities",
        "distances_key": "distances",
        "params": {"method": "umap", "n_neighbors": 15},
    }
    return cells
