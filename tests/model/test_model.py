import warnings

import numpy as np
import pytest
import scvi
import torch
from scipy import sparse
from support.models import FAST, fitted, prior_of_training

import scvi_qbm
from scvi_qbm.alignment import Alignment, align
from scvi_qbm.recipes import RECIPES
from scvi_qbm.relaxations import SpikeExponential


@pytest.fixture(scope="module")
def trained(pbmc):
    """One model trained long enough to have couplings."""
    return fitted(pbmc, setup={"batch_key": "batch"}, train={"max_epochs": 60}, n_latent=16)


def test_is_an_scvi_model():
    assert issubclass(scvi_qbm.QBMVI, scvi.model.SCVI)
    assert scvi_qbm.QBMVI._module_cls.__mro__[2] is scvi.module.VAE


def test_latent_representation(trained):
    probabilities = trained.get_latent_representation(representation="probabilities")
    assert probabilities.min() >= 0 and probabilities.max() <= 1
    aligned = trained.get_latent_representation()
    for representation in (probabilities, aligned):
        assert representation.shape == (700, 16) and representation.dtype == np.float32
        assert len(np.unique(representation, axis=0)) == 700
    np.testing.assert_array_equal(aligned, trained.get_latent_representation())
    logits = trained.get_latent_representation(representation="logits")
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), probabilities, atol=1e-6)
    binary = trained.get_latent_representation(representation="binary")
    np.testing.assert_array_equal(binary, (logits > 0).astype(np.float32))
    zeta = trained.get_latent_representation(representation="zeta")
    on = 1 / (1 - np.exp(-0.5)) - 1 / 0.5  # mean of the slab at beta = 0.5
    np.testing.assert_allclose(zeta, probabilities * on, rtol=1e-4, atol=1e-6)
    evidence = trained.get_latent_representation(representation="evidence")
    upper, h = (trained._pull_[name].numpy() for name in ("W_upper", "h"))  # not today's
    W = np.triu(upper, 1) + np.triu(upper, 1).T
    assert abs(W).max() > 0 and abs(W - trained.prior.W).max() > 0
    expected = 1 / (1 + np.exp(-(logits + h + probabilities @ W)))
    np.testing.assert_allclose(evidence, expected, atol=1e-5)
    mean, variance = trained.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(variance, mean * (1 - mean), atol=1e-6)
    draw = trained.get_latent_representation(give_mean=False)
    assert (draw != trained.get_latent_representation(give_mean=False)).any()
    some = trained.get_latent_representation(indices=[5, 2])
    np.testing.assert_allclose(some, aligned[[5, 2]], atol=1e-5)
    with pytest.raises(ValueError, match="aligned, probabilities, logits, zeta, binary, evid"):
        trained.get_latent_representation(representation="mean")


def test_aligned_is_the_middle_less_the_shifts_that_are_kept(trained, pbmc, tmp_path):
    q, evidence = (
        trained.get_latent_representation(representation=r) for r in ("probabilities", "evidence")
    )
    aligned, middle = trained.get_latent_representation(), (q + evidence) / 2
    kept = Alignment(**trained._alignment_)
    batch = torch.from_numpy(trained.adata.obs["_scvi_batch"].to_numpy(np.int64))
    assert len(kept.shifts) == kept.n_fitted == pbmc.obs["batch"].nunique()
    np.testing.assert_allclose(align(kept, torch.from_numpy(middle), batch), aligned, atol=1e-5)
    assert 0.001 < np.abs(aligned - middle).max()
    # What is lost, by an interruption for instance, is found again as it was.
    trained.save(tmp_path / "model", save_anndata=True)
    loaded = scvi_qbm.QBMVI.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.get_latent_representation(), aligned)
    loaded._alignment_ = None
    np.testing.assert_array_equal(loaded.get_latent_representation(), aligned)


def test_one_batch_is_not_moved(pbmc):
    model = fitted(pbmc)
    q, evidence = (
        model.get_latent_representation(representation=r) for r in ("probabilities", "evidence")
    )
    np.testing.assert_array_equal(model.get_latent_representation(), (q + evidence) / 2)


