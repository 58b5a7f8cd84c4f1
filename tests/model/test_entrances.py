"""Whatever reaches a model: indices, columns, matrices, arguments. Right, or an error of ours."""

import inspect
import warnings

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import sparse
from support.odd import QUIET, cells, is_ours, trained

from scvi_qbm import QBMANVI, QBMVI, tl
from scvi_qbm._checks import as_positions

GETTERS = [
    "get_latent_representation",
    "get_elbo",
    "get_reconstruction_error",
    "get_marginal_ll",
    "get_energy",
    "get_outlier_scores",
    "get_attractors",
    "get_gene_programs",
    "get_aggregated_posterior",
    "get_normalized_expression",
    "get_likelihood_parameters",
    "posterior_predictive_sample",
    "get_latent_library_size",
]


@pytest.fixture(scope="module")
def adata():
    return cells()


@pytest.fixture(scope="module")
def model(adata):
    return trained(adata.copy(), batch_key="batch")


def mask(n, dtype=bool):
    return np.array([i % 4 == 0 for i in range(n)], dtype=dtype)


# -- cells ---------------------------------------------------------------------------------------


def test_every_getter_of_cells_is_here():
    takes = {
        name
        for name, method in inspect.getmembers(QBMVI, inspect.isfunction)
        if not name.startswith("_") and "indices" in inspect.signature(method).parameters
    }
    others = {"write_latent_representation", "get_importance_weights", "get_latent_library_size"}
    # Whose loader is the same, and which are slow.
    others |= {"get_batch_representation", "get_feature_correlation_matrix"}
    assert takes - others <= set(GETTERS)


@pytest.mark.parametrize(
    "wrong",
    [
        np.ones(10, bool),
        [0.0, 1.5],
        ["0", "1"],
        [10**6],
        [-(10**6)],
        np.zeros((2, 2), int),
        slice(0, 5),
        3,
        [None, 1],
        [True, "no"],
    ],
    ids=repr,
)
@pytest.mark.parametrize("getter", GETTERS)
def test_wrong_cells(model, getter, wrong):
    with pytest.raises(ValueError) as error:
        getattr(model, getter)(indices=wrong)
    assert is_ours(error.value)


@pytest.mark.parametrize("getter", GETTERS)
def test_no_cells(model, getter):
    if getter in ("get_latent_representation", "get_energy", "get_outlier_scores"):
        assert len(getattr(model, getter)(indices=[])) == 0
    elif getter == "get_aggregated_posterior":  # as upstream
        assert model.get_aggregated_posterior(indices=[]).mixture_distribution.logits.shape[0] > 1
    elif getter == "get_attractors":
        assert len(model.get_attractors(indices=[]).labels) == 0
    else:
        with pytest.raises(ValueError, match="no cells") as error:
            getattr(model, getter)(indices=[])
        assert is_ours(error.value)


@pytest.mark.parametrize("kind", ["object", "boolean", "list", "series", "positions", "negative"])
def test_the_same_cells_in_other_words(model, kind):
    n = model.adata.n_obs
    chosen = np.flatnonzero(mask(n))
    said = {
        "object": mask(n, object),
        "boolean": pd.array(mask(n), dtype="boolean"),
        "list": mask(n).tolist(),
        "series": pd.Series(mask(n), index=model.adata.obs_names),
        "positions": pd.Index(chosen),
        "negative": chosen - n,
    }[kind]
    assert np.array_equal(as_positions(said, n), chosen)
    expected = model.get_latent_representation()[chosen]
    np.testing.assert_allclose(model.get_latent_representation(indices=said), expected, rtol=1e-5)
    frame = model.get_normalized_expression(indices=said)
    assert list(frame.index) == list(model.adata.obs_names[chosen])


