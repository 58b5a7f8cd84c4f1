"""A run that is killed ends as one that was not; disks that are full cost nothing else."""

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
from support.recovery import (
    QUIET,
    Cut,
    CutAfter,
    different,
    made,
    pieces,
    progress,
    result,
    train,
    whole,
)  # fmt: skip

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["scvi_qbm.model", "scvi_qbm.datasets"])


# --- real processes, really killed --------------------------------------------------------------


def child(folder, options, **kwargs):
    folder.mkdir(exist_ok=True)
    for mark in ("started", "stepping"):
        (folder / mark).unlink(missing_ok=True)
    process = CONTEXT.Process(target=train, args=(folder, options), kwargs=kwargs)
    process.start()
    wait_for(folder / "started", process)
    return process


def wait_for(path, process):
    while not path.exists() and process.is_alive():
        time.sleep(0.005)


def finished(folder, process):
    process.join(120)
    assert process.exitcode == 0, (folder / "log").read_text()[-4000:]
    return pickle.loads((folder / "result").read_bytes())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    process = child(folder, {})
    started = time.perf_counter()
    return finished(folder, process), time.perf_counter() - started


def test_killed_ten_times(unbroken, tmp_path):
    seed = int(os.environ.get("SCVI_QBM_KILL_SEED", 0)) or int.from_bytes(os.urandom(3), "big")
    print(f"SCVI_QBM_KILL_SEED={seed}")
    expected, seconds = unbroken
    generator, places, n_killed = np.random.default_rng(seed), [], 0
    folder = tmp_path / "0"
    while n_killed < 10:
        options = {"checkpoint_dir": folder / "run", "checkpoint_every_n_steps": 3}
        process = child(folder, options)
        if generator.random() < 0.8:  # the others while they are putting themselves together
            wait_for(folder / "stepping", process)
        process.join(generator.uniform(0, seconds / 10))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            n_killed += 1
            places.append(progress(folder))
        else:  # it was quicker; another one is killed the other times
            assert not different(expected, finished(folder, process)), (seed, places)
            folder = tmp_path / str(n_killed)
    got = finished(folder, child(folder, options))
    assert not different(expected, got), (seed, places)
    # Otherwise nothing was tried.
    assert len({place for place in places if place and place[1]}) >= 2, (seed, places)
    print(places)


def test_killed_while_writing(unbroken, tmp_path):
    options = {"checkpoint_dir": tmp_path / "run", "checkpoint_every_n_steps": 7}
    for number in (3, 5):
        process = child(tmp_path, options, die_while_writing=number)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert list((tmp_path / "run").glob(".*.tmp"))
        assert progress(tmp_path)[0] > 0
    got = finished(tmp_path, child(tmp_path, options))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.ckpt"]
    assert not different(unbroken[0], got)


# --- wherever it is cut short -------------------------------------------------------------------


PLATEAU = {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e3}
STOPS = {"lr": 0.0, "n_epochs_kl_warmup": 2}
STAY = {"num_workers": 2, "persistent_workers": True}
SLOW = pytest.mark.slow
EARLY = {"plan_kwargs": STOPS, "early_stopping_patience": 2}


