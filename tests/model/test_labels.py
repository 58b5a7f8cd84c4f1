"""QBMANVI: labels in, labels out, and all that a model does with them between."""

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from sklearn.metrics import roc_auc_score
from support.machines import codes
from support.models import FAST

import scvi_qbm
from scvi_qbm import QBMANVI, QBMVI
from scvi_qbm.logz import log_partition
from scvi_qbm.model._label_levels import label_table
from scvi_qbm.prior import fit_prior

KEY, UNKNOWN = "known", "Unknown"
LEVELS = ["coarse", "fine"]


def partly(adata, share=0.5, seed=0):
    """Labels of some cells hidden; two levels of them, some cells with the coarse one only."""
    adata = adata.copy()
    rng = np.random.default_rng(seed)
    types = adata.obs["cell_type"].astype(str)
    coarse = types.map(lambda x: "T" if x.startswith(("CD4+", "CD8+")) else x)
    hidden = rng.random(adata.n_obs) < share
    adata.obs["truth"], adata.obs["hidden"] = types.to_numpy(), hidden
    adata.obs[KEY] = types.mask(hidden, UNKNOWN).to_numpy()
    adata.obs["coarse"] = coarse.mask(hidden, UNKNOWN).to_numpy()
    no_fine = hidden | (rng.random(adata.n_obs) < 0.3) | (coarse != "T")
    adata.obs["fine"] = types.mask(no_fine, UNKNOWN).to_numpy()
    return adata


def trained(adata, labels_key=KEY, max_epochs=30, **kwargs):
    scvi.settings.seed = 0
    QBMANVI.setup_anndata(adata, labels_key, UNKNOWN, layer="counts", batch_key="batch")
    model = QBMANVI(adata, **({"n_latent": 16, "n_hidden": 64} | kwargs))
    model.train(**(FAST | {"max_epochs": max_epochs}))
    return model


@pytest.fixture(scope="module")
def data(pbmc):
    return partly(pbmc)


@pytest.fixture(scope="module")
def model(data):
    return trained(data.copy())


@pytest.fixture(scope="module")
def levels(data):
    return trained(data.copy(), LEVELS)


def test_hidden_labels_are_found(model, data):
    truth, hidden = data.obs["truth"].to_numpy(), data.obs["hidden"].to_numpy()
    right = model.predict() == truth
    most = pd.Series(truth[hidden]).value_counts(normalize=True).max()
    assert right[hidden].mean() > most + 0.3
    p = model.predict(soft=True)
    assert list(p.index) == list(data.obs_names) and set(p.columns) == set(truth)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    assert (p.idxmax(axis=1).to_numpy() == model.predict()).all()
    # What it says of its errors: cells it is sure of are right more often.
    sure = p.max(axis=1).to_numpy() > 0.9
    assert right[hidden & sure].mean() > right[hidden & ~sure].mean() + 0.15


def test_predictions_are_the_softmax_of_the_machine(model):
    q = model.get_latent_representation(representation="probabilities")
    W, h = model.prior
    n = q.shape[1]
    f = q @ W[:n, n:] + h[n:]
    expected = np.exp(-f) / np.exp(-f).sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict(soft=True), expected, atol=1e-4)


def test_predict_takes_what_other_methods_take(model, data):
    some = [3, 1, 4]
    assert (model.predict(indices=some) == model.predict()[some]).all()
    assert len(model.predict(indices=[])) == 0
    mask = data.obs["hidden"].to_numpy()
    assert list(model.predict(indices=mask, soft=True).index) == list(data.obs_names[mask])
    loader = model._make_data_loader(model.adata, batch_size=100)
    assert (model.predict(dataloader=loader) == model.predict()).all()
    other = data.copy()
    del other.obs[KEY]  # a query without annotation
    assert (model.predict(other) == model.predict()).all()
    assert KEY not in other.obs
    torch.manual_seed(0)
    drawn = [model.predict(soft=True, use_posterior_mean=False) for _ in range(2)]
    assert not drawn[0].equals(drawn[1])


def test_threshold_answers_that_it_does_not_know(model):
    p = model.predict(soft=True).max(axis=1).to_numpy()
    found = model.predict(threshold=0.8)
    assert ((found == UNKNOWN) == (p < 0.8)).all() and 0 < (p < 0.8).mean() < 1
    assert (found[p >= 0.8] == model.predict()[p >= 0.8]).all()
    with pytest.raises(ValueError, match="from 0 to 1"):
        model.predict(threshold=80)


