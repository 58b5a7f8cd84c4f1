"""Counts with a known tree of cell types, known batches and known programs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from scvi_qbm._numbers import as_seed, positive_int
from scvi_qbm.data.normalise import log_cp10k

__all__ = ["simulate"]

_CELLS = 1024  # cells whose dense means are held at once
_CELL_DEPTH_SD = 0.3  # of the log size factor
_BASE_SD = 1.0  # of genes' log mean expression

Array = NDArray[np.float64]


def simulate(
    n_cells: int = 2000,
    n_genes: int = 1000,
    n_types: int = 8,
    n_batches: int = 3,
    *,
    branching: float = 0.7,
    continuity: float = 0.5,
    type_shift: float = 0.5,
    batch_shift: float = 0.3,
    depth_shift: float = 0.3,
    composition_shift: float = 0.5,
    n_programs: int = 3,
    program_shift: float = 0.4,
    dispersion: float = 0.2,
    depth: float = 2000.0,
    seed: int = 0,
) -> AnnData:
    """Negative binomial counts of cells on a random differentiation tree, in batches.

    Parameters
    ----------
    n_cells, n_genes
        Size. ``n_genes`` must be at least ``n_types + n_programs``.
    n_types
        Cell types, the nodes of the tree; ``type_0`` is its root.
    n_batches
        Batches, of equal size to within one cell.
    branching
        Probability that a new type hangs on any earlier type rather than on the latest: 0 gives a
        chain, 1 a random recursive tree.
    continuity
        Length of the stretch of its edge that a type fills, ending at its node: 0 gives discrete
        types, 1 a continuous tree.
    type_shift
        Root mean square log fold change over the genes along an edge of length 1.
    batch_shift
        Standard deviation over the genes of a batch's log fold changes.
    depth_shift
        Standard deviation over the batches of log sequencing depth.
    composition_shift
        Standard deviation over types and batches of log odds of a type; 0 gives all batches the
        same composition.
    n_programs
        Continuous programs that run across types and batches.
    program_shift
        Root mean square log fold change over the genes of a program fully on.
    dispersion
        Variance is mean + ``dispersion`` mean^2; 0 gives Poisson counts.
    depth
        Expected counts of a typical cell.
    seed
        Tree, genes, batches, cells and counts have streams of their own: with the same seed, the
        tree stays the same when, say, the batch effects change.

    Returns
    -------
    anndata.AnnData
        Cells by genes:

        - ``layers["counts"]`` counts, ``X`` log(1 + CP10k), both CSR float32
        - ``obs``: ``cell_type``, ``batch``, ``pseudotime`` (path length from the root),
          ``library_size`` (expected counts of the cell)
        - ``obsm["programs"]`` [cells, n_programs] activities in [0, 1]
        - ``obsm["truth"]`` [cells, n_types - 1 + n_programs] the code ``c`` below, batch-free
        - ``var["base"]``, ``varm["loadings"]`` [genes, columns of truth], ``varm["batch_effect"]``
          [genes, n_batches]
        - ``uns["tree"]``: ``names``, ``parent`` (index, -1 for the root), ``length`` (of the edge
          to the parent), ``distance`` [n_types, n_types] (path lengths), ``root``
        - ``uns["composition"]`` [n_batches, n_types] expected shares

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Tree: type t > 0 hangs on parent p(t) by an edge of length l_t ~ U(0.5, 1.5).

    Cell n of type t in batch b, with s = 1 - continuity U(0, 1) its place on the edge to t, codes
    c_e = sqrt(l_e) for the edges e above p(t), c_t = s sqrt(l_t), 0 for the others, and
    program activities a_k ~ Beta(1, 2). With orthogonal loadings w (each of root mean square 1
    over the genes and of mean 0)::

        eta_g = base_g + type_shift sum_e c_e w_eg + program_shift sum_k a_k w_kg
        rho_g = exp(eta_g + beta_bg) / sum_h exp(eta_h + beta_bh),   beta_bg ~ N(0, batch_shift^2)
        x_g ~ NB(mean = L rho_g, variance = mean + dispersion mean^2)
        log L = log depth + N(0, depth_shift^2) of the batch + N(0, 0.3^2) of the cell

    ``varm["loadings"]`` includes the factors ``type_shift`` and ``program_shift``, so ``base +
    truth @ loadings.T`` is eta. As the loadings are orthogonal, two types' mean squared difference
    of eta over the genes is exactly ``type_shift**2`` times their distance in the tree. The batch
    effects of a gene sum to zero. Memory is that of the counts plus 1,024 dense cells.

    Examples
    --------
    >>> from scvi_qbm.data import simulate
    >>> adata = simulate(200, 100, n_types=4, seed=1)
    >>> adata.shape, list(adata.obs["cell_type"].cat.categories)
    ((200, 100), ['type_0', 'type_1', 'type_2', 'type_3'])
    """
    _check(locals())
    streams = np.random.SeedSequence(as_seed(seed)).spawn(5)
    tree_rng, gene_rng, batch_rng, cell_rng, count_rng = map(np.random.default_rng, streams)
    tree = _grow(n_types, branching, tree_rng)
    n_codes = n_types - 1 + n_programs
    base = _BASE_SD * gene_rng.standard_normal(n_genes)
    loadings = _orthogonal(n_genes, n_codes, gene_rng)
    loadings *= np.repeat([type_shift, program_shift], [n_types - 1, n_programs])

    # Drawn as standard normals, so that a shift scales the effect and changes nothing else.
    effect = batch_rng.standard_normal((n_genes, n_batches))
    if n_batches > 1:
        effect -= effect.mean(axis=1, keepdims=True)
        effect *= np.sqrt(n_batches / (n_batches - 1))
    effect *= batch_shift
    batch_depth = depth_shift * batch_rng.standard_normal(n_batches)
    log_odds = composition_shift * batch_rng.standard_normal((n_batches, n_types))
    composition = np.exp(log_odds - log_odds.max(axis=1, keepdims=True))
    composition /= composition.sum(axis=1, keepdims=True)

    batch = cell_rng.permutation(np.arange(n_cells) % n_batches)
    reached = np.cumsum(composition, axis=1)[batch, :-1]
    kind = (cell_rng.random(n_cells)[:, None] > reached).sum(axis=1)
    place = 1.0 - continuity * cell_rng.random(n_cells)
    programs = cell_rng.beta(1.0, 2.0, size=(n_cells, n_programs))
    log_size = np.log(depth) + batch_depth[batch]
    size = np.exp(log_size + _CELL_DEPTH_SD * cell_rng.standard_normal(n_cells))

    codes = tree.codes(kind, place)
    truth = np.hstack([codes, programs])
    blocks = []
    for start in range(0, n_cells, _CELLS):
        rows = slice(start, start + _CELLS)
        mean = _softmax(base + truth[rows] @ loadings.T + effect.T[batch[rows]])
        mean *= size[rows, None]
        blocks.append(sparse.csr_matrix(_draw(mean, dispersion, count_rng), dtype=np.float32))
    counts = sparse.vstack(blocks, format="csr")

    names = [f"type_{t}" for t in range(n_types)]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(kind, names),
            "batch": pd.Categorical.from_codes(batch, [f"batch_{b}" for b in range(n_batches)]),
            "pseudotime": tree.pseudotime(kind, place),
            "library_size": size,
        },
        index=[f"cell_{n}" for n in range(n_cells)],
    )
    var = pd.DataFrame({"base": base}, index=[f"gene_{g}" for g in range(n_genes)])
    return AnnData(
        X=log_cp10k(counts),
        obs=obs,
        var=var,
        layers={"counts": counts},
        obsm={"programs": programs, "truth": truth},
        varm={"loadings": loadings, "batch_effect": effect},
        uns={
            "tree": {
                "names": np.array(names),
                "parent": tree.parent,
                "length": tree.length,
                "distance": tree.distance(),
                "root": names[0],
            },
            "composition": composition,
        },
    )


@dataclass(frozen=True)
class _Tree:
    """Nodes in an order in which parents come first; node 0 is the root."""

    parent: NDArray[np.int64]  # -1 for the root
    length: Array  # of the edge to the parent, 0 for the root
    above: NDArray[np.bool_]  # [t, e]: edge e (to node e) lies on the path from the root to node t

    def distance(self) -> Array:
        """Path lengths between the nodes, [n, n]."""
        differing = self.above[:, None, :] != self.above[None, :, :]
        return differing @ self.length

    def pseudotime(self, kind: NDArray[np.int64], place: Array) -> Array:
        """Path length from the root to the place ``place`` (1 at the node) on a cell's edge."""
        return (self.above @ self.length - self.length)[kind] + place * self.length[kind]

    def codes(self, kind: NDArray[np.int64], place: Array) -> Array:
        """Code of each cell on the edges, [cells, n - 1]."""
        codes = self.above[kind] * np.sqrt(self.length)
        own = np.arange(kind.size), kind
        codes[own] *= place
        return codes[:, 1:]


