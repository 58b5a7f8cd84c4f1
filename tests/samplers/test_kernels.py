import naive
import numpy as np
import pytest
from support.machines import peaked_ising

from scvi_qbm.samplers import engine
from scvi_qbm.samplers.engine.rng import fill_symmetric, lane_states, next_uniform
from scvi_qbm.samplers.engine.simd import add_rows, aligned_zeros
from scvi_qbm.samplers.engine.threads import one_blas_thread


def test_rng_is_xoshiro128plus():
    state = lane_states(7, 5)
    twins = [naive.Xoshiro128Plus(state[:, r]) for r in range(5)]
    out = np.zeros((40, 5), dtype=np.float32)
    fill_symmetric(state, 40, out)
    expected = np.array([[twin.symmetric() for twin in twins] for _ in range(40)])
    np.testing.assert_array_equal(out, expected.astype(np.float32))
    assert next_uniform(state, 3) == twins[3].uniform()
    assert [int(word) for word in state[:, 3]] == twins[3].s


def test_rng_published_values():
    # The reference code's output from the state 1, 2, 3, 4, as Rust's rand_xoshiro tests it.
    twin = naive.Xoshiro128Plus([1, 2, 3, 4])
    assert [twin.next() for _ in range(4)] == [5, 12295, 25178119, 27286542]


def test_lanes_do_not_depend_on_their_number():
    np.testing.assert_array_equal(lane_states(3, 4), lane_states(3, 9)[:, :4])
    assert len(np.unique(lane_states(3, 1000), axis=1).T) == 1000


def test_uniforms_are_uniform():
    state = lane_states(1, 64)
    out = np.zeros((4000, 64), dtype=np.float32)
    fill_symmetric(state, 4000, out)
    assert out.min() >= -1 and out.max() < 1
    assert abs(out.mean()) < 5 * (1 / np.sqrt(3)) / np.sqrt(out.size)
    lanes = np.corrcoef(out.T)
    assert np.abs(lanes[np.triu_indices(64, 1)]).max() < 5.5 / np.sqrt(4000)


def floats(shape, rng, shift):
    """Normal floats that start ``shift`` floats after a cache line."""
    size = int(np.prod(shape))
    out = aligned_zeros((size + shift,), np.float32)[shift:].reshape(shape)
    out[:] = rng.normal(size=shape)
    return out


@pytest.mark.parametrize("shift", [0, 1, 7])
@pytest.mark.parametrize("width", range(16, 321, 16))
def test_rows_are_added(width, shift):
    """Tiles of four vectors and what is left over, any number of rows, wherever memory starts."""
    rng = np.random.default_rng(width)
    A = floats((45, width), rng, shift)
    kept = A.copy()
    for count in range(41):
        rows = rng.integers(0, 45, size=41)
        coef = floats((41,), rng, shift)
        f = floats((width + 32,), rng, shift)
        before = f.copy()
        add_rows(f[:width], A, rows, coef, count)
        terms = coef[:count, None].astype(float) * A[rows[:count]]
        error = 1e-6 * (1 + np.abs(terms).sum(axis=0) + np.abs(before[:width]))
        assert (np.abs(f[:width] - before[:width] - terms.sum(axis=0)) < error).all()
        np.testing.assert_array_equal(f[width:], before[width:])
        if count == 0:
            np.testing.assert_array_equal(f, before)
    np.testing.assert_array_equal(A, kept)


def test_rows_of_a_wider_matrix():
    """As the kernel calls it: a matrix with more columns, coefficients inside a row of another."""
    rng = np.random.default_rng(0)
    A, J = floats((10, 96), rng, 0), floats((3, 50), rng, 0)
    f = floats((64,), rng, 0)
    expected = f + J[1, 5:15] @ A[:, :64]
    add_rows(f, A, np.arange(10), J[1, 5:], 10)
    np.testing.assert_allclose(f, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 7, 48)])
def test_aligned_zeros(shape, dtype):
    arrays = [aligned_zeros(shape, dtype) for _ in range(20)]
    for array in arrays:
        assert array.ctypes.data % 64 == 0
        assert array.shape == shape and array.dtype == dtype
        assert array.flags.c_contiguous and array.flags.writeable
        assert not array.any()
        array[:] = 1
    assert all((array == 1).all() for array in arrays)


@pytest.mark.parametrize("n", [1, 5, 32, 45, 70])
@pytest.mark.parametrize("with_base", [False, True])
def test_run_equals_its_slow_twin(n, with_base):
    """Sweeps across block borders, swaps, and the recorded energies, draw for draw."""
    model = peaked_ising(n, n, sd=1.5 / np.sqrt(n))
    base = np.random.default_rng(0).normal(size=n) * 0.3 if with_base else np.zeros(n)
    ladder = np.array([0.0, 0.3, 0.7, 1.0])
    chains = engine.start(model, ladder, 3, np.random.SeedSequence(5), base)
    linear = model.b - base
    twins = []
    for chain in range(3):
        chunk, ladder_index = divmod(chain, chains.lane_at.shape[1])
        lanes = chains.lane_at[chunk, ladder_index].copy()
        twins.append(
            {
                "spins": {r: chains.spins[chunk, :, r].copy() for r in lanes},
                "rng": {r: naive.Xoshiro128Plus(chains.rng[chunk, :, r]) for r in lanes},
                "lane_at": list(lanes),
            }
        )
    trace = engine.run(chains, 7, record=True)
    accepted = np.zeros(3)
    for chain, twin in enumerate(twins):
        for t in range(7):
            level = {lane: k for k, lane in enumerate(twin["lane_at"])}
            for lane in sorted(level):
                lam = ladder[level[lane]]
                naive.sweep(model.J, linear, base, lam, twin["spins"][lane], twin["rng"][lane])
            energies = [naive.energy(model.J, linear, twin["spins"][r]) for r in twin["lane_at"]]
            np.testing.assert_allclose(trace[t, chain], energies, atol=2e-4 * max(n, 5))
            probabilities = naive.swaps(
                ladder, t % 2, twin["lane_at"], model.J, linear, twin["spins"], twin["rng"]
            )
            for k, p in probabilities.items():
                accepted[k] += p
        for level_index, lane in enumerate(twin["lane_at"]):
            np.testing.assert_array_equal(chains.states(level_index)[chain], twin["spins"][lane])
    per_ladder = chains.lane_at.shape[0] * chains.lane_at.shape[1]
    if per_ladder == 3:
        np.testing.assert_allclose(chains.accepted, accepted, rtol=1e-3)
    assert chains.proposed.tolist() == [4 * per_ladder, 3 * per_ladder, 4 * per_ladder]


