"""The loaders of the paper's collections, on small made files."""

import dataclasses
import io
import os
import pickle
import tarfile

import numpy as np
import pandas as pd
import pytest
from scipy import io as scipy_io
from scipy import sparse

from scvi_qbm.benchmark import data as datasets
from scvi_qbm.data import simulate

pytestmark = pytest.mark.filterwarnings("ignore:No SHA-256")


def made(n_cells=60, n_genes=40, seed=0, **columns):
    """An AnnData with counts and the columns of ``obs`` asked for (name -> number of values)."""
    adata = simulate(n_cells, n_genes, 3, 2, n_programs=1, seed=seed)
    counts = adata.layers.pop("counts")
    del adata.obs["cell_type"], adata.obs["batch"]
    rng = np.random.default_rng(seed)
    for name, n in columns.items():
        adata.obs[name] = [f"{name}{i}" for i in rng.integers(n, size=n_cells)]
    return adata, counts


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SCVI_QBM_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def collection(folder, monkeypatch):
    """Put an AnnData where ``load`` finds it as the named collection."""
    from scvi_qbm.benchmark.data import catalogue

    def put(name, adata):
        info = datasets.describe(name)
        monkeypatch.setitem(catalogue._ALL, name, dataclasses.replace(info, sha256=None))
        adata.write_h5ad(folder / info.file_name)
        (folder / f"{info.file_name}.sha256.json").unlink(missing_ok=True)

    return put


def check_loaded(adata, counts, name):
    info = datasets.describe(name)
    assert {info.batch_key, info.label_key} <= set(adata.obs)
    layer = adata.layers["counts"]
    assert layer.format == adata.X.format == "csr" and layer.dtype == adata.X.dtype == np.float32
    np.testing.assert_array_equal(layer.toarray(), counts)
    share = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(adata.X.toarray(), np.log1p(1e4 * share), rtol=1e-5, atol=1e-5)


def test_scib_counts_are_taken_from_their_layer_and_rounded(collection):
    adata, counts = made(tech=3, celltype=4)
    dense = counts.toarray()
    dense[7, dense[7].argmax()] += 0.3
    adata.X = np.random.default_rng(0).normal(size=adata.shape)
    adata.layers["counts"] = dense
    collection("pancreas", adata)
    with pytest.warns(UserWarning, match="^1 of .* estimated counts"):
        loaded = datasets.load("pancreas")
    check_loaded(loaded, counts.toarray(), "pancreas")


def test_immune_keeps_counts_of_its_layer_and_rounds_the_villani_batch(collection):
    adata, counts = made(batch=10, final_annotation=4)
    adata.layers["counts"] = counts.toarray()
    adata.layers["counts"][adata.layers["counts"] > 0] -= 0.2
    collection("immune", adata)
    with pytest.warns(UserWarning, match="estimated counts"):
        loaded = datasets.load("immune")
    check_loaded(loaded, counts.toarray(), "immune")


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("hlca_core", {"donor_id": 3, "cell_type": 4}),
        ("fetal_lung", {"batch": 3, "broad_celltype": 4}),
    ],
)
def test_counts_in_raw(collection, name, columns):
    adata, counts = made(**columns)
    normed, adata.X = adata.X, counts
    adata.raw = adata
    adata.X = normed
    collection(name, adata[:, :10].copy())
    check_loaded(datasets.load(name), counts.toarray(), name)


def test_only_genes_of_bmmc(collection):
    adata, counts = made(batch=3, cell_type=4)
    adata.layers["counts"] = counts
    is_gene = np.arange(adata.n_vars) % 3 != 0
    adata.var["feature_types"] = np.where(is_gene, "GEX", "ATAC")
    collection("bmmc_multiome", adata)
    loaded = datasets.load("bmmc_multiome")
    check_loaded(loaded, counts.toarray()[:, is_gene], "bmmc_multiome")


def test_only_the_chosen_cells(collection):
    adata, counts = made(tech=3, celltype=4)
    adata.layers["counts"] = counts.tocsc()
    collection("pancreas", adata)
    loaded = datasets.load("pancreas", max_cells=20, seed=3)
    assert loaded.n_obs == 20
    rows = adata.obs_names.get_indexer(loaded.obs_names)
    assert (np.diff(rows) > 0).all() and rows[-1] > 20
    check_loaded(loaded, counts.toarray()[rows], "pancreas")
    again = datasets.load("pancreas", max_cells=20, seed=3)
    other = datasets.load("pancreas", max_cells=20, seed=4)
    assert list(again.obs_names) == list(loaded.obs_names) != list(other.obs_names)
    with pytest.raises(ValueError, match="max_cells"):
        datasets.load("pancreas", max_cells=0)