def test_elbo_repeats_within_its_error(trained):
    held_out = trained.validation_indices
    found = [trained.get_elbo(indices=held_out, return_error=True) for _ in range(12)]
    values, errors = np.array(found).T
    assert (np.abs(values - values.mean()) < 5 * errors.mean()).all()
    assert values.std() / 4 < errors.mean() < 4 * values.std()
    assert trained.module.prior.log_z_se < errors.min()
    cells = trained.get_elbo(indices=held_out, return_mean=False)
    assert cells.shape == (len(held_out),)
    assert float(cells.mean()) == pytest.approx(values.mean(), abs=5 * errors.mean())
    best = trained.history["best_epoch"].iloc[-1, 0]
    validated = float(trained.history["elbo_validation"].loc[best].iloc[0])
    assert -validated == pytest.approx(values.mean(), abs=25 * errors.mean())
    with pytest.raises(ValueError, match="at least 1, or 2 for an error"):
        trained.get_elbo(n_samples=1, return_error=True)
    with pytest.raises(ValueError, match="leave out return_mean=False"):
        trained.get_elbo(return_mean=False, return_error=True)


def test_training_learns(trained, pbmc):
    from scvi_qbm.benchmark.metrics.classify import knn_probe

    elbo = trained.history["elbo_validation"].to_numpy(float).ravel()
    assert elbo[-1] < elbo[0] - 50
    labels = pbmc.obs["cell_type"]
    assert knn_probe(trained.get_latent_representation(), labels).accuracy > 0.7
    W, _ = trained.prior
    assert np.abs(W).max() > 0.05


def test_prior_and_log_partition(trained):
    W, h = trained.prior
    assert W.shape == (16, 16) and h.shape == (16,)
    np.testing.assert_array_equal(W, W.T)
    assert (np.diag(W) == 0).all()
    exact = trained.get_log_partition("exact").value
    stored = trained.get_log_partition()
    for estimate in (
        stored,
        trained.get_log_partition("bar", 1),
        trained.get_log_partition("ais", 1),
    ):
        assert 0 < estimate.standard_error < 0.1
        assert abs(estimate.value - exact) < max(4 * estimate.standard_error, 0.01)
    energies = trained.prior.ising.energy(np.ones(16))
    assert energies == pytest.approx(h.sum() + W.sum() / 2)


def test_elbo_is_below_the_importance_weighted_bound(trained):
    """On held-out cells of real data."""
    held_out = trained.validation_indices
    torch.manual_seed(0)
    elbo = float(trained.get_elbo(indices=held_out))
    bounds = [
        trained.get_marginal_ll(indices=held_out, n_mc_samples=k, n_mc_samples_per_pass=25)
        for k in (1, 25, 250)
    ]
    assert bounds[0] == pytest.approx(elbo, abs=3.0)
    assert elbo < bounds[1] < bounds[2] < elbo + 60


def test_mean_marginal_likelihood_is_over_cells(trained):
    """Upstream's is over minibatches, so a small last one counts as much as a full one."""
    found = []
    for mean in (True, False):
        torch.manual_seed(0)
        found.append(
            trained.get_marginal_ll(
                indices=range(21), n_mc_samples=5, batch_size=20, return_mean=mean
            )
        )
    assert found[0] == pytest.approx(float(found[1].double().mean()), abs=1e-4)
    assert isinstance(found[0], np.float64) and found[1].shape == (21,)  # as upstream's


def test_a_trained_model_decodes_bits(trained):
    """The relaxation's noise is for training: afterwards a unit is on or off."""
    z = trained.get_latent_representation(give_mean=False)
    on = SpikeExponential(torch.zeros(()), trained.module.z_encoder.relaxation_beta).moments(1)[0]
    assert np.isin(z, [np.float32(0), on.numpy()]).all() and len(np.unique(z)) == 2
    encoder = trained.module.z_encoder
    x = torch.zeros(4, trained.module.n_input)
    try:
        encoder.train()
        noisy = encoder(x)[1]
    finally:
        encoder.eval()
    assert noisy.requires_grad and len(torch.unique(noisy)) > 10
    assert len(torch.unique(encoder(x)[1])) <= 2


