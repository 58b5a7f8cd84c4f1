import html
import os
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pytest
import scanpy as sc

import scvi_qbm
from scvi_qbm.cli import main

COLUMNS = ["leiden_qbmvi", "attractor_qbmvi", "free_energy_qbmvi"]


@pytest.fixture
def h5ad(pbmc, tmp_path):
    path = tmp_path / "cells.h5ad"
    adata = pbmc.copy()
    adata.uns["kept"] = "as it was"
    adata.write_h5ad(path)
    return path


def fit(*args):
    return main(["fit", *map(str, args), "--no-progress", "--max-epochs", "2"])


def test_fit(h5ad, tmp_path, capsys):
    before = h5ad.read_bytes()
    out, model_dir = tmp_path / "out.h5ad", tmp_path / "model"
    code = fit(h5ad, "--layer", "counts", "--batch-key", "batch", "--out", out, "--n-latent", 8,
               "--gene-likelihood", "zinb", "--seed", 3, "--model-dir", model_dir,
               "--labels-key", "cell_type")  # fmt: skip
    assert code == 0
    printed, page = capsys.readouterr().out, tmp_path / "out.html"
    assert "validation_elbo" in printed and f"wrote {out}, {page}, {model_dir}" in printed
    assert h5ad.read_bytes() == before
    source, result = anndata.read_h5ad(h5ad), anndata.read_h5ad(out)
    assert result.obsm["X_qbmvi"].shape == (700, 8)
    assert result.uns["kept"] == "as it was"
    kept = result.uns["qbm"]["fit"]
    assert kept["gene_likelihood"] == "zinb" and kept["seed"] == 3
    assert list(result.obs) == [*source.obs, *COLUMNS]
    assert result.obs[list(source.obs)].equals(source.obs)
    assert list(result.layers) == list(source.layers)
    assert {"X_qbmvi", "X_umap_qbmvi"} == set(result.obsm) - set(source.obsm)
    assert set(source.uns) <= set(result.uns)
    sc.pl.embedding(result, "umap_qbmvi", color="leiden_qbmvi", show=False)
    scvi_qbm.pl.attractors(result, "attractor_qbmvi")
    scvi_qbm.pl.programs(result, "programs_qbmvi")
    sc.tl.paga(result, "leiden_qbmvi", neighbors_key="neighbors_qbmvi")
    text = page.read_text()
    for word in ("cells.h5ad: 700 cells, 765 genes", "marker genes", "most frequent cell_type",
                 "unit_", "data:image/png;base64", "held-out ELBO", f"scvi-qbm fit {h5ad} --layer",
                 "Cells by cell_type and attractor", f"scanpy.read_h5ad('{out}')"):  # fmt: skip
        assert word in html.unescape(text)
    np.testing.assert_array_equal(result.X.toarray(), source.X.toarray())
    assert (model_dir / "model.pt").is_file()
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*tmp"))

    assert fit(h5ad, "--layer", "counts", "--out", out) == 1
    assert "exists; pass --overwrite" in capsys.readouterr().err
    out.unlink()
    assert fit(h5ad, "--layer", "counts", "--out", out) == 1  # the page alone is in the way
    assert "out.html exists" in capsys.readouterr().err
    assert fit(h5ad, "--layer", "counts", "--out", out, "--overwrite", "--embedding-only") == 0
    assert list(anndata.read_h5ad(out).obs) == list(source.obs)


