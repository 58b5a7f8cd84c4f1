"""The simulator against the distribution it states."""

import numpy as np
import pytest
from scipy import stats

from scvi_qbm.data import simulate


def means(adata):
    """Expected counts of every cell and gene, from the stated truth alone."""
    batch = adata.obs["batch"].cat.codes.to_numpy()
    eta = adata.var["base"].to_numpy() + adata.obsm["truth"] @ adata.varm["loadings"].T
    eta = eta + adata.varm["batch_effect"].T[batch]
    rho = np.exp(eta)
    rho /= rho.sum(axis=1, keepdims=True)
    return adata.obs["library_size"].to_numpy()[:, None] * rho


def standardised(adata, dispersion):
    mean = means(adata)
    return (adata.layers["counts"].toarray() - mean) / np.sqrt(mean + dispersion * mean**2)


@pytest.mark.parametrize("dispersion", [0.0, 0.1, 0.6])
def test_mean_and_variance_are_the_negative_binomial_s(dispersion):
    adata = simulate(1500, 200, seed=1, dispersion=dispersion)
    for chosen in (slice(None), means(adata) > 10, means(adata) < 2):
        z = standardised(adata, dispersion)[chosen].ravel()
        assert abs(z.mean()) < 5 * z.std() / np.sqrt(z.size)
        assert abs((z**2).mean() - 1) < 5 * (z**2).std() / np.sqrt(z.size)
    # The same figure notices another dispersion.
    wrong = standardised(adata, dispersion + 0.05)[means(adata) > 10] ** 2
    assert abs(wrong.mean() - 1) > 5 * wrong.std() / np.sqrt(wrong.size)


def test_the_whole_distribution_is_negative_binomial():
    dispersion = 0.3
    adata = simulate(1500, 60, seed=2, dispersion=dispersion, depth=600)
    mean, counts = means(adata), adata.layers["counts"].toarray()
    r = 1 / dispersion
    zero = (counts == 0).mean(axis=0) - stats.nbinom.cdf(0, r, r / (r + mean)).mean(axis=0)
    assert np.abs(zero).max() < 5 / np.sqrt(1500) / 2
    upper = stats.nbinom.cdf(counts, r, r / (r + mean))
    lower = stats.nbinom.cdf(counts - 1, r, r / (r + mean))
    uniform = lower + np.random.default_rng(0).random(counts.shape) * (upper - lower)
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    shifted = stats.poisson.cdf(counts, mean)
    assert stats.kstest(shifted.ravel(), "uniform").pvalue < 1e-6


def test_depth_and_batches_are_as_asked():
    adata = simulate(3000, 100, n_batches=3, depth_shift=0.8, depth=1000, seed=5)
    total = np.asarray(adata.layers["counts"].sum(axis=1)).ravel()
    size = adata.obs["library_size"].to_numpy()
    assert abs((total / size).mean() - 1) < 0.02
    log_size = np.log(size)
    by_batch = adata.obs.assign(log_size=log_size).groupby("batch", observed=True)["log_size"]
    assert by_batch.mean().std() > 0.3
    np.testing.assert_allclose(by_batch.std(), 0.3, atol=0.03)
    assert list(by_batch.size()) == [1000, 1000, 1000]
    same = simulate(3000, 100, n_batches=3, depth_shift=0.0, depth=1000, seed=5)
    log_size = np.log(same.obs["library_size"])
    assert abs(log_size.mean() - np.log(1000)) < 5 * 0.3 / np.sqrt(3000)


def test_composition_is_as_asked():
    for shift in (0.0, 1.0):
        adata = simulate(6000, 20, 5, 3, composition_shift=shift, n_programs=1, seed=7)
        shares = adata.uns["composition"]
        np.testing.assert_allclose(shares.sum(axis=1), 1)
        table = adata.obs.groupby(["batch", "cell_type"], observed=False).size().unstack()
        error = table.to_numpy() / 2000 - shares
        assert np.abs(error).max() < 5 * np.sqrt(0.25 / 2000)
        spread = shares.std(axis=0).max()
        assert spread < 1e-12 if shift == 0 else spread > 0.05


