"""Cells that stay on disk: the loader, training from it, and files that are damaged."""

import errno
import multiprocessing
import os
import resource
import signal
import time

import anndata
import h5py
import numpy as np
import pytest
import scvi
import torch
import zarr
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from scipy import sparse
from scvi.dataloaders import AnnDataLoader
from support.models import FAST

import scvi_qbm
from scvi_qbm.data import OnDiskDataLoader, OnDiskDataSplitter, open_on_disk
from scvi_qbm.data.hdf5 import plain
from scvi_qbm.data.on_disk import share_of_rank, shuffled
from scvi_qbm.data.rows import RowReader, is_on_disk

SMALL = {"n_latent": 12, "n_hidden": 32}
SETUP = {"layer": "counts", "batch_key": "batch", "continuous_covariate_keys": ["depth"]}


@pytest.fixture(scope="module")
def cells(pbmc):
    adata = AnnData(pbmc.X, obs=pbmc.obs[["batch", "cell_type"]].copy(), var=pbmc.var[[]].copy())
    adata.layers["counts"] = pbmc.layers["counts"]
    adata.obs["depth"] = np.linspace(0, 1, adata.n_obs)
    return adata


@pytest.fixture(scope="module")
def stored(cells, tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


def registered(adata, **setup):
    scvi_qbm.QBMVI.setup_anndata(adata, **(setup or SETUP))
    return scvi_qbm.QBMVI(adata, **SMALL).adata_manager


def same(one, other):
    assert set(one) == set(other)
    for key, value in one.items():
        assert value.dtype == other[key].dtype and value.shape == other[key].shape, key
        assert torch.equal(value, other[key]), key


# -- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "block", "buffer"), [(1000, 16, 128), (7, 3, 2), (64, 64, 64)])
def test_every_cell_once(n, block, buffer):
    positions = np.random.default_rng(0).permutation(3 * n)[:n]
    order = shuffled(positions, block, buffer, seed=1)
    np.testing.assert_array_equal(np.sort(order), np.sort(positions))
    np.testing.assert_array_equal(order, shuffled(positions, block, buffer, seed=1))


def test_a_buffer_holds_whole_blocks_from_everywhere():
    order = shuffled(np.arange(100_000), 50, 5000, seed=0)
    buffers = order.reshape(20, 5000)
    for buffer in buffers:
        blocks = np.unique(buffer // 50)
        assert len(blocks) == 100 and blocks.min() < 200 and blocks.max() > 1800
        # No trace of the blocks is left inside: neighbours in the order are strangers.
        assert (np.diff(buffer) == 1).mean() < 0.01


def test_one_buffer_is_a_uniform_shuffle():
    """Place of a cell in the order, over many seeds: chi-square against uniform."""
    n, n_seeds = 12, 6000
    counts = np.zeros((n, n))
    for seed in range(n_seeds):
        counts[np.arange(n), shuffled(np.arange(n), 4, n, seed)] += 1
    expected = n_seeds / n
    statistic = ((counts - expected) ** 2 / expected).sum()
    degrees = (n - 1) ** 2
    assert abs(statistic - degrees) < 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("drop_tail", [False, True])
def test_shares_of_ranks(drop_tail):
    order = np.random.default_rng(0).permutation(103)
    shares = [share_of_rank(order, rank, 4, drop_tail) for rank in range(4)]
    together = np.concatenate(shares)
    assert {len(share) for share in shares} == {25 if drop_tail else 26}
    assert len(np.unique(together)) == (100 if drop_tail else 103)


# -- reading -------------------------------------------------------------------------------------


class Lazy:
    """What a dask array does when its rows are read."""

    def __init__(self, x):
        self.x, self.shape = x, x.shape

    def __getitem__(self, rows):
        return Lazy(self.x[rows])

    def compute(self):
        return self.x


@pytest.mark.parametrize("kind", ["h5ad", "zarr", "dense", "lazy", "backed"])
def test_reader_gives_the_rows(cells, stored, tmp_path, kind):
    x = cells.layers["counts"]
    if kind == "zarr":
        cells.write_zarr(tmp_path / "cells.zarr")
        source = open_on_disk(tmp_path / "cells.zarr").layers["counts"]
    elif kind == "dense":
        dense = AnnData(x.toarray())
        dense.write_h5ad(tmp_path / "dense.h5ad")
        source = open_on_disk(tmp_path / "dense.h5ad").X
    elif kind == "lazy":
        source = Lazy(x.toarray())
    elif kind == "backed":
        x, source = cells.X, anndata.read_h5ad(stored, backed="r").X
    else:
        source = open_on_disk(stored).layers["counts"]
    assert is_on_disk(source) and not is_on_disk(x)
    reader = RowReader(source)
    for rows in ([0], [699], np.arange(700), np.arange(0, 700, 7), [0, 1, 2, 30, 31, 300, 699]):
        block = reader.read(np.asarray(rows))
        assert block.dtype == x.dtype
        block = block.toarray() if sparse.issparse(block) else block
        np.testing.assert_array_equal(block, x[rows].toarray())


def bfloat16():
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


LAYOUTS = {
    "contiguous": (True, {}),
    "chunks": (True, {"chunks": (70,)}),
    "numbers of 2 bytes": (True, {"dtype": "uint16", "chunks": (70,)}),
    "compressed": (False, {"compression": "gzip"}),
    "shuffled bytes": (False, {"shuffle": True, "chunks": (70,)}),
    "other byte order": (False, {"dtype": ">f4"}),
    "narrow floats": (False, {"dtype": h5py.Datatype(bfloat16())}),
    "flags": (False, {"dtype": bool}),
    "two dimensions": (False, {"data": np.arange(6).reshape(2, 3)}),
    "empty": (False, {"data": np.zeros(0)}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_are_read_from_where_they_lie(tmp_path, layout):
    expected, options = LAYOUTS[layout]
    values = np.random.default_rng(0).permutation(1000)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", **{"data": values} | options)
        assert plain(dataset) is None, "open for writing: not all of it need be in the file"
    with h5py.File(tmp_path / "x.h5") as file:
        array = plain(file["x"])
        assert (array is not None) == expected
        if array is None:
            return
        for start, n in [(0, 1000), (0, 1), (999, 1), (69, 2), (70, 70), (13, 800), (1000, 0)]:
            out = np.empty(n, array.dtype)
            array.read_into(out, np.int32(start))
            np.testing.assert_array_equal(out, file["x"][start : start + n])
        for start, n in [(999, 2), (-1, 1)]:
            with pytest.raises(ValueError, match="1000 values"):
                array.read_into(np.empty(n, array.dtype), start)
        os.truncate(tmp_path / "x.h5", os.path.getsize(tmp_path / "x.h5") // 2)
        with pytest.raises(OSError, match="the file ends"):
            array.read_into(np.empty(1000, array.dtype), 0)


def test_chunks_anywhere_in_the_file(tmp_path):
    """Chunks in an order of their own, others' data between them, and one that is not there."""
    values = np.arange(300.0)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in ("x", "y"):
            file.create_dataset(name, (300,), "f8", chunks=(100,))
        for start in (200, 0, 100):
            file["x"][start : start + 100] = values[start : start + 100]
            if start:
                file["y"][start : start + 100] = 1
    with h5py.File(tmp_path / "x.h5") as file:
        out = np.empty(220)
        plain(file["x"]).read_into(out, 50)
        np.testing.assert_array_equal(out, values[50:270])
        assert plain(file["y"]) is None and file["y"][0] == 0
    with h5py.File(tmp_path / "u.h5", "w", userblock_size=512) as file:
        file["x"] = values
    with h5py.File(tmp_path / "u.h5") as file:
        assert plain(file["x"]) is None


@pytest.mark.parametrize("chunks", [None, (2**20,)])
def test_values_beyond_4_gib(tmp_path, chunks):
    """Positions of 32 bits are not offsets in bytes; holes of the file take no room."""
    n, start = 2**30 + 2**20, 2**30 + 5
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    if chunks:
        plist.set_chunk(chunks)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        space = h5py.h5s.create_simple((n,))
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_FLOAT, space, plist)
        file["x"][start : start + 10] = np.arange(10)
    with h5py.File(tmp_path / "x.h5") as file:
        out = np.empty(10, "f4")
        plain(file["x"]).read_into(out, np.int32(start))
    np.testing.assert_array_equal(out, np.arange(10))


def test_file_that_is_closed_while_in_use(cells, tmp_path):
    """The number of a file that was closed is given to the next one."""
    for name, factor in (("one", 1), ("two", 2)):
        AnnData(cells.layers["counts"] * factor).write_h5ad(tmp_path / f"{name}.h5ad")
    adata = open_on_disk(tmp_path / "one.h5ad")
    reader, rows = RowReader(adata.X), np.arange(50)
    adata.X.group.file.close()
    with h5py.File(tmp_path / "two.h5ad"):
        x = reader.read(rows)
    assert (x != cells.layers["counts"][:50]).nnz == 0


@pytest.mark.parametrize("value", [-1, 10**9, 5])
def test_rows_that_do_not_follow_each_other(cells, tmp_path, value):
    path = tmp_path / "bad.h5ad"
    AnnData(cells.layers["counts"]).write_h5ad(path)
    with h5py.File(path, "a") as file:
        file["X/indptr"][300] = value
    with pytest.raises(OSError, match="X/indptr is damaged"):
        RowReader(open_on_disk(path).X)


def test_genes_that_come_twice_are_added(tmp_path):
    """As scipy's ``toarray`` does."""
    x = sparse.csr_matrix((np.float32([1, 2, 3]), [4, 4, 0], [0, 2, 3]), shape=(2, 6))
    AnnData(x).write_h5ad(tmp_path / "x.h5ad")
    manager = registered(open_on_disk(tmp_path / "x.h5ad"), batch_key=None)
    (batch,) = OnDiskDataLoader(manager, data_and_attributes=["X"])
    np.testing.assert_array_equal(batch["X"], [[0, 0, 0, 0, 3, 0], [3, 0, 0, 0, 0, 0]])


def test_stored_by_columns(cells, tmp_path):
    AnnData(cells.layers["counts"].tocsc()).write_h5ad(tmp_path / "columns.h5ad")
    adata = open_on_disk(tmp_path / "columns.h5ad")
    with pytest.raises(TypeError, match="tocsr"):
        OnDiskDataLoader(registered(adata, layer=None))


def test_open_on_disk(cells, stored):
    adata = open_on_disk(stored)
    assert is_on_disk(adata.X) and is_on_disk(adata.layers["counts"])
    np.testing.assert_array_equal(adata.obs["batch"], cells.obs["batch"])
    assert adata.var_names.equals(cells.var_names)
    with pytest.raises(FileNotFoundError, match=r"no\.h5ad"):
        open_on_disk("no.h5ad")


# -- loader --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "indices", [None, [5, 3, 3, 699, 0], np.arange(700) % 3 == 0], ids=["all", "some", "mask"]
)
@pytest.mark.parametrize("buffer_size", [64, 256, 10_000])
def test_loader_gives_what_scvi_tools_gives(cells, stored, indices, buffer_size):
    theirs = AnnDataLoader(registered(cells), indices=indices, batch_size=64)
    ours = OnDiskDataLoader(
        registered(open_on_disk(stored)), indices=indices, batch_size=64, buffer_size=buffer_size
    )
    assert len(ours) == len(theirs)
    batches = list(ours)
    assert len(batches) == len(theirs)
    for one, other in zip(batches, theirs, strict=True):
        same(one, other)


def test_shuffled_batches_keep_cells_together(cells, stored):
    """Every field of a cell stays with its counts, and each cell comes once."""
    loader = OnDiskDataLoader(
        registered(open_on_disk(stored)),
        batch_size=64,
        shuffle=True,
        block_size=8,
        buffer_size=128,
    )
    torch.manual_seed(0)
    batches = list(loader)
    depth = torch.cat([b["extra_continuous_covs"] for b in batches]).numpy().ravel()
    cell = np.rint(depth * 699).astype(int)
    assert sorted(cell) == list(range(700)) and (cell != np.arange(700)).mean() > 0.9
    x = torch.cat([b["X"] for b in batches]).numpy()
    np.testing.assert_array_equal(x, cells.layers["counts"][cell].toarray())
    codes = torch.cat([b["batch"] for b in batches]).numpy().ravel()
    np.testing.assert_array_equal(
        codes, cells.obs["batch"].astype("category").cat.codes.to_numpy()[cell]
    )
    again = torch.cat([b["extra_continuous_covs"] for b in loader]).numpy().ravel()
    assert (again != depth).mean() > 0.9


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [200] * 3), (False, [200] * 3 + [100])])
def test_last_batch(stored, drop_last, sizes):
    loader = OnDiskDataLoader(
        registered(open_on_disk(stored)), batch_size=200, shuffle=True, drop_last=drop_last
    )
    assert [len(b["X"]) for b in loader] == sizes and len(loader) == len(sizes)


