"""Runs of the benchmark: rows, resumption, failures. Data are simulated, methods cheap."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from scvi_qbm.benchmark import pool
from scvi_qbm.benchmark.config import Config, DataSpec, Task
from scvi_qbm.benchmark.curves import _train, score_by_epoch
from scvi_qbm.benchmark.data.remote import DownloadError
from scvi_qbm.benchmark.data.specs import load_data, resolve
from scvi_qbm.benchmark.measure import measure, prepared
from scvi_qbm.benchmark.methods import METHODS, Method, MethodResult
from scvi_qbm.benchmark.run import run_benchmark
from scvi_qbm.data import simulate

CHEAP = ("pca", "shuffled", "labels")
GROUPS = ("classify",)  # the others wait for JAX and numba


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    adata = simulate(n_cells=240, n_genes=60, n_types=3, n_batches=2, seed=0)
    adata.X = adata.layers["counts"].copy()
    del adata.uns
    path = tmp_path_factory.mktemp("data") / "made.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def spec(h5ad):
    return DataSpec("made", str(h5ad), batch_key="batch", label_key="cell_type")


@pytest.fixture
def config(spec):
    return Config(data=(spec,), methods=CHEAP, seeds=1, max_epochs=2, groups=GROUPS)


@pytest.fixture(scope="module", autouse=True)
def quick_workers():
    """Workers fork from a process with the imports; those of test_pool start afresh."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scvi_qbm.benchmark.measure", "scvi_qbm.model"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "get_context", lambda method: context)
        yield


def quiet(config, out, **kwargs):
    return run_benchmark(config, out, progress=False, **kwargs)


@pytest.fixture(scope="module")
def done(spec, tmp_path_factory):
    """A finished run, copied by the tests that change it."""
    out = tmp_path_factory.mktemp("run")
    quiet(Config(data=(spec,), methods=CHEAP, max_epochs=2, groups=GROUPS, seeds=1), out)
    return out


@pytest.fixture
def copied(done, tmp_path):
    import shutil

    return shutil.copytree(done, tmp_path / "copied")


def rows_of(out):
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_rows_say_what_was_measured_and_by_what(done):
    rows = {row["method"]: row for row in rows_of(done)}
    assert set(rows) == set(CHEAP)
    for row in rows.values():
        assert row["status"] == "ok", row["reason"]
        assert (row["data"], row["seed"], row["n_cells"], row["n_genes"]) == ("made", 0, 240, 60)
        assert row["versions"]["scvi-tools"] and len(row["versions"]["code"]) == 12
        assert row["date"].endswith("+00:00")
        assert row["seconds"] >= 0 and 0 <= row["memory_mb"] < 500
    assert rows["labels"]["knn_accuracy"] == 1 > rows["shuffled"]["knn_accuracy"] + 0.3
    assert "nmi" not in rows["pca"]
    assert json.loads((done / "config.json").read_text())["methods"]["pca"]["block"] == (
        "unsupervised"
    )
    with np.load(done / "embeddings" / "made" / "pca" / "0.npz") as kept:
        assert kept["embedding"].shape == (240, 50)


def test_a_finished_run_measures_nothing_again(copied, config):
    before = (copied / "rows.jsonl").read_text()
    started = time.monotonic()
    frame = quiet(config, copied)
    assert (copied / "rows.jsonl").read_text() == before and len(frame) == 3
    assert time.monotonic() - started < 5


