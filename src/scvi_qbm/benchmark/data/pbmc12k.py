"""PBMC12k from its parts, as ``scvi.data.pbmc_dataset`` builds it."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from pandas.compat import pickle_compat
from scipy import io, sparse

# What a pickle of data frames needs, and nothing that runs code.
_ROOTS = {
    "__builtin__", "_codecs", "builtins", "collections", "copy_reg", "copyreg", "numpy", "pandas",
}  # fmt: skip
_NAMES = {
    "BlockManager", "Categorical", "CategoricalDtype", "DataFrame", "Float64Index", "Index",
    "Int64Index", "ObjectEngine", "OrderedDict", "RangeIndex", "Series", "SingleBlockManager",
    "StringDtype", "StringArray", "ArrowStringArray", "StringArrayNumpySemantics",
    "__newobj__", "_frombuffer", "_new_Index", "_reconstruct", "_reconstructor",
    "_unpickle_block", "bytearray", "bytes", "dict", "dtype", "encode", "list", "ndarray",
    "new_block", "object", "scalar", "set", "slice", "str", "tuple", "unicode", "int", "float",
    "__pyx_unpickle_NDArrayBacked", "NDArrayBacked",
}  # fmt: skip


def build_pbmc12k(tar_8k: Path, tar_4k: Path, gene_info: Path, metadata: Path) -> AnnData:
    """Cells of the two 10x runs that scvi-tools has labels for, and its genes."""
    counts_8k, genes, barcodes_8k = _read_10x(tar_8k)
    counts_4k, genes_4k, barcodes_4k = _read_10x(tar_4k)
    if not genes.index.equals(genes_4k.index):
        raise ValueError(f"{tar_8k.name} and {tar_4k.name} do not have the same genes.")
    barcodes = np.concatenate([barcodes_8k, barcodes_4k])
    batch = np.repeat(["pbmc8k", "pbmc4k"], [len(barcodes_8k), len(barcodes_4k)])
    counts = sparse.vstack([counts_8k, counts_4k], format="csr")

    with metadata.open("rb") as stream:
        notes = _Unpickler(stream, encoding="latin1").load()
    labelled = np.asarray(notes["barcodes"].index).ravel().astype(str)
    position = {barcode: i for i, barcode in enumerate(barcodes)}
    known = np.array([barcode in position for barcode in labelled])
    rows = np.array([position[barcode] for barcode in labelled[known]], dtype=np.int64)
    wanted = [g for g in pd.read_csv(gene_info)["ENSG"].astype(str) if g in genes.index]
    if not rows.size or not wanted:
        raise ValueError("No labelled cell or gene of PBMC12k is in the 10x archives.")
    codes = np.asarray(notes["clusters"]).ravel()[known].astype(int)
    names = np.asarray([str(name) for name in notes["list_clusters"]])
    obs = pd.DataFrame(
        {"batch": pd.Categorical(batch[rows]), "str_labels": pd.Categorical(names[codes])},
        index=pd.Index(barcodes[rows]),
    )
    columns = genes.index.get_indexer(wanted)
    adata = AnnData(X=counts[rows][:, columns], obs=obs, var=genes.iloc[columns].copy())
    if not adata.obs_names.is_unique:
        adata.obs_names_make_unique()
    return adata


def _read_10x(path: Path) -> tuple[sparse.csr_matrix, pd.DataFrame, np.ndarray]:
    """Counts (cells x genes), genes indexed by Ensembl id, barcodes; read inside the archive."""
    members = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if name == "matrix.mtx":
                members[name] = io.mmread(archive.extractfile(member))
            elif name in ("genes.tsv", "barcodes.tsv"):
                stream = archive.extractfile(member)
                members[name] = pd.read_csv(stream, sep="\t", header=None, dtype=str)
    missing = {"matrix.mtx", "genes.tsv", "barcodes.tsv"} - set(members)
    if missing:
        raise ValueError(f"{path.name} lacks {', '.join(sorted(missing))}.")
    genes = members["genes.tsv"]
    frame = pd.DataFrame({"gene_symbols": genes[1].to_numpy()}, index=pd.Index(genes[0]))
    counts = sparse.csr_matrix(members["matrix.mtx"].T, dtype=np.float32)
    return counts, frame.rename_axis(None), members["barcodes.tsv"][0].to_numpy(str)


class _Unpickler(pickle_compat.Unpickler):  # type: ignore[misc]
    """pandas' reader of old pickles, without the power to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] not in _ROOTS or name not in _NAMES:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}: refused")
        return super().find_class(module, name)