def test_validation_elbo_is_never_stale(pbmc):
    """The logged bound contains the epoch's own log Z, which is the enumerated one."""
    train = {"max_epochs": 12, "plan_kwargs": {"bm_lr": 0.3}}
    model = fitted(pbmc, train=train, relaxation_beta=5.0)
    prior = prior_of_training(model)
    exact = prior.log_z.item()
    log_z, se = (model.history[k].iloc[-1].item() for k in ("log_z", "log_z_se"))
    older = model.history["log_z"].to_numpy(float).ravel()[:-1]
    assert np.abs(older - exact).max() > 0.5, "it must have moved for this to say anything"
    assert abs(log_z - exact) < 4 * se + 0.02
    held_out = model.validation_indices
    logits = model.get_latent_representation(indices=held_out, representation="logits")
    with torch.no_grad():
        without = (prior.kl(torch.from_numpy(logits)) - prior.log_z).mean().item()
    logged = model.history["kl_local_validation"].iloc[-1].item()
    assert logged == pytest.approx(without + log_z, abs=1e-3)


def test_history_has_the_report(trained):
    for key in ("log_z", "log_z_se", "log_z_drift", "energy_gap", "energy_gap_se", "n_levels"):
        values = trained.history[key].to_numpy(float).ravel()
        assert len(values) == len(trained.history["elbo_validation"])
        assert np.isfinite(values).all()
    assert np.abs(trained.history["energy_gap"].to_numpy(float)[-10:]).mean() < 1.5


def test_temperatures_of_a_machine_are_in_the_history_from_the_start(pbmc):
    """Missing values until the first draw, so that a short training can be read as well."""
    model = fitted(pbmc, sampler="simulated_annealing", train={"max_epochs": 2})
    assert list(model.history["beta_drawn"].iloc[:, 0].isna()) == [True, True]
    assert np.isfinite(model.history["beta_corrected"].to_numpy(float)).all()


def test_log_z_without_validation(pbmc):
    plan = {"bm_lr": 0.1}
    model = fitted(pbmc, train={"max_epochs": 10, "train_size": 1.0, "plan_kwargs": plan})
    assert "elbo_validation" not in model.history
    assert len(model.history["log_z"]) == 1
    exact = model.get_log_partition("exact").value
    assert abs(exact - 12 * np.log(2)) > 1
    assert model.get_log_partition().value == pytest.approx(exact, abs=0.1)


def test_early_stopping_is_on(pbmc):
    from lightning.pytorch.callbacks import EarlyStopping

    model = fitted(pbmc)
    callback = next(c for c in model.trainer.callbacks if isinstance(c, EarlyStopping))
    assert callback.monitor == "elbo_validation" and callback.patience == 10
    off = fitted(pbmc, train={"early_stopping": False})
    assert not any(isinstance(c, EarlyStopping) for c in off.trainer.callbacks)
    stopped = fitted(
        pbmc,
        train={
            "max_epochs": 60,
            "early_stopping_patience": 2,
            "plan_kwargs": {"lr": 0.0, "n_epochs_kl_warmup": None},
        },
    )
    assert len(stopped.history["elbo_train"]) < 60


def test_parameter_groups(pbmc):
    optimiser = fitted(pbmc).trainer.optimizers[0]
    groups = {group["name"]: group for group in optimiser.param_groups}
    assert groups["vae"]["lr"] == 5e-3 and groups["bm"]["lr"] == 1e-3
    assert groups["vae"]["eps"] == 1e-8 and len(groups["bm"]["params"]) == 2
    both = fitted(pbmc, train={"plan_kwargs": {"lr": 1e-2, "bm_lr": 3e-4}}).trainer.optimizers[0]
    assert [group["lr"] for group in both.param_groups] == [1e-2, 3e-4]
    scaled = fitted(pbmc, train={"plan_kwargs": {"lr": 1e-2}}).trainer.optimizers[0]
    assert scaled.param_groups[1]["lr"] == pytest.approx(2e-3)
    custom = {"optimizer": "Custom", "optimizer_creator": lambda p: torch.optim.SGD(p, lr=1e-5)}
    sgd = fitted(pbmc, train={"plan_kwargs": custom}).trainer.optimizers[0]
    assert isinstance(sgd, torch.optim.SGD) and len(sgd.param_groups) == 2


