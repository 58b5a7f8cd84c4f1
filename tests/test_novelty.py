import numpy as np
import pytest

from scvi_qbm.novelty import fit_types, squared_distance


def test_distances_are_those_of_the_known_covariance():
    """Two types of cells with one covariance: cells a known distance away get that."""
    rng = np.random.default_rng(0)
    L = np.tril(rng.normal(size=(5, 5))) + 2 * np.eye(5)
    centres = {"a": np.zeros(5), "b": 10 * rng.normal(size=5)}
    types = np.repeat(["a", "b"], 20_000)
    codes = np.array([centres[t] for t in types]) + rng.normal(size=(40_000, 5)) @ L.T
    known = fit_types(codes, types.tolist())
    assert known["types"] == ["a", "b"]
    direction = rng.normal(size=(6, 5))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    away = np.array([0.5, 1, 2, 3, 4, 5])
    for centre in centres.values():
        cells = centre + (away[:, None] * direction) @ L.T
        np.testing.assert_allclose(np.sqrt(squared_distance(cells, known)), away, rtol=0.05)


def test_new_types_leave_the_old_ones():
    rng = np.random.default_rng(1)
    codes = rng.normal(size=(30, 4))
    known = fit_types(codes, ["a"] * 20 + [("b", 1)] * 10)
    more = fit_types(codes + 50, ["c"] * 20 + ["a"] * 10, known)
    assert set(more["types"]) == {"a", ("b", 1), "c"}
    for name in known["types"]:
        old, new = (k["centres"][k["types"].index(name)] for k in (known, more))
        np.testing.assert_array_equal(old, new)
    assert squared_distance(codes + 50, more).max() < squared_distance(codes + 50, known).min()


def test_one_cell_a_type():
    known = fit_types(np.eye(3), ["a", "b", "c"])
    assert squared_distance(np.eye(3), known) == pytest.approx(0)
