import numpy as np
import pytest

from scvi_qbm.datasets import pbmc68k


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
