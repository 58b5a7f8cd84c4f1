import doctest

import numpy as np
import pytest
from support.machines import peaked_ising

from scvi_qbm.ising import Ising
from scvi_qbm.samplers.adapters import quantise as module
from scvi_qbm.samplers.adapters.quantise import quantise


def test_known_matrix():
    out = quantise([[0.0, 2.0, 0.007], [2.0, 0.0, -1.0], [0.007, -1.0, 0.0]])
    # 127 / 2 = 63.5 a unit: 1 -> 63.5, rounded to even 64; 0.007 -> 0.4445, lost.
    assert out.gain == 63.5
    np.testing.assert_array_equal(out.matrix, [[0, 127, 0], [127, 0, -64], [0, -64, 0]])
    assert out.matrix.dtype == np.int32
    assert out.zeroed == pytest.approx(2 / 6)
    error = np.array([0, 0.007, 64 / 63.5 - 1])
    assert out.max_error == pytest.approx(error.max())
    norm = np.sqrt(2 * (4 + 1 + 0.007**2))
    assert out.relative_error == pytest.approx(np.sqrt(2 * (error**2).sum()) / norm)


@pytest.mark.parametrize("n_bits", [2, 3, 8, 14, 32])
def test_range_symmetry_and_error_bound(n_bits):
    matrix = peaked_ising(20, 0).to_ancilla()
    out = quantise(matrix, n_bits)
    limit = 2 ** (n_bits - 1) - 1
    assert out.n_bits == n_bits and np.abs(out.matrix.astype(np.int64)).max() == limit
    np.testing.assert_array_equal(out.matrix, out.matrix.T)
    error = np.abs(out.matrix / out.gain - matrix)
    assert out.max_error == pytest.approx(error.max(), rel=1e-3)
    assert out.max_error <= 0.5 / out.gain * (1 + 1e-9)
    assert out.relative_error == pytest.approx(
        np.linalg.norm(out.matrix / out.gain - matrix) / np.linalg.norm(matrix), rel=1e-3
    )


@pytest.mark.parametrize(("sd", "zeroed", "error"), [(0.01, 0.98, None), (0.1, 0.24, 0.17)])
def test_what_eight_bits_do_to_a_young_machine(sd, zeroed, error):
    """Biases N(0, 1) take the range: the couplings of a machine in training round to nothing."""
    rng = np.random.default_rng(0)
    upper = np.triu(rng.normal(size=(256, 256)) * sd, 1)
    model = Ising.from_boltzmann(upper + upper.T, rng.normal(size=256))
    couplings = model.to_ancilla() / 2
    out = quantise(couplings)
    inner = couplings[:256, :256] != 0
    assert (out.matrix[:256, :256][inner] == 0).mean() == pytest.approx(zeroed, abs=0.04)
    if error is not None:
        inner_error = np.linalg.norm((out.matrix / out.gain - couplings)[:256, :256])
        assert inner_error / np.linalg.norm(couplings[:256, :256]) == pytest.approx(
            error, abs=0.05
        )
        # The fields are exact to half a unit, so the whole matrix looks better than its couplings.
        assert out.relative_error < error / 2


def test_scale_does_not_matter():
    matrix = peaked_ising(9, 1).to_ancilla()
    one, tiny, huge = quantise(matrix), quantise(matrix * 1e-200), quantise(matrix * 1e200)
    for other, scale in ((tiny, 1e-200), (huge, 1e200)):
        np.testing.assert_array_equal(one.matrix, other.matrix)
        assert other.gain * scale == pytest.approx(one.gain)
        assert other.relative_error == pytest.approx(one.relative_error)
        assert other.max_error == pytest.approx(one.max_error * scale)


def test_zeros():
    out = quantise(np.zeros((3, 3)))
    assert not out.matrix.any()
    assert out[1:] == (8, 1.0, 0.0, 0.0, 0.0)


def test_report():
    report = quantise(np.eye(2)).as_dict()
    assert list(report) == ["n_bits", "gain", "zeroed", "relative_error", "max_error"]


@pytest.mark.parametrize(
    ("matrix", "n_bits", "message"),
    [
        (np.eye(2), 1, "n_bits"),
        (np.eye(2), 33, "n_bits"),
        (np.ones((2, 3)), 8, "square"),
        (np.ones(3), 8, "square"),
        (np.zeros((0, 0)), 8, "square"),
        (np.array([[0, np.nan], [0, 0]]), 8, "NaN"),
        (np.array([[0, np.inf], [0, 0]]), 8, "infinite"),
        (np.full((2, 2), 1e-310), 8, "too small"),
    ],
)
def test_refusals(matrix, n_bits, message):
    with pytest.raises(ValueError, match=message):
        quantise(matrix, n_bits)


def test_docstring_examples():
    results = doctest.testmod(module)
    assert results.attempted and not results.failed