def test_a_row_cut_off_while_written_is_scored_again_from_its_embedding(copied, config):
    lines = (copied / "rows.jsonl").read_text().splitlines()
    (copied / "rows.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    kept = copied / "embeddings" / "made" / json.loads(lines[-1])["method"] / "0.npz"
    stamp = kept.stat().st_mtime_ns
    quiet(config, copied)
    assert kept.stat().st_mtime_ns == stamp
    again, before = rows_of(copied)[-1], json.loads(lines[-1])
    assert again["seconds"] == before["seconds"] and again["knn_f1"] == before["knn_f1"]


def test_scoring_afresh_leaves_what_was_not_asked_for(copied, config):
    before = {row["method"]: row for row in rows_of(copied)}
    quiet(replace(config, methods=("labels",)), copied, rescore=True)
    after = {row["method"]: row for row in rows_of(copied)}
    assert set(after) == set(before)
    assert all(after[name] == before[name] for name in ("pca", "shuffled"))
    assert after["labels"]["scored"] > before["labels"]["scored"]
    for name in ("seconds", "date", "versions"):  # not fitted again
        assert after["labels"][name] == before["labels"][name]


def test_rows_scored_by_newer_code_say_what_fitted_them(copied, config, monkeypatch):
    monkeypatch.setattr("scvi_qbm.benchmark.measure._code", lambda: "newer")
    spec, task = resolve(config.data[0]), Task("made", "labels", 0)
    row = measure(task, spec, copied, max_epochs=2, groups=GROUPS)
    assert row["status"] == "ok" and row["versions"]["code"] != "newer"
    assert measure(task._replace(seed=1), spec, copied, max_epochs=2, groups=GROUPS)["versions"][
        "code"
    ] == ("newer")


def test_memory_is_what_the_method_added(spec, monkeypatch, tmp_path):
    held = np.ones(60 * 2**17)  # 60 MiB that the process has already

    def function(adata, **options):
        work = np.ones(100 * 2**17)
        return MethodResult(np.asarray(adata.X[:, :5].toarray()), float("nan"), work[0])

    monkeypatch.setitem(METHODS, "pca", Method(function, "x", "x"))
    row = measure(Task("made", "pca", 0), spec, tmp_path, max_epochs=2, groups=GROUPS)
    assert 90 < row["memory_mb"] < 150 and held.all()


def test_one_process_downloads(monkeypatch, tmp_path):
    """Before rows are measured; what cannot be had costs the rows of its set."""
    asked, rows = [], Config(data=(DataSpec("pancreas"),), methods=CHEAP, seeds=1, groups=GROUPS)

    def download(name, progress):
        asked.append(name)
        raise DownloadError("no network")

    monkeypatch.setattr("scvi_qbm.benchmark.run.download", download)
    monkeypatch.setenv("SCVI_QBM_DATA_DIR", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="pancreas: no network"):
        frame = quiet(rows, tmp_path / "out")
    assert asked == ["pancreas"] and len(frame) == 3
    assert set(frame["reason"]) == {"DownloadError: no network"}


def test_another_benchmark_in_the_same_directory_is_refused(copied, config, spec):
    other = replace(config, data=(replace(spec, max_cells=100),))
    with pytest.raises(ValueError, match="set up otherwise"):
        quiet(other, copied)
    with pytest.raises(ValueError, match="max_epochs=2, not 3"):
        quiet(replace(config, max_epochs=3), copied)
    assert len(rows_of(copied)) == 3


def test_two_runs_at_once_are_refused(copied, config):
    fcntl = pytest.importorskip("fcntl")
    with (copied / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="Another process is benchmarking"):
            quiet(config, copied)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"executor": "slurm"}, "Unknown executor 'slurm'"), ({"n_workers": 0}, "at least 1")],
)
def test_bad_options(config, tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        quiet(config, tmp_path / "out", **kwargs)
    assert not (tmp_path / "out").exists()


def broken(adata, **kwargs):
    raise RuntimeError("it broke")


def missing(adata, **kwargs):
    raise ImportError('nothing is missing: pip install "nothing"')


@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        (broken, "failed", "RuntimeError: it broke"),
        (missing, "absent", 'nothing is missing: pip install "nothing"'),
    ],
)
def test_what_fails_is_a_row_with_the_reason(
    function, status, reason, spec, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(METHODS, "pca", Method(function, "x", "x"))
    row = measure(Task("made", "pca", 0), spec, tmp_path, max_epochs=1, groups=GROUPS)
    assert (row["status"], row["reason"]) == (status, reason)
    assert row["n_cells"] == 240


def test_a_method_that_needs_batches_fails_alone_and_is_retried(spec, tmp_path):
    config = Config(
        data=(replace(spec, batch_key=None),), methods=("harmony", "pca"), seeds=1, groups=GROUPS
    )
    rows = quiet(config, tmp_path).set_index("method")
    assert rows.loc["harmony", "reason"] == "ValueError: Harmony needs a batch column."
    assert rows.loc["pca", "status"] == "ok"
    log = tmp_path / "logs" / "worker-0.log"
    assert "Harmony needs a batch column" in log.read_text()
    length = len(log.read_text())
    rows = quiet(config, tmp_path, retry_failed=True)
    assert len(rows) == 2
    assert log.read_text()[length:].count("--- Task") == 1


def test_a_method_that_uses_labels_says_when_there_are_none(spec, tmp_path):
    bare = replace(spec, label_key=None)
    row = measure(Task("made", "labels", 0), bare, tmp_path, max_epochs=1, groups=GROUPS)
    assert row["reason"] == "ValueError: labels embedded needs a label column."


@pytest.mark.slow
def test_a_pseudotime_of_each_batch_is_a_choice(spec, tmp_path):
    rooted = replace(spec, root_key="cell_type", root_label="type_0")
    whole = prepared(rooted, tmp_path)[1].pseudotime
    spec = replace(rooted, pseudotime_per_batch=True)
    reference = prepared(spec, tmp_path)[1]
    assert reference.pseudotime_per_batch
    apart = [np.nanmax(reference.pseudotime[reference.batch == b]) for b in set(reference.batch)]
    assert apart == [1.0] * len(apart)
    assert np.nanmax(np.abs(reference.pseudotime - whole)) > 0.01


@pytest.mark.parametrize(
    ("own", "set_to", "given", "budget"),
    [(77, None, None, 77), (77, None, 5, 5), (77, 3, 5, 3), (10**9, None, None, 33333)],
)
def test_the_budget_is_the_sets_the_benchmarks_or_the_methods_own(
    own, set_to, given, budget, spec, tmp_path, monkeypatch
):
    seen = []

    def function(adata, *, batch_key, seed, max_epochs):
        seen.append(max_epochs)
        raise RuntimeError("enough")

    monkeypatch.setitem(METHODS, "pca", Method(function, "x", "x", max_epochs=own))
    spec = replace(spec, max_epochs=set_to)
    measure(Task("made", "pca", 0), spec, tmp_path, max_epochs=given, groups=GROUPS)
    assert seen == [budget]


@pytest.mark.parametrize(("trainer", "limit"), [(SimpleNamespace(max_epochs=20), 20), (None, 9)])
def test_rows_have_the_limit_of_the_training_that_they_count(
    trainer, limit, spec, monkeypatch, tmp_path
):
    """That of the trainer, as scANVI's second training has; else the budget."""
    model = SimpleNamespace(history={"elbo_train": [1.0, 2.0]}, trainer=trainer)

    def function(adata, **options):
        return MethodResult(np.asarray(adata.X[:, :5].toarray()), float("nan"), 0.0, model)

    monkeypatch.setitem(METHODS, "pca", Method(function, "x", "x"))
    row = measure(Task("made", "pca", 0), spec, tmp_path, max_epochs=9, groups=GROUPS)
    assert (row["epochs"], row["max_epochs"]) == (2, limit)


def test_looking_at_a_model_does_not_change_how_it_trains(spec, tmp_path):
    data = load_data(spec)
    for name in ("qbmvi", "gaussian"):
        looked = _train(name, data, "batch", 0, 3, (1, 2, 3))
        assert sorted(looked) == [1, 2, 3]
        assert np.abs(looked[1] - looked[3]).max() > 1e-3
        options = {"batch_key": "batch", "seed": 0, "max_epochs": 3}
        alone = METHODS[name].run(data, train_kwargs={"early_stopping": False}, **options)
        np.testing.assert_allclose(looked[3], alone.embedding, atol=1e-5)


@pytest.mark.slow
def test_scores_by_epoch_are_kept(spec, tmp_path):
    config = Config(data=(spec,), seeds=1, max_epochs=3)
    frame = score_by_epoch(config, tmp_path, methods=["gaussian"], epochs=(1, 3, 9))
    assert list(frame["epoch"]) == [1, 3] and frame[["nmi", "ari", "knn_f1"]].notna().all(None)
    before = (tmp_path / "curves.jsonl").read_text()
    score_by_epoch(config, tmp_path, methods=["gaussian"], epochs=(1, 3, 9))
    assert (tmp_path / "curves.jsonl").read_text() == before
    with pytest.raises(ValueError, match="'pca' cannot be looked at while it trains"):
        score_by_epoch(config, tmp_path, methods=["pca"])


def test_a_model_is_judged_by_its_likelihood_too(spec, tmp_path):
    kwargs = {"max_epochs": 2, "groups": GROUPS}
    ours = measure(Task("made", "qbmvi", 0), spec, tmp_path, **kwargs)
    twin = measure(Task("made", "gaussian", 0), spec, tmp_path, **kwargs)
    for row in (ours, twin):
        assert row["status"] == "ok", row["reason"]
        assert row["epochs"] == 2 and row["likelihood"] == "nb, counts"
        assert row["validation_iwae"] > row["validation_elbo"] - 1
    assert ours["n_dimensions"] == twin["n_dimensions"] == 64
    assert 0 < ours["log_z_se"] < 1 and "log_z_se" not in twin


COMMAND = """
import sys
from pathlib import Path
from scvi_qbm.benchmark.config import Config, DataSpec
from scvi_qbm.benchmark.run import run_benchmark

if __name__ == "__main__":
    spec = DataSpec("made", sys.argv[1], batch_key="batch", label_key="cell_type")
    methods = ("pca", "harmony", "shuffled", "labels")
    config = Config(data=(spec,), methods=methods, seeds=2, max_epochs=2, groups=("classify",))
    run_benchmark(config, Path(sys.argv[2]), progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_goes_on(how, h5ad, tmp_path):
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(COMMAND)
    command = [sys.executable, str(script), str(h5ad), str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (out / "rows.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    if how == signal.SIGKILL:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    process.wait(60)
    first = rows_of(out)
    assert 1 <= len(first)
    if how == signal.SIGINT:  # a process that is killed cannot tidy up
        assert not list(out.rglob(".*.npz.*"))
    subprocess.run(command, check=True, capture_output=True)
    assert not list(out.rglob(".*.npz.*"))
    rows = rows_of(out)
    assert rows[: len(first)] == first
    keys = {(row["method"], row["seed"]) for row in rows}
    expected = {(m, s) for m in ("pca", "harmony", "shuffled", "labels") for s in (0, 1)}
    assert len(rows) == len(keys)
    assert keys == expected - {("pca", 1), ("shuffled", 1), ("labels", 1)}


def test_on_ray(config, tmp_path):
    pytest.importorskip("ray", reason="ray is an extra: pip install 'scvi-qbm[autotune]'")
    rows = quiet(config, tmp_path, executor="ray", n_workers=2)
    assert set(rows["method"]) == set(CHEAP) and (rows["status"] == "ok").all()


def test_ray_missing_is_said(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"scvi-qbm\[autotune\]"):
        quiet(config, tmp_path, executor="ray")


def test_data_are_read_as_counts_with_their_columns(spec, h5ad, tmp_path):
    import anndata

    data = load_data(replace(spec, max_cells=100, n_top_genes=30))
    assert data.shape == (100, 30) and list(data.obs) == ["batch", "cell_type"]
    again = load_data(replace(spec, max_cells=100, n_top_genes=30))
    assert list(again.obs_names) == list(data.obs_names)
    source = anndata.read_h5ad(h5ad)[data.obs_names, data.var_names]
    np.testing.assert_array_equal(data.X.toarray(), source.X.toarray())
    with pytest.raises(KeyError, match="'nope' is not in adata.obs"):
        load_data(replace(spec, batch_key="nope"))
    source = anndata.read_h5ad(h5ad)
    source.obs["gap"] = np.where(np.arange(240) < 5, None, "x")
    source.X = source.X * 0.5
    source.write_h5ad(tmp_path / "bad.h5ad")
    bad = replace(spec, path=str(tmp_path / "bad.h5ad"))
    with pytest.raises(ValueError, match=r"missing values in gap \(5 cells\)"):
        load_data(replace(bad, label_key="gap"))
    with pytest.raises(ValueError, match="not integers"):
        load_data(bad)


def test_names_of_ours_bring_their_columns():
    spec = resolve(DataSpec("paul15_myeloid"))
    assert (spec.batch_key, spec.label_key) == ("batch", "cell_type")
    assert spec.root_key and spec.root_label
    assert resolve(DataSpec("paul15_myeloid", label_key="x")).label_key == "x"
    with pytest.raises(FileNotFoundError, match="no such file"):
        resolve(DataSpec("x", path="nowhere.h5ad"))


def test_a_file_is_the_same_by_relative_and_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.h5ad").touch()
    relative, absolute = (DataSpec("x", path=str(p)) for p in ("x.h5ad", tmp_path / "x.h5ad"))
    assert resolve(relative) == resolve(absolute)


OUTSIDE = '''
import numpy as np

def totals(adata, *, batch_key, seed, max_epochs):
    """Log totals of cells.

    More text.
    """
    adata.X.data[:] = 1  # of a copy
    return np.log1p(np.asarray(adata.X.sum(1))).repeat(2, axis=1)

def careless(adata):
    return adata.X

number = 3

from scvi_qbm.benchmark.methods import Method

named = Method(totals, "Totals", "Named.", block="control", n_seeds=1)
careless_named = Method(careless, "Careless", "Named.")
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A module of the user's, in a folder on the path."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "lab_methods.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("lab_methods", None)


def test_a_method_of_the_users_own(spec, tmp_path, outside):
    methods = ("pca", "lab_methods:totals")
    config = Config(data=(spec,), methods=methods, seeds=1, max_epochs=2, groups=GROUPS)
    rows = quiet(config, tmp_path / "run").set_index("method")
    assert list(rows["status"]) == ["ok", "ok"] and rows["n_dimensions"]["lab_methods:totals"] == 2
    assert rows["xgb_f1"]["lab_methods:totals"] < rows["xgb_f1"]["pca"]
    known = json.loads((tmp_path / "run" / "config.json").read_text())["methods"]
    assert known["lab_methods:totals"] == {
        "label": "totals", "block": "unsupervised", "summary": "Log totals of cells.",
    }  # fmt: skip
    assert (tmp_path / "run" / "embeddings" / "made" / "lab_methods.totals" / "0.npz").is_file()


@pytest.mark.slow
def test_a_named_method_of_the_users_own_may_return_an_array_too(spec, tmp_path, outside):
    config = Config(data=(spec,), methods=("lab_methods:named",), seeds=2, groups=GROUPS)
    rows = quiet(config, tmp_path / "run")
    assert list(rows["status"]) == ["ok"] and list(rows["n_dimensions"]) == [2]
    known = json.loads((tmp_path / "run" / "config.json").read_text())["methods"]
    assert known["lab_methods:named"]["label"] == "Totals"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no_such_module:f", ImportError, "PYTHONPATH"),
        ("lab_methods:missing", ValueError, "has no 'missing'"),
        ("lab_methods:careless", ValueError, "does not take batch_key, max_epochs, seed"),
        ("lab_methods:careless_named", ValueError, "does not take batch_key, max_epochs, seed"),
        ("lab_methods:number", ValueError, "is no function"),
    ],
)
def test_what_cannot_be_a_method_is_said_before_anything_runs(spec, outside, name, error, message):
    with pytest.raises(error, match=message):
        Config(data=(spec,), methods=(name,))


@pytest.mark.slow
def test_other_scores_stay_when_some_are_computed_afresh(copied, config):
    before = {row["method"]: row for row in rows_of(copied)}
    kept = copied / "artifacts" / "made" / "pca" / "0.npz"
    pictures = set(np.load(kept))
    quiet(replace(config, groups=("local",)), copied, rescore=True)
    after = {row["method"]: row for row in rows_of(copied)}
    assert list(after) == list(before)
    assert all(after[name]["knn_f1"] == before[name]["knn_f1"] for name in before)
    assert all("knn_label_entropy" in row and row["scored"] for row in after.values())
    assert set(np.load(kept)) >= pictures


@pytest.mark.slow
def test_scores_that_a_row_lacks_are_computed_and_no_model_is_fitted_for_them(copied, config):
    before = {row["method"]: row for row in rows_of(copied)}
    quiet(replace(config, groups=(*GROUPS, "local")), copied)
    after = {row["method"]: row for row in rows_of(copied)}
    for name, row in after.items():
        assert row["date"] == before[name]["date"] and np.isfinite(row["knn_label_entropy"])
        assert row["knn_f1"] == before[name]["knn_f1"]


@pytest.mark.slow
def test_scores_of_two_fits_are_not_mixed(copied, config):
    (copied / "embeddings" / "made" / "pca" / "0.npz").unlink()
    before = {row["method"]: row for row in rows_of(copied)}
    time.sleep(1.1)  # dates are of seconds
    quiet(replace(config, groups=("local",)), copied, rescore=True)
    after = {row["method"]: row for row in rows_of(copied)}
    assert after["pca"]["date"] > before["pca"]["date"]
    assert {"knn_f1", "knn_label_entropy"} <= set(after["pca"])


def test_scoring_that_is_cut_short_or_fails_loses_no_row(copied, config, monkeypatch):
    before = rows_of(copied)

    def stopped(tasks, *args, **kwargs):
        yield tasks[0], {"status": "failed", "reason": "x"}
        raise KeyboardInterrupt

    monkeypatch.setattr("scvi_qbm.benchmark.run.work_through", stopped)
    with pytest.raises(KeyboardInterrupt):
        quiet(config, copied, rescore=True)
    assert rows_of(copied) == before


def test_what_a_missing_package_leaves_out_is_said_and_measured_again(
    spec, tmp_path, monkeypatch, capsys
):
    config = Config(data=(spec,), methods=("pca",), seeds=1, groups=GROUPS)
    task, calls = Task("made", "pca", 0), []

    def lacking(tasks, *args, **kwargs):
        calls.append(list(tasks))
        row = {"status": "ok", "reason": "", "date": "x", "errors": "", "knn_f1": 0.5}
        row |= {f"seconds_{group}": 1.0 for group in GROUPS}
        if len(calls) == 1:
            row |= {"errors": "classify: ImportError: xgboost", "knn_f1": float("nan")}
        yield from ((task, row) for task in tasks)

    monkeypatch.setattr("scvi_qbm.benchmark.run.work_through", lacking)
    run_benchmark(config, tmp_path)
    assert "classify: ImportError: xgboost" in capsys.readouterr().out
    quiet(config, tmp_path)
    quiet(config, tmp_path, retry_failed=True)
    quiet(config, tmp_path, retry_failed=True)
    assert calls == [[task], [], [task], []]
    assert rows_of(tmp_path)[0]["knn_f1"] == 0.5


def test_a_new_fit_that_could_not_be_scored_does_not_replace_one_that_was(
    copied, config, monkeypatch
):
    before = rows_of(copied)
    row = before[0] | {"date": "later", "errors": "classify: ImportError: x", "knn_f1": None}
    monkeypatch.setattr(
        "scvi_qbm.benchmark.run.work_through",
        lambda tasks, *args, **kwargs: iter([(tasks[0], row)]),
    )
    quiet(config, copied, rescore=True)
    assert rows_of(copied) == before