def test_fit_with_covariates_on_variable_genes(h5ad, tmp_path, capsys):
    out, model_dir = tmp_path / "out.h5ad", tmp_path / "model"
    code = fit(h5ad, "--layer", "counts", "--batch-key", "batch", "--n-top-genes", 300,
               "--categorical-covariate-keys", "phase", "--continuous-covariate-keys", "percent",
               "--accelerator", "cpu", "--out", out, "--model-dir", model_dir)  # fmt: skip
    assert code == 0
    result = anndata.read_h5ad(out)
    chosen = result.var["highly_variable_qbmvi"].to_numpy()
    assert result.n_vars == 765 and chosen.sum() == 300 == result.uns["qbm"]["fit"]["n_genes"]
    load = next(x for x in (tmp_path / "out.html").read_text().splitlines() if "QBMVI.load" in x)
    load = html.unescape(load.partition("</pre>")[0]).partition("= ")[2]
    model = eval(load, {"scvi_qbm": scvi_qbm, "adata": result})
    programs = result.varm["programs_qbmvi"]
    assert programs[~chosen].isna().all(axis=None) and programs[chosen].notna().any(axis=None)
    assert model.summary_stats["n_extra_categorical_covs"] == 1
    np.testing.assert_allclose(
        model.get_latent_representation(), result.obsm["X_qbmvi"], atol=1e-5
    )
    for extra, message in (
        (["--unlabeled-category", "?"], "--unlabeled-category needs --labels-key"),
        (["--n-top-genes", 300, "--on-disk"], "leave out --on-disk"),
        (["--categorical-covariate-keys", "phase", "donor"], "'donor' is not in adata.obs"),
    ):
        arguments = ["--layer", "counts", "--out", tmp_path / "o.h5ad", *extra]
        assert fit(h5ad, *arguments) == 1
        assert message in capsys.readouterr().err


def test_fit_predicts_labels(pbmc, tmp_path, capsys):
    adata = pbmc.copy()
    adata.obs["known"] = adata.obs["cell_type"].astype(str)
    adata.obs.loc[adata.obs_names[::2], "known"] = "?"
    path, out = tmp_path / "cells.h5ad", tmp_path / "out.h5ad"
    adata.write_h5ad(path)
    code = fit(path, "--layer", "counts", "--labels-key", "known", "--unlabeled-category", "?",
               "--n-top-genes", 2000, "--n-latent", 8, "--out", out)  # fmt: skip
    assert code == 0 and "all 765 genes are used" in capsys.readouterr().out
    result = anndata.read_h5ad(out)
    predicted = result.obs["predicted_label_qbmvi"]
    assert set(predicted) <= set(adata.obs["known"]) - {"?"}
    assert (result.obs["predicted_label_qbmvi_probability"] > 0).all()
    assert result.obs["outlier_score_qbmvi"].notna().all()
    assert result.obsm["predicted_label_qbmvi_probabilities"].shape == (700, 10)
    assert "as --max-epochs says" in (tmp_path / "out.html").read_text()


def test_progress_in_a_log_is_sparse(h5ad, tmp_path, capsys, monkeypatch):
    from scvi_qbm import _fit

    arguments = ["fit", str(h5ad), "--layer", "counts", "--max-epochs", "3", "--embedding-only"]
    assert main([*arguments, "--out", str(tmp_path / "a.h5ad")]) == 0
    assert "epoch" not in capsys.readouterr().err  # nothing within the first 30 seconds
    monkeypatch.setattr(_fit._Log, "every", 0.0)
    assert main([*arguments, "--out", str(tmp_path / "b.h5ad")]) == 0
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("epoch")]
    assert len(lines) == 3 and lines[0].startswith("epoch 1 of at most 3: held-out ELBO -")
    assert not any("\r" in line for line in lines)