@pytest.mark.parametrize("metropolis", [False, True])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_decisions_are_reversible_and_their_sweep_stationary(n, metropolis):
    from scvi_qbm.samplers.exact import boltzmann_distribution

    model = peaked_ising(n, n, sd=1.0)
    distribution = boltzmann_distribution(model)
    for i in range(n):
        flow = distribution[:, None] * naive.flip_matrix(model, i, metropolis)
        np.testing.assert_allclose(flow, flow.T, atol=1e-14)
    np.testing.assert_allclose(
        distribution @ naive.sweep_matrix(model, metropolis), distribution, atol=1e-14
    )


@pytest.mark.parametrize("metropolis", [False, True])
def test_kernel_has_the_enumerated_transition_matrix(metropolis):
    n = 3
    model = peaked_ising(n, 8, sd=1.0)
    matrix = naive.sweep_matrix(model, metropolis)
    weights = 1 << np.arange(n)
    chains = engine.start(model, np.ones(1), 4000, np.random.SeedSequence(2))
    counts = np.zeros((8, 8))
    for _ in range(50):
        before = (chains.states() > 0) @ weights
        if metropolis:
            engine.anneal(chains, np.ones(1), metropolis=True)
        else:
            engine.run(chains, 1)
        np.add.at(counts, (before, (chains.states() > 0) @ weights), 1)
    visits = counts.sum(axis=1, keepdims=True)
    se = np.sqrt(matrix * (1 - matrix) / np.maximum(visits, 1))
    assert (visits > 100).all()
    assert (np.abs(counts / visits - matrix) < 5 * se + 1e-4).all()


def test_tempering_leaves_the_joint_distribution_invariant():
    """Ladders started in the distribution of each level keep it through sweeps and swaps."""
    from scvi_qbm.samplers.exact import all_states, boltzmann_distribution

    model = peaked_ising(3, 4, sd=1.2)
    ladder = np.array([0.0, 0.5, 1.0])
    chains = engine.start(model, ladder, 30_000, np.random.SeedSequence(1))
    rng = np.random.default_rng(0)
    n_chunks, per_chunk, _ = chains.lane_at.shape
    for level, lam in enumerate(ladder):
        distribution = boltzmann_distribution(model, lam)
        draw = all_states(3)[rng.choice(8, size=(n_chunks, per_chunk), p=distribution)]
        lanes = chains.lane_at[:, :, level]
        for c in range(n_chunks):
            chains.spins[c][:, lanes[c]] = draw[c].T
    chains.refresh()
    engine.run(chains, 4)
    for level, lam in enumerate(ladder):
        distribution = boltzmann_distribution(model, lam)
        seen = np.bincount((chains.states(level) > 0) @ [1, 2, 4], minlength=8) / 30_000
        assert (
            np.abs(seen - distribution) < 5 * np.sqrt(distribution * (1 - distribution) / 30_000)
        ).all()


def test_fields_do_not_drift():
    model = peaked_ising(60, 1, sd=0.2)
    chains = engine.start(model, np.array([0.0, 0.5, 1.0]), 8, np.random.SeedSequence(1))
    engine.run(chains, 700)
    kept = chains.fields.copy(), chains.energy.copy()
    chains.refresh()
    used = chains.lane_at.shape[1] * 3
    np.testing.assert_allclose(kept[0][:, :used], chains.fields[:, :used], atol=1e-3)
    np.testing.assert_allclose(kept[1][:, :used], chains.energy[:, :used], atol=1e-2)


def test_relevel_keeps_states():
    model = peaked_ising(10, 1)
    chains = engine.start(model, np.linspace(0, 1, 5), 7, np.random.SeedSequence(1))
    engine.run(chains, 20)
    new = chains.relevel(np.array([0.0, 0.45, 1.0]))
    np.testing.assert_array_equal(new.states(-1), chains.states(-1))
    np.testing.assert_array_equal(new.states(1), chains.states(2))
    assert new.n_levels == 3 and new.n_updates == chains.n_updates
    energies = model.energy(new.states(-1)) - model.offset
    lanes = new.lane_at[:, :, -1]
    np.testing.assert_allclose(
        np.take_along_axis(new.energy, lanes, axis=1).ravel()[:7], energies, atol=1e-4
    )


def test_overlapping_blas_limits_are_undone_once():
    """The one that ends last must not restore what the other had set."""
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def threads():
        return [
            p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"
        ]

    np.ones((2, 2)) @ np.ones((2, 2))
    before = threads()
    first, second = one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    assert set(threads()) <= {1}
    first.__exit__(None, None, None)
    assert set(threads()) <= {1}
    second.__exit__(None, None, None)
    assert threads() == before
