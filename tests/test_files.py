"""Files: where they go, links, devices, other processes, damage."""

import json
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
from support.odd import cells, trained

from scvi_qbm import QBMVI
from scvi_qbm._files import alone_in, check_target, read_json, replacing
from scvi_qbm.benchmark.rows import Rows
from scvi_qbm.cli import main


def write(path, text="new"):
    with replacing(path) as temporary:
        temporary.write_text(text)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "there.txt").write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to("real/there.txt")
    write(link)
    assert link.is_symlink() and (tmp_path / "real" / "there.txt").read_text() == "new"
    assert os.listdir(tmp_path / "real") == ["there.txt"]


def test_what_has_its_name_is_not_written_through(tmp_path):
    """A link put at a temporary name, of which there were few, led writes elsewhere."""
    (tmp_path / "target").write_text("mine")
    (tmp_path / f".out.txt.{os.getpid()}.tmp").symlink_to(tmp_path / "target")
    write(tmp_path / "out.txt")
    assert (tmp_path / "target").read_text() == "mine"


def test_files_have_the_rights_of_others(tmp_path):
    write(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_devices_and_pipes_stay(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for use in (write, check_target):
        with pytest.raises(OSError, match="plain file"):
            use(pipe)
    assert pipe.is_fifo()
    with pytest.raises(OSError, match="plain file"):
        check_target("/dev/null")


def test_targets_are_checked_before_the_work(tmp_path):
    assert check_target(tmp_path / "new.h5ad") == tmp_path / "new.h5ad"
    assert check_target(tmp_path / "a" / "b", folder=True) == tmp_path / "a" / "b"
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        check_target(tmp_path / "file", folder=True)
    with pytest.raises(IsADirectoryError):
        check_target(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        check_target(tmp_path / "none" / "x")
    with pytest.raises(OSError, match="Nothing can be written to .*too long"):
        check_target(tmp_path / ("x" * 250))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "{}/folder", "--overwrite"], "is a directory"),
        (["--out", "{}/" + "x" * 250], "too long"),
        (["--out", "{}/o.h5ad", "--model-dir", "{}/file", "--overwrite"], "is a file"),
        (["--out", "{}/o.h5ad", "--model-dir", "{}/o.h5ad"], "different places"),
        (["--out", "/dev/null", "--overwrite"], "device or a pipe"),
    ],
)
def test_fit_asks_for_a_place_before_it_trains(tmp_path, capsys, options, message, monkeypatch):
    monkeypatch.setattr(QBMVI, "train", None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    cells(20, 30).write_h5ad(tmp_path / "in.h5ad")
    options = [option.format(tmp_path) for option in options]
    assert main(["fit", str(tmp_path / "in.h5ad"), *options]) == 1
    assert message in capsys.readouterr().err


def test_a_full_disk_is_seen_before_training(tmp_path, capsys, monkeypatch):
    cells(20, 30).write_h5ad(tmp_path / "in.h5ad")
    free = type("Usage", (), {"free": 10})
    monkeypatch.setattr("scvi_qbm.cli.shutil.disk_usage", lambda _: free)
    assert main(["fit", str(tmp_path / "in.h5ad"), "--out", str(tmp_path / "o.h5ad")]) == 1
    assert "OUT.h5ad needs about" in capsys.readouterr().err


def test_a_model_is_saved_through_a_link_and_into_its_own_folder(tmp_path):
    model = trained(cells())
    (tmp_path / "disk" / "m").mkdir(parents=True)
    (tmp_path / "disk" / "m" / "mine.txt").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "m")
    model.save(tmp_path / "link", overwrite=True, save_anndata=True)
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path / "disk" / "m")) == ["adata.h5ad", "mine.txt", "model.pt"]
    assert os.listdir(tmp_path / "disk") == ["m"]
    np.testing.assert_array_equal(
        QBMVI.load(tmp_path / "link").get_latent_representation(),
        model.get_latent_representation(),
    )