def test_the_end_of_training_compares_kept_and_fresh_chains(pbmc, monkeypatch):
    """Chains that give a wrong log Z at every validation are found out by the fresh estimate."""
    from scvi_qbm.logz import LogPartition
    from scvi_qbm.prior import log_z as prior

    honest = prior.bar_from_chains

    def wrong(*args, **kwargs):
        value, energies = honest(*args, **kwargs)
        return LogPartition(value.value + 20, value.standard_error), energies

    monkeypatch.setattr(prior, "bar_from_chains", wrong)
    with pytest.warns(UserWarning, match="chains do not mix"):
        fitted(pbmc)


def test_kl_warmup_does_not_starve_the_machine(pbmc):
    model = fitted(pbmc, train={"plan_kwargs": {"max_kl_weight": 0.0}})
    assert np.abs(model.prior.W).max() > 1e-3


def test_training_goes_on(pbmc):
    """A second call trains the machine too, with dropout on; upstream stays in eval mode."""
    model = fitted(pbmc)
    before, was_training = model.prior.W, []

    def look(module, _):
        if torch.is_grad_enabled():
            was_training.append(module.training)

    handle = model.module.z_encoder.register_forward_pre_hook(look)
    model.train(**FAST, early_stopping=False)
    handle.remove()
    assert was_training and all(was_training)
    assert np.abs(model.prior.W - before).max() > 1e-3
    assert not model.module.training


def test_same_seed_same_latents(pbmc):
    first, again, other = (fitted(pbmc, seed=s).get_latent_representation() for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_save_and_load(trained, tmp_path):
    trained.save(tmp_path / "model", save_anndata=False)
    loaded = scvi_qbm.QBMVI.load(tmp_path / "model", adata=trained.adata)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), trained.get_latent_representation()
    )
    np.testing.assert_array_equal(loaded.prior.W, trained.prior.W)
    assert loaded.get_log_partition() == trained.get_log_partition()
    torch.manual_seed(0)
    elbo = float(loaded.get_elbo())
    torch.manual_seed(0)
    assert elbo == float(trained.get_elbo())
    loaded.train(**FAST)


def test_load_of_every_option(pbmc, tmp_path):
    options = {
        "relaxation": "overlapping_exponential",
        "relaxation_beta": 6.0,
        "sampler": "gibbs",
        "sampler_options": {"n_sweeps": 3},
        "encode_covariates": True,
        "use_layer_norm": "both",
        "n_layers": 2,
    }
    model = fitted(pbmc, setup={"batch_key": "batch"}, **options)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = scvi_qbm.QBMVI.load(tmp_path / "model")
    assert loaded.module.negative_phase.sampler.n_sweeps == 3
    assert loaded.module.z_encoder.relaxation_beta == 6.0
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal"])
def test_likelihoods(pbmc, likelihood):
    layer = None if likelihood == "normal" else "counts"
    model = fitted(pbmc, layer=layer, gene_likelihood=likelihood, train={"max_epochs": 4})
    elbo = model.history["elbo_validation"].to_numpy(float).ravel()
    assert np.isfinite(elbo).all() and elbo[-1] < elbo[0]
    assert np.isfinite(model.get_latent_representation()).all()


def test_covariates_condition_the_decoder(pbmc):
    setup = {
        "batch_key": "batch",
        "labels_key": "cell_type",
        "categorical_covariate_keys": ["phase"],
        "continuous_covariate_keys": ["percent"],
    }
    model = fitted(pbmc, setup=setup, dispersion="gene-label", train={"max_epochs": 5})
    changed = model.adata.copy()
    changed.obs["batch"] = "a"
    before, after = (
        model.get_latent_representation(each, representation="probabilities")
        for each in (model.adata, changed)
    )
    np.testing.assert_array_equal(before, after)
    expression = [
        model.get_normalized_expression(transform_batch=b, n_samples=1, return_numpy=True).mean(0)
        for b in ("a", "b")
    ]
    assert np.abs(expression[0] - expression[1]).max() > 1e-6


