"""Every method of the benchmark runs, gives one row a cell, and leaves its data alone."""

import importlib.util

import numpy as np
import pytest
from scvi.model._utils import get_max_epochs_heuristic

from scvi_qbm.benchmark.methods import METHODS
from scvi_qbm.benchmark.methods.common import budget
from scvi_qbm.benchmark.methods.vae import GaussianTwin
from scvi_qbm.data import simulate
from scvi_qbm.distributions import fast_counts
from scvi_qbm.model import QBMVI

EXTRAS = {
    "scanorama": "scanorama",
    "scpoli": "scarches",
    "drvi": "drvi",
    "harmony": "harmonypy",
}


@pytest.fixture(scope="module")
def adata():
    adata = simulate(n_cells=160, n_genes=50, n_types=3, n_batches=2, seed=1)
    adata.X = adata.layers["counts"].copy()
    return adata


def run(name, adata, **kwargs):
    method = METHODS[name]
    if method.uses_labels:
        kwargs["label_key"] = "cell_type"
    return method.run(adata, **({"batch_key": "batch", "seed": 0, "max_epochs": 1} | kwargs))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_embeds_every_cell_and_changes_nothing(name, adata):
    package = EXTRAS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is an extra and is not installed")
    before = adata.copy()
    result = run(name, adata)
    assert result.embedding.shape[0] == adata.n_obs and result.embedding.ndim == 2
    assert np.isfinite(result.embedding).all()
    assert len(np.unique(result.embedding, axis=0)) > 100
    # Bounds are reported where models can be compared by them, and only there.
    likelihood = METHODS[name].likelihood
    assert np.isfinite(result.validation_elbo) == bool(likelihood)
    if "counts" in likelihood:
        latent = "latent library" in likelihood
        assert result.model.module.use_observed_lib_size != latent
    assert (adata.X != before.X).nnz == 0
    assert list(adata.obs) == list(before.obs) and not set(adata.uns) - set(before.uns)
    assert set(adata.obsm) == set(before.obsm) and set(adata.layers) == set(before.layers)


@pytest.mark.parametrize("name", ["qbmvi", "gaussian", "scvi", "harmony", "shuffled"])
def test_same_seed_same_embedding(name, adata):
    first, again = (run(name, adata).embedding for _ in range(2))
    other = run(name, adata, seed=1).embedding
    np.testing.assert_allclose(first, again, rtol=1e-5, atol=1e-6)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("recipe", ["", "_paper"])
def test_twins_differ_in_their_latent_space_alone(recipe, adata):
    ours, bernoulli, gaussian = (
        run(name + recipe, adata).model for name in ("qbmvi", "bernoulli", "gaussian")
    )
    assert isinstance(ours, QBMVI) and isinstance(gaussian, GaussianTwin)
    assert ours.module.prior.W.abs().max() > 0 and not hasattr(bernoulli.module.prior, "W")
    for twin in (bernoulli, gaussian):
        assert twin.module.n_latent == ours.module.n_latent
        assert twin.module.gene_likelihood == ours.module.gene_likelihood
        shapes = [
            {k: tuple(v.shape) for k, v in m.module.state_dict().items() if "decoder" in k}
            for m in (ours, twin)
        ]
        assert shapes[0] == shapes[1]
        np.testing.assert_array_equal(twin.validation_indices, ours.validation_indices)


def test_the_gaussian_twin_is_scvi_at_our_size_with_our_optimiser(adata):
    with fast_counts():
        scvi = run("scvi_fast", adata, n_latent=64)
    np.testing.assert_array_equal(run("gaussian", adata).embedding, scvi.embedding)


OURS = ("qbmvi", "bernoulli", "gaussian", "scvi_fast")
THEIRS = ("scvi", "scvi_wide", "ldvae", "autozi", "drvi")


@pytest.mark.parametrize("name", OURS + THEIRS)
def test_the_kl_weight_is_one_at_the_end_of_any_budget(name, adata):
    """Ours warm up in half of a small budget, scvi-tools' in its 400 epochs or the whole."""
    package = EXTRAS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is an extra and is not installed")
    plan = run(name, adata, max_epochs=6).model.trainer.lightning_module
    assert plan.n_epochs_kl_warmup == (3 if name in OURS else 6)
    stops = plan.trainer.early_stopping_callback is not None
    assert stops == (name in OURS)


def test_methods_train_as_long_as_their_packages_say():
    assert {name: METHODS[name].max_epochs for name in OURS} == dict.fromkeys(OURS, 100)
    assert {name: METHODS[name].max_epochs for name in THEIRS} == dict.fromkeys(THEIRS, 400)
    assert [budget(400, n) for n in (500, 20_000, 40_000, 1_000_000)] == [400, 400, 200, 8]
    assert [budget(100, n) for n in (500, 80_000, 160_000, 10**8)] == [100, 100, 50, 1]
    for n in (300, 21_000, 55_555):
        assert budget(400, n) == get_max_epochs_heuristic(n)


@pytest.mark.parametrize("name", ["sysvi", "harmony", "scanorama"])
def test_methods_that_need_batches_say_so(name, adata):
    with pytest.raises(ValueError, match="needs a batch column"):
        METHODS[name].run(adata, batch_key=None, seed=0, max_epochs=1)


def test_the_paper_recipe_gets_log_normalised_values(adata):
    model = run("qbmvi_paper", adata).model
    x = model.adata.X.toarray()
    np.testing.assert_allclose(np.expm1(x).sum(1), 1e4, rtol=1e-3)


def test_unknown_optimiser(adata):
    with pytest.raises(ValueError, match="Unknown optimiser 'sgd'. Available: default, qbmvi"):
        run("scvi", adata, optimiser="sgd")
