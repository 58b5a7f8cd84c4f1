"""Defaults are resolved in one place."""

from inspect import signature

import pytest

from scvi_qbm.recipes import MANY_CELLS, RECIPES, get_recipe, resolve_plan


def test_unknown():
    with pytest.raises(ValueError, match="Available: default, paper"):
        get_recipe("best")


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_given_goes_before_the_recipe(name):
    plan = RECIPES[name].plan
    assert resolve_plan(name, {}, 400) == plan
    assert resolve_plan(name, {"eps": 0.01, "max_norm": 3}, 400) == plan | {
        "eps": 0.01, "max_norm": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("max_epochs", "warmup"), [(400, 20), (None, 20), (8, 4), (3, 1), (1, None), (0, None)]
)
def test_warmup_takes_half_of_the_epochs_at_most(max_epochs, warmup):
    assert resolve_plan("default", {}, max_epochs)["n_epochs_kl_warmup"] == warmup
    assert resolve_plan("paper", {}, max_epochs)["n_epochs_kl_warmup"] is None
    # Unless it is said, in epochs or in steps.
    assert (
        resolve_plan("default", {"n_epochs_kl_warmup": 7}, max_epochs)["n_epochs_kl_warmup"] == 7
    )
    assert resolve_plan("default", {"n_steps_kl_warmup": 7}, 400)["n_epochs_kl_warmup"] is None


def test_many_cells_get_more_units():
    assert get_recipe("default").model_for(0)["n_latent"] == 64
    assert get_recipe("default").model_for(MANY_CELLS - 1) == get_recipe("default").model
    assert get_recipe("default").model_for(MANY_CELLS)["n_latent"] == 128
    assert get_recipe("paper").model_for(10**6) == get_recipe("paper").model


def test_one_learning_rate_sets_both():
    from scvi_qbm.module import QBMVAE
    from scvi_qbm.plan import QBMTrainingPlan

    def rates(name, **given):
        plan = QBMTrainingPlan(QBMVAE(10, n_latent=4), **resolve_plan(name, given, 10))
        return plan.lr, plan.bm_lr

    assert rates("default") == (5e-3, 1e-3) and rates("paper") == (1e-2, 1e-3)
    assert rates("paper", lr=5e-2) == (5e-2, 1e-2)
    assert rates("paper", lr=5e-2, bm_lr=1e-3) == (5e-2, 1e-3)
    assert signature(QBMTrainingPlan).parameters["lr"].default == 5e-3