def test_sparse_tensors(stored):
    manager = registered(open_on_disk(stored))
    plain = next(iter(OnDiskDataLoader(manager)))["X"]
    thin = next(iter(OnDiskDataLoader(manager, load_sparse_tensor=True)))["X"]
    assert thin.layout is torch.sparse_csr and torch.equal(thin.to_dense(), plain)


def test_some_keys(stored):
    manager = registered(open_on_disk(stored))
    assert set(next(iter(OnDiskDataLoader(manager, data_and_attributes=["batch"])))) == {"batch"}
    batch = next(iter(OnDiskDataLoader(manager, data_and_attributes={"X": np.float64})))
    assert set(batch) == {"X"} and batch["X"].dtype == torch.float64


def test_no_more_than_two_buffers_are_held(stored, monkeypatch):
    loader = OnDiskDataLoader(registered(open_on_disk(stored)), batch_size=50, buffer_size=100)
    read = []
    original = loader._read
    monkeypatch.setattr(loader, "_read", lambda cells: read.append(len(cells)) or original(cells))
    batches = iter(loader)
    for n_buffers in (2, 2, 3, 3, 4):  # two minibatches a buffer, and the one after it is read
        next(batches)
        deadline = time.monotonic() + 20
        while len(read) < n_buffers and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)  # for more, if it did not wait
        assert read == [100] * n_buffers
    batches.close()
    assert len(read) == 4


