import itertools

import naive
import numpy as np
import pytest
from support.machines import peaked_ising

from scvi_qbm.ising import Ising


def states(n):
    return np.array(list(itertools.product([-1, 1], repeat=n)))


def test_energy_is_the_definition():
    model = peaked_ising(5, 0)
    for s in states(5):
        expected = naive.energy(model.J, model.b, s) + model.offset
        assert model.energy(s) == pytest.approx(expected, abs=1e-12)


def test_energy_keeps_leading_axes():
    model = peaked_ising(4, 0)
    s = np.ones((2, 3, 4), dtype=np.int8)
    assert model.energy(s).shape == (2, 3)
    assert model.energy(s).dtype == np.float64


def test_boltzmann_energies_agree_and_round_trip():
    rng = np.random.default_rng(1)
    W = np.triu(rng.normal(size=(5, 5)), 1)
    W, h = W + W.T, rng.normal(size=5)
    model = Ising.from_boltzmann(W, h)
    s = states(5)
    z = (s + 1) / 2
    expected = z @ h + 0.5 * np.einsum("si,ij,sj->s", z, W, z)
    np.testing.assert_allclose(model.energy(s), expected, atol=1e-12)
    W_back, h_back, constant = model.to_boltzmann()
    np.testing.assert_allclose(W_back, W, atol=1e-12)
    np.testing.assert_allclose(h_back, h, atol=1e-12)
    assert constant == pytest.approx(0, abs=1e-12)


def test_qubo_energies_agree_and_round_trip():
    rng = np.random.default_rng(2)
    Q = rng.normal(size=(5, 5))
    model = Ising.from_qubo(Q, offset=0.7)
    s = states(5)
    z = (s + 1) / 2
    np.testing.assert_allclose(
        model.energy(s), np.einsum("si,ij,sj->s", z, Q, z) + 0.7, atol=1e-12
    )
    Q_back, constant = model.to_qubo()
    np.testing.assert_allclose(Q_back, (Q + Q.T) / 2, atol=1e-12)
    assert constant == pytest.approx(0.7)


@pytest.mark.parametrize("sigma", [-1, 1])
def test_ancilla_energies_agree(sigma):
    model = peaked_ising(4, 3)
    M = model.to_ancilla()
    for s in states(4):
        extended = np.append(sigma * s, sigma)
        energy = -0.5 * extended @ M @ extended + model.offset
        assert energy == pytest.approx(model.energy(s))


def test_local_fields_give_the_cost_of_a_flip():
    model = peaked_ising(6, 4)
    s = np.array([1, -1, 1, 1, -1, -1])
    fields = model.local_fields(s)
    for i in range(6):
        flipped = s.copy()
        flipped[i] *= -1
        assert model.energy(flipped) - model.energy(s) == pytest.approx(2 * s[i] * fields[i])


def test_inputs_are_copied_and_frozen():
    J, b = np.array([[0, 1.0], [1, 0]]), np.zeros(2)
    model = Ising(J, b)
    J[0, 1] = 5
    assert model.J[0, 1] == 1
    with pytest.raises(ValueError, match="read-only"):
        model.J[0, 1] = 2


@pytest.mark.parametrize(
    ("J", "b", "message"),
    [
        (np.zeros((2, 3)), np.zeros(2), "square"),
        (np.zeros((0, 0)), np.zeros(0), "at least one row"),
        ([[0, 1], [2, 0]], np.zeros(2), "not symmetric"),
        ([[1, 0], [0, 1]], np.zeros(2), "diagonal"),
        ([[0, np.nan], [np.nan, 0]], np.zeros(2), "NaN or infinite"),
        (np.zeros((2, 2)), np.zeros(3), "shape"),
        (np.zeros((2, 2)), [0, np.inf], "NaN or infinite"),
    ],
)
def test_bad_models_are_refused(J, b, message):
    with pytest.raises(ValueError, match=message):
        Ising(np.asarray(J, dtype=float), np.asarray(b, dtype=float))


def test_bad_states_are_refused():
    model = peaked_ising(3, 0)
    with pytest.raises(ValueError, match=r"shape \(..., 3\)"):
        model.energy(np.ones(4))
    with pytest.raises(ValueError, match="2 \\* z - 1"):
        model.energy(np.array([0, 1, 1]))


@pytest.mark.parametrize(
    "J",
    [
        [[0.0, 1e-21], [0.0, 0.0]],
        [[1e-21, 1e-20], [1e-20, 0.0]],
        [[0.0, 1e3, 1e12], [0.0, 0.0, 0.0], [1e12, 0.0, 0.0]],
        [[1e3, 1e12], [1e12, 0.0]],
    ],
)
def test_small_entries_are_not_changed(J):
    """Whether an entry is rounding depends on the others, not on its size."""
    with pytest.raises(ValueError, match="symmetric|diagonal"):
        Ising(np.array(J), np.zeros(len(J)))
    noisy = np.array([[0.0, 1e12, 3.0], [1e12, 0.0, 1e-21], [3.0 + 1e-7, 1e-21, 0.0]])
    np.testing.assert_allclose(Ising(noisy, np.zeros(3)).J, noisy, rtol=1e-7)
