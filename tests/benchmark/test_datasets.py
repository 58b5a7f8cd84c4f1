import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

from scvi_qbm.benchmark import data as datasets
from scvi_qbm.benchmark.data import describe, list_datasets, load, preprocess_counts
from scvi_qbm.benchmark.data.collections import COLLECTIONS
from scvi_qbm.benchmark.data.shared import SHARED, find_shared
from scvi_qbm.data import pbmc68k, simulate


def test_pbmc68k_counts_are_exact(pbmc):
    adata = pbmc68k()
    assert adata.shape == (700, 765)
    counts = adata.layers["counts"]
    assert (counts.data == np.rint(counts.data)).all() and counts.data.min() == 1
    assert adata.obs["cell_type"].nunique() == 10
    # The other way round: counts over the cell's total give the log values back.
    import scanpy as sc

    total = sc.datasets.pbmc68k_reduced().obs["n_counts"].to_numpy()
    logged = np.log1p(counts.toarray() / total[:, None] * 1e4)
    np.testing.assert_allclose(adata.X.toarray(), logged, atol=2e-3)


def test_pbmc68k_notices_other_values(monkeypatch):
    import scanpy as sc

    source = sc.datasets.pbmc68k_reduced()
    source.obs["n_counts"] = source.obs["n_counts"] * 1.5
    monkeypatch.setattr(sc.datasets, "pbmc68k_reduced", lambda: source)
    with pytest.raises(RuntimeError, match="any more"):
        pbmc68k()


def test_importing_is_cheap():
    code = (
        "import sys, scvi_qbm.benchmark.data as d; d.list_datasets(); d.describe('immune');"
        "print([m for m in ('scanpy', 'pooch', 'requests', 'rich', 'torch', 'scvi') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# The tables.


def test_names_are_the_keys_and_unknown_names_are_refused():
    names = list_datasets()
    assert names[0] == "pbmc68k" and len(names) == len(set(names)) == 1 + 8 + 8
    assert [describe(name).name for name in names] == names
    with pytest.raises(KeyError, match="No data set 'pbmc12'.*pbmc12k"):
        describe("pbmc12")
    with pytest.raises(KeyError, match="No data set"):
        load("pbmc12")


@pytest.mark.parametrize("name", COLLECTIONS)
def test_every_collection_has_an_address_or_a_portal(name):
    info = describe(name)
    assert info.kind == "download" and info.source and info.citation and info.portal
    assert info.batch_key and info.label_key and info.file_name
    for file in (info, *info.parts):
        if file.url is None:
            assert file.sha256 is None and "No address" in info.remarks
        else:
            assert file.url.startswith("https://")
        assert file.sha256 is None or (len(file.sha256) == 64 and int(file.sha256, 16))
        assert (file.sha256 is None) or "SHA-256" in info.source
    assert info.unpack == (info.url or "").endswith(("%2Egz", ".h5ad.gz"))


def test_an_entry_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        describe("immune").url = "elsewhere"


def test_shared_sets_are_looked_for_in_three_places(tmp_path, monkeypatch):
    from scvi_qbm.benchmark.data import shared as _shared

    work = tmp_path / "repo"
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "own").mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(_shared, "__file__", "/nowhere/repo/src/scvi_qbm/benchmark/data/shared.py")
    monkeypatch.setenv("SCVI_QBM_DATA_DIR", str(tmp_path / "own"))
    with pytest.raises(FileNotFoundError, match="own, .*shared/data, /nowhere/shared/data.*SCVI_"):
        find_shared("a.h5ad")
    (tmp_path / "shared" / "data" / "a.h5ad").touch()
    assert find_shared("a.h5ad") == tmp_path / "shared" / "data" / "a.h5ad"
    (tmp_path / "own" / "a.h5ad").touch()
    assert find_shared("a.h5ad") == tmp_path / "own" / "a.h5ad"


