"""Training that is clipped, resumed, cut short, or goes wrong."""

import os
import signal
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import scvi_qbm
from scvi_qbm.model._training import TrainingMixin
from scvi_qbm.plan import QBMTrainingPlan
from scvi_qbm.prior import NegativePhaseReport
from scvi_qbm.runner import KeepBest


def made(pbmc, seed=0, **kwargs):
    scvi.settings.seed = seed
    adata = pbmc.copy()
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts", batch_key="batch")
    return scvi_qbm.QBMVI(adata, **({"n_latent": 12, "n_hidden": 32} | kwargs))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"gradient_clip_val": 1.0},
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"plan_kwargs": {"reduce_lr_on_plateau": True}},
        {"plan_kwargs": {"optimizer": "AdamW"}},
        {"plan_kwargs": {"n_steps_kl_warmup": 20}},
        {"train_size": 1.0},
        {"load_sparse_tensor": True},
        {"log_every_n_steps": 1},
    ],
    ids=lambda kwargs: str(next(iter(kwargs.values()))),
)
def test_what_lightning_and_scvi_offer(pbmc, kwargs):
    model = made(pbmc)
    before = model.prior.W
    model.train(max_epochs=4, enable_progress_bar=False, **kwargs)
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.history["elbo_train"].to_numpy(float)).all()
    assert (model.prior.W != before).any()


@pytest.mark.parametrize(
    ("options", "warmup"),
    [
        ({"max_epochs": 4}, 2),
        ({"max_epochs": 1}, None),
        ({"max_epochs": 4, "plan_kwargs": {"n_epochs_kl_warmup": 3}}, 3),
    ],
)
def test_warmup_is_half_of_the_epochs_at_most(pbmc, options, warmup):
    """For a million cells scvi-tools takes 8 epochs: none would have the full KL."""
    model = made(pbmc)
    model.train(enable_progress_bar=False, **options)
    assert model.trainer.lightning_module.n_epochs_kl_warmup == warmup
    assert model.trainer.lightning_module.kl_weight == 1.0


@pytest.mark.parametrize(
    ("watched", "sizes"),
    [
        ("test", {"train_size": 0.9, "validation_size": 0.1}),
        ("validation", {"train_size": 0.9, "validation_size": 0.0}),
    ],
)
def test_early_stopping_on_cells_that_are_not_held_out(pbmc, watched, sizes):
    with pytest.raises(ValueError, match=f"{watched} monitor with no {watched} set"):
        made(pbmc).train(
            max_epochs=1, early_stopping=True, early_stopping_monitor=f"elbo_{watched}", **sizes
        )


def test_default_epochs():
    model, epochs = SimpleNamespace(adata=None), TrainingMixin._default_epochs
    assert epochs(model, SimpleNamespace(n_obs=1_000_000)) == 8
    assert epochs(model, SimpleNamespace()) is None


def test_warmup_in_steps_takes_the_place_of_epochs(pbmc):
    model = made(pbmc)
    model.train(max_epochs=1, enable_progress_bar=False, plan_kwargs={"n_steps_kl_warmup": 2})
    assert model.trainer.lightning_module.kl_weight == 1.0


def test_trainer_config_counts_where_nothing_is_said(pbmc):
    from scvi.train import TrainerConfig

    model = made(pbmc)
    config = TrainerConfig(enable_progress_bar=False, early_stopping=False, max_epochs=3)
    model.train(trainer_config=config)
    assert len(model.history["elbo_train"]) <= 3
    model.train(max_epochs=1, trainer_config={"enable_progress_bar": False, "accelerator": "cpu"})


def test_a_model_that_never_took_a_step_is_not_trained(pbmc, tmp_path):
    model = made(pbmc)
    with pytest.raises(FileNotFoundError) as error:
        model.train(max_epochs=1, ckpt_path=tmp_path / "nowhere.ckpt", enable_progress_bar=False)
    assert "No step was taken" in "".join(error.value.__notes__) and not model.is_trained


def test_the_best_weights_of_a_compiled_module(pbmc):
    best = KeepBest()

    class Trainer:
        sanity_checking, current_epoch = False, 0
        callback_metrics = {"elbo_validation": torch.tensor(1.0)}

    class Plan:
        kl_weight = max_kl_weight = 1.0

        class module:  # what torch.compile makes; it would switch torch's checks off for good
            _orig_mod = torch.nn.Linear(1, 1)

    best.on_validation_end(Trainer, Plan)
    assert best.restore(torch.nn.Linear(1, 1))


def test_half_precision_keeps_the_kl_in_full(pbmc):
    model = made(pbmc)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inputs = next(iter(model._make_data_loader(adata=model.adata)))
        qz = model.module.inference(**model.module._get_inference_input(inputs))["qz"]
        assert qz.logits.dtype == torch.float32