def test_batch_effects_are_as_asked():
    adata = simulate(200, 2000, n_batches=4, batch_shift=0.4, seed=8)
    effect = adata.varm["batch_effect"]
    np.testing.assert_allclose(effect.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(effect.std(axis=0), 0.4, rtol=0.1)
    assert not simulate(200, 50, batch_shift=0.0).varm["batch_effect"].any()


def test_same_seed_same_data_and_streams_of_their_own():
    first, second = simulate(200, 50, seed=9), simulate(200, 50, seed=9)
    assert (first.layers["counts"] != second.layers["counts"]).nnz == 0
    assert first.obs.equals(second.obs)
    other = simulate(200, 50, seed=10)
    assert (first.layers["counts"] != other.layers["counts"]).nnz > 0
    calm = simulate(200, 50, seed=9, batch_shift=0.0, dispersion=0.0)
    np.testing.assert_array_equal(calm.uns["tree"]["distance"], first.uns["tree"]["distance"])
    np.testing.assert_array_equal(calm.obsm["truth"], first.obsm["truth"])
    np.testing.assert_array_equal(calm.varm["loadings"], first.varm["loadings"])


def test_distances_are_path_lengths_of_the_tree():
    tree = simulate(20, 40, 9, 2, seed=11).uns["tree"]
    parent, length, distance = tree["parent"], tree["length"], tree["distance"]
    assert parent[0] == -1 and length[0] == 0 and (parent[1:] < np.arange(1, 9)).all()
    assert ((length[1:] >= 0.5) & (length[1:] <= 1.5)).all()

    def path(t):
        return [] if t == 0 else [t, *path(parent[t])]

    for a in range(9):
        for b in range(9):
            edges = set(path(a)) ^ set(path(b))
            assert distance[a, b] == pytest.approx(sum(length[e] for e in edges))


@pytest.mark.parametrize(("branching", "expected"), [(0.0, "chain"), (1.0, "bush")])
def test_branching(branching, expected):
    parents = [
        simulate(10, 60, 12, 1, branching=branching, seed=s).uns["tree"]["parent"]
        for s in range(20)
    ]
    hangs_on_latest = np.mean([p[1:] == np.arange(11) for p in parents])
    if expected == "chain":
        assert hangs_on_latest == 1
    else:
        # Of t earlier types the latest is drawn with probability 1 / t.
        wanted = np.mean(1 / np.arange(1, 12))
        assert abs(hangs_on_latest - wanted) < 5 * np.sqrt(0.25 / 220)


def test_expression_distances_are_the_tree_s():
    shift = 0.6
    adata = simulate(
        4000, 500, 6, 1, continuity=0.0, n_programs=0, type_shift=shift, composition_shift=0.0,
        dispersion=0.1, depth=5000, seed=12,
    )  # fmt: skip
    tree = adata.uns["tree"]["distance"]
    kind = adata.obs["cell_type"].cat.codes.to_numpy()
    counts = adata.layers["counts"].toarray()
    profile = np.array([counts[kind == t].sum(axis=0) for t in range(6)])
    profile = np.log(profile / profile.sum(axis=1, keepdims=True))
    profile -= profile.mean(axis=1, keepdims=True)
    found = ((profile[:, None] - profile[None]) ** 2).mean(axis=2)
    upper = np.triu_indices(6, 1)
    np.testing.assert_allclose(found[upper], shift**2 * tree[upper], rtol=0.1)
    # Without counting noise the relation is exact.
    codes = np.array([adata.obsm["truth"][kind == t][0] for t in range(6)])
    eta = codes @ adata.varm["loadings"].T
    exact = ((eta[:, None] - eta[None]) ** 2).mean(axis=2)
    np.testing.assert_allclose(exact, shift**2 * tree, atol=1e-12)


def test_pseudotime_is_the_path_length_from_the_root():
    continuity = 0.8
    adata = simulate(3000, 30, 6, 2, continuity=continuity, seed=13, n_programs=1)
    tree = adata.uns["tree"]
    at_node, length = tree["distance"][0], tree["length"]
    kind = adata.obs["cell_type"].cat.codes.to_numpy()
    pseudotime = adata.obs["pseudotime"].to_numpy()
    back = at_node[kind] - pseudotime
    inner = kind > 0
    assert (back >= 0).all() and (back <= continuity * length[kind] + 1e-12).all()
    assert (pseudotime[~inner] == 0).all()
    share = back[inner] / (continuity * length[kind][inner])
    assert stats.kstest(share, "uniform").pvalue > 1e-3
    # The code says the same: the own edge's code is the place on it times the root of its length.
    own = adata.obsm["truth"][np.flatnonzero(inner), kind[inner] - 1]
    np.testing.assert_allclose(own, (1 - continuity * share) * np.sqrt(length[kind][inner]))


def test_programs_can_be_recovered_and_run_across_types():
    adata = simulate(2000, 500, 5, 2, n_programs=3, batch_shift=0.2, seed=14)
    programs = adata.obsm["programs"]
    assert programs.shape == (2000, 3) and programs.min() >= 0 and programs.max() <= 1
    np.testing.assert_array_equal(adata.obsm["truth"][:, -3:], programs)
    for k in range(3):
        groups = [programs[adata.obs["cell_type"] == t, k] for t in adata.uns["tree"]["names"]]
        assert stats.f_oneway(*groups).pvalue > 1e-4
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression

    half = np.arange(2000) < 1000
    pcs = PCA(20, random_state=0).fit_transform(adata.X.toarray())
    for k in range(3):
        fit = LinearRegression().fit(pcs[half], programs[half, k])
        assert fit.score(pcs[~half], programs[~half, k]) > 0.6
    shuffled = np.random.default_rng(0).permutation(programs[:, 0])
    fit = LinearRegression().fit(pcs[half], shuffled[half])
    assert fit.score(pcs[~half], shuffled[~half]) < 0.1


def test_layout(tmp_path):
    import anndata as ad

    adata = simulate(1100, 40, 4, 2, n_programs=0, seed=15)
    counts = adata.layers["counts"]
    assert counts.format == adata.X.format == "csr" and counts.dtype == np.float32
    share = counts.toarray() / counts.sum(axis=1)
    np.testing.assert_allclose(adata.X.toarray(), np.log1p(1e4 * np.asarray(share)), rtol=1e-5)
    assert adata.obsm["truth"].shape == (1100, 3) and adata.varm["loadings"].shape == (40, 3)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(read.uns["tree"]["distance"], adata.uns["tree"]["distance"])
    assert simulate(3, 2, 1, 1, n_programs=0).shape == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_cells": 0}, "`n_cells` must be at least 1"),
        ({"n_types": 2.5}, "`n_types` must be a whole number"),
        ({"n_programs": -1}, "`n_programs` must be at least 0"),
        ({"branching": 1.5}, r"branching must lie in \[0, 1\]"),
        ({"continuity": np.nan}, "continuity must lie"),
        ({"batch_shift": -0.1}, "batch_shift must be finite and not negative"),
        ({"dispersion": np.inf}, "dispersion must be finite"),
        ({"depth": 0}, "depth must be positive"),
        ({"n_genes": 10}, r"n_types \+ n_programs = 11"),
        ({"n_cells": 2}, "no batch is empty"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        simulate(**arguments)