@pytest.mark.parametrize("name", ["batch_size", "block_size", "buffer_size"])
def test_sizes_are_checked(stored, name):
    with pytest.raises(ValueError, match=name):
        OnDiskDataLoader(registered(open_on_disk(stored)), **{name: 0})


def test_a_mask_is_as_long_as_the_data(stored):
    with pytest.raises(ValueError, match="mask"):
        OnDiskDataLoader(registered(open_on_disk(stored)), indices=np.ones(3, dtype=bool))


# -- splitting -----------------------------------------------------------------------------------


def test_cells_are_held_out_by_blocks(stored):
    manager = registered(open_on_disk(stored))
    scvi.settings.seed = 0
    splitter = OnDiskDataSplitter(manager, block_size=10, train_size=0.7, validation_size=0.2)
    splitter.setup()
    parts = splitter.train_idx, splitter.val_idx, splitter.test_idx
    assert [len(part) for part in parts] == [490, 140, 70]
    assert sorted(np.concatenate(parts)) == list(range(700))
    assert len(np.unique(splitter.val_idx // 10)) == 14
    assert splitter.val_idx[-1] - splitter.val_idx[0] > 300
    outside = [np.arange(100, 700), np.arange(100), np.array([], dtype=int)]
    splitter = OnDiskDataSplitter(manager, external_indexing=outside)
    splitter.setup()
    np.testing.assert_array_equal(splitter.val_idx, np.arange(100))


# -- the model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(cells, stored):
    """The same weights with the data in memory and on disk; trained from disk."""
    scvi.settings.seed = 0
    adata = open_on_disk(stored)
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = scvi_qbm.QBMVI(adata, **SMALL)
    model.train(**(FAST | {"max_epochs": 12, "check_val_every_n_epoch": 1}))
    scvi_qbm.QBMVI.setup_anndata(cells, layer="counts", batch_key="batch")
    twin = scvi_qbm.QBMVI(cells, **SMALL)
    twin.module.load_state_dict(model.module.state_dict())
    twin._pull_ = model._pull_
    twin.is_trained_ = True
    twin.module.eval()
    return model, twin


def test_training_from_disk(models):
    model, _ = models
    assert isinstance(model.trainer.train_dataloader, OnDiskDataLoader)
    elbo = model.history["elbo_validation"].to_numpy(float).ravel()
    assert len(elbo) == 12 and elbo[-1] < elbo[0] - 20


@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        ("get_latent_representation", {}),
        ("get_latent_representation", {"indices": [9, 2, 650]}),
        ("get_elbo", {}),
        ("get_normalized_expression", {"indices": np.arange(50), "return_numpy": True}),
        ("get_reconstruction_error", {}),
        ("get_outlier_scores", {}),
    ],
)
def test_methods_read_from_disk(models, method, kwargs):
    results = []
    for model in models:
        torch.manual_seed(0)
        results.append(getattr(model, method)(**kwargs))
    one, other = (np.asarray(list(r.values()) if isinstance(r, dict) else r) for r in results)
    np.testing.assert_array_equal(one, other)


