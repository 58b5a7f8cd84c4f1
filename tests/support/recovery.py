"""Small runs that are cut short, in this process or in one that can be killed."""

import logging
import os
import pickle
import random
import signal
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scvi
import torch
from lightning.pytorch.callbacks import Callback

import scvi_qbm
from scvi_qbm import _files
from scvi_qbm.data import open_on_disk, pbmc68k

QUIET = {"enable_progress_bar": False}


def cells():
    """Three steps to an epoch of 288 cells, two to one of all cells but the last 64."""
    adata = pbmc68k()[:320, :150].copy()
    adata.obs["batch"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 3, "a", "b"))
    return adata


def made(seed=0, on_disk=None, adata=None, **kwargs):
    scvi.settings.seed = seed
    adata = cells() if adata is None else adata
    if on_disk is not None:
        if not on_disk.exists():
            adata.write_h5ad(on_disk)
        adata = open_on_disk(on_disk)
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts", batch_key="batch")
    return scvi_qbm.QBMVI(adata, **({"n_latent": 12, "n_hidden": 32} | kwargs))


def result(model):
    """All that a run leaves, the next random numbers included."""
    prior = model.module.prior
    return {
        "weights": {k: v.detach().clone() for k, v in model.module.state_dict().items()},
        "log Z": (float(prior.log_z), float(prior.log_z_se)),
        "chains": phase.state() if (phase := model.module.negative_phase) else None,
        "history": dict(model.history),
        "split": [model.train_indices, model.validation_indices, model.test_indices],
        "next": [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()],
    }


def same(a, b):
    """To the bit, types included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, np.ndarray):
        return a.tobytes() == b.tobytes() and (a.dtype, a.shape) == (b.dtype, b.shape)
    if isinstance(a, pd.DataFrame):
        return same(dict(pickle_of(a)), dict(pickle_of(b)))
    return a == b or (a != a and b != b)


def pickle_of(frame):
    yield "index", (frame.index.name, str(frame.index.dtype), frame.index.tolist())
    for name in frame:
        yield name, (str(frame[name].dtype), frame[name].to_numpy(float))


def different(expected, got):
    return [key for key in expected if not same(expected[key], got[key])]


# -- in this process -----------------------------------------------------------------------------


class Cut(Exception):
    pass


class CutAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.fit_loop.total_batch_idx + 1 == self.step:
            raise Cut


UNBROKEN = {}


def whole(model_options=None, **options):
    """An unbroken run, trained once for all tests that ask for it."""
    key = repr((model_options or {}, options))
    if key not in UNBROKEN:
        model = made(**(model_options or {}))
        model.train(**QUIET | options)
        UNBROKEN[key] = result(model)
    return UNBROKEN[key]


def pieces(folder, steps, model_options=None, **options):
    """The same in pieces: cut after each of ``steps``, each time a new model in its place."""
    for step in (*steps, None):
        model = made(**(model_options or {}))
        callbacks = [] if step is None else [CutAfter(step)]
        try:
            model.train(**QUIET | {"checkpoint_dir": folder} | options, callbacks=callbacks)
        except Cut:
            continue
        assert step is None, "it was not cut"
    return result(model)


# -- in a process of its own; imported before it forks -------------------------------------------


def quiet():
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


class Mark(Callback):
    """A file that says that steps are taken."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, *args):
        self.path.touch()


def train(folder, options, die_while_writing=0):
    """Train in ``folder``; ``die_while_writing``: in which checkpoint the process kills itself."""
    os.setpgrp()
    folder = Path(folder)
    with open(folder / "log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        quiet()
        model = made()
        if die_while_writing:
            fsync, calls = os.fsync, []

            def kill(descriptor):
                calls.append(descriptor)
                if len(calls) == die_while_writing:
                    os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                fsync(descriptor)

            _files.os.fsync = kill
        model.train(**QUIET | options, callbacks=[Mark(folder / "stepping")])
        part = folder / "result.part"
        part.write_bytes(pickle.dumps(result(model)))
        part.rename(folder / "result")


def progress(folder):
    """Steps of the checkpoint in ``folder``, None if there is none yet."""
    path = folder / "last.ckpt"
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)["global_step"]
