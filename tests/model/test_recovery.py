"""A run that is killed goes on from its last epoch and ends as one that was not."""

import logging
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from support.models import DataModule
from support.recovery import (
    QUIET,
    Cut,
    CutAfter,
    cells,
    different,
    made,
    pieces,
    progress,
    result,
    train,
    whole,
)  # fmt: skip

import scvi_qbm
from scvi_qbm.samplers.adapters.solve import SolveAdapter

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["scvi_qbm.model", "scvi_qbm.data"])
LONG = {"max_epochs": 15}


# --- real processes, really killed --------------------------------------------------------------


def child(folder, options, **kwargs):
    folder.mkdir(exist_ok=True)
    (folder / "stepping").unlink(missing_ok=True)
    process = CONTEXT.Process(target=train, args=(folder, LONG | options), kwargs=kwargs)
    process.start()
    return process


def finished(folder, process):
    process.join(120)
    assert process.exitcode == 0, (folder / "log").read_text()[-4000:]
    return pickle.loads((folder / "result").read_bytes())


def test_killed(tmp_path):
    """While it writes, and at random; benchmarks/scale_recovery.py kills ten times."""
    seed = int(os.environ.get("SCVI_QBM_KILL_SEED", 0)) or int.from_bytes(os.urandom(3), "big")
    print(f"SCVI_QBM_KILL_SEED={seed}")
    expected = finished(tmp_path / "whole", child(tmp_path / "whole", {}))
    folder, generator, places = tmp_path / "killed", np.random.default_rng(seed), []
    options = {"checkpoint_dir": folder / "run"}
    process = child(folder, options, die_while_writing=4)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert list((folder / "run").glob(".*.tmp")) and progress(folder / "run") == 6
    for _ in range(3):
        process = child(folder, options)
        while not (folder / "stepping").exists() and process.is_alive():
            time.sleep(0.005)
        process.join(generator.uniform(0, 0.3))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        places.append(progress(folder / "run"))
    got = finished(folder, child(folder, options))
    assert not different(expected, got), (seed, places)
    assert {path.name for path in (folder / "run").iterdir()} == {"last.ckpt", ".lock"}


# --- wherever it is cut short -------------------------------------------------------------------