def test_cells_for_differential_expression(model):
    n = model.adata.n_obs
    first, rest = mask(n), ~mask(n)
    kwargs = {"silent": True, "mode": "change", "n_samples_overall": 200}
    tables = []
    for idx1, idx2 in ((first, rest), (np.flatnonzero(first), None), (first.astype(object), rest)):
        torch.manual_seed(0)
        np.random.seed(0)
        found = model.differential_expression(idx1=idx1, idx2=idx2, **kwargs)
        tables.append(found["raw_mean1"].sort_index())
    for other in tables[1:]:
        np.testing.assert_allclose(tables[0], other, rtol=1e-5)
    query = model.differential_expression(idx1="batch == 'b1'", **kwargs)["raw_mean1"]
    there = np.asarray(model.adata.X[(model.adata.obs["batch"] == "b1").to_numpy()].mean(0))[0]
    np.testing.assert_allclose(query[model.adata.var_names], there, rtol=1e-4)
    for wrong, message in [
        ({"idx1": [True] * 10}, "The mask has 10 entries"),
        ({"idx1": []}, "No cells in idx1"),
        ({"idx1": "batch == 'b9'"}, "No cells in idx1"),
        ({"idx1": "nope == 1"}, "no query of adata.obs.*Columns: .*'batch'"),
        ({"idx1": np.arange(n)}, "none left to compare"),
        ({}, "Pass groupby="),
        ({"groupby": "batch", "group1": []}, "names no group"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            model.differential_expression(**wrong, **kwargs)
        assert is_ours(error.value)


# -- values --------------------------------------------------------------------------------------


def spoilt(adata, value, where=3):
    out = adata.copy()
    x = out.X.toarray()
    x[where, np.flatnonzero(x[where])[0]] = value
    out.X = sparse.csr_matrix(x)
    return out


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "1 NaN or infinite"),
        (np.inf, "1 NaN or infinite"),
        (-1, "negative"),
        (1e38, "too large"),
    ],
)
def test_values_that_cannot_be_modelled(model, adata, value, message):
    bad = spoilt(adata, value)
    QBMVI.setup_anndata(bad, batch_key="batch")
    with pytest.raises(ValueError, match=message):
        QBMVI(bad)
    for use in (model.get_elbo, model.get_latent_representation, model.get_energy):
        with pytest.raises(ValueError, match=message) as error:
            use(spoilt(adata, value))
        assert is_ours(error.value)


def test_values_normalised_after_training_are_warned_of(adata):
    model = trained(adata.copy(), batch_key="batch")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.get_latent_representation()
        model.get_latent_representation(adata.copy())
    model.adata.X = model.adata.X.log1p()
    with pytest.warns(UserWarning, match="not integers.*Normalised values are not counts"):
        model.get_latent_representation()
    with pytest.warns(UserWarning, match="not integers"):
        model.get_elbo(model.adata.copy())


def test_corrected_counts_are_warned_of_and_trained_on(adata):
    corrected = adata.copy()
    corrected.X = corrected.X * np.float32(0.93)
    with pytest.warns(UserWarning, match=r"such as 0\.93.*SoupX.*rounded"):
        model = trained(corrected)
    assert np.isfinite(model.get_elbo())


@pytest.mark.parametrize("dtype", [np.float16, ">f4", np.complex64])
def test_numbers_that_scipy_cannot_compute_with(adata, dtype):
    odd = adata.copy()
    values = odd.X.copy()
    values.data = values.data.astype(dtype)
    odd.X = values
    with pytest.raises(ValueError, match="astype|real numbers") as error:
        trained(odd)
    assert is_ours(error.value)


@pytest.mark.parametrize(
    ("part", "place", "value"),
    [
        ("indices", 5, 60),
        ("indices", 5, -1),
        ("indices", 5, 2**30),
        ("indptr", 0, 1),
        ("indptr", 10, 0),
        ("indptr", -1, 10**6),
        ("indptr", -1, -3),
    ],
)
def test_damaged_matrices(adata, part, place, value):
    odd = adata.copy()
    array = getattr(odd.X, part)
    array[place] = array[place] + value if (place, value) == (-1, -3) else value
    with pytest.raises(ValueError, match="adata.X is damaged") as error:
        QBMVI.setup_anndata(odd)
    assert is_ours(error.value)


# -- columns of obs ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, "x", None, pd.Timestamp(0), 1j])
@pytest.mark.parametrize("key", ["cov", "size"])
def test_covariates_that_are_no_numbers(adata, key, value):
    argument = "continuous_covariate_keys" if key == "cov" else "size_factor_key"
    setup = {argument: [key] if key == "cov" else key}
    good, bad = adata.copy(), adata.copy()
    column = bad.obs[key].astype(object)
    column.iloc[3] = value
    bad.obs[key] = column
    message = rf"{argument}: obs\['{key}'\] must be a finite number.*1 of 150 cells.*in cell"
    model = trained(good, **setup)
    for use in (
        lambda: QBMVI.setup_anndata(bad.copy(), **setup),
        lambda: model.get_elbo(bad.copy()),
        lambda: QBMVI.load_query_data(bad.copy(), model),
    ):
        with pytest.raises(ValueError, match=message) as error:
            use()
        assert is_ours(error.value)
        assert repr(bad.obs_names[3]) in str(error.value)


