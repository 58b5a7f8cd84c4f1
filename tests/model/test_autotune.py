import pytest
import scvi

import scvi_qbm

ray = pytest.importorskip("ray", reason="no ray: pip install 'scvi-qbm[autotune]'")


@pytest.mark.slow
@pytest.mark.parametrize("model", [scvi_qbm.QBMVI, scvi_qbm.QBMANVI])
def test_run_autotune(pbmc, model, tmp_path):
    """Over an argument of the model and one of the plan."""
    from ray import tune
    from scvi.autotune import run_autotune

    scvi.settings.seed = 0
    adata = pbmc.copy()
    labels = [] if model is scvi_qbm.QBMVI else ["cell_type", "Unknown"]
    model.setup_anndata(adata, *labels, layer="counts")
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        results = run_autotune(
            model,
            data=adata,
            metrics=["elbo_validation"],
            mode="min",
            search_space={
                "model_params": {"n_latent": tune.choice([8, 12]), "n_hidden": 32},
                "train_params": {
                    "max_epochs": 5,
                    "plan_kwargs": {"lr": tune.grid_search([1e-8, 5e-3])},
                },
            },
            num_samples=1,
            searcher="random",
            scheduler="fifo",
            seed=0,
            resources={"cpu": 1},
            logging_dir=str(tmp_path),
            ignore_reinit_error=True,
        ).result_grid
    finally:
        ray.shutdown()
    assert len(results) == 2 and not results.errors
    elbo = {
        r.config["train_params"]["plan_kwargs"]["lr"]: r.metrics["elbo_validation"]
        for r in results
    }
    assert elbo[5e-3] < elbo[1e-8] - 50
    best = results.get_best_result("elbo_validation", "min")
    assert best.config["model_params"]["n_latent"] in (8, 12)