def _grow(n_types: int, branching: float, rng: np.random.Generator) -> _Tree:
    parent = np.full(n_types, -1)
    above = np.zeros((n_types, n_types), bool)
    for t in range(1, n_types):
        anywhere = rng.random() < branching
        drawn = rng.integers(t)
        parent[t] = drawn if anywhere else t - 1
        above[t] = above[parent[t]]
        above[t, t] = True
    length = rng.uniform(0.5, 1.5, n_types)
    length[0] = 0.0
    return _Tree(parent, length, above)


def _orthogonal(n_rows: int, n_columns: int, rng: np.random.Generator) -> Array:
    """Orthogonal columns of root mean square 1 and mean 0, from Gaussian draws."""
    draws = rng.standard_normal((n_rows, n_columns))
    q, r = np.linalg.qr(np.column_stack([np.ones(n_rows), draws]))
    return np.sqrt(n_rows) * (q * np.sign(np.diag(r)))[:, 1:]


def _softmax(eta: Array) -> Array:
    rho = np.exp(eta - eta.max(axis=1, keepdims=True))
    return rho / rho.sum(axis=1, keepdims=True)


def _draw(mean: Array, dispersion: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Negative binomial counts as a Gamma mixture of Poisson counts."""
    if dispersion == 0:
        return rng.poisson(mean)
    return rng.poisson(rng.gamma(1.0 / dispersion, mean * dispersion))


def _check(arguments: dict[str, float]) -> None:
    """Raise ValueError where an argument of ``simulate`` is out of range."""
    lowest = {"n_cells": 1, "n_genes": 1, "n_types": 1, "n_batches": 1, "n_programs": 0}
    for name, low in lowest.items():
        positive_int(arguments[name], name, low)
    for name in ("branching", "continuity"):
        if not 0 <= arguments[name] <= 1:
            raise ValueError(f"{name} must lie in [0, 1], not {arguments[name]}.")
    shifts = ("type", "batch", "depth", "composition", "program")
    for name in [*(f"{shift}_shift" for shift in shifts), "dispersion"]:
        if not 0 <= arguments[name] < np.inf:
            raise ValueError(f"{name} must be finite and not negative, not {arguments[name]}.")
    if not 0 < arguments["depth"] < np.inf:
        raise ValueError(f"depth must be positive and finite, not {arguments['depth']}.")
    needed = arguments["n_types"] + arguments["n_programs"]
    if arguments["n_genes"] < needed:
        raise ValueError(
            f"n_genes must be at least n_types + n_programs = {needed} for orthogonal loadings, "
            f"not {arguments['n_genes']}."
        )
    if arguments["n_cells"] < arguments["n_batches"]:
        raise ValueError("n_cells must be at least n_batches, so that no batch is empty.")