class CtrlC(Callback):
    """A real signal, in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_keeps_the_best_model(pbmc, tmp_path):
    model = made(pbmc)
    handler = signal.getsignal(signal.SIGINT)
    kept = []

    class Watch(Callback):
        def on_validation_end(self, trainer, pl_module):
            if trainer.current_epoch == 5:
                kept.append({k: v.clone() for k, v in pl_module.module.state_dict().items()})

    with pytest.raises(KeyboardInterrupt, match="weights of epoch 5, the best so far"):
        model.train(
            max_epochs=50,
            enable_progress_bar=False,
            callbacks=[CtrlC(6), Watch()],
            plan_kwargs={"n_epochs_kl_warmup": None},
        )
    assert signal.getsignal(signal.SIGINT) is handler
    state = model.module.state_dict()
    for key, value in kept[0].items():
        if not key.startswith("prior.log_z"):
            torch.testing.assert_close(state[key], value)
    assert model.is_trained and not model.module.training
    assert len(model.history["elbo_validation"]) == 6 and len(model.validation_indices) == 70
    fresh = model.get_log_partition("bar", seed=0)
    now = model.get_log_partition()
    assert abs(now.value - fresh.value) < 5 * (now.standard_error + fresh.standard_error)
    model.save(tmp_path / "model")
    model.train(max_epochs=2, enable_progress_bar=False)
    assert len(model.history["elbo_validation"]) >= 2


def test_ctrl_c_before_any_validation(pbmc):
    model = made(pbmc)
    with pytest.raises(KeyboardInterrupt, match="weights of the last step"):
        model.train(max_epochs=5, enable_progress_bar=False, callbacks=[CtrlC(0)])
    assert model.is_trained


def test_an_exit_is_an_exit(pbmc):
    class Leave(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            raise SystemExit(3)

    with pytest.raises(SystemExit) as error:
        made(pbmc).train(max_epochs=5, enable_progress_bar=False, callbacks=[Leave()])
    assert error.value.code == 3


class Poison(Callback):
    def __init__(self, epoch, what):
        self.epoch, self.what = epoch, what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            if self.what == "data":
                batch["X"][0, 0] = float("nan")
            elif self.what == "weights":
                pl_module.module.decoder.px_decoder.fc_layers[0][0].weight.data[0, 0] = float(
                    "nan"
                )
            else:
                pl_module.module.prior.h.data[0] = float("inf")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("data", "NaN or infinite values in this minibatch"),
        ("weights", "Weights are not finite.*'lr'"),
        ("machine", "machine's parameters are not finite.*bm_lr"),
    ],
)
def test_divergence_says_what_and_leaves_the_best(pbmc, what, message):
    model = made(pbmc)
    with pytest.raises(ValueError, match=message) as error:
        model.train(max_epochs=9, enable_progress_bar=False, callbacks=[Poison(3, what)])
    assert "weights of epoch 2" in "".join(error.value.__notes__)
    assert all(torch.isfinite(p).all() for p in model.module.parameters())
    assert np.isfinite(float(model.get_elbo()))


@pytest.mark.parametrize("prior", ["boltzmann", "bernoulli"])
def test_the_best_epoch_is_the_model(pbmc, prior):
    """Also where training goes on: weights of the best validation, log Z and chains with them."""
    model, kept = made(pbmc, prior=prior), {}

    class Keep(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 5:  # from here on worse than before
                with torch.no_grad():
                    pl_module.module.px_r.add_(5.0)

        def on_validation_end(self, trainer, pl_module):
            state = pl_module.module.state_dict()
            kept[len(kept)] = {k: v.clone() for k, v in state.items() if "log_z" not in k}

    for n_epochs in (7, 8):
        model.train(
            n_epochs, early_stopping=True, callbacks=[Keep()], enable_progress_bar=False,
            plan_kwargs={"n_epochs_kl_warmup": 2},
        )  # fmt: skip
        values = model.history["elbo_validation"].iloc[:, 0].astype(float)
        last = values if n_epochs == 7 else values.iloc[7:]
        best = int(last.iloc[2:].idxmin())
        assert model.history["best_epoch"].iloc[-1, 0] == best < len(values) - 1
        state = model.module.state_dict()
        # The prior was fitted after that, from the best epoch's on.
        network = {k: v for k, v in kept[best].items() if not k.startswith("prior.")}
        assert all(torch.equal(state[k], v) for k, v in network.items())
        assert torch.equal(model._pull_["h"], kept[best]["prior.h"])
        assert not torch.equal(state["prior.h"], kept[best]["prior.h"])
        exact = model.get_log_partition("bar", 0)
        stored = model.get_log_partition()
        assert abs(stored.value - exact.value) < 5 * (
            stored.standard_error + exact.standard_error + 1e-5
        )


def test_without_held_out_cells_the_last_epoch_is_the_model(pbmc):
    """Also after a training that had some: what the summary says is not of that one's best."""
    model = made(pbmc)
    model.train(3, early_stopping=True, enable_progress_bar=False)
    assert "best_epoch" in model.history
    model.train(2, early_stopping=False, enable_progress_bar=False)
    assert "best_epoch" not in model.history
    out, last = model.summary(silent=True), float(model.history["elbo_train"].iloc[-1, 0])
    assert out["training", "best_epoch"] is None and out["train", "elbo"] == -last