PLATEAU = {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e3}
EARLY = {
    "plan_kwargs": {"lr": 0.0, "n_epochs_kl_warmup": 2},
    "early_stopping_patience": 2,
}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("steps", "model", "options"),
    [
        # Three steps to an epoch.
        ([1, 3, 7, 10], {}, {"max_epochs": 4}),
        ([7], {}, {"max_epochs": 3, "train_size": 1.0}),
        ([5, 10], {}, {"max_epochs": 5, "plan_kwargs": PLATEAU}),
        pytest.param([5], {},
                     {"max_epochs": 4, "max_steps": 8, "plan_kwargs": PLATEAU}, marks=SLOW),
        ([5], {}, {"max_epochs": 3, "accumulate_grad_batches": 2}),
        ([5], {}, {"max_epochs": 3, "val_check_interval": 2, "check_val_every_n_epoch": 1}),
        pytest.param([8], {}, {"max_epochs": 4, "check_val_every_n_epoch": 2}, marks=SLOW),
        ([5, 11], {}, {"max_epochs": 50} | EARLY),
        pytest.param([8], {},
                     {"max_epochs": 4, "plan_kwargs": {"n_steps_kl_warmup": 20}}, marks=SLOW),
        ([5], {}, {"max_epochs": 3, "datasplitter_kwargs": {"num_workers": 1}}),
        pytest.param([2], {}, {"max_epochs": 3, "batch_size": 320}, marks=SLOW),
        ([5], {"prior": "bernoulli"}, {"max_epochs": 3}),
        ([5], {"sampler": "gibbs"}, {"max_epochs": 3}),
        ([5], {"sampler": "cim"}, {"max_epochs": 3}),
        pytest.param([5], {"batch_representation": "embedding"}, {"max_epochs": 3}, marks=SLOW),
        pytest.param([5], {}, {"max_epochs": 3, "precision": "64-true"}, marks=SLOW),
        pytest.param([5], {"sampler": "simulated_annealing"}, {"max_epochs": 3}, marks=SLOW),
        pytest.param([5], {"sampler": "exact"}, {"max_epochs": 3}, marks=SLOW),
        pytest.param([5], {"recipe": "paper"}, {"max_epochs": 3}, marks=SLOW),
        pytest.param([5], {}, {"max_epochs": 3, "precision": "bf16-mixed"}, marks=SLOW),
        pytest.param([3], {}, {"max_epochs": 3, "limit_train_batches": 2}, marks=SLOW),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_cut_anywhere(tmp_path, steps, model, options):
    assert not different(whole(model, **options), pieces(tmp_path, steps, model, **options))


class Machine:
    """Reads that no seed repeats, each of which is paid for; some calls fail."""

    def __init__(self):
        self.rng, self.n_calls, self.n_answers = np.random.default_rng(), 0, 0

    def solve(self, matrix):
        self.n_calls += 1
        if self.n_calls % 4 == 0:
            raise ConnectionError("no machine today")
        self.n_answers += 1
        return self.rng.choice([-1, 1], (64, len(matrix)))


@pytest.mark.filterwarnings("ignore:States of 'solve':RuntimeWarning")
def test_no_draw_is_paid_for_twice(tmp_path):
    """Ten cuts and a machine that fails: one answer a draw, and the run can be replayed."""
    machine, options = Machine(), {"max_epochs": 5}

    def model(**given):
        corrected = {"sampler": SolveAdapter(**given), "redraw_every": 2, "n_burn_in": 0}
        return {"sampler": "corrected", "sampler_options": corrected}

    cuts = iter([1, 2, 4, 5, 6, 8, 10, 11, 12, 14, None])
    step, paying, got = next(cuts), model(solver=machine), None
    while got is None:
        net = made(**paying)
        try:
            net.train(
                **QUIET | options, checkpoint_dir=tmp_path,
                callbacks=[CutAfter(step)] if step else [],
            )  # fmt: skip
            got = result(net)
        except Cut:
            step = next(cuts)
        except ConnectionError:
            continue  # and the same again
    n_draws = got["chains"]["draws"]["chains"]["corrected"]["numbers"]["n_draws"]
    assert machine.n_answers == n_draws == len(list((tmp_path / "draws").glob("*.npz"))) > 10
    again = made(**model(directory=tmp_path / "draws", replay=True))
    again.train(**QUIET | options)
    assert not different(got, result(again))


def test_cut_while_reading_from_disk(tmp_path):
    model = {"on_disk": tmp_path / "cells.h5ad"}
    options = {"max_epochs": 4, "datasplitter_kwargs": {"block_size": 16, "buffer_size": 128}}
    parts = pieces(tmp_path / "run", [1, 5, 11], model, **options)
    assert not different(whole(model, **options), parts)


def test_cut_with_a_datamodule(tmp_path):
    def train(steps, **kwargs):
        for step in (*steps, None):
            scvi.settings.seed = 0
            module = DataModule(cells(), "counts", held_out=32)
            model = scvi_qbm.QBMVI(adata=None, registry=module.registry, n_latent=12, n_hidden=32)
            callbacks = [] if step is None else [CutAfter(step)]
            options = QUIET | {"max_epochs": 4, "check_val_every_n_epoch": 1} | kwargs
            try:
                model.train(datamodule=module, callbacks=callbacks, **options)
            except Cut:
                places.append(progress(tmp_path))
        return result(model)

    places = []
    got = train([2, 5, 10], checkpoint_dir=tmp_path)
    assert places == [0, 3, 9]
    assert not different(train([]), got)


def test_the_best_weights_are_not_forgotten(tmp_path):
    """Cut short twice, then stopped by an error: the best epoch was before the first cut."""

    class Spoil(Callback):
        def on_train_epoch_start(self, trainer, plan):
            if trainer.current_epoch >= 2:
                for weights in plan.module.decoder.parameters():
                    weights.data.mul_(3)

    options = QUIET | {"max_epochs": 9, "plan_kwargs": {"n_epochs_kl_warmup": None}}
    states = []
    for steps, kept in (([11], {}), ([8, 11], {"checkpoint_dir": tmp_path})):
        for step in steps:
            model = made()
            with pytest.raises(Cut) as error:
                model.train(**options, **kept, callbacks=[CutAfter(step), Spoil()])
        assert "the weights of epoch 1, the best so far" in "".join(error.value.__notes__)
        states.append(model.module.state_dict())
    expected = states[0]
    for key, value in model.module.state_dict().items():
        if not key.startswith("prior.log_z"):
            assert torch.equal(value, expected[key])


def test_a_model_that_goes_on_in_its_own_process(tmp_path):
    """After Ctrl-C in a notebook: the same object, whose history is not doubled."""
    options = QUIET | {"max_epochs": 4, "checkpoint_dir": tmp_path}
    model = made()
    with pytest.raises(Cut):
        model.train(**options, callbacks=[CutAfter(8)])
    model.train(**options)
    assert not different(whole(max_epochs=4), result(model))


def test_history_of_a_training_before(tmp_path):
    def trained():
        model = made()
        model.train(max_epochs=2, **QUIET)
        return model

    model = trained()
    model.train(max_epochs=3, **QUIET)
    expected = result(model)
    model = trained()
    options = QUIET | {"max_epochs": 3, "checkpoint_dir": tmp_path}
    with pytest.raises(Cut):
        model.train(**options, callbacks=[CutAfter(5)])
    model = trained()
    model.train(**options)
    assert not different(expected, result(model))
    assert len(model.history["elbo_train"]) == 5


def test_split_of_a_run_without_a_seed(tmp_path):
    """Nobody could draw the same split again."""
    splits = []
    for callbacks in ([CutAfter(5)], []):
        model = made()
        scvi.settings.seed = None
        options = QUIET | {"max_epochs": 3, "checkpoint_dir": tmp_path}
        try:
            model.train(**options, callbacks=callbacks)
        except Cut:
            pass
        splits.append(model.validation_indices)
    np.testing.assert_array_equal(*splits)


# --- what is done, what goes on, what is in the file ----------------------------------------


class Never(Callback):
    def on_train_batch_start(self, *args):
        raise AssertionError("it trains")


def test_a_finished_run_gives_its_result(tmp_path, caplog):
    options = QUIET | {"max_epochs": 4, "checkpoint_dir": tmp_path}
    expected = whole(max_epochs=4)
    assert not different(expected, pieces(tmp_path, [], max_epochs=4))
    before = (tmp_path / "last.ckpt").read_bytes()
    model = made()
    with caplog.at_level("INFO", "scvi"):
        logger = logging.getLogger("scvi")
        logger.addHandler(caplog.handler)
        model.train(**options, callbacks=[Never()])
        logger.removeHandler(caplog.handler)
    assert "are done" in caplog.text
    assert model.is_trained and not model.module.training
    assert not different(expected, result(model))
    model.train(**options, callbacks=[Never()])
    assert not different(expected, result(model))
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert np.isfinite(model.get_latent_representation()).all()


def test_more_epochs(tmp_path):
    """Of a run that was cut short, as if there had been so many from the start."""
    options = {"plan_kwargs": {"n_epochs_kl_warmup": 2}}
    with pytest.raises(Cut):
        made().train(
            **QUIET, **options, max_epochs=3, checkpoint_dir=tmp_path, callbacks=[CutAfter(5)]
        )
    longer = pieces(tmp_path, [10], **options, max_epochs=5)
    assert not different(whole(max_epochs=5, **options), longer)
    # Of a finished one: it goes on, if not to the bit, as log Z was estimated in between.
    model = made()
    model.train(**QUIET, **options, max_epochs=7, checkpoint_dir=tmp_path)
    assert model.history["elbo_train"].index.tolist() == list(range(7))
    np.testing.assert_array_equal(
        model.history["elbo_train"].to_numpy(float)[:5],
        longer["history"]["elbo_train"].to_numpy(float),
    )


def test_early_stopping_is_an_end(tmp_path):
    expected = pieces(tmp_path, [], **EARLY, max_epochs=40)
    assert len(expected["history"]["elbo_train"]) < 20
    assert not different(expected, pieces(tmp_path, [], **EARLY, max_epochs=80))


def test_what_is_in_the_file(tmp_path):
    """Nothing that needs this package, or any but torch, to be read."""
    pieces(tmp_path, [], {"sampler": "cim"}, max_epochs=2)

    def check(value):
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        if isinstance(value, list | tuple):
            for item in value:
                check(item)
        else:
            assert isinstance(value, torch.Tensor | bool | int | float | str | None), type(value)

    check(torch.load(tmp_path / "last.ckpt", weights_only=True)["scvi_qbm_run"])