def test_size_factors_batch_embedding_and_latent_library(pbmc):
    adata = pbmc.copy()
    adata.obs["size"] = np.asarray(adata.layers["counts"].sum(1)).ravel()
    fitted(adata, setup={"size_factor_key": "size"})
    embedded = fitted(adata, setup={"batch_key": "batch"}, batch_representation="embedding")
    held_out = embedded.validation_indices
    bound = embedded.get_marginal_ll(indices=held_out, n_mc_samples=8, n_mc_samples_per_pass=4)
    assert bound == pytest.approx(float(embedded.get_elbo(indices=held_out)), abs=60)
    model = fitted(adata, setup={"batch_key": "batch"}, use_observed_lib_size=False)
    held_out = model.validation_indices
    assert np.isfinite(model.get_marginal_ll(indices=held_out, n_mc_samples=4))


@pytest.mark.parametrize(
    ("sampler", "options"), [("gibbs", {}), ("exact", {}), ("parallel_tempering", {"n_levels": 4})]
)
def test_samplers_by_name(pbmc, sampler, options):
    train = {"max_epochs": 8, "plan_kwargs": {"bm_lr": 0.3}}
    model = fitted(pbmc, sampler=sampler, sampler_options=options, n_latent=6, train=train)
    exact = model.get_log_partition("exact").value
    assert abs(exact - 6 * np.log(2)) > 0.5
    assert model.get_log_partition().value == pytest.approx(exact, abs=0.1)


def test_bernoulli_twin(pbmc):
    model = fitted(pbmc, prior="bernoulli", train={"max_epochs": 4})
    W, h = model.prior
    assert (W == 0).all() and np.abs(h).max() > 0
    value, se = model.get_log_partition()
    assert se == 0 and value == pytest.approx(model.get_log_partition("exact").value, abs=1e-4)
    assert "energy_gap" not in model.history


def test_paper_recipe(pbmc):
    model = fitted(pbmc, layer=None, recipe="paper", n_latent=None, n_hidden=None)
    module = model.module
    assert module.n_latent == 256 and module.gene_likelihood == "normal"
    assert module.z_encoder.relaxation_beta == 0.5
    linear = [m for m in module.z_encoder.modules() if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(765, 512), (512, 256)]
    optimiser = model.trainer.optimizers[0]
    assert [group["lr"] for group in optimiser.param_groups] == [1e-2, 1e-3]
    assert RECIPES["paper"].train["early_stopping_patience"] == 10
    assert model.trainer.lightning_module.kl_weight == 1.0


def test_many_cells_get_more_units_and_keep_them(tmp_path):
    """By the cells that a model is built for; a saved model and its queries have its own."""
    from anndata import AnnData

    rng = np.random.default_rng(0)
    adata = AnnData(rng.poisson(2.0, size=(8000, 6)).astype(np.float32))
    adata.obs["batch"] = rng.choice(["a", "b"], 8000)
    few = adata[:500].copy()
    for data in (adata, few):
        scvi_qbm.QBMVI.setup_anndata(data, batch_key="batch")
    model = scvi_qbm.QBMVI(adata)
    assert model.module.n_latent == 128 and "n_latent: 128" in model._model_summary_string
    assert scvi_qbm.QBMVI(few).module.n_latent == 64
    assert scvi_qbm.QBMVI(adata, n_latent=10).module.n_latent == 10
    assert scvi_qbm.QBMVI(registry=model.registry).module.n_latent == 128
    model.is_trained_ = True
    model.save(tmp_path / "m")
    assert scvi_qbm.QBMVI.load(tmp_path / "m", few).module.n_latent == 128
    assert scvi_qbm.QBMVI.load_query_data(few, model).module.n_latent == 128


