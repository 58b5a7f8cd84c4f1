"""Integer couplings, as machines with few bits take them, and what rounding costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scvi_qbm._numbers import positive_int

__all__ = ["Quantised", "quantise"]

MAX_BITS = 32


class Quantised(NamedTuple):
    """Integer couplings and what was lost by rounding to them.

    Parameters
    ----------
    matrix
        int32, the shape of the matrix given.
    n_bits
        Bits of an entry, sign included.
    gain
        Integer units per unit of energy: ``matrix / gain`` stands for the couplings.
    zeroed
        Fraction of the non-zero couplings that became zero.
    relative_error
        Frobenius norm of the error over that of the couplings.
    max_error
        Largest error of one entry, in units of energy; at most ``0.5 / gain``.
    """

    matrix: NDArray[np.int32]
    n_bits: int
    gain: float
    zeroed: float
    relative_error: float
    max_error: float

    def as_dict(self) -> dict[str, Any]:
        """The report without the matrix, for a sampler's ``info``.

        Returns
        -------
        dict[str, Any]
            The other fields by name.
        """
        report = self._asdict()
        del report["matrix"]
        return report


def quantise(matrix: ArrayLike, n_bits: int = 8) -> Quantised:
    r"""Round couplings to signed integers of ``n_bits``, the largest one using the whole range.

    The range is symmetric, :math:`\pm(2^{n-1} - 1)`: -127 to 127 for 8 bits. One strong field
    therefore takes the resolution away from every weak coupling; ``zeroed`` shows it.

    Parameters
    ----------
    matrix
        Couplings in units of energy, shape ``(n, n)``; fields as the row and column of an
        ancilla spin (:meth:`Ising.to_ancilla <scvi_qbm.ising.Ising.to_ancilla>`).
    n_bits
        Bits of an entry, 2 to 32.

    Returns
    -------
    Quantised
        A matrix of zeros has gain 1 and no error.

    Raises
    ------
    ValueError
        If the matrix is not square, not finite or too small to be scaled, or ``n_bits`` is not
        within 2 and 32.

    Examples
    --------
    >>> from scvi_qbm.samplers.adapters.quantise import quantise
    >>> out = quantise([[0.0, 2.0], [2.0, 0.0]], n_bits=4)
    >>> out.matrix.tolist(), out.gain
    ([[0, 7], [7, 0]], 3.5)
    """
    n_bits = positive_int(n_bits, "n_bits", 2)
    if n_bits > MAX_BITS:
        raise ValueError(f"`n_bits` must be at most {MAX_BITS}, got {n_bits}.")
    couplings: NDArray[np.float64] = np.asarray(matrix, dtype=np.float64)
    if couplings.ndim != 2 or couplings.shape[0] != couplings.shape[1] or not couplings.size:
        raise ValueError(f"`matrix` must be a square matrix, got shape {couplings.shape}.")
    if not np.isfinite(couplings).all():
        raise ValueError("`matrix` has NaN or infinite entries.")
    limit = 2 ** (n_bits - 1) - 1
    largest = float(np.abs(couplings).max())
    if largest == 0:
        return Quantised(np.zeros(couplings.shape, np.int32), n_bits, 1.0, 0.0, 0.0, 0.0)
    if largest < np.finfo(np.float64).tiny * 2.0**MAX_BITS:
        raise ValueError(f"`matrix` is too small to be scaled (largest entry {largest:.3g}).")
    relative = couplings / largest  # squares of huge or tiny entries would leave float64
    integers = np.rint(relative * limit)
    error = integers / limit - relative
    nonzero = couplings != 0
    return Quantised(
        matrix=integers.astype(np.int32),
        n_bits=n_bits,
        gain=limit / largest,
        zeroed=float((integers[nonzero] == 0).mean()),
        relative_error=float(np.linalg.norm(error) / np.linalg.norm(relative)),
        max_error=float(np.abs(error).max()) * largest,
    )