def test_size_factors_are_positive(adata):
    for value in (0.0, -1.0):
        bad = adata.copy()
        bad.obs.loc[bad.obs_names[3], "size"] = value
        with pytest.raises(ValueError, match="a finite number above 0.*1 of 150"):
            QBMVI.setup_anndata(bad, size_factor_key="size")
        assert not any(key.startswith("_scvi") for key in [*bad.obs, *bad.uns])


@pytest.mark.parametrize("dtype", ["object", "category", "string", "Int64", "boolean"])
def test_missing_batches(adata, model, dtype):
    values = {"Int64": [1, None, 2], "boolean": [True, None, False]}.get(dtype, ["b0", None, "b1"])
    bad = adata.copy()
    bad.obs["batch"] = pd.Series(pd.array(values * 50, dtype=dtype), index=bad.obs_names)
    for use in (
        lambda: QBMVI.setup_anndata(bad.copy(), batch_key="batch"),
        lambda: model.get_elbo(bad.copy()),
        lambda: QBMVI.load_query_data(bad.copy(), model),
    ):
        with pytest.raises(ValueError, match="there for every cell, but 50 of 150") as error:
            use()
        assert is_ours(error.value)


@pytest.mark.parametrize("dtype", ["object", "category", "string", "Int64", "boolean"])
def test_missing_labels(adata, dtype):
    values = {"Int64": [1, None, 2], "boolean": [True, None, False]}.get(dtype, ["x", None, "y"])
    bad = adata.copy()
    bad.obs["k"] = pd.Series(pd.array(values * 50, dtype=dtype), index=bad.obs_names)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(ValueError, match=r"50 cells have no value in obs\['k'\]") as error:
            QBMANVI.setup_anndata(bad, "k", "Unknown")
    assert is_ours(error.value)


def test_numbers_where_the_model_has_text(model, adata):
    for values in (5, True, pd.array([5] * 150, dtype="Int64")):
        odd = adata.copy()
        odd.obs["batch"] = values
        for use in (model.get_elbo, lambda x: QBMVI.load_query_data(x, model)):
            with pytest.raises(ValueError, match=r"has numbers .* are text \('b0'\)") as error:
                use(odd.copy())
            assert is_ours(error.value)


def test_unseen_categories_are_named_wherever_they_come(adata, tmp_path):
    model = trained(adata.copy(), categorical_covariate_keys=["phase"], batch_key="batch")
    model.save(tmp_path / "m")
    for key in ("phase", "batch"):
        odd = adata.copy()
        odd.obs[key] = odd.obs[key].astype(str)
        odd.obs.loc[odd.obs_names[0], key] = "new"
        for use in (model.get_elbo, lambda x: QBMVI.load(tmp_path / "m", adata=x)):
            with pytest.raises(ValueError, match="has not seen this batch or covariate") as error:
                use(odd.copy())
            assert is_ours(error.value)


def test_covariates_by_one_name_or_several(adata):
    lists, names = adata.copy(), adata.copy()
    QBMVI.setup_anndata(
        lists, categorical_covariate_keys=["phase"], continuous_covariate_keys=("cov",)
    )
    QBMVI.setup_anndata(names, categorical_covariate_keys="phase", continuous_covariate_keys="cov")
    for key in lists.obsm:
        assert lists.obsm[key].equals(names.obsm[key])
    with pytest.raises(ValueError, match="twice"):
        QBMVI.setup_anndata(adata.copy(), categorical_covariate_keys=["phase", "phase"])
    double = adata.copy()
    double.obs = pd.concat([double.obs, double.obs[["batch"]]], axis=1)
    with pytest.raises(ValueError, match="several columns called 'batch'"):
        QBMVI.setup_anndata(double, batch_key="batch")


