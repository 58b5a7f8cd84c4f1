r"""Ising models, Boltzmann machines and QUBOs: the one sign and temperature convention.

Everything in the package that samples, anneals or estimates a partition function speaks of an
:class:`Ising` model over spins :math:`s \in \{-1, +1\}^n`

.. math:: E(s) = -\tfrac{1}{2} s^\top J s - b^\top s + c, \qquad
          p_\beta(s) = e^{-\beta E(s)} / Z_\beta ,

with :math:`J` symmetric and of zero diagonal. The conversions below are exact: the energy of a
binary state and of its spins :math:`s = 2z - 1` agree to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse

__all__ = ["Ising"]

FloatArray = NDArray[np.float64]


def _as_floats(values: Any, name: str) -> FloatArray:
    """A contiguous float64 copy; a TypeError says of what numbers cannot be told from it."""
    if issparse(values):
        values = values.toarray()
    if np.ma.isMaskedArray(values) and np.ma.is_masked(values):
        raise TypeError(f"`{name}` has masked entries: fill them, with {name}.filled(0) say.")
    array = np.asarray(values)
    if array.dtype.kind not in "biufO":
        raise TypeError(f"`{name}` must have real numbers, not {array.dtype}.")
    return np.array(array, dtype=np.float64, order="C")


def _square_symmetric(matrix: ArrayLike, name: str, *, zero_diagonal: bool = True) -> FloatArray:
    """Validate a coupling matrix and return it as a contiguous float64 copy."""
    out = _as_floats(matrix, name)
    if out.ndim != 2 or out.shape[0] != out.shape[1]:
        raise ValueError(f"`{name}` must be a square matrix, got shape {out.shape}.")
    if out.shape[0] < 1:
        raise ValueError(f"`{name}` must have at least one row.")
    if not np.isfinite(out).all():
        raise ValueError(f"`{name}` has NaN or infinite entries.")
    size = np.abs(out)
    rounding = 1e-12 * float(size.max())
    asymmetry = np.abs(out - out.T)
    if (asymmetry > 1e-6 * np.maximum(size, size.T) + rounding).any():
        raise ValueError(
            f"`{name}` is not symmetric (largest |{name} - {name}.T| is {asymmetry.max():.3g}). "
            f"Use ({name} + {name}.T) / 2."
        )
    if zero_diagonal and np.diag(size).max() > rounding:
        raise ValueError(
            f"`{name}` has a non-zero diagonal. Move it to the offset (spins, s*s = 1) or to the "
            f"linear term (binary, z*z = z) first."
        )
    if asymmetry.any():
        out = (out + out.T) / 2
    if zero_diagonal:
        np.fill_diagonal(out, 0.0)
    return out


def _vector(vector: ArrayLike, n: int, name: str) -> FloatArray:
    """Validate a linear term of length ``n`` and return it as a float64 copy."""
    out = _as_floats(vector, name)
    if out.shape != (n,):
        raise ValueError(f"`{name}` must have shape ({n},), got {out.shape}.")
    if not np.isfinite(out).all():
        raise ValueError(f"`{name}` has NaN or infinite entries.")
    return out


@dataclass(frozen=True, eq=False)
class Ising:
    r"""A fully connected Ising model, :math:`E(s) = -\frac{1}{2} s^\top J s - b^\top s + c`.

    Parameters
    ----------
    J
        Couplings, shape ``(n_spins, n_spins)``, symmetric with zero diagonal. A positive entry
        makes two spins agree.
    b
        Fields, shape ``(n_spins,)``. A positive entry makes a spin point up.
    offset
        The constant :math:`c`. It moves energies and :math:`\log Z`, never the distribution.

    Raises
    ------
    TypeError
        If an array is masked, or has no real numbers. Sparse ones are made dense.
    ValueError
        If a shape is wrong, an entry is not finite, or ``J`` is asymmetric or has a diagonal.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_qbm.ising import Ising
    >>> pair = Ising(np.array([[0.0, 1.0], [1.0, 0.0]]), np.zeros(2))
    >>> pair.energy(np.array([[1, 1], [1, -1]]))
    array([-1.,  1.])
    """

    J: FloatArray
    b: FloatArray
    offset: float = 0.0

    def __post_init__(self) -> None:
        couplings = _square_symmetric(self.J, "J")
        n = couplings.shape[0]
        fields = _vector(self.b, n, "b")
        if not np.isfinite(self.offset):
            raise ValueError("`offset` must be finite.")
        couplings.flags.writeable = False
        fields.flags.writeable = False
        object.__setattr__(self, "J", couplings)
        object.__setattr__(self, "b", fields)
        object.__setattr__(self, "offset", float(self.offset))

    @property
    def n_spins(self) -> int:
        """Number of spins."""
        return int(self.b.shape[0])

    def __repr__(self) -> str:
        return f"Ising(n_spins={self.n_spins}, offset={self.offset:.6g})"

    def local_fields(self, spins: ArrayLike) -> FloatArray:
        """Local fields ``f = J s + b``; flipping spin i costs ``2 s_i f_i``.

        Parameters
        ----------
        spins
            States of shape ``(..., n_spins)`` with entries -1 and +1 (not checked here).

        Returns
        -------
        numpy.ndarray
            float64 of the same shape.

        Raises
        ------
        ValueError
            If the last axis is not ``n_spins`` long.
        """
        s = self._spins(spins)
        out: FloatArray = s @ self.J + self.b
        return out

    def energy(self, spins: ArrayLike) -> FloatArray:
        r"""Energy :math:`-\frac{1}{2} s^\top J s - b^\top s + c` of each state.

        Parameters
        ----------
        spins
            States of shape ``(..., n_spins)`` with entries -1 and +1.

        Returns
        -------
        numpy.ndarray
            float64 of shape ``(...)``.

        Raises
        ------
        ValueError
            If the last axis is not ``n_spins`` long or an entry is neither -1 nor +1.
        """
        s = self._spins(spins)
        if not (np.abs(s) == 1.0).all():
            raise ValueError("`spins` must hold -1 and +1 only; for binary states use 2 * z - 1.")
        out: FloatArray = (
            -0.5 * np.einsum("...i,...i->...", s @ self.J, s) - s @ self.b + self.offset
        )
        return out

    def _spins(self, spins: ArrayLike) -> FloatArray:
        s: FloatArray = np.asarray(spins, dtype=np.float64)
        if s.ndim < 1 or s.shape[-1] != self.n_spins:
            raise ValueError(
                f"`spins` must have shape (..., {self.n_spins}), got {np.shape(spins)}."
            )
        return s

    def scaled(self, beta: float) -> Ising:
        """The model with energies times ``beta``: at 1 it has this one's distribution at beta.

        Parameters
        ----------
        beta
            The factor; an inverse temperature.

        Returns
        -------
        Ising
            A new model; this one itself where ``beta`` is 1.
        """
        if beta == 1.0:
            return self
        return self._trusted(beta * self.J, beta * self.b, beta * self.offset)

    @classmethod
    def _trusted(cls, J: FloatArray, b: FloatArray, offset: float) -> Ising:
        """A model from arrays known to be valid and nobody else's: no checks, no copies."""
        new = object.__new__(cls)
        J.flags.writeable = b.flags.writeable = False
        object.__setattr__(new, "J", J)
        object.__setattr__(new, "b", b)
        object.__setattr__(new, "offset", float(offset))
        return new

    @classmethod
    def from_boltzmann(cls, W: ArrayLike, h: ArrayLike) -> Ising:
        r"""The Ising model of a Boltzmann machine over binary units :math:`z = (s + 1) / 2`.

        The machine has energy :math:`E(z) = h^\top z + \frac{1}{2} z^\top W z`, and the model
        returned has the same energies: :math:`J = -W/4`, :math:`b = -(h/2 + W\mathbf 1/4)`,
        :math:`c = \mathbf 1^\top h/2 + \mathbf 1^\top W \mathbf 1/8`.

        Parameters
        ----------
        W
            Couplings, shape ``(n, n)``, symmetric with zero diagonal. Mind the sign: a *positive*
            entry makes it costly that both units are on.
        h
            Biases, shape ``(n,)``. A positive entry makes it costly that the unit is on.

        Returns
        -------
        Ising
            ``n`` spins, the same energies.

        Raises
        ------
        ValueError
            As :class:`Ising`.
        """
        weights = _square_symmetric(W, "W")
        return cls._from_valid_boltzmann(weights, _vector(h, weights.shape[0], "h"))

    @classmethod
    def _from_valid_boltzmann(cls, weights: FloatArray, bias: FloatArray) -> Ising:
        row_sums = weights.sum(axis=1)
        return cls._trusted(
            -weights / 4,
            -(bias / 2 + row_sums / 4),
            float(bias.sum() / 2 + weights.sum() / 8),
        )

    def to_boltzmann(self) -> tuple[FloatArray, FloatArray, float]:
        r"""The Boltzmann machine of this model over binary units :math:`z = (s + 1) / 2`.

        The inverse of :meth:`from_boltzmann`:
        :math:`E(s) = h^\top z + \frac{1}{2} z^\top W z + \mathrm{constant}`.

        Returns
        -------
        W : numpy.ndarray
            Couplings :math:`-4J`, float64 ``(n_spins, n_spins)``, symmetric with zero diagonal.
        h : numpy.ndarray
            Biases :math:`2(J\mathbf 1 - b)`, float64 ``(n_spins,)``.
        constant : float
            What a machine has no place for:
            :math:`c + \mathbf 1^\top b - \frac{1}{2} \mathbf 1^\top J \mathbf 1`.
        """
        weights = -4 * self.J
        bias = -2 * self.b + 2 * self.J.sum(axis=1)
        constant = self.offset + float(self.b.sum()) - 0.5 * float(self.J.sum())
        return weights, bias, constant

    @classmethod
    def from_qubo(cls, Q: ArrayLike, offset: float = 0.0) -> Ising:
        r"""The Ising model of the QUBO :math:`E(z) = z^\top Q z + c`, any square ``Q``.

        Parameters
        ----------
        Q
            Shape ``(n, n)``; need not be symmetric, the diagonal is the linear term.
        offset
            Constant added to every energy.

        Returns
        -------
        Ising
            ``n`` spins, the same energies.

        Raises
        ------
        ValueError
            If ``Q`` is not square or not finite.
        """
        matrix = np.asarray(Q, dtype=np.float64)
        if matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]:
            matrix = (matrix + matrix.T) / 2
        matrix = _square_symmetric(matrix, "Q", zero_diagonal=False)
        weights = 2 * matrix
        np.fill_diagonal(weights, 0.0)
        model = cls.from_boltzmann(weights, np.diag(matrix))
        return cls(model.J, model.b, model.offset + offset)

    def to_qubo(self) -> tuple[FloatArray, float]:
        r"""The QUBO :math:`E(s) = z^\top Q z + \mathrm{constant}` over :math:`z = (s + 1) / 2`.

        Returns
        -------
        Q : numpy.ndarray
            float64 ``(n_spins, n_spins)``, symmetric; the diagonal is the linear term.
        constant : float
            The energy of z = 0.
        """
        weights, bias, constant = self.to_boltzmann()
        return weights / 2 + np.diag(bias), constant

    def to_ancilla(self) -> FloatArray:
        r"""Fold the fields into couplings to one more spin, which comes last.

        Returns
        -------
        numpy.ndarray
            Matrix :math:`M`, float64 ``(n_spins + 1, n_spins + 1)``, symmetric with zero
            diagonal, with :math:`-\frac{1}{2} \tilde s^\top M \tilde s + c = E(s)` wherever
            :math:`\tilde s = (\sigma s, \sigma)`, :math:`\sigma = \pm 1`. Multiply a machine's
            states by their last spin to get back to those of this model.
        """
        n = self.n_spins
        out = np.zeros((n + 1, n + 1))
        out[:n, :n] = self.J
        out[:n, n] = out[n, :n] = self.b
        return out