@pytest.mark.parametrize("bare", [False, True])
def test_fit_on_disk(h5ad, tmp_path, capsys, monkeypatch, bare):
    """Neither input nor output is ever read whole; all of the file is in the copy."""
    out = tmp_path / "out.h5ad"
    if bare:
        with h5py.File(h5ad, "r+") as file:
            del file["obsm"], file["uns"]
    source = anndata.read_h5ad(h5ad)
    for name in ("read_h5ad", "AnnData.write_h5ad"):
        monkeypatch.setattr(
            f"anndata.{name}", lambda *_, **__: pytest.fail("read or written whole")
        )
    assert fit(h5ad, "--layer", "counts", "--batch-key", "batch", "--out", out, "--on-disk") == 0
    monkeypatch.undo()
    assert f"wrote {out}" in capsys.readouterr().out
    result = anndata.read_h5ad(out)
    assert result.obsm["X_qbmvi"].shape == (700, 64)
    assert result.uns["qbm"]["fit"]["n_cells"] == 700
    assert np.isfinite(result.obsm["X_qbmvi"]).all() and result.obsm["X_qbmvi"].std() > 0
    assert list(result.obs) == [*source.obs, *COLUMNS] and result.obs["leiden_qbmvi"].nunique() > 1
    assert result.obs[list(source.obs)].equals(source.obs) and result.var.equals(source.var)
    assert set(result.obsm) - set(source.obsm) == {"X_qbmvi", "X_umap_qbmvi"}
    assert set(result.uns) - set(source.uns) == {"qbm", "neighbors_qbmvi"}
    assert (
        set(source.uns) < set(result.uns)
        and "Gene programs" in (tmp_path / "out.html").read_text()
    )
    for one, other in ((result.X, source.X), (result.layers["counts"], source.layers["counts"])):
        assert (one != other).nnz == 0
    assert not list(tmp_path.glob(".*tmp"))


def test_on_disk_copies_what_was_trained_on(h5ad, tmp_path, monkeypatch):
    """Though the input's name has been given to another file by then."""
    from scvi_qbm import QBMVI

    train, out = QBMVI.train, tmp_path / "out.h5ad"

    def replaced(self, *args, **kwargs):
        (tmp_path / "other").write_bytes(b"another file")
        os.replace(tmp_path / "other", h5ad)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(QBMVI, "train", replaced)
    assert fit(h5ad, "--layer", "counts", "--out", out, "--on-disk") == 0
    assert anndata.read_h5ad(out).n_obs == 700


def test_old_format_is_found_before_training(h5ad, tmp_path, capsys):
    with h5py.File(h5ad, "r+") as file:
        del file["obsm"]
        file["obsm"] = np.zeros(700, dtype=[("X_pca", "f4", (2,))])
    assert fit(h5ad, "--layer", "counts", "--out", tmp_path / "o.h5ad", "--on-disk") == 1
    assert "leave out --on-disk" in capsys.readouterr().err


def test_on_disk_is_for_whole_files(h5ad, tmp_path, capsys):
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(h5ad.read_bytes()[:5000])
    assert fit(cut, "--out", tmp_path / "o.h5ad", "--on-disk") == 1
    assert "cut.h5ad cannot be read" in capsys.readouterr().err


def test_same_seed_same_file(h5ad, tmp_path):
    for name in ("a.h5ad", "b.h5ad"):
        assert fit(h5ad, "--layer", "counts", "--out", tmp_path / name, "--seed", 5) == 0
    a, b = (anndata.read_h5ad(tmp_path / n).obsm["X_qbmvi"] for n in ("a.h5ad", "b.h5ad"))
    np.testing.assert_array_equal(a, b)