def test_cells_of_several_blocks_are_in_order(collection, monkeypatch):
    from scvi_qbm.benchmark.data import read as _read

    monkeypatch.setattr(_read, "_ROWS", 7)
    adata, counts = made(tech=3, celltype=4)
    adata.layers["counts"] = counts.toarray()
    collection("pancreas", adata)
    for max_cells in (None, 5):
        loaded = datasets.load("pancreas", max_cells=max_cells)
        rows = adata.obs_names.get_indexer(loaded.obs_names)
        check_loaded(loaded, counts.toarray()[rows], "pancreas")


def test_empty_cells_are_dropped_and_counted(collection):
    adata, counts = made(tech=3, celltype=4)
    dense = counts.toarray()
    dense[3] = 0
    adata.layers["counts"] = dense
    collection("pancreas", adata)
    loaded = datasets.load("pancreas")
    check_loaded(loaded, np.delete(dense, 3, axis=0), "pancreas")
    assert loaded.uns["dataset"]["n_empty"] == 1


def test_files_that_are_not_as_promised(collection):
    adata, counts = made(celltype=4)
    adata.layers["counts"] = counts
    collection("pancreas", adata)
    with pytest.raises(KeyError, match=r"'tech' \(batch_key\)"):
        datasets.load("pancreas")
    adata.obs["tech"] = "a"
    del adata.layers["counts"]
    collection("pancreas", adata)
    with pytest.raises(KeyError, match=r"layers/counts'\. It has: X"):
        datasets.load("pancreas")


@pytest.mark.parametrize("place", ["layers/counts", "raw", "X", None])
def test_counts_are_looked_for_where_the_place_is_unknown(folder, place):
    adata, counts = made(sample_id=2, cell_type=3)
    if place == "layers/counts":
        adata.layers["counts"] = counts
    elif place is not None:
        normed, adata.X = adata.X, counts
        if place == "raw":
            adata.raw = adata
            adata.X = normed
    with pytest.raises(FileNotFoundError, match="cellxgene"):
        datasets.load("eye")
    adata.write_h5ad(folder / "eye.h5ad")
    if place is None:
        with pytest.raises(ValueError, match="X has values that are not integers"):
            datasets.load("eye")
    else:
        check_loaded(datasets.load("eye"), counts.toarray(), "eye")


def tar_10x(path, counts, genes, barcodes):
    """A 10x archive as of Cell Ranger 2; ``counts`` are cells x genes."""
    matrix = io.BytesIO()
    scipy_io.mmwrite(matrix, sparse.coo_matrix(counts.T), field="integer")
    files = {
        "matrix.mtx": matrix.getvalue(),
        "genes.tsv": "".join(f"{g}\tsymbol-{g}\n" for g in genes).encode(),
        "barcodes.tsv": "".join(f"{b}\n" for b in barcodes).encode(),
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"filtered_gene_bc_matrices/GRCh38/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def pbmc12k_files(folder):
    genes = ["ENSG1", "ENSG2", "ENSG3", "ENSG4"]
    first = np.arange(1, 13).reshape(3, 4)
    second = np.arange(21, 29).reshape(2, 4)
    # AA-1 stands in both runs; CC-11 is what the labels call the run that lost.
    name = "filtered_gene_bc_matrices.tar.gz"
    tar_10x(folder / f"pbmc8k_{name}", first, genes, ["AA-1", "BB-1", "CC-1"])
    tar_10x(folder / f"pbmc4k_{name}", second, genes, ["AA-1", "DD-1"])
    (folder / "gene_info_pbmc.csv").write_text("ENSG,GS\nENSG3,c\nENSG9,x\nENSG1,a\n")
    labelled = ["DD-1", "CC-11", "AA-1", "CC-1"]
    notes = {
        "barcodes": pd.DataFrame({"barcode": labelled}, index=labelled),
        "clusters": np.array([1, 0, 0, 1]),
        "list_clusters": ["B cells", "NK cells"],
        "design": pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0]}),
    }
    (folder / "pbmc_metadata.pickle").write_bytes(pickle.dumps(notes, protocol=2))
    return folder


def test_pbmc12k_from_its_parts(pbmc12k_files):
    loaded = datasets.load("pbmc12k")
    check_loaded(loaded, np.array([[27, 25], [23, 21], [11, 9]]), "pbmc12k")
    assert list(loaded.obs_names) == ["DD-1", "AA-1", "CC-1"]
    assert list(loaded.var_names) == ["ENSG3", "ENSG1"]
    assert list(loaded.obs["str_labels"]) == ["NK cells", "B cells", "NK cells"]
    assert list(loaded.obs["batch"]) == ["pbmc4k", "pbmc4k", "pbmc8k"]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_pickle_cannot_run_code(pbmc12k_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (pbmc12k_files / "pbmc_metadata.pickle").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(pickle.UnpicklingError, match=r"mkdir: refused"):
        datasets.load("pbmc12k")
    assert not (tmp_path / "evil").exists()