def test_backed_and_dense_data(pbmc, tmp_path):
    dense = pbmc.copy()
    dense.X = dense.layers["counts"].toarray()
    fitted(dense, layer=None)
    del dense.layers["counts"]
    dense.X = sparse.csr_matrix(dense.X)
    dense.write_h5ad(tmp_path / "a.h5ad")
    backed = __import__("anndata").read_h5ad(tmp_path / "a.h5ad", backed="r+")
    scvi_qbm.QBMVI.setup_anndata(backed)
    scvi_qbm.QBMVI(backed, n_latent=4).train(**FAST)
    backed.file.close()


def broken(pbmc, what):
    adata = pbmc.copy()
    counts = adata.layers["counts"].toarray()
    if what == "negative":
        counts[3, 4] = -1
    elif what == "nan":
        counts[3, 4] = np.nan
    elif what == "infinite":
        counts[3, 4] = np.inf
    elif what == "fraction":
        counts[3, 4] = 0.5
    elif what == "empty":
        counts[[3, 9]] = 0
    adata.layers["counts"] = sparse.csr_matrix(counts)
    return adata


@pytest.mark.parametrize(
    ("what", "likelihood", "message"),
    [
        ("negative", "nb", r"negative values \(smallest -1\).*raw counts"),
        ("negative", "normal", "negative values.*log-normalised"),
        ("nan", "nb", "1 NaN or infinite"),
        ("nan", "normal", "1 NaN or infinite"),
        ("infinite", "zinb", "1 NaN or infinite"),
        ("empty", "nb", r"2 cells have no expression.*first is number 3"),
        ("empty", "normal", "filter_cells"),
    ],
)
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_bad_values(pbmc, what, likelihood, message, form):
    adata = broken(pbmc, what)
    if form == "csc":
        adata.layers["counts"] = adata.layers["counts"].tocsc()
    elif form == "dense":
        adata.layers["counts"] = adata.layers["counts"].toarray()
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts")
    before = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message):
            scvi_qbm.QBMVI(adata, gene_likelihood=likelihood)
    np.testing.assert_array_equal(
        np.asarray(adata.layers["counts"].sum(0)), np.asarray(before.layers["counts"].sum(0))
    )
    assert set(adata.obs) == set(before.obs) and set(adata.obsm) == set(before.obsm)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({"layer": "raw"}, "'raw'.*Available: 'counts'"),
        ({"batch_key": "donor"}, "batch_key: 'donor'.*'phase', 'cell_type'"),
        ({"labels_key": "donor"}, "labels_key: 'donor'"),
        ({"size_factor_key": "donor"}, "size_factor_key: 'donor'"),
        (
            {"categorical_covariate_keys": ["phase", "donor"]},
            "categorical_covariate_keys: 'donor'",
        ),
        ({"continuous_covariate_keys": ["donor"]}, "continuous_covariate_keys: 'donor'"),
    ],
)
def test_missing_keys_leave_the_data_alone(pbmc, setup, message):
    adata = pbmc.copy()
    with pytest.raises(KeyError, match=message):
        scvi_qbm.QBMVI.setup_anndata(adata, **setup)
    assert list(adata.obs) == list(pbmc.obs) and list(adata.uns) == list(pbmc.uns)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sampler": "qpu"}, "'qpu'.*exact, .*gibbs"),
        ({"relaxation": "gumbel"}, "overlapping_exponential, spike_exponential"),
        ({"gene_likelihood": "gamma"}, "nb, zinb, poisson, normal"),
        ({"recipe": "best"}, "default, paper"),
        ({"prior": "normal"}, "boltzmann, bernoulli"),
        ({"normal_variance": "none"}, "learned, fixed"),
        ({"n_latent": 1}, "at least 2"),
        ({"n_latent": 0}, "at least 2"),
    ],
)
def test_bad_options(pbmc, kwargs, message):
    adata = pbmc.copy()
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts")
    with pytest.raises(ValueError, match=message):
        scvi_qbm.QBMVI(adata, **kwargs)
    with pytest.raises(TypeError, match="n_latents"):
        scvi_qbm.QBMVI(adata, n_latents=10)


