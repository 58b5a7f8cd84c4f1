import itertools

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, is_valid_linkage

from scvi_qbm.ising import Ising
from scvi_qbm.landscape import cut_tree, find_attractors, merge_tree, quench, saddles


def machine(n, seed, sd=1.5):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(size=(n, n)) * sd, 1)
    return upper + upper.T, rng.normal(size=n)


def every_state(n):
    return np.array(list(itertools.product((0, 1), repeat=n)), dtype=np.int8)


def energies_of(W, h, z):
    return z @ h + 0.5 * np.einsum("ki,ij,kj->k", z, W, z)


def flooded(W, h):
    """Exact passes between all local minima: states join as the level rises (union-find)."""
    n = len(h)
    z = every_state(n)
    E = energies_of(W, h, z.astype(float))
    neighbours = np.arange(2**n)[:, None] ^ (1 << np.arange(n))
    is_minimum = (E[neighbours] >= E[:, None]).all(1)
    minima = np.flatnonzero(is_minimum)
    group = {}
    members = {}
    exact = np.full((len(minima), len(minima)), np.nan)
    number = {m: i for i, m in enumerate(minima)}

    def root(i):
        while group[i] != i:
            i = group[i]
        return i

    for s in np.argsort(E, kind="stable"):
        group[s] = s
        members[s] = [number[s]] if s in number else []
        for t in neighbours[s]:
            if t not in group or root(t) == root(s):
                continue
            a, b = root(s), root(t)
            for i, j in itertools.product(members[a], members[b]):
                exact[i, j] = exact[j, i] = E[s]
            group[b] = a
            members[a] = members[a] + members[b]
    exact[np.diag_indices(len(minima))] = E[minima]
    return z[minima], exact


@pytest.mark.parametrize("seed", range(5))
def test_quench_ends_in_minima_and_goes_downhill(seed):
    W, h = machine(10, seed)
    start = every_state(10)
    end = quench((W, h), start)
    assert (energies_of(W, h, end) <= energies_of(W, h, start) + 1e-9).all()
    flips = [np.where(np.arange(10) == i, 1 - end, end) for i in range(10)]
    for flipped in flips:
        assert (energies_of(W, h, flipped) >= energies_of(W, h, end) - 1e-9).all()
    np.testing.assert_array_equal(quench((W, h), end), end)
    # The first step is the steepest.
    drops = np.stack([energies_of(W, h, np.where(np.arange(10) == i, 1 - start, start))
                      for i in range(10)])  # fmt: skip
    one_away = (end != start).sum(1) == 1
    assert one_away.any()
    chosen = (end != start).argmax(1)[one_away]
    np.testing.assert_array_equal(drops[:, one_away].argmin(0), chosen)


def test_spins_and_codes_agree():
    W, h = machine(8, 3)
    codes = every_state(8)
    np.testing.assert_array_equal(quench((W, h), codes), quench(Ising.from_boltzmann(W, h), codes))


@pytest.mark.parametrize("seed", range(8))
def test_passes_bound_the_flooded_landscape_from_above(seed):
    W, h = machine(10, seed)
    minima, exact = flooded(W, h)
    found = saddles((W, h), minima)
    assert (found >= exact - 1e-9).all()
    np.testing.assert_allclose(np.diag(found), np.diag(exact))
    # No path over other minima of the list is better: minimax.
    via = np.maximum(found[:, :, None], found[None, :, :]).min(1)
    np.testing.assert_allclose(np.minimum(via, found), found)


def test_most_passes_are_exact():
    gaps = []
    for seed in range(20):
        W, h = machine(10, seed)
        minima, exact = flooded(W, h)
        upper = np.triu_indices(len(minima), 1)
        gaps += list((saddles((W, h), minima) - exact)[upper])
    gaps = np.array(gaps)
    assert (gaps < 1e-9).mean() > 0.8