@pytest.mark.parametrize("name", SHARED)
def test_shared_sets_are_as_the_table_says(name, shared_data, monkeypatch):
    monkeypatch.setenv("SCVI_QBM_DATA_DIR", str(shared_data))
    info = describe(name)
    adata = load(name, max_cells=400)
    counts = adata.layers["counts"]
    assert adata.n_obs == 400 and sparse.isspmatrix_csr(counts) and counts.dtype == np.float32
    assert (counts.data == np.rint(counts.data)).all()
    assert {info.batch_key, info.label_key} <= set(adata.obs)
    assert info.fine_label_key is None or info.fine_label_key in adata.obs
    stated = re.match(r"([\d,]+) x ([\d,]+)", info.remarks)
    n_cells, n_genes = (int(number.replace(",", "")) for number in stated.groups())
    assert adata.n_vars == n_genes and n_cells > 400


@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("paul15_myeloid", [["6Ery", "3Ery", "1Ery"], ["9GMP", "14Mo", "16Neu"]]),
        ("pancreas_endocrinogenesis_e15", [["Ngn3 low EP", "Ngn3 high EP", "Pre-endocrine"]]),
    ],
)
def test_distance_from_the_root_orders_the_arms(name, later, shared_data, monkeypatch):
    from scipy.sparse.csgraph import dijkstra
    from sklearn.decomposition import PCA
    from sklearn.neighbors import kneighbors_graph

    monkeypatch.setenv("SCVI_QBM_DATA_DIR", str(shared_data))
    info = describe(name)
    adata = load(name, preprocess=True, n_top_genes=1000, max_cells=1500)
    pcs = PCA(20, random_state=0).fit_transform(adata.X.toarray())
    start = np.flatnonzero(adata.obs[info.root_key] == info.root_label)
    root = start[((pcs[start] - np.median(pcs[start], axis=0)) ** 2).sum(axis=1).argmin()]
    # Along the graph of neighbours: diffusion pseudotime agrees, but takes numba's compiler along.
    graph = kneighbors_graph(pcs, 15, mode="distance")
    far = dijkstra(graph, directed=False, indices=root)
    reached = np.isfinite(far)
    mean = adata.obs[reached].assign(far=far[reached]).groupby(info.root_key, observed=True)["far"]
    for arm in later:
        assert mean.mean()[[info.root_label, *arm]].is_monotonic_increasing


def test_the_bundled_set_through_load():
    adata = load("pbmc68k", max_cells=100, seed=2)
    whole = pbmc68k()
    rows = whole.obs_names.get_indexer(adata.obs_names)
    assert adata.n_obs == 100 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(
        adata.layers["counts"].toarray(), whole.layers["counts"].toarray()[rows]
    )
    np.testing.assert_array_equal(adata.X.toarray(), whole.X.toarray()[rows])
    assert adata.uns["dataset"]["name"] == "pbmc68k"


# Preprocessing.


@pytest.fixture
def raw():
    """Simulated counts in X; three poor cells and two rare genes at known places."""
    adata = simulate(300, 120, 4, 3, n_programs=1, seed=3)
    counts = adata.layers["counts"].toarray()
    counts[[5, 50, 200], 10:] = 0
    counts[:, 100:102] = 0
    counts[[0, 1], 100] = 1
    counts[[0, 1, 2], 101] = 1
    del adata.layers["counts"]
    adata.X = counts
    return adata


def test_preprocessing_is_what_the_paper_states(raw):
    before = raw.copy()
    out = preprocess_counts(raw, min_genes=20, n_top_genes=4000)
    np.testing.assert_array_equal(raw.X, before.X)
    assert list(raw.var) == list(before.var) and not raw.layers
    cells = np.delete(np.arange(300), [5, 50, 200])
    genes = np.delete(np.arange(120), 100)
    assert list(out.obs_names) == list(raw.obs_names[cells])
    assert list(out.var_names) == list(raw.var_names[genes])
    counts = raw.X[np.ix_(cells, genes)]
    np.testing.assert_array_equal(out.layers["counts"].toarray(), counts)
    logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    np.testing.assert_allclose(out.X.toarray(), logged, rtol=1e-5, atol=1e-6)
    assert out.X.format == out.layers["counts"].format == "csr"
    assert out.X.dtype == out.layers["counts"].dtype == np.float32
    assert out.var["highly_variable"].all() and "truth" in out.obsm


