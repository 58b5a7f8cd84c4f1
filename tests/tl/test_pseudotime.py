import logging

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.stats import spearmanr

import scvi_qbm
from scvi_qbm.tl import diffusion_pseudotime
from scvi_qbm.tl.pseudotime import SCANPY_CUT


@pytest.fixture(scope="module")
def course():
    """Five states in a row with few cells between them."""
    random = np.random.default_rng(0)
    true = np.sort(np.r_[random.uniform(0, 4, 60), np.repeat(np.arange(5), 300)])
    true = true + 0.05 * random.random(len(true))
    x = np.c_[true, 0.05 * random.normal(size=(len(true), 3))]
    adata = AnnData(x.astype(np.float32))
    sc.pp.neighbors(adata, n_neighbors=15, use_rep="X")
    adata.obs["state"] = true.round()  # within a state there is no order
    adata.uns["iroot"] = 0
    return adata


@pytest.fixture
def told(caplog, monkeypatch):
    """What the user reads."""
    monkeypatch.setattr(logging.getLogger("scvi"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="scvi.qbm"):
        yield caplog


def test_keeps_the_order_that_scanpy_loses(course, told):
    adata = course.copy()
    assert scvi_qbm.tl.dpt(adata) is None
    assert "would leave out the leading diffusion component" in told.text
    pseudotime = adata.obs["dpt_pseudotime"]
    assert pseudotime.iloc[0] == 0 and pseudotime.max() == 1
    assert spearmanr(pseudotime, adata.obs["state"])[0] > 0.97
    kept = adata.uns["qbm"]["dpt_pseudotime"]
    assert kept["root"] == adata.obs_names[0] and kept["leading_eigenvalue"] > SCANPY_CUT
    peer = course.copy()
    sc.tl.diffmap(peer)
    sc.tl.dpt(peer)
    assert spearmanr(peer.obs["dpt_pseudotime"], peer.obs["state"])[0] < 0.9


def test_agrees_with_scanpy_where_nothing_is_cut():
    random = np.random.default_rng(1)
    adata = AnnData(random.normal(size=(400, 3)).astype(np.float32))
    sc.pp.neighbors(adata, use_rep="X")
    adata.uns["iroot"] = 7
    scvi_qbm.tl.dpt(adata, key_added="ours")
    sc.tl.diffmap(adata)
    sc.tl.dpt(adata)
    assert spearmanr(adata.obs["ours"], adata.obs["dpt_pseudotime"])[0] > 0.98


def test_root_by_name_and_copy(course):
    name = course.obs_names[-1]
    out = scvi_qbm.tl.dpt(course, name, key_added="back", copy=True)
    assert out.obs.loc[name, "back"] == 0 and out.obs["back"].iloc[0] > 0.9
    assert "back" not in course.obs and "qbm" not in course.uns


def test_cells_that_are_not_connected(told):
    random = np.random.default_rng(2)
    x = np.r_[random.normal(size=(100, 2)), random.normal(size=(50, 2)) + 100]
    adata = AnnData(x.astype(np.float32))
    sc.pp.neighbors(adata, use_rep="X")
    scvi_qbm.tl.dpt(adata, 3)
    assert "50 of 150 cells are not connected" in told.text
    assert adata.obs["dpt_pseudotime"].isna().to_numpy().nonzero()[0].tolist() == [
        *range(100, 150)
    ]


def test_what_is_missing_is_said(course):
    with pytest.raises(KeyError, match="scanpy.pp.neighbors"):
        scvi_qbm.tl.dpt(AnnData(np.zeros((3, 2), np.float32)), 0)
    with pytest.raises(KeyError, match="No cell is called 'Ngn3'"):
        scvi_qbm.tl.dpt(course, "Ngn3")
    with pytest.raises(ValueError, match="a cell from 0"):
        scvi_qbm.tl.dpt(course, -1)
    adata = course.copy()
    del adata.uns["iroot"]
    with pytest.raises(ValueError, match="Where does the course begin"):
        scvi_qbm.tl.dpt(adata)


def test_diffusion_pseudotime_is_the_sum_over_all_walks():
    """Haghverdi et al.: rows of the sum of T^k over k >= 1, stationary state taken out."""
    rng = np.random.default_rng(0)
    kernel = np.exp(-((rng.normal(size=(40, 1)) - rng.normal(size=(40, 1)).T) ** 2))
    kernel = kernel + kernel.T
    degree = np.sqrt(kernel.sum(0))
    transitions = kernel / degree[:, None] / degree
    values, vectors = np.linalg.eigh(transitions)
    values, vectors = values[::-1], vectors[:, ::-1]
    rest = transitions - np.outer(vectors[:, 0], vectors[:, 0])
    walks = np.linalg.inv(np.eye(40) - rest) - np.eye(40)
    expected = np.linalg.norm(walks - walks[7], axis=1)
    found = diffusion_pseudotime(vectors, values, 7)
    np.testing.assert_allclose(found, expected / expected.max(), atol=1e-10)
    assert found[7] == 0 and found.max() == 1
    with pytest.raises(ValueError, match="`root` is 40: a cell from 0 to 39"):
        diffusion_pseudotime(vectors, values, 40)
    with pytest.raises(ValueError, match=r"\(40, 40\) and `eigenvalues` \(39,\)"):
        diffusion_pseudotime(vectors, values[1:], 0)
    assert np.isfinite(diffusion_pseudotime(vectors[:, :2], [1.0, 1.0], 0)).all()