def test_two_valleys_by_hand():
    # Two units that like each other by 4 nats, each of which alone costs 1: E = z1 + z2 - 4 z1 z2.
    W, h = np.array([[0.0, -4.0], [-4.0, 0.0]]), np.array([1.0, 1.0])
    out = find_attractors((W, h), [[0, 0], [1, 1], [1, 1], [0, 1]])
    np.testing.assert_array_equal(out.states, [[1, 1], [0, 0]])
    np.testing.assert_array_equal(out.labels, [1, 0, 0, 0])
    np.testing.assert_array_equal(out.sizes, [3, 1])
    np.testing.assert_allclose(out.energies, [-2, 0])
    np.testing.assert_allclose(out.saddles, [[-2, 1], [1, 0]])
    np.testing.assert_allclose(out.barriers, [[0, 3], [1, 0]])
    np.testing.assert_allclose(out.tree, [[0, 1, 3, 2]])
    np.testing.assert_array_equal(out.merged(0.9), [1, 0, 0, 0])
    np.testing.assert_array_equal(out.merged(1.0), [0, 0, 0, 0])


def test_tree_is_a_linkage_with_the_passes_as_heights():
    W, h = machine(10, 1)
    minima, exact = flooded(W, h)
    energies = energies_of(W, h, minima)
    tree = merge_tree(energies, exact)
    assert is_valid_linkage(tree) and (np.diff(tree[:, 2]) >= 0).all()
    for level in np.linspace(energies.min(), exact.max(), 7):
        joined = fcluster(tree, level - energies.min() + 1e-9, "distance")
        same = joined[:, None] == joined
        own = np.eye(len(same), dtype=bool)
        np.testing.assert_array_equal(same | own, (exact <= level + 1e-9) | own)


def test_cutting_leaves_valleys_that_are_deep_enough():
    W, h = machine(10, 4)
    minima, exact = flooded(W, h)
    energies = np.diag(exact)
    for barrier in (0.0, 0.5, 2.0, 5.0):
        left = np.unique(cut_tree(energies, exact, barrier))
        for i in left:
            lower = [j for j in left if energies[j] < energies[i]]
            assert all(exact[i, j] - energies[i] > barrier for j in lower)
    assert len(np.unique(cut_tree(energies, exact, 1e9))) == 1
    assert len(np.unique(cut_tree(energies, exact, 0.0))) == len(minima)


def test_one_attractor_and_none_computed():
    W, h = np.zeros((3, 3)), np.array([-1.0, 1.0, -1.0])
    out = find_attractors((W, h), every_state(3))
    assert out.tree.shape == (0, 4) and len(out.states) == 1
    np.testing.assert_array_equal(out.merged(1.0), np.zeros(8))
    bare = find_attractors((W, h), every_state(3), barriers=False)
    with pytest.raises(ValueError, match="barriers=False"):
        _ = bare.barriers
    with pytest.raises(ValueError, match="barriers=False"):
        bare.merged(1.0)


@pytest.mark.parametrize(
    ("W", "h", "codes", "message"),
    [
        (np.eye(2), np.zeros(2), [[0, 1]], "zero diagonal"),
        (np.zeros((2, 2)), np.zeros(3), [[0, 1]], "symmetric"),
        (np.zeros((2, 2)), np.array([0, np.nan]), [[0, 1]], "finite"),
        (np.zeros((2, 2)), np.zeros(2), [[0, 0.5]], "0 or 1"),
        (np.zeros((2, 2)), np.zeros(2), [[0, 1, 1]], "shape"),
        (np.zeros((2, 2)), np.zeros(2), np.zeros((0, 2)), "no codes"),
    ],
)
def test_bad_input(W, h, codes, message):
    with pytest.raises(ValueError, match=message):
        find_attractors((W, h), codes)


def test_too_many_minima_for_barriers():
    n = 12
    W, h = np.zeros((n, n)), np.zeros(n)  # every state is a minimum
    with pytest.raises(ValueError, match="4096 local minima"):
        find_attractors((W, h), every_state(n))
    with pytest.raises(ValueError, match="at least 0"):
        cut_tree([0.0], [[0.0]], -1)
