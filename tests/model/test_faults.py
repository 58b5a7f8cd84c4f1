"""Checkpoints that do not fit, files that are damaged, disks that are full, processes that die."""

import errno
import multiprocessing
import os
import signal

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support.recovery import QUIET, Cut, CutAfter, cells, different, made, pieces, result, whole

from scvi_qbm.checkpoint import CheckpointError, read_checkpoint


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    with pytest.raises(Cut):
        made().train(**QUIET, max_epochs=4, checkpoint_dir=folder, callbacks=[CutAfter(4)])
    return folder


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ({"n_latent": 16}, {}, r"n_latent: 12 in the checkpoint, 16 now"),
        ({"seed": 1}, {}, r"seed: 0 in the checkpoint, 1 now"),
        ({"dropout_rate": 0.3}, {}, r"dropout_rate: .* 0.3 now"),
        ({}, {"max_epochs": 2}, r"max_epochs: 4 in the checkpoint, 2 now"),
        ({}, {"batch_size": 64}, r"batch_size: 128 in the checkpoint, 64 now"),
        (
            {},
            {"plan_kwargs": {"lr": 1e-4}},
            r"plan_kwargs.lr: 0.005 in the checkpoint, 0.0001 now",
        ),
        ({}, {"train_size": 0.5}, r"train_size: None in the checkpoint, 0.5 now"),
        ({}, {"gradient_clip_val": 1.0}, r"gradient_clip_val: not given in the checkpoint, 1.0"),
    ],
)
def test_another_run(cut_run, model, options, message):
    before = (cut_run / "last.ckpt").read_bytes()
    options = QUIET | {"max_epochs": 4, "checkpoint_dir": cut_run} | options
    with pytest.raises(ValueError, match=message) as error:
        made(**model).train(**options)
    assert "last.ckpt is of another run" in str(error.value)
    assert "name another checkpoint_dir" in str(error.value)
    assert (cut_run / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda adata: adata[:-1], "number of cells: 320 in the checkpoint, 319 now"),
        (lambda adata: adata[:, :-1], "number of genes: 150 in the checkpoint, 149 now"),
        (lambda adata: adata[::-1], "names of cells"),
        (lambda adata: adata[:, ::-1], "names of genes"),
    ],
)
def test_other_data(cut_run, change, message):
    model = made(adata=change(cells()).copy())
    with pytest.raises(ValueError, match=message):
        model.train(**QUIET, max_epochs=4, checkpoint_dir=cut_run)


def test_two_ways_at_once(cut_run, tmp_path):
    with pytest.raises(ValueError, match="not both"):
        made().train(checkpoint_dir=tmp_path, ckpt_path=cut_run / "last.ckpt")


def test_lightning_takes_it_too(cut_run):
    model = made()
    model.train(**QUIET, max_epochs=2, ckpt_path=cut_run / "last.ckpt")
    assert model.history["elbo_train"].index.tolist() == [1]
    assert model.trainer.global_step == 6


@pytest.mark.parametrize("damage", ["half", "bit", "empty", "text", "other"])
def test_a_damaged_file(cut_run, tmp_path, damage):
    content = bytearray((cut_run / "last.ckpt").read_bytes())
    if damage == "bit":
        # In the middle of a record, where only its checksum can tell.
        content[len(content) // 2] ^= 1
    content = {"half": content[: len(content) // 2], "empty": b"", "text": b"no"}.get(
        damage, content
    )
    (tmp_path / "last.ckpt").write_bytes(content)
    if damage == "other":
        torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="last.ckpt"):
        made().train(**QUIET, max_epochs=4, checkpoint_dir=tmp_path)


class FullDisk:
    """Writing fails with a full disk's error, after half of the bytes, from the nth file on."""

    def __init__(self, monkeypatch, first):
        self.first, self.n_files, self.replace = first, 0, os.replace
        monkeypatch.setattr("pathlib.Path.write_bytes", lambda *args: self.write(*args))

    def write(self, path, data):
        self.n_files += 1
        with open(path, "wb") as file:
            if self.n_files >= self.first:
                file.write(bytes(data)[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return file.write(data)


def test_disk_full_in_the_middle(tmp_path, monkeypatch):
    fault = FullDisk(monkeypatch, first=3)
    expected = whole(max_epochs=4)
    with pytest.warns(UserWarning, match="last.ckpt cannot be written") as caught:
        got = pieces(tmp_path, [], max_epochs=4)
    messages = [str(w.message) for w in caught if "last.ckpt" in str(w.message)]
    assert "No space left" in messages[0] and "Training goes on" in messages[0]
    assert "The model is trained" in messages[-1] and len(messages) == fault.n_files - 2
    assert not different(expected, got)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", ".lock"}
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3
    monkeypatch.undo()
    assert not different(expected, pieces(tmp_path, [], max_epochs=4))


def test_disk_full_at_the_start(tmp_path, monkeypatch):
    FullDisk(monkeypatch, first=1)
    model = made()
    with pytest.raises(OSError, match=r"first checkpoint .*last.ckpt cannot be written") as error:
        model.train(**QUIET, max_epochs=4, checkpoint_dir=tmp_path / "run")
    assert "No space left" in str(error.value) and not model.is_trained
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_worker_process_that_dies(tmp_path):
    class Kill(Callback):
        def on_train_batch_start(self, trainer, plan, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 1:
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid, signal.SIGKILL)

    options = QUIET | {
        "max_epochs": 3, "datasplitter_kwargs": {"num_workers": 1}, "batch_size": 32,
        "checkpoint_dir": tmp_path,
    }  # fmt: skip
    model = made()
    # What torch finds first: a process that is gone, or a tensor that it was to hand over.
    with pytest.raises((RuntimeError, ConnectionError), match="DataLoader worker|reset") as error:
        model.train(**options, callbacks=[Kill()])
    notes = " ".join(error.value.__notes__)
    assert "A process that loads data died" in notes and "num_workers" in notes
    assert "The model has the weights of epoch" in notes and str(tmp_path / "last.ckpt") in notes
    assert model.is_trained
    model = made()
    model.train(**options)
    del options["checkpoint_dir"]
    assert not different(whole(**options), result(model))


def test_a_model_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    model = made()
    model.train(**QUIET, max_epochs=1)
    target, save = tmp_path / "deep" / "model", torch.save
    model.save(target)
    (target / "notes.txt").write_text("mine")
    before = (target / "model.pt").read_bytes()

    def full(obj, path, **kwargs):
        save(obj, path, **kwargs)
        os.truncate(path, os.path.getsize(path) // 2)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("torch.save", full)
    for path, there in ((target, "is as it was"), (tmp_path / "new", "nothing was written")):
        with pytest.raises(OSError, match="No space left") as error:
            model.save(path, overwrite=True, save_anndata=True)
        assert f"{path}; " in error.value.__notes__[0] and there in error.value.__notes__[0]
    assert not (tmp_path / "new").exists()
    assert (target / "model.pt").read_bytes() == before
    assert sorted(p.name for p in target.iterdir()) == ["model.pt", "notes.txt"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "deep", "model", "model.pt", "notes.txt",
    ]  # fmt: skip
    monkeypatch.undo()
    with pytest.raises(ValueError, match="already exists"):
        model.save(target)
    model.save(target, overwrite=True, save_anndata=True)
    assert {p.name for p in target.iterdir()} == {"adata.h5ad", "model.pt", "notes.txt"}
    again = type(model).load(target)
    assert torch.equal(again.module.prior.h, model.module.prior.h)