def test_labels_on_disk(cells, stored, tmp_path):
    scvi.settings.seed = 0
    adata = open_on_disk(stored)
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    adata.obs["known"] = np.where(np.arange(adata.n_obs) % 2, truth, "?")
    scvi_qbm.QBMANVI.setup_anndata(adata, "known", "?", layer="counts")
    model = scvi_qbm.QBMANVI(adata, **SMALL)
    model.train(**(FAST | {"max_epochs": 12}))
    assert isinstance(model.trainer.train_dataloader, OnDiskDataLoader)
    found = model.predict()
    assert (found == truth)[::2].mean() > 0.6
    model.save(tmp_path / "model", save_anndata=False)
    loaded = scvi_qbm.QBMANVI.load(tmp_path / "model", adata=adata)
    np.testing.assert_array_equal(loaded.predict(), found)
    np.testing.assert_array_equal(loaded.predict(cells), found)


def test_saved_without_data_and_loaded(models, tmp_path):
    model, twin = models
    model.save(tmp_path / "model", save_anndata=False)
    loaded = scvi_qbm.QBMVI.load(tmp_path / "model", adata=model.adata)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), twin.get_latent_representation()
    )


def test_latents_are_written_as_they_come(models, tmp_path):
    model, _ = models
    for kwargs in ({}, {"indices": [9, 2, 650]}, {"representation": "logits", "batch_size": 33}):
        model.write_latent_representation(tmp_path / "latent.npy", silent=True, **kwargs)
        written = np.load(tmp_path / "latent.npy", mmap_mode="r")
        np.testing.assert_array_equal(written, model.get_latent_representation(**kwargs))
    assert os.listdir(tmp_path) == ["latent.npy"]
    with pytest.raises(ValueError, match=r"\.npy"):
        model.write_latent_representation(tmp_path / "latent.h5ad")
    with pytest.raises(ValueError, match="Unknown representation"):
        model.write_latent_representation(tmp_path / "latent.npy", representation="mean")