def test_new_data_are_never_with_old_weights(tmp_path, monkeypatch):
    trained(cells()).save(tmp_path / "m", save_anndata=True)
    other = trained(cells(80))
    real, moved = os.replace, []

    def killed(source, target):
        moved.append(target)
        if len(moved) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        other.save(tmp_path / "m", save_anndata=True, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="model.pt"):
        QBMVI.load(tmp_path / "m")


# -- several processes ---------------------------------------------------------------------------


def _holds(folder, ready, done):
    with alone_in(folder, "testing"):
        ready.set()
        done.wait(60)


def test_one_process_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_holds, args=(tmp_path, ready, done))
    other.start()
    assert ready.wait(60)
    with pytest.raises(BlockingIOError, match="Another process is testing in"):
        with alone_in(tmp_path, "testing"):
            pass
    with pytest.raises(BlockingIOError, match="Another process is training"):
        trained(cells(), train={"checkpoint_dir": tmp_path})
    assert main(["benchmark", "sampling", "--out", str(tmp_path), "--part", "distribution"]) == 1
    other.kill()
    other.join()
    with alone_in(tmp_path, "testing"):
        pass


def _appends(path, k):
    from scvi_qbm.samplers.adapters.kaiwu import jobs

    for i in range(20):
        request = {"matrix": f"{k}-{i}", "n_spins": 2, "n_samples": 1, "optimizer": "x"}
        jobs.append(path, request | {"beta": None}, np.ones((1, 2), np.int8), {})


def test_two_processes_record(tmp_path):
    context = multiprocessing.get_context("fork")
    several = [context.Process(target=_appends, args=(tmp_path / "t.npz", k)) for k in range(2)]
    for process in several:
        process.start()
    for process in several:
        process.join()
    with np.load(tmp_path / "t.npz") as tape:
        assert len(json.loads(str(tape["index"]))) == 40


SLOW = """
import signal, sys, threading, time, os
from scvi_qbm import cli
from scvi_qbm.model import QBMVI
from lightning.pytorch.callbacks import Callback

class Tell(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

train = QBMVI.train
QBMVI.train = lambda self, **k: train(self, **(k | {"callbacks": [Tell()]}))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_terminated_run_does_not_look_like_success(tmp_path):
    cells(60, 30).write_h5ad(tmp_path / "in.h5ad")
    out = subprocess.run(
        [sys.executable, "-c", SLOW, "fit", tmp_path / "in.h5ad", "--out", tmp_path / "o.h5ad"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 143, out.stderr
    assert "terminated" in out.stderr and not (tmp_path / "o.h5ad").exists()


# -- damage --------------------------------------------------------------------------------------


def test_a_damaged_row_costs_that_row(tmp_path):
    rows = Rows(tmp_path, "x")
    for k in range(4):
        rows.add({"k": k}, {"value": k})
    lines = rows.path.read_text().splitlines()
    rows.path.write_text("\n".join([lines[0][:-3], "null", *lines[1:]]) + "\n")
    with pytest.warns(UserWarning, match="line [12] is damaged"):
        again = Rows(tmp_path, "x")
    assert [row["k"] for row in again.rows] == [1, 2, 3]


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("")
    with pytest.raises(ValueError, match=r"x\.json is damaged .*Remove it"):
        read_json(tmp_path / "x.json", "Remove it.")


def test_a_benchmark_without_results_fails(tmp_path, monkeypatch):
    import pandas as pd

    failed = pd.DataFrame({"status": ["failed"] * 2})
    monkeypatch.setattr("scvi_qbm.benchmark.run.run_benchmark", lambda *a, **k: failed)
    args = ["benchmark", "run", "--data", "pbmc68k", "--out", str(tmp_path)]
    assert main(args) == 1


def test_a_damaged_job_is_named(tmp_path):
    from scvi_qbm.samplers.adapters.kaiwu import jobs

    (tmp_path / "job-1").mkdir()
    (tmp_path / "job-1" / "job.json").write_text("")
    request = {"matrix": "x", "seed": None}
    with pytest.raises(ValueError, match=r"job\.json is damaged .*Remove its folder"):
        with jobs.open_job(
            tmp_path, request, np.zeros((1, 2)), "t", {}, [], resume=True, check=lambda: None
        ):
            pass