@pytest.mark.parametrize("batch_key", [None, "batch"])
def test_variable_genes_are_scanpy_s(raw, batch_key):
    import scanpy as sc

    whole = preprocess_counts(raw, min_genes=20)
    out = preprocess_counts(raw, min_genes=20, n_top_genes=30, batch_key=batch_key)
    sc.pp.highly_variable_genes(whole, n_top_genes=30, batch_key=batch_key)
    assert out.n_vars == 30
    assert list(out.var_names) == list(whole.var_names[whole.var["highly_variable"]])
    # Values are those before the choice: CP10k over all genes, not over the 30.
    np.testing.assert_array_equal(out.X.toarray(), whole[:, out.var_names].X.toarray())


def test_a_sparse_matrix_is_left_as_it_is(raw):
    raw.X = sparse.csr_matrix(raw.X, dtype=np.float32)
    raw.X.data[:5] = 0
    stored = raw.X.nnz
    preprocess_counts(raw, min_genes=20)
    assert raw.X.nnz == stored and not raw.X.data[:5].any()


def test_batches_matter_for_the_choice(raw):
    chosen = [
        set(preprocess_counts(raw, min_genes=20, n_top_genes=30, batch_key=key).var_names)
        for key in (None, "batch")
    ]
    assert chosen[0] != chosen[1]


def test_tiny_batches_have_no_say(raw):
    raw.obs["lot"] = np.where(np.arange(300) < 3, "tiny", raw.obs["batch"].astype(str))
    out = preprocess_counts(raw, min_genes=20, n_top_genes=30, batch_key="lot")
    rest = preprocess_counts(raw[3:], min_genes=20, n_top_genes=30, batch_key="lot", min_cells=1)
    assert list(out.var_names) == list(rest.var_names) and out.n_obs == 297


def test_counts_in_a_layer(raw):
    raw.layers["counts"] = sparse.csc_matrix(raw.X)
    raw.X = -np.ones(raw.shape)
    out = preprocess_counts(raw, layer="counts", min_genes=20)
    assert out.layers["counts"].max() == raw.layers["counts"].max()
    with pytest.raises(KeyError, match="'count' is not in adata.layers. Available: 'counts'"):
        preprocess_counts(raw, layer="count")
    with pytest.raises(KeyError, match="'lot' is not in adata.obs. Available: 'cell_type'"):
        preprocess_counts(raw, layer="counts", batch_key="lot")


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1.0, "negative values"), (0.5, "not integers"), (np.nan, "NaN"), (np.inf, "infinite")],
)
def test_values_that_are_not_counts_are_refused(raw, value, message):
    raw.X[7, 7] = value
    with pytest.raises(ValueError, match=f"adata.X should hold raw counts.*{message}"):
        preprocess_counts(raw)


def test_what_quality_control_cannot_pass(raw):
    with pytest.raises(ValueError, match=r"min_genes=200.*richest has \d+"):
        preprocess_counts(raw)
    with pytest.raises(ValueError, match="min_cells=1000"):
        preprocess_counts(raw, min_genes=1, min_cells=1000)
    with pytest.raises(ValueError, match="n_top_genes"):
        preprocess_counts(raw, n_top_genes=0)
    raw.X[[11, 12]] = 0
    with pytest.raises(ValueError, match="2 cells have no counts.*number 11"):
        preprocess_counts(raw)


def test_public_names():
    assert set(datasets.__all__) <= set(dir(datasets))