def _write_with_a_limit(model, path, queue):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        model.write_latent_representation(path, silent=True)
        queue.put("written")
    except OSError as error:
        queue.put(errno.errorcode[error.errno])


@pytest.mark.slow
def test_disk_full(models, tmp_path):
    """A real limit on the size of files, in a process of its own; the old file survives."""
    path = tmp_path / "latent.npy"
    path.write_bytes(b"the old one")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_write_with_a_limit, args=(models[0], path, queue))
    child.start()
    assert queue.get(timeout=60) == "EFBIG"
    child.join()
    assert path.read_bytes() == b"the old one" and os.listdir(tmp_path) == ["latent.npy"]


# -- faults --------------------------------------------------------------------------------------


def test_truncated_file(stored, tmp_path):
    path = tmp_path / "short.h5ad"
    path.write_bytes(stored.read_bytes()[: os.path.getsize(stored) // 2])
    with pytest.raises(ValueError, match=r"short\.h5ad.*incomplete"):
        open_on_disk(path)


@pytest.mark.parametrize("part", ["data", "indices"])
def test_zarr_that_lacks_a_chunk(cells, tmp_path, part):
    """Zarr would read zeros there."""
    path = tmp_path / "cells.zarr"
    cells.write_zarr(path)
    lazily = anndata.io.sparse_dataset(zarr.open_group(path, mode="r")["layers/counts"])
    chunks = [f for f in (path / "layers/counts" / part).rglob("*") if f.name[:1].isdigit()]
    next(f for f in chunks if f.is_file()).unlink()
    lost = rf"cells\.zarr.*1 of \d+ chunks of /layers/counts/{part}"
    with pytest.raises(ValueError, match=lost):
        open_on_disk(path)
    with pytest.raises(OSError, match="chunks"):
        RowReader(lazily)


def test_file_that_loses_its_end_while_in_use(cells, tmp_path):
    """HDF5 would read zeros there."""
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    adata = open_on_disk(path)
    scvi_qbm.QBMVI.setup_anndata(adata, **SETUP)
    model = scvi_qbm.QBMVI(adata, **SMALL)

    class Cut(Callback):
        def on_train_epoch_start(self, trainer, plan):
            if trainer.current_epoch == 3:
                os.truncate(path, os.path.getsize(path) // 2)

    with pytest.raises(OSError, match=r"cells\.h5ad was truncated") as info:
        model.train(**FAST | {"max_epochs": 9, "check_val_every_n_epoch": 1}, callbacks=[Cut()])
    assert "weights of epoch" in info.value.__notes__[0] and model.is_trained_


def test_bad_gene_numbers(cells, tmp_path):
    path = tmp_path / "bad.h5ad"
    AnnData(cells.layers["counts"]).write_h5ad(path)
    with h5py.File(path, "a") as file:
        file["X/indices"][10] = 10**6
    with pytest.raises(OSError, match="gene numbers are out of range"):
        RowReader(open_on_disk(path).X).read(np.arange(5))


def test_out_of_memory(stored, monkeypatch):
    loader = OnDiskDataLoader(registered(open_on_disk(stored)), batch_size=100, buffer_size=400)

    def full(self, rows):
        raise MemoryError("Unable to allocate 10.0 GiB")

    monkeypatch.setattr(RowReader, "read", full)
    with pytest.raises(MemoryError, match=r"400 cells .* do not fit.*'buffer_size': 50"):
        next(iter(loader))