def test_unsure_cells_have_high_entropy(model):
    p = model.predict(soft=True).to_numpy()
    entropy = model.get_outlier_scores(score="entropy")
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(1), atol=1e-6)
    hide = model.adata.copy()
    hide.obs[KEY] = UNKNOWN
    for score in ("kl", "elbo", "novelty"):
        torch.manual_seed(0)
        seen = model.get_outlier_scores(score=score)
        torch.manual_seed(0)
        np.testing.assert_allclose(model.get_outlier_scores(hide, score=score), seen, rtol=1e-5)


def test_proportions_are_those_of_the_cells_at_hand(model, data):
    """On a query of another composition the proportions come nearer to its own."""
    truth = data.obs["truth"].to_numpy()
    rare = np.flatnonzero(truth == "CD19+ B")
    other = np.flatnonzero(truth == "CD14+ Monocyte")[:10]
    cells = np.concatenate([rare, other])
    share = len(rare) / len(cells)
    plain, adapted = (
        model.predict(indices=cells, soft=True, adapt_proportions=x)["CD19+ B"].mean()
        for x in (False, True)
    )
    assert abs(adapted - share) < abs(plain - share) + 1e-6
    p = model.predict(indices=cells, soft=True, adapt_proportions=True)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)


def test_levels_agree(levels, data):
    table = levels._label_table
    parent = {name: "T" for k, name in table.labels if k == 1}
    p = levels.predict(soft=True)
    assert list(p.columns.get_level_values(0).unique()) == LEVELS
    np.testing.assert_allclose(p["coarse"].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(p["fine"].sum(axis=1), p["coarse", "T"], atol=1e-6)
    for threshold in (0, 0.7):
        found = levels.predict(threshold=threshold)
        assert list(found.columns) == LEVELS
        fine = found["fine"] != UNKNOWN
        assert (found["fine"][fine].map(parent) == found["coarse"][fine]).all()
        assert fine.any() and not fine.all()
    right = levels.predict()["coarse"] == data.obs["truth"].map(
        lambda x: "T" if x.startswith(("CD4+", "CD8+")) else x
    )
    assert right[data.obs["hidden"]].mean() > 0.75


def test_a_coarse_label_narrows_the_fine_ones():
    mapping = ['["T", "CD4"]', '["T", "CD8"]', '["T", "?"]', '["B", "?"]', '["?", "CD8"]', "?"]
    table = label_table(mapping, "?", LEVELS)
    assert table.labels == [(0, "T"), (1, "CD4"), (1, "CD8"), (0, "B")]
    full = [[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(table.configurations, full)
    allowed = [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0], [1, 1, 1]]
    np.testing.assert_array_equal(table.allowed, allowed)
    # A query's new combination leaves what the reference knows: B may still go alone.
    more = [*mapping[:-1], '["B", "memory"]', "?"]
    later = label_table(more, "?", LEVELS, [5])
    np.testing.assert_array_equal(later.configurations[:3, :4], full)
    assert later.labels == [*table.labels, (1, "memory")] and len(later.configurations) == 4
    with pytest.raises(ValueError, match="'NK' has no label in obs\\['coarse'\\]"):
        label_table([*mapping[:-1], '["?", "NK"]', "?"], "?", LEVELS)


@pytest.mark.parametrize("name", ["model", "levels"])
def test_saved_and_minified_it_predicts_the_same(name, request, tmp_path):
    model = request.getfixturevalue(name)
    expected = model.predict(soft=True)
    model.save(tmp_path / "m", save_anndata=True)
    loaded = QBMANVI.load(tmp_path / "m")
    pd.testing.assert_frame_equal(loaded.predict(soft=True), expected)
    novelty = model.get_outlier_scores()
    pd.testing.assert_series_equal(loaded.get_outlier_scores(), novelty, atol=1e-5)
    pd.testing.assert_frame_equal(
        loaded.predict(soft=True, adapt_proportions=True),
        model.predict(soft=True, adapt_proportions=True),
    )
    aligned = model.get_latent_representation()
    np.testing.assert_allclose(loaded.get_latent_representation(), aligned, atol=1e-6)
    moments = loaded.get_latent_representation(return_dist=True)
    loaded.adata.obsm["X_latent_qzm"], loaded.adata.obsm["X_latent_qzv"] = moments
    loaded.minify_adata()
    pd.testing.assert_frame_equal(loaded.predict(soft=True), expected, atol=1e-4)
    pd.testing.assert_series_equal(loaded.get_outlier_scores(), novelty, atol=1e-2)


def test_from_qbmvi_model(data, model, tmp_path):
    scvi.settings.seed = 0
    adata = data.copy()
    QBMVI.setup_anndata(adata, layer="counts", batch_key="batch")
    first = QBMVI(adata, n_latent=16, n_hidden=64)
    first.train(**(FAST | {"max_epochs": 20}))
    with pytest.raises(ValueError, match="pass labels_key="):
        QBMANVI.from_qbmvi_model(first, UNKNOWN)
    with pytest.raises(TypeError, match="A QBMVI is needed"):
        QBMANVI.from_qbmvi_model(model, UNKNOWN)
    swapped = data.copy()
    swapped.obs["batch"] = pd.Categorical(swapped.obs["batch"], categories=["c", "b", "a"])
    with pytest.raises(ValueError, match="numbers batch as"):
        QBMANVI.from_qbmvi_model(first, UNKNOWN, KEY, adata=swapped)
    second = QBMANVI.from_qbmvi_model(first, UNKNOWN, KEY)
    for name, value in first.module.state_dict().items():
        if not name.startswith("prior.log_z"):
            torch.testing.assert_close(second.module.state_dict()[name], value)
    second.save(tmp_path / "m", save_anndata=True)
    second = QBMANVI.load(tmp_path / "m")
    second.train(enable_progress_bar=False)
    assert len(second.history["elbo_train"]) <= 10
    hidden, truth = data.obs["hidden"].to_numpy(), data.obs["truth"].to_numpy()
    assert (second.predict() == truth)[hidden].mean() > 0.6


def test_a_query_without_labels_keeps_the_references(model, data):
    query = data[data.obs["batch"] == data.obs["batch"].iloc[0]].copy()
    del query.obs[KEY]
    query.obs["batch"] = "new"
    mapped = QBMANVI.load_query_data(query, model)
    mapped.train(**(FAST | {"max_epochs": 5}))
    for name in ("a", "U", "h", "W_upper"):
        before, after = (getattr(m.module.prior, name) for m in (model, mapped))
        torch.testing.assert_close(before, after)
    truth = query.obs["truth"].to_numpy()
    assert (mapped.predict() == truth).mean() > 0.6
    # The encoder takes cells of the reference as ever: nothing has moved what is frozen.
    np.testing.assert_allclose(
        mapped.get_latent_representation(data.copy(), representation="evidence"),
        model.get_latent_representation(representation="evidence"), atol=1e-4,
    )  # fmt: skip


def test_a_query_brings_new_labels(data):
    """One type is left out of the reference; the query knows it in half of its cells."""
    types = data.obs["truth"]
    new = "CD19+ B"
    reference = trained(data[types != new].copy())
    aligned = reference.get_latent_representation()
    reference.get_attractors()
    rng = np.random.default_rng(0)
    query = data[rng.random(data.n_obs) < 0.6].copy()
    truth = query.obs["truth"].to_numpy()
    knows = (truth == new) & (rng.random(query.n_obs) < 0.5)
    query.obs[KEY] = np.where(knows, new, UNKNOWN)
    with pytest.raises(ValueError, match="labels in .* that the model does not know: 'CD19"):
        reference.predict(query)
    mapped = QBMANVI.load_query_data(query, reference)
    assert list(mapped._label_mapping) == [*reference._label_mapping, new]
    hidden = data.copy()
    hidden.obs[KEY] = UNKNOWN
    with pytest.warns(UserWarning, match="untrained"):
        before = mapped.predict(hidden.copy())
    assert (before == reference.predict(hidden)).all()
    is_new = (types == new).to_numpy()
    novelty = reference.get_outlier_scores(hidden)
    assert novelty.name == "novelty" and roc_auc_score(is_new, novelty) > 0.8
    mapped.train(**FAST)
    # Now it is known; the others are as far away as before.
    known = mapped._known_types_
    assert len(known["types"]) == reference.n_labels + 1
    np.testing.assert_array_equal(known["precision"], reference._known_types_["precision"])
    assert mapped.get_outlier_scores(hidden)[is_new].mean() < novelty[is_new].mean() - 0.2
    n_old = reference.n_labels
    torch.testing.assert_close(mapped.module.prior.U[:, :n_old], reference.module.prior.U)
    shift = mapped.module.prior.a[:n_old] - reference.module.prior.a
    torch.testing.assert_close(shift, shift[0].expand(n_old), atol=1e-5, rtol=0)
    found = mapped.predict()
    unseen = ~knows
    assert (found == new)[unseen & (truth == new)].mean() > 0.5
    assert (found == new)[unseen & (truth != new)].mean() < 0.1
    assert mapped.get_attractors().states.shape[1] == 16 + n_old + 1
    own = data[types != new]
    np.testing.assert_allclose(
        mapped.get_latent_representation(own.copy(), representation="evidence"),
        reference.get_latent_representation(representation="evidence"), atol=1e-4,
    )  # fmt: skip
    assert aligned.shape == (own.n_obs, 16)


def test_all_hidden_labels_of_a_type_leave_it_at_the_prior(data):
    """A registered label without cells, as in a query, is never predicted with confidence."""
    adata = data.copy()
    QBMANVI.setup_anndata(adata, KEY, UNKNOWN, layer="counts")
    manager = QBMANVI(adata).adata_manager
    other = data.copy()
    other.obs[KEY] = np.where(other.obs[KEY] == "CD34+", UNKNOWN, other.obs[KEY])
    QBMANVI.setup_anndata(other, KEY, UNKNOWN, layer="counts", source_registry=manager.registry)
    model = QBMANVI(other, n_latent=16, n_hidden=64)
    model.train(**FAST)
    assert "CD34+" in model._label_mapping
    assert not np.abs(model.get_label_couplings().loc["CD34+"]).max() > 0.3
    assert model.predict(soft=True)["CD34+"].max() < 0.2


def test_bad_labels(data):
    adata = data.copy()
    setup = {"labels_key": KEY, "unlabeled_category": UNKNOWN, "layer": "counts"}
    with pytest.raises(KeyError, match="'nothing' is not in adata.obs"):
        QBMANVI.setup_anndata(adata, "nothing", UNKNOWN, layer="counts")
    with pytest.warns(UserWarning, match="No cell is 'unknwon'"):
        QBMANVI.setup_anndata(adata, KEY, "unknwon", layer="counts")
    for values, message in ((UNKNOWN, "no labels beside"), ("B", "one label only beside")):
        adata.obs[KEY] = [UNKNOWN] * 3 + [values] * (adata.n_obs - 3)
        QBMANVI.setup_anndata(adata, **setup)
        with pytest.raises(ValueError, match=message):
            QBMANVI(adata)
    adata.obs[KEY] = [None, "A", *["B"] * (adata.n_obs - 2)]
    with pytest.raises(ValueError, match=r"1 cells have no value.*fillna\('Unknown'\)"):
        QBMANVI.setup_anndata(adata, **setup)
    for keys in (None, [], [KEY, KEY]):
        with pytest.raises(ValueError, match="`labels_key` is a column"):
            QBMANVI.setup_anndata(data.copy(), keys, UNKNOWN)
    with pytest.raises(ValueError, match="`unlabeled_category` is a value"):
        QBMANVI.setup_anndata(data.copy(), KEY, None)
    adata = data.copy()
    adata.obs["fine"] = UNKNOWN
    QBMANVI.setup_anndata(adata, LEVELS, UNKNOWN, layer="counts")
    with pytest.raises(ValueError, match=r"obs\['fine'\] has no labels"):
        QBMANVI(adata)
    with pytest.raises(ValueError, match="prior must be 'boltzmann'"):
        QBMANVI(data, prior="bernoulli")


@pytest.mark.slow
def test_a_batch_without_labels_and_numbers_as_labels(data):
    adata = data.copy()
    numbers = pd.factorize(adata.obs["truth"])[0]
    first = adata.obs["batch"] == adata.obs["batch"].iloc[0]
    adata.obs[KEY] = np.where(first, -1, numbers)
    QBMANVI.setup_anndata(adata, KEY, -1, layer="counts", batch_key="batch")
    model = QBMANVI(adata, n_latent=16, n_hidden=64)
    model.train(**(FAST | {"max_epochs": 20}))
    right = model.predict() == numbers
    assert right[first.to_numpy()].mean() > 0.5


def test_the_bound_of_labelled_cells_is_of_labels_too(model, data):
    """log p(x, y) <= log p(x): the difference is what the label costs."""
    labelled = np.flatnonzero(~data.obs["hidden"])
    hide = data.copy()
    hide.obs[KEY] = UNKNOWN
    torch.manual_seed(0)
    with_labels = model.get_elbo(indices=labelled, n_samples=2, return_mean=False)
    torch.manual_seed(0)
    without = model.get_elbo(hide, indices=labelled, n_samples=2, return_mean=False)
    p = model.predict(soft=True).to_numpy()[labelled]
    true = [list(model._label_mapping).index(x) for x in data.obs["truth"].iloc[labelled]]
    cost = np.log(p[np.arange(len(p)), true])
    np.testing.assert_allclose(with_labels - without, cost, atol=5e-3)


def test_the_bound_without_labels_compares_with_qbmvi(model, data):
    labelled = np.flatnonzero(~data.obs["hidden"])
    cells = {"indices": labelled, "n_samples": 2, "return_mean": False}
    torch.manual_seed(0)
    hidden = model.get_elbo(with_labels=False, **cells)
    other = data.copy()
    del other.obs[KEY]
    torch.manual_seed(0)
    torch.testing.assert_close(hidden, model.get_elbo(other, **cells))
    torch.manual_seed(0)
    assert (model.get_elbo(**cells) <= hidden + 1e-3).all()
    some = {"indices": labelled[:20], "n_mc_samples": 5}
    torch.manual_seed(0)
    first = model.get_marginal_ll(with_labels=False, **some)
    torch.manual_seed(0)
    assert first == pytest.approx(model.get_marginal_ll(other, **some))


def test_the_last_fit_has_the_shares_of_the_cells(data, monkeypatch):
    """The prior's distribution: log Z is right, and labels are as frequent as among cells."""
    adata = data[:400].copy()
    errors = []

    def spy(prior, *args, **kwargs):
        # A log Z of before the labels' fit would make any gain look like a loss.
        errors.append(float(prior.log_z) - log_partition(prior.ising(), method="exact").value)
        return fit_prior(prior, *args, **kwargs)

    monkeypatch.setattr("scvi_qbm.model._alignment.fit_prior", spy)
    scvi.settings.seed = 0
    QBMANVI.setup_anndata(adata, KEY, UNKNOWN, layer="counts")
    model = QBMANVI(adata, n_latent=8, n_hidden=32)
    model.train(**(FAST | {"max_epochs": 20}))
    assert len(errors) == 1 and abs(errors[0]) < 0.2
    exact = log_partition(model.prior.ising, method="exact").value
    assert model.get_log_partition().value == pytest.approx(exact, abs=0.1)
    distribution = model.module.prior.log_prob(codes(8).float()).exp().detach()
    assert float(distribution.sum()) > 0.97
    p = torch.softmax(model.module.prior.label_logits(codes(8).float()), -1).detach()
    shares = (distribution[:, None] * p).sum(0).numpy()
    assert np.abs(shares - model.predict(soft=True).mean().to_numpy()).max() < 0.2
    means = (distribution[:, None] * codes(8).float()).sum(0).numpy()
    q = model.get_latent_representation(representation="probabilities")
    assert np.abs(means - q[model.train_indices].mean(0)).max() < 0.12


@pytest.mark.slow
def test_a_new_combination_of_known_labels(data):
    """Both labels have their place already: such a cell is a mistake."""
    reference = trained(data.copy(), LEVELS, max_epochs=10)
    query = data.copy()
    query.obs["coarse"], query.obs["fine"] = UNKNOWN, UNKNOWN
    query.obs.iloc[0, query.obs.columns.get_loc("coarse")] = "CD19+ B"
    query.obs.iloc[0, query.obs.columns.get_loc("fine")] = "CD8+ Cytotoxic T"
    with pytest.raises(ValueError, match=r"combinations of labels in .*CD19\+ B / CD8"):
        reference.predict(query)
    with pytest.raises(ValueError, match=r"B / CD8.* contradicts the levels"):
        QBMANVI.load_query_data(query, reference)


def test_training_that_is_cut_short_predicts(data):
    adata = data.copy()
    QBMANVI.setup_anndata(adata, KEY, UNKNOWN, layer="counts")
    model = QBMANVI(adata, n_latent=16, n_hidden=64)
    model._fit_prior = None  # an error where the last fits begin
    with pytest.raises(TypeError):
        model.train(**(FAST | {"max_epochs": 20}))
    del model._fit_prior
    right = model.predict() == data.obs["truth"].to_numpy()
    assert right[data.obs["hidden"]].mean() > 0.6
    assert model.predict(adapt_proportions=True)[0] != UNKNOWN


def test_other_labels_do_not_go_on_with_a_checkpoint(data, tmp_path):
    model = trained(data.copy(), max_epochs=1)
    model.train(**FAST, checkpoint_dir=tmp_path)
    other = partly(data, seed=1)
    QBMANVI.setup_anndata(other, KEY, UNKNOWN, layer="counts", batch_key="batch")
    again = QBMANVI(other, n_latent=16, n_hidden=64)
    with pytest.raises(ValueError, match="labels of cells"):
        again.train(**FAST, checkpoint_dir=tmp_path)


def test_dispersions_follow_their_labels(data):
    adata = data.copy()
    QBMVI.setup_anndata(adata, layer="counts", labels_key="coarse")  # "Unknown" sorts last but T
    first = QBMVI(adata, n_latent=8, n_hidden=16, dispersion="gene-label")
    first.train(**FAST)
    before = dict(zip(first.get_state_registry("labels").categorical_mapping,
                      first.module.px_r.T.tolist(), strict=True))  # fmt: skip
    second = QBMANVI.from_qbmvi_model(first, "T", "coarse")
    names = second.get_state_registry("labels").categorical_mapping
    assert names[-1] == "T"
    for name, values in zip(names, second.module.px_r.T.tolist(), strict=True):
        assert values == before[name]


def test_history_has_accuracies(model):
    for name in ("classification_loss", "accuracy", "f1_score", "calibration_error"):
        for mode in ("train", "validation"):
            assert np.isfinite(model.history[f"{mode}_{name}"].to_numpy(dtype=float)).any()


@pytest.mark.parametrize("unlabeled", ["?", "-1", False])
def test_labels_of_several_types(data, unlabeled):
    adata = data.copy()
    adata.obs[KEY] = [unlabeled, 3, True, *["a"] * 350, *["b"] * (adata.n_obs - 353)]
    adata.obs[KEY] = adata.obs[KEY].astype(object)
    QBMANVI.setup_anndata(adata, KEY, unlabeled, layer="counts")
    assert QBMANVI(adata).n_labels == 4


@pytest.fixture(scope="module")
def small(data):
    """A machine that can be enumerated: 6 units and 10 labels."""
    return trained(data.copy(), n_latent=6, max_epochs=10)


@pytest.mark.parametrize("sampler", ["parallel_tempering", "gibbs", "exact"])
def test_a_label_that_is_set(small, sampler):
    """Codes of one label follow p(z | y), whatever draws them."""
    label = "CD14+ Monocyte"
    drawn = small.sample_prior(20_000, sampler, seed=0, label=label)
    prior = small.module.prior
    unit = list(small._label_mapping).index(label)
    allowed = torch.zeros(64, small.n_labels, dtype=torch.bool)
    allowed[:, unit] = True
    z = codes(6).float()
    distribution = torch.softmax(prior.log_prob(z, allowed=allowed), 0).detach().numpy()
    found = np.bincount(drawn @ 2 ** np.arange(6), minlength=64) / len(drawn)
    number = (z.numpy() @ 2 ** np.arange(6)).astype(int)
    assert 0.5 * np.abs(found[number] - distribution).sum() < 0.05


def test_without_a_label_codes_follow_the_marginal(small):
    drawn = small.sample_prior(20_000, seed=0)
    z = codes(6).float()
    distribution = torch.softmax(small.module.prior.log_prob(z), 0).detach().numpy()
    found = np.bincount(drawn @ 2 ** np.arange(6), minlength=64) / len(drawn)
    number = (z.numpy() @ 2 ** np.arange(6)).astype(int)
    assert 0.5 * np.abs(found[number] - distribution).sum() < 0.05


def test_new_cells_of_a_type(model, levels):
    made = model.generate(200, label="CD19+ B", seed=0)
    assert (made.obs[KEY] == "CD19+ B").all()
    assert (model.predict(made) == "CD19+ B").mean() > 0.3  # of ten types
    some = model.generate(300, seed=0)
    assert some.obs[KEY].nunique() > 3
    assert (model.predict(some) == some.obs[KEY].astype(str)).mean() > 0.4
    coarse = levels.generate(200, label="T", seed=0)
    assert (coarse.obs["coarse"] == "T").all() and coarse.obs["fine"].nunique() > 1
    with pytest.raises(ValueError, match="Unknown label 'B'"):
        model.generate(10, label="B")
    with pytest.raises(ValueError, match="`n_samples`"):
        model.sample_prior(0)


def test_what_qbmvi_does(model):
    assert np.isfinite(model.get_energy()).all(axis=None)
    found = model.get_attractors()
    assert (found.states[:, 16:].sum(1) == 1).all()
    couplings = model.get_label_couplings()
    assert list(couplings.index) == list(model._label_mapping) and couplings.shape[1] == 16
    assert len(model.get_couplings()) == 16 * 15 / 2
    assert "prior" in model.summary(silent=True)
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=5))
    exact = model.get_log_partition("bar", seed=0)
    kept = model.get_log_partition()
    assert abs(exact.value - kept.value) < 5 * (exact.standard_error + kept.standard_error) + 0.05