def test_a_run_goes_on(h5ad, tmp_path, capsys):
    """As often as it is called: a finished one only writes its result."""
    run, files = tmp_path / "run", [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for out in files:
        assert fit(h5ad, "--layer", "counts", "--out", out, "--checkpoint-dir", run) == 0
    a, b = (anndata.read_h5ad(out) for out in files)
    np.testing.assert_array_equal(a.obsm["X_qbmvi"], b.obsm["X_qbmvi"])
    assert a.uns["qbm"]["fit"]["validation_elbo"] == b.uns["qbm"]["fit"]["validation_elbo"]
    options = "--layer", "counts", "--out", tmp_path / "c.h5ad", "--checkpoint-dir", run
    capsys.readouterr()
    assert fit(h5ad, *options, "--seed", 1) == 1
    assert "seed: 0 in the checkpoint, 1 now" in capsys.readouterr().err
    os.truncate(run / "last.ckpt", 1000)
    assert fit(h5ad, *options) == 1
    error = capsys.readouterr().err
    assert error.startswith("scvi-qbm: error: ") and "is damaged" in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--layer", "raw"], "'raw' is not in adata.layers. Available: 'counts'"),
        (["--batch-key", "donor"], "'donor' is not in adata.obs"),
        (["--sampler", "qpu"], "Unknown sampler 'qpu'. Available: cim"),
        (["--gene-likelihood", "gamma"], "nb, zinb, poisson, normal"),
        (["--relaxation", "gumbel"], "overlapping_exponential"),
        (["--recipe", "best"], "default, paper"),
        (["--layer", "counts", "--n-latent", "1"], "at least 2"),
    ],
)
def test_user_errors_have_no_traceback(h5ad, tmp_path, capsys, args, message):
    out = tmp_path / "out.h5ad"
    assert fit(h5ad, "--out", out, *args) == 1
    error = capsys.readouterr().err
    assert error.startswith("scvi-qbm: error: ") and message in error
    assert "Traceback" not in error and not out.exists()


def test_bad_files(tmp_path, h5ad, capsys):
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(h5ad.read_bytes()[:5000])
    for args, message in (
        ([tmp_path / "none.h5ad", "--out", tmp_path / "o.h5ad"], "no such file"),
        ([cut, "--out", tmp_path / "o.h5ad"], "cannot be read as h5ad"),
        ([h5ad, "--out", tmp_path / "no" / "o.h5ad"], "no such directory"),
        ([h5ad, "--out", h5ad, "--overwrite"], "same file"),
        ([h5ad, "--out", tmp_path / "o.html"], "goes beside it"),
    ):
        assert fit(*args) == 1
        assert message in capsys.readouterr().err