def test_best_of_warmup_gives_way():
    best = KeepBest()

    class Trainer:
        sanity_checking = False

    class Plan:
        module = torch.nn.Linear(1, 1)
        kl_weight, max_kl_weight = 0.5, 1.0

    for epoch, score in enumerate([5.0, 1.0, 3.0, 4.0, 2.0, float("nan")]):
        Trainer.current_epoch = epoch
        Plan.kl_weight = 1.0 if epoch >= 2 else 0.5
        Trainer.callback_metrics = {"elbo_validation": torch.tensor(score)}
        with torch.no_grad():
            Plan.module.weight.fill_(epoch)
        best.on_validation_end(Trainer, Plan)
    assert (best.epoch, best.score) == (4, 2.0)
    target = torch.nn.Linear(1, 1)
    assert best.restore(target) and target.weight.item() == 4
    assert not KeepBest().restore(target)


def test_resume_from_a_checkpoint(pbmc, tmp_path):
    model = made(pbmc)
    checkpoint = ModelCheckpoint(dirpath=tmp_path, save_last=True, monitor="elbo_validation")
    options = {"enable_progress_bar": False, "early_stopping": False}
    model.train(
        max_epochs=12, callbacks=[checkpoint], enable_checkpointing=True,
        check_val_every_n_epoch=1, **options,
    )  # fmt: skip
    chains = model.module.negative_phase.draws.chains
    saved = torch.load(checkpoint.last_model_path, weights_only=True)
    kept = saved["scvi_qbm_prior"][0]["draws"]["chains"]["plain"]
    assert kept["n_chains"] == chains.n_chains and saved["optimizer_states"]
    seen = {}

    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if seen:
                return
            seen["epoch"] = trainer.current_epoch
            seen["steps"] = pl_module.module.negative_phase.draws.steps
            groups = trainer.optimizers[0].state_dict()["state"]
            seen["optimizer"] = int(groups[0]["step"])

    resumed = made(pbmc, seed=1)
    resumed.train(
        max_epochs=15, ckpt_path=checkpoint.last_model_path, callbacks=[Look()], **options
    )
    assert seen == {"epoch": 12, "steps": 60, "optimizer": 60}
    assert len(resumed.history["elbo_train"]) == 3
    # Where one left off, the other starts: no jump in the loss.
    last = float(model.history["elbo_train"].iloc[-1, 0])
    first = float(resumed.history["elbo_train"].iloc[0, 0])
    start = float(model.history["elbo_train"].iloc[0, 0])
    assert abs(first - last) < 0.2 * (start - last)


class Annealer(type(scvi_qbm.get_sampler("simulated_annealing"))):
    name = "annealer"


def test_a_machine_that_is_forgotten_is_told_of(pbmc):
    with pytest.warns(UserWarning, match="'annealer' had no influence on the prior.*redraw_every"):
        made(pbmc, sampler=Annealer()).train(max_epochs=2, enable_progress_bar=False)
    options = {"sampler": Annealer(), "redraw_every": 1, "n_burn_in": 0, "n_sweeps": 0}
    model = made(pbmc, sampler="corrected", sampler_options=options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The (Gibbs sweeps|prior was trained)")
        model.train(max_epochs=2, enable_progress_bar=False)
    last = {key: model.history[key].iloc[-1, 0] for key in ("machine_share", "n_draws")}
    assert last == {"machine_share": 1, "n_draws": 10}  # ten steps
    chains = model.module.negative_phase.draws.chains
    assert 10 < chains.n_draws <= 20  # the last fit of the prior asks as often again


def test_a_machine_that_decides_and_is_wrong_is_told_of(pbmc):
    model = made(pbmc, sampler=Annealer())
    plan = QBMTrainingPlan(model.module)
    report = NegativePhaseReport(
        10.0, 0.1, 0.0, 0.0, 0.1, 5, 5, beta_drawn=0.02, beta_drawn_se=0.01, drawn_distance=0.9,
        drawn_floor=0.15, machine_share=1.0, n_draws=10,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="samples of 'annealer' .100% is left.*beta 0.02"):
        plan._judge_machine(report)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan._judge_machine(report._replace(drawn_distance=0.2))
        plan._judge_machine(report._replace(drawn_distance=np.nan, drawn_floor=np.nan))


def test_a_sampler_that_cannot_be_saved_is_told_of_at_once(pbmc):
    def solve(matrix):
        return np.ones((1, len(matrix)))

    with pytest.warns(UserWarning, match="cannot be saved.*'module:attribute'"):
        made(pbmc, sampler="solve", sampler_options={"solver": solve})
