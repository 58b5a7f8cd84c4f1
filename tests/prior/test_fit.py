"""The prior's last fit: right where it can be enumerated, and never worse."""

import numpy as np
import pytest
import scvi
import torch
from support.machines import codes
from support.models import fitted, prior_of_training

import scvi_qbm
from scvi_qbm.logz import log_partition
from scvi_qbm.prior import BernoulliPrior, BoltzmannPrior, NegativePhase, fit_prior


def distribution(W, h):
    z = codes(len(h)).numpy()
    energy = z @ h + 0.5 * ((z @ W) * z).sum(1)
    return z, np.exp(-energy - np.logaddexp.reduce(-energy))


def moments(seed, n=8):
    """Of a machine with couplings of a nat, which the fit has to find."""
    rng = np.random.default_rng(seed)
    W = np.triu(rng.normal(size=(n, n)), 1)
    z, p = distribution(W + W.T, rng.normal(size=n))
    return p, torch.tensor(p @ z).float(), torch.tensor((z * p[:, None]).T @ z).float()


@pytest.mark.parametrize("seed", range(3))
def test_the_distribution_is_found(seed):
    torch.manual_seed(seed)
    p, first, second = moments(seed)
    prior = BoltzmannPrior(8)
    gain = fit_prior(prior, NegativePhase(prior), first, second, lr=0.03, n_steps=3000)
    fit = distribution(*prior.parameters_numpy())[1]
    assert np.abs(fit - p).sum() / 2 < 0.06
    uniform = 8 * np.log(2) + (p * np.log(p)).sum()  # KL from the start, all of it to be gained
    assert gain == pytest.approx(uniform - (p * np.log(p / fit)).sum(), abs=0.05)
    exact = log_partition(prior.ising(), method="exact").value
    assert float(prior.log_z) == pytest.approx(exact, abs=0.05)


def test_independent_units_have_a_closed_form():
    prior = BernoulliPrior(8)
    _, first, second = moments(0)
    gain = fit_prior(prior, None, first, second)
    torch.testing.assert_close(torch.sigmoid(-prior.h.detach()), first, atol=1e-5, rtol=0)
    q = first.double().numpy()
    entropy = -(q * np.log(q) + (1 - q) * np.log(1 - q)).sum()
    assert gain == pytest.approx(8 * np.log(2) - entropy, abs=1e-4)


def test_what_is_no_better_is_undone(monkeypatch):
    _, first, second = moments(0)
    prior = BoltzmannPrior(8)
    negative_phase = NegativePhase(prior)
    fit_prior(prior, negative_phase, first, second, lr=0.03, n_steps=1000)
    before = {k: v.clone() for k, v in prior.state_dict().items()}
    # A sampler whose units are always on drives all biases up.
    monkeypatch.setattr(negative_phase, "collect", lambda: torch.ones(32, 8))
    assert fit_prior(prior, negative_phase, first, second, lr=0.03, n_steps=200) == 0
    for name, value in prior.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_interruption_leaves_the_prior_as_it_was(monkeypatch):
    _, first, second = moments(0)
    prior = BoltzmannPrior(8)
    negative_phase, draws = NegativePhase(prior), iter([torch.zeros(32, 8)] * 5)

    def collect():
        for z in draws:
            return z
        raise KeyboardInterrupt

    monkeypatch.setattr(negative_phase, "collect", collect)
    with pytest.raises(KeyboardInterrupt):
        fit_prior(prior, negative_phase, first, second)
    assert not prior.h.any() and not prior.W.any()
    assert float(prior.log_z) == pytest.approx(8 * np.log(2))


@pytest.fixture(scope="module")
def model(pbmc):
    return fitted(pbmc, setup={"batch_key": "batch"}, train={"max_epochs": 40})


def test_the_held_out_cells_gain_and_the_embedding_stays(model):
    held_out = model.validation_indices
    logits = torch.from_numpy(model.get_latent_representation(representation="logits"))
    now = model.get_energy()["kl"].to_numpy()
    old = prior_of_training(model)
    then = old.kl(logits).detach().numpy()
    assert now[held_out].mean() < then[held_out].mean() - 0.3
    evidence = torch.sigmoid(logits + old.local_field(torch.sigmoid(logits)))
    np.testing.assert_allclose(
        model.get_latent_representation(representation="evidence"), evidence, atol=1e-4
    )
    # The prior's means are the cells', which training alone leaves far apart.
    cells = model.get_latent_representation(representation="probabilities").mean(0)
    z, p = distribution(*model.prior)
    z, before = distribution(*old.parameters_numpy())
    assert np.abs(p @ z - cells).max() < 0.1
    assert np.abs(p @ z - cells).mean() < np.abs(before @ z - cells).mean()


def test_it_is_saved_and_a_query_keeps_it(model, pbmc, tmp_path):
    model.save(tmp_path / "model")
    query = pbmc[:100].copy()
    query.obs["batch"] = "query"
    mapped = scvi_qbm.QBMVI.load_query_data(query, str(tmp_path / "model"))
    mapped.train(max_epochs=1, enable_progress_bar=False)
    for ours, theirs in zip(mapped.prior, model.prior, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for name, value in model._pull_.items():
        assert torch.equal(mapped._pull_[name], value)


def test_a_prior_that_is_not_trained_is_not_fitted(pbmc):
    scvi.settings.seed = 0
    still = fitted(pbmc, train={"plan_kwargs": {"bm_lr": 0.0}})
    assert not still.prior.W.any() and not still.prior.h.any() and still._pull_ is None
