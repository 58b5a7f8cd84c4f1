"""What a benchmark compares: configuration, the table of methods, the command line."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from scvi_qbm.benchmark.commands import _config, add_commands
from scvi_qbm.benchmark.config import Config, DataSpec, Task
from scvi_qbm.benchmark.data.specs import resolve
from scvi_qbm.benchmark.methods import METHODS, get_method, select_methods
from scvi_qbm.cli import main

ONE = (DataSpec("a", path="a.h5ad"),)


def test_methods_by_name_and_group():
    assert select_methods(["pca", "control", "pca"]) == ["pca", "shuffled", "labels"]
    core = select_methods(["core"])
    assert {"qbmvi", "bernoulli", "gaussian", "scvi", "scvi_fast", "ldvae", "autozi"} <= set(core)
    assert select_methods(["all"]) == list(METHODS)
    assert {m for m in METHODS if METHODS[m].block == "supervised"} == {
        "qbmanvi",
        "scanvi",
        "scpoli",
    }
    with pytest.raises(ValueError, match="Unknown method 'scVI'. Available: core, all"):
        select_methods(["scVI"])
    with pytest.raises(ValueError, match="Unknown method 'core'"):
        get_method("core")


def test_methods_that_use_labels_are_not_among_the_unsupervised():
    using = {name for name, method in METHODS.items() if method.uses_labels}
    assert using == {"qbmanvi", "scanvi", "scpoli", "labels"}
    assert all(METHODS[name].block != "unsupervised" for name in using)


def test_tasks_are_balanced_and_seeds_limited():
    config = Config(
        data=(DataSpec("a", path="a"), DataSpec("b", path="b")),
        methods=("qbmvi", "drvi", "pca"),
        seeds=3,
        seeds_of={"qbmvi": 2},
    )
    tasks = config.tasks()
    assert tasks[:3] == [Task("a", "qbmvi", 0), Task("a", "drvi", 0), Task("a", "pca", 0)]
    assert [t.seed for t in tasks] == sorted(t.seed for t in tasks)
    seeds = {m: {t.seed for t in tasks if t.method == m} for m in config.methods}
    assert seeds == {"qbmvi": {0, 1}, "drvi": {0, 1}, "pca": {0}}
    assert len(tasks) == len(set(tasks)) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ()}, "needs a data set"),
        ({"data": ONE * 2}, "one name"),
        ({"data": (DataSpec("a/b"),)}, "cannot name a data set"),
        ({"data": (DataSpec(".."),)}, "cannot name a data set"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"max_epochs": 0}, "max_epochs must be at least 1"),
        ({"methods": ("nope",)}, "Unknown method 'nope'"),
        ({"seeds_of": {"nope": 1}}, "Unknown method 'nope'"),
        ({"groups": ("scib", "nope")}, "Unknown groups nope. Available: scib, clustering"),
    ],
)
def test_bad_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Config(data=ONE), **change)


TOML = """
methods = ["core", "pca"]
seeds = 2
max_epochs = 7
[seeds_of]
autozi = 1
[[data]]
name = "x"
path = "x.h5ad"
batch_key = "donor"
max_cells = 100
pseudotime_per_batch = true
"""


def test_from_toml(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(TOML)
    config = Config.from_toml(str(path))
    assert (config.seeds, config.max_epochs, dict(config.seeds_of)) == (2, 7, {"autozi": 1})
    assert config.methods[-1] == "pca" and "qbmvi" in config.methods
    (spec,) = config.data
    assert Path(spec.path) == tmp_path / "x.h5ad"
    assert (spec.batch_key, spec.max_cells, spec.label_key) == ("donor", 100, None)
    assert spec.pseudotime_per_batch is True


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = 2", "seeds = ", "not valid TOML"),
        ("seeds = 2", "seed = 2", "unknown field 'seed'. Available: data, methods"),
        ("seeds = 2", 'seeds = "2"', "must be int"),
        ("seeds = 2", "seeds = true", "must be int"),
        ('methods = ["core", "pca"]', 'methods = "core"', "must be list"),
        ("per_batch = true", "per_batch = 1", "pseudotime_per_batch = 1 must be bool"),
        ("max_cells = 100", "cells = 100", r"\[\[data\]\]: unknown field 'cells'"),
        ('name = "x"', "", "name"),
    ],
)
def test_bad_toml(tmp_path, old, new, message):
    path = tmp_path / "c.toml"
    path.write_text(TOML.replace(old, new))
    with pytest.raises(ValueError, match=message):
        Config.from_toml(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "o"], "Give either CONFIG.toml or --data"),
        (["c.toml", "--data", "x.h5ad", "--out", "o"], "Give either"),
        (["c.toml", "--out", "o"], "no such file: c.toml"),
        (["c.toml", "--batch-key", "b", "--out", "o"], "are set in the file"),
        (["--data", "x.h5ad", "--out", "o"], "no such file"),
        (["--data", "no_such_set", "--out", "o"], "is not one of ours: .*pbmc68k"),
        (["--data", "x.h5ad", "--methods", "nope", "--out", "o"], "Unknown method 'nope'"),
    ],
)
def test_command_line_says_what_is_wrong(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "run", *arguments]) == 1
    pattern = pytest.raises(AssertionError, match=message)
    with pattern:
        raise AssertionError(capsys.readouterr().err)
    assert not (tmp_path / "o" / "rows.jsonl").exists()


def test_command_line_chooses_genes_and_cells():
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(dest="subject"))
    chosen = ["--n-top-genes", "2000", "--max-cells", "500"]
    for data in ("pancreas", "x.h5ad"):
        args = parser.parse_args(["run", "--data", data, "--out", "o", *chosen])
        (spec,) = _config(args).data
        assert (spec.n_top_genes, spec.max_cells, spec.layer) == (2000, 500, None)


def test_command_line_lists_methods(capsys):
    assert main(["benchmark", "methods"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(METHODS)


def test_a_layer_of_a_set_of_ours_is_not_ignored():
    with pytest.raises(ValueError, match="are in the layer 'counts', not 'spliced'"):
        resolve(DataSpec("pancreas", layer="spliced"))
    assert resolve(DataSpec("pancreas", layer="counts")).batch_key
