"""Counts on the scale that biologists compare them on."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def log_cp10k(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """log(1 + counts per 10,000), cells by genes, CSR float32; empty cells stay zero."""
    total = np.asarray(counts.sum(axis=1), np.float64).ravel()
    scale = np.divide(1e4, total, out=np.zeros_like(total), where=total > 0)
    logged = counts.astype(np.float64)
    logged.data *= np.repeat(scale, np.diff(logged.indptr))
    np.log1p(logged.data, out=logged.data)
    return logged.astype(np.float32)