def test_a_batch_of_one_cell_has_the_others_variance(adata):
    one = adata.copy()
    one.obs["one"] = ["a"] * (one.n_obs // 2) + ["b"] * (one.n_obs - one.n_obs // 2 - 1) + ["c"]
    with pytest.warns(UserWarning, match="library sizes do not vary"):
        model = trained(one, batch_key="one", model={"use_observed_lib_size": False})
    variances = model.module.library_log_vars[0]
    assert variances[2] == pytest.approx(float(variances[:2].mean()))
    assert np.isfinite(model.get_elbo())


# -- genes ---------------------------------------------------------------------------------------


def test_genes_in_another_order_are_refused(model, adata, tmp_path):
    model.save(tmp_path / "m")
    moved = adata[:, ::-1].copy()
    for use in (model.get_elbo, lambda x: QBMVI.load(tmp_path / "m", adata=x)):
        with pytest.raises(ValueError, match="genes in another order") as error:
            use(moved.copy())
        assert is_ours(error.value)
    again = QBMVI.load(tmp_path / "m", adata=adata.copy())
    np.testing.assert_array_equal(
        again.get_latent_representation(), model.get_latent_representation()
    )


def test_genes_moved_in_place_are_noticed(adata, tmp_path):
    own = trained(adata.copy())
    own.adata._inplace_subset_var(own.adata.var_names[::-1])
    for use in (own.get_latent_representation, lambda: own.save(tmp_path / "m"), own.get_elbo):
        with pytest.raises(ValueError, match="subset or reordered in place"):
            use()
    assert not (tmp_path / "m").exists()


def test_genes_dropped_before_training(model, adata):
    early = adata.copy()
    QBMVI.setup_anndata(early)
    own = QBMVI(early, n_latent=6, n_hidden=16)
    early._inplace_subset_var(early.var_names[:50])
    with pytest.raises(ValueError, match="subset or reordered in place"):
        own.train(**QUIET, max_epochs=1)
    with pytest.raises(ValueError, match="has 50 genes, but was set up with 60"):
        QBMVI(early)
    with pytest.raises(TypeError, match="`adata` is an AnnData, not a str"):
        model.get_elbo("cells.h5ad")


def test_genes_may_be_renamed(adata):
    own = trained(adata.copy())
    latent = own.get_latent_representation()
    own.adata.var_names = [f"ENSG{i}" for i in range(60)]
    np.testing.assert_array_equal(own.get_latent_representation(), latent)
    np.testing.assert_array_equal(own.get_latent_representation(own.adata.copy()), latent)


def test_genes_asked_for(model):
    names = list(model.adata.var_names[[5, 2, 9]])

    def expression(**kwargs):
        torch.manual_seed(0)
        return model.get_normalized_expression(**kwargs)

    whole = expression()
    pd.testing.assert_frame_equal(expression(gene_list=names), whole[names], rtol=1e-5)
    values = expression(gene_list=names, return_numpy=True)
    np.testing.assert_allclose(values, whole[names], rtol=1e-5)
    pooled = expression(gene_list=names, n_samples_overall=200)
    assert list(pooled) == names
    one = expression(gene_list=names[0])
    assert list(one) == names[:1]
    for wrong in (["NOPE"], [names[0], "NOPE"], []):
        with pytest.raises(ValueError, match="Not among the genes|no gene"):
            model.get_normalized_expression(gene_list=wrong)


@pytest.mark.parametrize("size", [-5, 0, np.nan, np.inf])
def test_library_sizes_are_positive(model, size):
    for use in (model.get_normalized_expression, lambda **x: model.generate(5, **x)):
        with pytest.raises(ValueError, match="library_size"):
            use(library_size=size)


def test_samples_of_the_population(model):
    frame = model.get_normalized_expression(n_samples_overall=400)
    assert frame.shape[1] == model.adata.n_vars and len(frame) >= 400
    np.testing.assert_allclose(frame.sum(axis=1), 1, rtol=1e-4)


# -- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.sample_prior(10.0),
        lambda m: m.sample_prior(10, seed=-1),
        lambda m: m.generate(1e3),
        lambda m: m.generate(5, seed=1.5),
        lambda m: m.get_latent_representation(batch_size=0),
        lambda m: m.get_elbo(batch_size=2.5),
        lambda m: m.get_gene_programs(n_cells=0),
        lambda m: m.get_marginal_ll(n_mc_samples_per_pass=0),
        lambda m: m.get_normalized_expression(transform_batch=[]),
        lambda m: QBMVI(m.adata, n_latent=10.5),
        lambda m: QBMVI(m.adata, n_hidden="16"),
        lambda m: QBMVI(m.adata, relaxation_beta=np.nan),
        lambda m: m.train(max_epochs=2.0),
        lambda m: m.train(batch_size=1),
        lambda m: tl.attractors(m, depth="2"),
        lambda m: tl.programs(m, n_genes=2.5),
        lambda m: tl.energy(m, key_added=5),
    ],
)
def test_arguments_that_mean_nothing(model, call):
    with pytest.raises((ValueError, TypeError), match="`|must|at least") as error:
        call(model)
    assert is_ours(error.value)


def test_epochs_as_numpy_counts_them(adata):
    model = trained(adata.copy(), train={"max_epochs": np.int64(2)})
    assert len(model.history["elbo_train"]) == 2