@pytest.mark.parametrize(
    ("steps", "model", "options"),
    [
        # Five steps to an epoch, so checkpoints at 0, 3, 6, ...: the last step of an epoch is 5.
        ([1, 5, 10, 12], {}, {"max_epochs": 4}),
        ([4, 11], {}, {"max_epochs": 4, "train_size": 1.0}),
        ([9, 14], {}, {"max_epochs": 5, "plan_kwargs": PLATEAU}),
        ([8], {}, {"max_epochs": 4, "accumulate_grad_batches": 2, "checkpoint_every_n_steps": 1}),
        ([7], {}, {"max_epochs": 3, "val_check_interval": 2, "check_val_every_n_epoch": 1}),
        ([8], {}, {"max_epochs": 3, "check_val_every_n_epoch": 2}),
        ([14, 17], {}, {"max_epochs": 50} | EARLY),
        ([7, 17], {}, {"max_epochs": 4, "plan_kwargs": {"n_steps_kl_warmup": 20, "on_step": True},
                       "log_every_n_steps": 2}),
        ([8], {}, {"max_epochs": 3, "datasplitter_kwargs": {"num_workers": 2}}),
        ([5], {}, {"max_epochs": 6, "batch_size": 700}),
        ([7], {}, {"max_epochs": 4, "max_steps": 12}),
        ([8], {"prior": "bernoulli"}, {"max_epochs": 3}),
        ([8], {"sampler": "simulated_annealing"}, {"max_epochs": 3}),
        pytest.param([8], {"sampler": "cim"}, {"max_epochs": 3}, marks=SLOW),
        pytest.param([8], {"sampler": "gibbs"}, {"max_epochs": 3}, marks=SLOW),
        pytest.param([8], {"sampler": "exact"}, {"max_epochs": 3}, marks=SLOW),
        pytest.param([8], {"recipe": "paper"}, {"max_epochs": 3}, marks=SLOW),
        pytest.param([8], {}, {"max_epochs": 3, "precision": "64-true"}, marks=SLOW),
        pytest.param([8], {}, {"max_epochs": 3, "precision": "64-true"},
                     marks=SLOW),
        pytest.param([8], {}, {"max_epochs": 3, "precision": "bf16-mixed"}, marks=SLOW),
        pytest.param([8], {}, {"max_epochs": 3, "limit_train_batches": 4}, marks=SLOW),
        pytest.param([8], {}, {"max_epochs": 3, "datasplitter_kwargs": STAY}, marks=SLOW),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_cut_anywhere(tmp_path, steps, model, options):
    without = {k: v for k, v in options.items() if k != "checkpoint_every_n_steps"}
    assert not different(whole(model, **without), pieces(tmp_path, steps, model, **options))


def test_cut_while_reading_from_disk(tmp_path):
    model = {"on_disk": tmp_path / "cells.h5ad"}
    options = {"max_epochs": 4, "datasplitter_kwargs": {"block_size": 16, "buffer_size": 256}}
    parts = pieces(tmp_path / "run", [1, 5, 8, 12], model, **options)
    assert not different(whole(model, **options), parts)


def test_the_best_weights_are_not_forgotten(tmp_path):
    """Cut short twice, then stopped by an error: the best epoch was before the first cut."""

    class Spoil(Callback):
        def on_train_epoch_start(self, trainer, plan):
            if trainer.current_epoch >= 2:
                for weights in plan.module.decoder.parameters():
                    weights.data.mul_(3)

    options = QUIET | {"max_epochs": 9, "plan_kwargs": {"n_epochs_kl_warmup": None}}
    keep = {"checkpoint_dir": tmp_path, "checkpoint_every_n_steps": 3}
    states = []
    for steps, kept in (([19], {}), ([14, 19], keep)):
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
    options = QUIET | {"max_epochs": 4, "checkpoint_dir": tmp_path, "checkpoint_every_n_steps": 3}
    model = made()
    with pytest.raises(Cut):
        model.train(**options, callbacks=[CutAfter(13)])
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
    options = QUIET | {"max_epochs": 3, "checkpoint_dir": tmp_path, "checkpoint_every_n_steps": 3}
    with pytest.raises(Cut):
        model.train(**options, callbacks=[CutAfter(8)])
    model = trained()
    model.train(**options)
    assert not different(expected, result(model))
    assert len(model.history["elbo_train"]) == 5


def test_seed_and_split_of_a_run_without_a_seed(tmp_path):
    """Nobody could draw the same split again."""
    splits = []
    for callbacks in ([CutAfter(8)], []):
        model = made()
        scvi.settings.seed = None
        options = QUIET | {"max_epochs": 3, "checkpoint_dir": tmp_path}
        try:
            model.train(**options, checkpoint_every_n_steps=3, callbacks=callbacks)
        except Cut:
            pass
        splits.append(model.validation_indices)
    np.testing.assert_array_equal(*splits)


# --- what is finished, what goes on, what does not fit ------------------------------------------


def test_a_finished_run_gives_its_result(tmp_path, caplog):
    options = QUIET | {"max_epochs": 3, "checkpoint_dir": tmp_path}
    expected = whole(**options)

    class Never(Callback):
        def on_train_batch_start(self, *args):
            raise AssertionError("it trains")

    before = (tmp_path / "last.ckpt").read_bytes()
    model = made()
    with caplog.at_level("INFO", "scvi"):
        logger = __import__("logging").getLogger("scvi")
        logger.addHandler(caplog.handler)
        model.train(**options, callbacks=[Never()])
        logger.removeHandler(caplog.handler)
    assert "is finished" in caplog.text
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
            **QUIET, **options, max_epochs=3, checkpoint_dir=tmp_path,
            checkpoint_every_n_steps=3, callbacks=[CutAfter(8)],
        )  # fmt: skip
    longer = pieces(tmp_path, [13], **options, max_epochs=5)
    assert not different(whole(max_epochs=5, **options), longer)
    # Of a finished one: it goes on, if not to the bit, as log Z was estimated in between.
    model = made()
    model.train(**QUIET, **options, max_epochs=7, checkpoint_dir=tmp_path)
    assert len(model.history["elbo_train"]) == 7
    assert model.history["elbo_train"].index.tolist() == list(range(7))
    np.testing.assert_array_equal(
        model.history["elbo_train"].to_numpy(float)[:5],
        longer["history"]["elbo_train"].to_numpy(float),
    )


def test_early_stopping_is_an_end(tmp_path):
    options = QUIET | EARLY | {"checkpoint_dir": tmp_path}
    expected = whole(**options, max_epochs=40)
    n_epochs = len(expected["history"]["elbo_train"])
    assert n_epochs < 20
    assert not different(expected, whole(**options, max_epochs=80))


def test_a_loader_without_state_goes_on_at_the_start_of_an_epoch(pbmc, tmp_path):
    from support.models import DataModule

    import scvi_qbm

    adata = pbmc.copy()
    adata.obs["batch"] = adata.obs["batch"].astype("category")

    def train(steps, **kwargs):
        for step in (*steps, None):
            scvi.settings.seed = 0
            module = DataModule(adata, "counts", held_out=70)
            model = scvi_qbm.QBMVI(adata=None, registry=module.registry, n_latent=12, n_hidden=32)
            callbacks = [] if step is None else [CutAfter(step)]
            options = QUIET | {"max_epochs": 4, "check_val_every_n_epoch": 1} | kwargs
            try:
                model.train(datamodule=module, callbacks=callbacks, **options)
            except Cut:
                places.append(progress(tmp_path))
        return result(model)

    places = []
    got = train([4, 9, 14], checkpoint_dir=tmp_path / "run", checkpoint_every_n_steps=2)
    assert places == [(0, 0), (5, 0), (10, 0)]
    assert not different(train([]), got)