def test_size_factor_with_normal_likelihood(pbmc):
    adata = pbmc.copy()
    adata.obs["size"] = 1.0
    scvi_qbm.QBMVI.setup_anndata(adata, size_factor_key="size")
    with pytest.raises(ValueError, match="leave out size_factor_key"):
        scvi_qbm.QBMVI(adata, gene_likelihood="normal")


def test_a_recipe_leaves_what_the_user_says(pbmc):
    adata = pbmc.copy()
    scvi_qbm.QBMVI.setup_anndata(adata)
    for options, beta in (
        ({}, 0.5),
        ({"relaxation": "spike_exponential"}, 0.5),
        ({"relaxation": "overlapping_exponential"}, 8.0),
        ({"relaxation_beta": 3.0}, 3.0),
    ):
        model = scvi_qbm.QBMVI(adata, recipe="paper", n_latent=4, **options)
        assert model.init_params_["non_kwargs"]["relaxation_beta"] == beta
    with pytest.raises(ValueError, match="relaxation_beta"):
        scvi_qbm.QBMVI(adata, recipe="paper", relaxation_beta=0.0)
    with pytest.raises(ValueError, match="use_observed_lib_size"):
        scvi_qbm.QBMVI(adata, recipe="paper", use_observed_lib_size=False)


def test_config_objects_leave_the_recipe_its_defaults(pbmc):
    from lightning.pytorch.callbacks import EarlyStopping
    from scvi.train import TrainingPlanConfig

    model = fitted(
        pbmc,
        train={
            "plan_config": TrainingPlanConfig(weight_decay=1e-4),
            "trainer_config": {"early_stopping_patience": 45},
        },
    )
    group = model.trainer.optimizers[0].param_groups[0]
    assert (group["lr"], group["eps"], group["weight_decay"]) == (5e-3, 1e-8, 1e-4)
    callback = next(c for c in model.trainer.callbacks if isinstance(c, EarlyStopping))
    assert callback.patience == 45


def test_no_early_stopping_where_no_cell_is_held_out(pbmc):
    fitted(pbmc, train={"train_size": 0.999})


def test_query_mapping_leaves_the_machine_alone(trained, pbmc):
    query = pbmc[:200].copy()
    query.obs["batch"] = "new"
    mapped = scvi_qbm.QBMVI.load_query_data(query, trained)
    mapped.train(**FAST)
    np.testing.assert_array_equal(mapped.prior.W, trained.prior.W)
    assert mapped.get_log_partition() == trained.get_log_partition()
    assert np.isfinite(mapped.get_latent_representation()).all()
    # The query's batch comes to the reference's states; these stay.
    n_known = trained._alignment_["n_fitted"]
    shifts = mapped._alignment_["shifts"]
    assert torch.equal(shifts[:n_known], trained._alignment_["shifts"])
    assert torch.equal(mapped._alignment_["means"], trained._alignment_["means"])
    assert len(shifts) == n_known + 1 and shifts[-1].abs().max() > 0


def test_interrupted_training_has_an_honest_log_z(pbmc):
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 23:
                raise RuntimeError("stop here")

    scvi.settings.seed = 0
    adata = pbmc.copy()
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts")
    model = scvi_qbm.QBMVI(adata, n_latent=10)
    plan = {"bm_lr": 0.05}
    with pytest.raises(RuntimeError, match="stop here"):
        model.train(max_epochs=9, enable_progress_bar=False, callbacks=[Stop()], plan_kwargs=plan)
    value, se = model.get_log_partition()
    assert abs(value - model.get_log_partition("exact").value) < 4 * se + 0.01


def test_bad_reports_training_warns(pbmc):
    from support.machines import Stuck

    with pytest.warns(UserWarning, match="chains do not mix"):
        fitted(
            pbmc,
            sampler=Stuck(),
            train={"max_epochs": 15, "plan_kwargs": {"bm_lr": 0.05, "n_epochs_kl_warmup": None}},
        )