def test_wrong_usage(capsys):
    fit_args = ["fit", "a", "--out", "b"]
    wrong = [["--max-epochs", "0"], ["--representation", "umap"]]
    for args in (["fit"], ["dance"], *(fit_args + w for w in wrong)):
        with pytest.raises(SystemExit) as stop:
            main(args)
        assert stop.value.code == 2
    assert main([]) == 2
    capsys.readouterr()
    for command in (["fit", "a", "--out", "b"], ["samplers", "list"], ["benchmark", "methods"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--likelihood"])
        words = command[: 1 if command[0] == "fit" else 2]
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith(f"usage: scvi-qbm {' '.join(words)} ")
        assert "unrecognized arguments: --likelihood" in error


def test_interrupt(h5ad, tmp_path, monkeypatch, capsys):
    """Ctrl-C in training, which Lightning turns into SystemExit."""
    from scvi_qbm.module import QBMVAE

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(QBMVAE, "loss", interrupt)
    out = tmp_path / "out.h5ad"
    assert fit(h5ad, "--layer", "counts", "--out", out) == 130
    assert "interrupted" in capsys.readouterr().err and not out.exists()


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert main(["--debug", "fit", str(tmp_path / "none"), "--out", "o.h5ad"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_samplers_list_and_help(capsys):
    assert main(["samplers", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if line.split()[0] in ("exact", "gibbs")] == [
        ["exact", "exact"],
        ["gibbs", "mcmc"],
    ]
    for args in (["-h"], ["fit", "-h"], ["samplers", "-h"], ["demo", "-h"]):
        with pytest.raises(SystemExit) as stop:
            main(args)
        assert stop.value.code == 0
    assert "exit status" in capsys.readouterr().out
    assert main(["--version"]) == 0


def test_entry_point_is_quick_to_help():
    script = os.path.join(os.path.dirname(sys.executable), "scvi-qbm")
    out = subprocess.run([script, "samplers", "list"], capture_output=True, text=True, check=True)
    assert "parallel_tempering" in out.stdout


def test_demo(tmp_path, monkeypatch):
    from scvi_qbm.benchmark.demo import run_demo

    report = run_demo(tmp_path / "demo", max_epochs=3)
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names == {"pbmc68k.h5ad", "report.html", "demo.png"}
    for word in ("QBMANVI", "PCA, logistic regression", "scVI, 5 neighbours", "are right"):
        assert word in report and word in (tmp_path / "demo" / "report.html").read_text()
    cells = anndata.read_h5ad(tmp_path / "demo" / "pbmc68k.h5ad")
    assert cells.obsm["X_qbmvi"].shape == (700, 64) and "attractor" in cells.obs
    # A tenth of each type kept its label, the others were really hidden.
    labels, types = (cells.obs[key].astype(str) for key in ("known", "cell_type"))
    known = labels != "Unknown"
    assert known.sum() == 70 and (labels == types)[known].all()
    assert set(types[known]) == set(types)


@pytest.mark.parametrize("name", ["pancreas_panc8_small", "pbmc_10x_3techs"])
def test_fit_on_real_batches(shared_data, tmp_path, name):
    out = tmp_path / "out.h5ad"
    assert fit(shared_data / f"{name}.h5ad", "--batch-key", "batch", "--out", out) == 0
    assert np.isfinite(anndata.read_h5ad(out).obsm["X_qbmvi"]).all()


MACHINE = """
import numpy as np

class Machine:
    def solve(self, matrix):
        return np.random.default_rng().choice([-1, 1], (100, len(matrix)))
"""


def test_samplers_check(capsys, tmp_path, monkeypatch):
    assert main(["samplers", "check", "exact"]) == 0
    assert "conforms" in capsys.readouterr().out
    # Two sweeps between samples: the distribution's test finds too few effective samples.
    options = ["--option", "n_sweeps=1", "--option", "n_chains=4", "--option", "n_burn_in=0"]
    assert main(["samplers", "check", "gibbs", *options]) == 1
    assert "DOES NOT CONFORM" in capsys.readouterr().out
    assert main(["samplers", "check", "cim", "--dry-run"]) == 0
    assert "in all " in capsys.readouterr().out
    assert main(["samplers", "check", "exact", "--max-calls", "3"]) == 1
    assert "NOT DECIDED" in capsys.readouterr().out
    (tmp_path / "mylab.py").write_text(
        "from scvi_qbm.samplers.exact import Exact\n\nclass Mine(Exact):\n    name = 'mine'\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["samplers", "check", "mylab:Mine"]) == 0
    (tmp_path / "mymachine.py").write_text(MACHINE)
    assert main(["samplers", "check", "mymachine:Machine", "--dry-run"]) == 0
    option = ["--option", "solver=mymachine:Machine", "--max-calls", "2"]
    assert main(["samplers", "check", "solve", *option]) == 1  # undecided
    assert "mine (exact): conforms" in capsys.readouterr().out
    (tmp_path / "myfunction.py").write_text(
        "import mymachine\n\ndef draw(m, seed=None):\n    return mymachine.Machine().solve(m)\n"
    )
    assert main(["samplers", "check", "myfunction:draw", "--dry-run"]) == 0
    for wrong, message in (
        (["myfunction:nope"], "cannot be imported"),
        (["nowhere:Mine"], "cannot be imported"),
        (["nonsense"], "Unknown sampler"),
        (["gibbs", "--option", "n_sweeps"], "KEY=VALUE"),
        (["gibbs", "--option", "speed=3"], "no option 'speed'"),
    ):
        assert main(["samplers", "check", *wrong]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.long
def test_benchmark_sampling(tmp_path, capsys, monkeypatch):
    from scvi_qbm.benchmark.sampling import parts as sampling

    monkeypatch.setattr(sampling, "DISTRIBUTION", {"PT": sampling.DISTRIBUTION["PT"]})
    out = tmp_path / "deep" / "out"
    argv = ["benchmark", "sampling", "--quick", "--part", "reweighting", "--out", str(out)]
    assert main(argv) == 0
    assert {"reweighting.csv", "reweighting.png"} <= {p.name for p in out.iterdir()}