@pytest.mark.parametrize("train_size", [1.0, 129 / 150])
def test_a_last_minibatch_of_one_cell(adata, train_size):
    some = adata[:129].copy() if train_size == 1.0 else adata.copy()
    model = trained(some, train={"train_size": train_size, "validation_size": 0.0})
    assert len(model.train_indices) == 129 and model.trainer.global_step == 1
    with pytest.raises(ValueError, match="cells to train on"):
        trained(adata[:1].copy())


def test_too_few_steps_to_watch(adata):
    model = trained(adata.copy(), train={"max_steps": 1, "max_epochs": 5})
    assert model.trainer.global_step == 1
    model = trained(adata.copy(), train={"limit_val_batches": 0})
    assert model.is_trained


def test_training_without_a_logger_is_not_zero_epochs(adata):
    model = trained(adata.copy(), train={"logger": False})
    assert model.summary(silent=True)["training", "epochs"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"acelerator": "cpu"},
        {"plan_kwargs": {"foo": 1}},
        {"batch_size": 2.0},
        {"logger": "x"},
        {"train_size": 1.5},
        {"early_stopping": True, "early_stopping_mode": "sideways"},
    ],
    ids=repr,
)
def test_a_call_of_train_that_fails_leaves_no_trace(model, wrong):
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    latent, history = model.get_latent_representation(), model.history
    with pytest.raises(Exception):  # noqa: B017 - whatever the argument's owner raises
        model.train(**{**QUIET, **wrong} if "acelerator" not in wrong else wrong)
    assert not model.module.training
    np.testing.assert_array_equal(model.get_latent_representation(), latent)
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.history is history and model.is_trained


def test_interrupted_before_the_first_step(adata):
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_start(self, trainer, pl_module):
            raise KeyboardInterrupt

    model = trained(adata.copy())
    latent = model.get_latent_representation()
    with pytest.raises(KeyboardInterrupt, match="No step was taken"):
        model.train(**QUIET, max_epochs=3, callbacks=[Stop()])
    np.testing.assert_array_equal(model.get_latent_representation(), latent)


def test_several_draws_with_batch_embeddings(adata):
    model = trained(adata.copy(), batch_key="batch", model={"batch_representation": "embedding"})
    assert model.get_normalized_expression(n_samples=3, return_numpy=True).shape == (150, 60)
    drawn = model.get_likelihood_parameters(n_samples=3)["mean"]
    assert drawn.shape == (3, 150, 60) and (drawn > 0).all()
    assert model.posterior_predictive_sample(n_samples=2).shape == (150, 60, 2)
    # Decoded as each draw alone is.
    batch = torch.tensor([[0], [2]])
    z, library = torch.rand(3, 2, 6), torch.zeros(2, 1)
    with torch.inference_mode():
        many = model.module.generative(z, library, batch)["px"].mean
        for k in range(3):
            one = model.module.generative(z[k], library, batch)["px"].mean
            torch.testing.assert_close(many[k], one)


def test_a_batch_by_its_name(adata):
    named = adata.copy()
    named.obs["batch"] = [["1", "2", "12"][i % 3] for i in range(named.n_obs)]
    model = trained(named, batch_key="batch")
    tables = []
    for batch in ("12", ["12"]):
        scvi.settings.seed = 0
        tables.append(
            model.differential_expression(
                idx1=mask(150), batch_correction=True, batchid1=batch, batchid2=batch, silent=True
            )
        )
    pd.testing.assert_frame_equal(*tables)


def test_the_query_by_its_folder(model, adata, tmp_path):
    model.save(tmp_path / "m")
    query = QBMVI.load_query_data(adata.copy(), tmp_path / "m")
    assert query.module.prior.is_frozen
    double = adata[:, [*range(60), 3]].copy()
    with pytest.raises(ValueError, match="is there twice"):
        QBMVI.prepare_query_anndata(double, model)
    double = adata.copy()
    double.obs_names = ["a"] * double.n_obs
    with pytest.raises(ValueError, match="obs_names_make_unique"):
        QBMVI.prepare_query_anndata(double, model)
    none = adata.copy()
    none.X = None
    with pytest.raises(ValueError, match="no X"):
        QBMVI.prepare_query_anndata(none, model)
    with pytest.raises(KeyError, match="no X.*layer=.*'counts'"):
        QBMVI.setup_anndata(none)


def test_full_data_and_a_minified_model(adata):
    model = trained(adata.copy())
    for key, values in zip(
        ("X_latent_qzm", "X_latent_qzv"),
        model.get_latent_representation(return_dist=True),
        strict=True,
    ):
        model.adata.obsm[key] = values
    model.minify_adata()
    with pytest.raises(ValueError, match=r"are minified.*load\(directory, adata=adata\)"):
        model.get_latent_representation(adata.copy())