def test_tools_and_pictures(model, levels, data, tmp_path):
    from scvi_qbm import pl, tl

    adata = data.copy()
    tl.predict(model, adata, threshold=0.5)
    assert (adata.obs["predicted_label"] == model.predict(threshold=0.5)).all()
    p = model.predict(soft=True)
    np.testing.assert_allclose(adata.obs["predicted_label_probability"], p.max(axis=1))
    with pytest.raises(ValueError, match="No cell has a label"):
        pl.confusion(adata[adata.obs[KEY] == UNKNOWN], KEY)
    np.testing.assert_array_equal(adata.obsm["predicted_label_probabilities"], p.to_numpy())
    assert adata.uns["qbm"]["predicted_label"]["labels"] == list(p.columns)
    tl.predict(levels, adata, key_added="by_level")
    assert (adata.obs["by_level_coarse"].astype(str) == levels.predict()["coarse"]).all()
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")  # though a label has a "/"
    ax = pl.confusion(adata, "truth")
    image = ax.images[0].get_array()
    np.testing.assert_allclose(image.sum(axis=1), 1)
    truth = (adata.obs["truth"] == "CD19+ B").to_numpy()
    names = [t.get_text() for t in ax.get_yticklabels()]
    b = names.index(f"CD19+ B ({truth.sum()})")
    assert ax.get_xticklabels()[b].get_text() == "CD19+ B"
    predicted = adata.obs["predicted_label"].astype(str)
    expected = (predicted[truth] == "CD19+ B").mean()
    assert image[b, b] == pytest.approx(expected)
    ax = pl.reliability(adata, "truth", n_bins=5)
    right = (predicted == adata.obs["truth"]).to_numpy()
    bins = np.minimum((p.max(axis=1).to_numpy() * 5).astype(int), 4)
    gaps = [abs(right[bins == k].mean() - p.max(axis=1)[bins == k].mean()) * (bins == k).mean()
            for k in np.unique(bins)]  # fmt: skip
    assert ax.get_title() == f"ECE {sum(gaps):.3f}"
    assert pl.confusion(adata, "truth", key="by_level_fine").images
    with pytest.raises(KeyError, match="Several levels"):
        pl.confusion(adata, "truth", key="by_level")
    with pytest.raises(KeyError, match="not in adata.obs"):
        pl.reliability(adata, "nothing")
    with pytest.raises(TypeError, match="QBMANVI"):
        tl.predict(object(), adata)


def test_lazy_attribute():
    assert scvi_qbm.QBMANVI is QBMANVI
