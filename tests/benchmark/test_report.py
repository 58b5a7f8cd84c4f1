import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvi_qbm.benchmark.metrics.groups import Metric
from scvi_qbm.benchmark.report import pictures as _report_pictures
from scvi_qbm.benchmark.report import read as report
from scvi_qbm.benchmark.report import read_report, write_report
from scvi_qbm.benchmark.statistics import POOLED, means, paired, pool, t_interval, tidy, wins

EVIL = "<script>alert('x')</script> & $5"


METRICS = (
    Metric("nmi", "NMI", "clustering", 'Of types with clusters, <at "best">.'),
    Metric("ari", "ARI", "clustering", "Adjusted Rand index."),
    Metric("pcr", "PCR", "scib", "Variance between batches."),
    Metric("error", "Error", "other", "Lower is better.", False),
    Metric("n_clusters", "Clusters", "other", "Says nothing by itself.", None),
)


def frame(*runs, data="d", metric="nmi"):
    """Rows from ``(method, seed, value)`` or ``(method, seed, value, likelihood)``."""
    return pd.DataFrame(
        [
            {
                "data": data,
                "method": m,
                "seed": s,
                "status": "ok",
                metric: v,
                "likelihood": rest[0],
            }
            if rest
            else {"data": data, "method": m, "seed": s, "status": "ok", metric: v}
            for m, s, v, *rest in runs
        ]
    )


# --- statistics, by hand


def test_t_interval():
    # Student's 0.975 quantile with 2 degrees of freedom is 4.302653; sd of 1, 2, 3 is 1.
    half = 4.302653 / np.sqrt(3)
    assert t_interval([1, 2, 3]) == pytest.approx((2, 2 - half, 2 + half), rel=1e-6)
    assert t_interval([1, 2, 3, np.nan, np.inf]) == t_interval([1, 2, 3])
    mean, low, high = t_interval([5.0])
    assert mean == 5 and np.isnan(low) and np.isnan(high)
    assert np.isnan(t_interval([])).all()


def test_tidy_keeps_the_run_that_succeeded_and_the_last_attempt():
    rows = pd.DataFrame(
        [
            {"data": "d", "method": "a", "seed": 0, "status": "ok", "nmi": 1.0},
            {"data": "d", "method": "a", "seed": 0, "status": "failed", "nmi": np.nan},
            {"data": "d", "method": "b", "seed": 0, "status": "failed", "nmi": np.nan},
            {"data": "d", "method": "b", "seed": 0, "status": "ok", "nmi": 2.0},
            {"data": "d", "method": "b", "seed": 0, "status": "ok", "nmi": 3.0},
            {"data": "d", "method": "c", "seed": 0, "status": "failed", "nmi": np.nan},
        ]
    )
    assert tidy(rows)[["method", "status"]].values.tolist() == [
        ["a", "ok"],
        ["b", "ok"],
        ["c", "failed"],
    ]
    assert tidy(rows)["nmi"].tolist()[:2] == [1.0, 3.0]
    with pytest.raises(ValueError, match="lack seed, status"):
        tidy(rows[["data", "method"]])


def test_means_over_seeds():
    rows = frame(
        ("a", 0, 0.1),
        ("a", 1, 0.3),
        ("a", 2, np.nan),
        ("a", 5, np.inf),
        ("b", 0, 0.5),
        ("c", 0, np.nan),
    )
    rows.loc[len(rows)] = {"data": "d", "method": "a", "seed": 3, "status": "failed", "nmi": 9.0}
    out = means(rows, ["nmi", "not there"]).set_index("method")
    assert list(out.index) == ["a", "b"]
    assert out.loc["a", "n"] == 2 and out.loc["a", "mean"] == pytest.approx(0.2)
    assert out.loc["a", "sd"] == pytest.approx(0.1 * np.sqrt(2))
    assert out.loc["a", "high"] == pytest.approx(0.2 + 12.706205 * 0.1, rel=1e-6)
    assert out.loc["b", "mean"] == 0.5 and out.loc["b", ["sd", "low", "high"]].isna().all()


def test_paired_differences_by_hand():
    rows = frame(
        *(("qbmvi", s, v) for s, v in enumerate((0.5, 0.6, 0.7))),
        *(("other", s, v) for s, v in enumerate((0.4, 0.4, 0.7, 99.0))),  # no reference at seed 3
    )
    out = paired(rows, {"nmi": True}).iloc[0]
    half = 4.302653 * 0.1 / np.sqrt(3)  # differences 0.1, 0.2, 0.0
    assert (out["method"], out["n"], out["pairing"]) == ("other", 3, "seeds")
    assert out["mean"] == pytest.approx(0.1) and out["sd"] == pytest.approx(0.1)
    assert (out["low"], out["high"]) == pytest.approx((0.1 - half, 0.1 + half), rel=1e-6)
    assert out["verdict"] == "unclear"
    assert paired(rows, {"nmi": False}).iloc[0]["mean"] == pytest.approx(-0.1)
    assert paired(rows, {"nmi": None}).empty
    assert paired(rows, {"nmi": True}, "other").iloc[0]["mean"] == pytest.approx(-0.1)
    assert paired(rows, {"nmi": True}, "nobody").empty


def test_the_verdict_is_by_the_interval():
    def verdict(*differences):
        runs = [("qbmvi", s, 0.5 + d) for s, d in enumerate(differences)]
        runs += [("other", s, 0.5) for s in range(len(differences))]
        return paired(frame(*runs), {"nmi": True}).iloc[0]["verdict"]

    assert verdict(0.10, 0.11, 0.12) == "better"
    assert verdict(-0.10, -0.11, -0.12) == "worse"
    assert verdict(0.10, -0.05, 0.12) == "unclear"
    assert verdict(0.10) == "one run"
    assert verdict(1e-16, 1e-16, 1e-16) == "unclear"  # rounding is no result
    assert verdict(0.1, 0.1, 0.1) == "better"


def test_missing_scores_and_seeds_do_not_pair():
    rows = frame(("qbmvi", 0, 0.5), ("qbmvi", 1, np.nan), ("other", 1, 0.4), ("other", 0, 0.1))
    assert paired(rows, {"nmi": True}).iloc[0][["n", "verdict"]].tolist() == [1, "one run"]
    rows = frame(("qbmvi", 0, 0.5), ("other", 1, 0.4))
    out = paired(rows, {"nmi": True}).iloc[0]
    assert out["n"] == 0 and out["verdict"] == "no common seed" and np.isnan(out["mean"])


def test_a_deterministic_method_is_compared_with_every_seed():
    runs = [("qbmvi", s, v) for s, v in enumerate((0.5, 0.6, 0.7))]
    rows = frame(*runs, ("pca", 7, 0.4), ("scvi", 0, 0.4))
    out = paired(rows, {"nmi": True}).set_index("method")
    assert out.loc["pca", ["n", "pairing"]].tolist() == [3, "fixed"]
    assert out.loc["pca", "mean"] == pytest.approx(0.2)
    # One run of a method that is not deterministic is one pair.
    assert out.loc["scvi", ["n", "verdict"]].tolist() == [1, "one run"]
    swapped = paired(rows, {"nmi": True}, "pca").set_index("method")
    assert swapped.loc["qbmvi", "mean"] == pytest.approx(-0.2)


def test_nats_compare_only_within_a_likelihood():
    rows = frame(
        *(("qbmvi", s, -100.0 + s, "nb") for s in (0, 1)),
        *(("scvi", s, -102.0, "nb") for s in (0, 1)),
        *(("paper", s, 50.0, "normal") for s in (0, 1)),
        *(("nameless", s, -90.0, "") for s in (0, 1)),
        *(("nameless too", s, -90.0, "") for s in (0, 1)),
        metric="validation_elbo",
    )
    out = paired(rows, {"validation_elbo": True}).set_index("method")
    assert out.loc["scvi", "mean"] == pytest.approx(2.5)
    assert out.loc["paper", ["n", "verdict"]].tolist() == [0, "not comparable"]
    assert out.loc["nameless", "verdict"] == "not comparable"
    out = paired(rows, {"validation_elbo": True}, "nameless").set_index("method")
    assert out.loc["nameless too", "verdict"] == "not comparable"


def test_pooling_is_over_data_sets():
    runs = [("qbmvi", 0, 0.5), ("qbmvi", 1, 0.5)]
    rows = pd.concat(
        [
            frame(*runs, ("other", 0, 0.35), ("other", 1, 0.45), ("rare", 0, 0.1), data="d"),
            frame(*runs, ("other", 0, 0.2), data="e"),
        ]
    )
    out = pool(paired(rows, {"nmi": True})).set_index("method")
    # Means per set 0.1 and 0.3, however many seeds; 12.706205 is the quantile for 1 degree.
    half = 12.706205 * 0.1
    assert (out["data"] == POOLED).all() and out.loc["other", "n"] == 2
    assert out.loc["other", "mean"] == pytest.approx(0.2)
    assert out.loc["other", "high"] == pytest.approx(0.2 + half, rel=1e-6)
    assert out.loc["rare", "verdict"] == "one set" and np.isnan(out.loc["rare", "low"])


def test_wins_count_intervals_clear_of_zero():
    rows = frame(
        *(("qbmvi", s, 0.5) for s in (0, 1, 2)),
        *(("low", s, 0.3) for s in (0, 1, 2)),
        *(("high", s, 0.7) for s in (0, 1, 2)),
        *(("same", s, v) for s, v in enumerate((0.4, 0.5, 0.6))),
        ("single", 0, 0.1),
    )
    rows["ari"] = rows["nmi"]
    both = paired(rows, {"nmi": True, "ari": True})
    twice = pd.concat([both, both.assign(data="e")])
    assert wins(pd.concat([twice, pool(twice)])).loc["low"].tolist() == [4, 0, 0, 0]
    out = wins(both)
    assert out.loc["low"].tolist() == [2, 0, 0, 0]
    assert out.loc["high"].tolist() == [0, 0, 2, 0]
    assert out.loc["same"].tolist() == [0, 2, 0, 0]
    assert out.loc["single"].tolist() == [0, 0, 0, 2]
    assert wins(both, ["nmi"]).loc["low"].tolist() == [1, 0, 0, 0]


# --- the report

CONFIG = {
    "data": {
        "pancreas": {"title": "Pancreas <i>", "batch_key": "tech", "label_key": "celltype",
                     "subsampled": False, "citation": "Some & others, https://doi.org/10.1/x"},
        "immune": {"max_cells": 500},
    },
    "methods": {
        "qbmvi": {"label": "QBMVI", "block": "unsupervised", "summary": "Ours."},
        "gaussian": {"label": EVIL, "block": "unsupervised", "summary": "A <b>twin</b>."},
        "pca": {"label": "PCA", "block": "unsupervised", "summary": "Linear."},
        "scanvi": {"label": "scANVI", "block": "supervised", "summary": "Sees labels."},
        "shuffled": {"label": "shuffled", "block": "control", "summary": "Noise."},
    },
    "command": "scvi-qbm benchmark run --methods 'a<b'",
    "version": "0.1.0",
    "max_epochs": 77,
}  # fmt: skip


def run_of(data, method, seed, nmi, **more):
    nats = {"validation_elbo": -1000.0 - seed, "likelihood": "nb"} if method != "pca" else {}
    row = {"data": data, "method": method, "seed": seed, "status": "ok", "reason": "", "nmi": nmi,
           "ari": nmi - 0.1, "pcr": float("nan"), "error": 1 - nmi, "n_clusters": 9,
           "n_cells": 60, "n_genes": 2000, "seconds": 10.0 + seed, "memory_mb": 1500.0,
           "versions": {"torch": "2.9.1"}, "date": "2026-11-20T10:00:00+00:00"}  # fmt: skip
    return row | nats | more


def write_rows(directory, rows, config=CONFIG, tail=""):
    directory.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "rows.jsonl").write_text(text + tail)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def made_rows():
    rows = []
    for data in ("pancreas", "immune"):
        rows += [run_of(data, "qbmvi", s, 0.80 + 0.01 * s) for s in range(3)]
        rows += [run_of(data, "gaussian", s, 0.75 + 0.02 * s) for s in range(3)]
        rows += [run_of(data, "pca", 0, 0.60)]
        rows += [run_of(data, "scanvi", s, 0.95, likelihood="zinb") for s in range(2)]
        rows += [run_of(data, "shuffled", 0, 0.81)]  # as good as the best, but no method
    rows[-1]["errors"] = "scgraph: ValueError: <too few>"
    for seed, status, reason in (
        (0, "failed", "RuntimeError: <nan> & worse"),
        (1, "absent", None),
    ):
        rows.append({"data": "immune", "method": "scpoli", "seed": seed, "status": status,
                     "reason": reason})  # fmt: skip
    return rows


def add_artifacts(directory):
    rng = np.random.default_rng(0)
    labels, batch = np.array(list("abc"))[rng.integers(3, size=60)], np.array(["x", "y"] * 30)
    time = rng.uniform(size=60)
    (directory / "references").mkdir()
    np.savez(directory / "references/pancreas.npz", labels=labels, batch=batch, pseudotime=time)
    confusion = np.array([[30, 10, 0], [5, 35, 0], [0, 1, 39]])
    for method in ("qbmvi", "gaussian"):
        folder = directory / "artifacts" / "pancreas" / method
        folder.mkdir(parents=True)
        for seed in range(2):
            np.savez(
                folder / f"{seed}.npz", umap=rng.normal(size=(60, 2)), confusion=confusion,
                confusion_labels=np.array(["a", "b", "c<"]), pseudotime=time[: 60 - seed],
            )  # fmt: skip
    broken = directory / "artifacts" / "pancreas" / "pca"
    broken.mkdir()
    (broken / "0.npz").write_bytes(b"PK\x03\x04 cut off")
    curves = [{"data": "pancreas", "method": "qbmvi", "seed": s, "epoch": e, "nmi": 0.1 * e,
               "seconds_scib": 3.0} for s in (0, 1) for e in (1, 2)]  # fmt: skip
    (directory / "curves.jsonl").write_text("".join(json.dumps(c) + "\n" for c in curves))


class Page(HTMLParser):
    """Attributes, text and the nesting of a page."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text):
        super().__init__()
        self.seen, self.words, self.open, self.text = [], [], [], text
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def tags(self, name):
        return [attributes for tag, attributes in self.seen if tag == name]

    @property
    def said(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def metrics(monkeypatch):
    monkeypatch.setattr(report, "METRICS", METRICS)
    monkeypatch.setattr(report, "HEADLINE", ("nmi", "ari", "pcr"))


@pytest.fixture
def quick(metrics, monkeypatch):
    """Drawn, but not rendered."""
    monkeypatch.setattr(_report_pictures, "_png", lambda figure: b"png")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = write_rows(tmp_path_factory.mktemp("bench"), made_rows(), tail='{"data": "panc')
    add_artifacts(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "METRICS", METRICS)
        patch.setattr(report, "HEADLINE", ("nmi", "ari", "pcr"))
        path = write_report(directory, title="A <title>")
    return path, Page(path.read_text())


def test_tables_hold_what_was_computed(whole):
    folder = whole[0].parent
    rows = pd.read_csv(folder / "rows.csv")
    assert len(rows) == len(made_rows()) and json.loads(rows["versions"][0])["torch"] == "2.9.1"
    found = pd.read_csv(folder / "means.csv").set_index(["data", "method", "metric"])
    assert found.loc[("pancreas", "qbmvi", "nmi"), "mean"] == pytest.approx(0.81)
    assert found.loc[("pancreas", "qbmvi", "nmi"), "sd"] == pytest.approx(0.01)
    assert "pcr" not in found.index.get_level_values("metric")
    differences = pd.read_csv(folder / "paired.csv").set_index(["data", "method", "metric"])
    # 0.05, 0.04, 0.03 with Student's 4.302653 at 2 degrees of freedom
    row = differences.loc[("immune", "gaussian", "nmi")]
    assert row["mean"] == pytest.approx(0.04) and row["verdict"] == "better"
    assert row["low"] == pytest.approx(0.04 - 4.302653 * 0.01 / np.sqrt(3), rel=1e-5)
    assert differences.loc[("immune", "gaussian", "error"), "mean"] == pytest.approx(0.04)
    assert differences.loc[(POOLED, "gaussian", "nmi"), "n"] == 2
    assert "n_clusters" not in differences.index.get_level_values("metric")
    bad = pd.read_csv(folder / "failures.csv")
    assert bad["status"].tolist() == ["failed", "absent", "partial"]
    assert bad["reason"].tolist()[1] == "no reason given"


def test_the_page_stands_alone(whole):
    path, page = whole
    assert page.open == [] and path.name == "report.html"
    assert not page.tags("script") and not page.tags("link") and not page.tags("iframe")
    ids = {attributes["id"] for _, attributes in page.seen if "id" in attributes}
    for _, attributes in page.seen:
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#notes")[0] == "#"
        assert attributes.get("href", "#notes")[1:] in ids
        assert not any(name.startswith("on") for name in attributes)
    style = re.search("<style>(.*?)</style>", page.text, re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style


def test_every_text_is_escaped(whole):
    page = whole[1]
    assert page.text.count("<script") == 0 and EVIL in page.said
    for text in ("Pancreas <i>", "A <b>twin</b>.", "RuntimeError: <nan> & worse", "A <title>",
                 "scgraph: ValueError: <too few>", "--methods 'a<b'"):  # fmt: skip
        assert text in page.said
    assert not page.tags("i")
    titles = [attributes.get("title") for attributes in page.tags("th")]
    assert 'Of types with clusters, <at "best">.' in titles


def test_pictures_are_pictures_and_say_what_they_show(whole):
    from PIL import Image

    page = whole[1]
    images = page.tags("img")
    assert all(image["alt"] for image in images)
    wanted = {"Scores by seed", "Paired differences from QBMVI", "UMAP of the embeddings",
              "The types that are confused most", "Confusion of all types, QBMVI", "Pseudotime",
              "Scores in the course of training", "Time and memory",
              "QBMVI minus each method"}  # fmt: skip
    assert {image["alt"] for image in images} == wanted
    for image in images:
        data = base64.b64decode(image["src"].split(",")[1])
        size = Image.open(io.BytesIO(data)).size
        assert size[0] > 300 and size[1] > 100
    assert plt.get_fignums() == []


def test_the_best_unsupervised_mean_is_bold_and_blocks_are_apart(whole):
    text = whole[1].text
    section = text[text.index('id="data-0"') :]
    first = section[: section.index("</table>")]
    assert re.findall(r'<td class="best">([\d.]+)', first) == ["0.810"]  # not scANVI's
    words = ("QBMVI", "PCA", "supervised: see", "scANVI", "Twins, variants", "shuffled")
    order = [section.index(word, section.index("<table")) for word in words]
    assert order == sorted(order)
    assert "PCR" not in first  # nobody has it


def test_the_first_screen_says_who_is_ahead(whole):
    text = whole[1].text
    section = text[text.index('id="summary"') : text.index('id="notes"')]
    tables = [part[: part.index("</table>")] for part in section.split("<table")[1:]]
    scores, folded, verdicts = tables[:3]
    # Means over seeds, then over data sets; the best method in bold, no control among them.
    assert re.findall(r'<td class="best">([\d.]+)', scores) == ["0.810"] and "0.770" in scores
    assert "shuffled" not in scores and "shuffled" in folded
    row = verdicts[verdicts.index("scANVI") :]
    cells = re.findall(r'<td class="text">([^<]*)', row)[:3]
    assert cells == ["&ndash;", "NMI", "&ndash;"]


def test_variants_are_not_folded_where_they_are_what_is_compared(quick, tmp_path):
    config = {"methods": {m: {"label": m, "block": "variant"} for m in ("a", "b")}
              | {"qbmvi": {"label": "QBMVI", "block": "unsupervised"}}}  # fmt: skip
    rows = [run_of("d", m, s, 0.8 + 0.01 * s) for m in ("qbmvi", "a", "b") for s in (0, 1)]
    page = Page(write_report(write_rows(tmp_path, rows, config)).read_text())
    assert "Twins, variants and controls (" not in page.said and "twins and variants:" in page.said


def test_honest_remarks(whole):
    said = whole[1].said
    for text in (
        "lines not in this report: 1",
        "1 to 3 runs (seeds) per method and data set",
        "One run, hence no interval of their own: PCA; shuffled.",
        "Fewer than five seeds",
        "not corrected for their number",
        "Subsampled, so not comparable with published numbers: immune.",
        "Supervised methods see the labels",
        "Controls show what a score rewards",
        "zinb: scANVI.",
        "at most 77 epochs",
        "torch 2.9.1",
        "Measured 2026-11-20",
    ):
        assert text in said, text


def test_nats_are_not_compared_across_likelihoods(whole):
    assert "not comparable" in whole[1].said
    frame = pd.read_csv(whole[0].parent / "paired.csv")
    chosen = frame[(frame["metric"] == "validation_elbo") & (frame["data"] == "immune")]
    verdicts = chosen.set_index("method")["verdict"].to_dict()
    assert verdicts == {"gaussian": "unclear", "scanvi": "not comparable", "shuffled": "one run"}


def test_one_seed_has_no_interval_and_says_so(quick, tmp_path):
    rows = [run_of("d", "qbmvi", 0, 0.8), run_of("d", "gaussian", 0, 0.7)]
    page = Page(write_report(write_rows(tmp_path, rows)).read_text())
    assert "1 run (seeds) per method and data set. One run, hence no interval" in page.said
    assert "one run" in page.said and "±." not in page.said
    found = read_report(tmp_path)
    assert found.paired["low"].isna().all() and (found.paired["verdict"] == "one run").all()


def test_without_config_and_artifacts(quick, tmp_path):
    rows = [run_of("d", m, s, 0.8 + 0.01 * s) for m in ("qbmvi", "scpoli") for s in (0, 1)]
    path = write_report(write_rows(tmp_path, rows, config=None))
    found = read_report(tmp_path)
    assert found.blocks == {"qbmvi": "unsupervised", "scpoli": "supervised"}
    page = Page(path.read_text())
    assert {i["alt"] for i in page.tags("img")} == {"Scores by seed", "Time and memory",
                                                    "Paired differences from qbmvi",
                                                    "qbmvi minus each method"}  # fmt: skip


def test_a_picture_that_cannot_be_drawn_is_named(quick, tmp_path):
    write_rows(tmp_path, [run_of("d", "qbmvi", s, 0.8) for s in (0, 1)])
    for folder, arrays in (("references", {"labels": np.array(list("ab"))}),
                           ("artifacts/d/qbmvi", {"umap": np.zeros((3, 2))})):  # fmt: skip
        (tmp_path / folder).mkdir(parents=True)
        np.savez(tmp_path / folder / ("d.npz" if folder == "references" else "0.npz"), **arrays)
    said = Page(write_report(tmp_path).read_text()).said
    assert "Not drawn: ValueError: Wanted embeddings of shape (2, 2)" in said
    assert plt.get_fignums() == []


def test_nothing_but_failures(quick, tmp_path):
    rows = [{"data": "d", "method": "qbmvi", "seed": 0, "status": "failed", "reason": "no luck"}]
    with pytest.warns(UserWarning, match="'qbmvi' has no run"):
        page = Page(write_report(write_rows(tmp_path, rows)).read_text())
    assert "No run succeeded" in page.said and "no luck" in page.said


def test_a_reference_without_runs_warns_and_is_named(quick, tmp_path):
    write_rows(tmp_path, [run_of("d", "pca", 0, 0.8), run_of("d", "gaussian", 0, 0.8)])
    with pytest.warns(UserWarning, match="Runs: pca, gaussian"):
        said = Page(write_report(tmp_path).read_text()).said
    assert "The reference 'qbmvi' has no run" in said
    assert "The reference" not in Page(write_report(tmp_path, reference="pca").read_text()).said


def test_errors_are_clear(metrics, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no rows\.jsonl"):
        write_report(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no rows\.jsonl"):
        write_report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    write_rows(tmp_path, [], tail='{"data"')
    with pytest.raises(FileNotFoundError, match="holds no rows"):
        write_report(tmp_path)
    write_rows(tmp_path, [run_of("d", "qbmvi", 0, 0.8)])
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold an object"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        write_report(tmp_path)


def test_rows_of_methods_that_are_no_more_are_shown(monkeypatch, tmp_path):
    """As they were published: with the label of their own configuration, else by their name."""
    monkeypatch.setattr(_report_pictures, "_png", lambda figure: b"png")
    log = Path(__file__).parents[2] / "logbook"
    files = log / "benchmark" / "rows.jsonl", log / "rows" / "variants.jsonl"
    lines = [line for file in files for line in file.read_text().splitlines()]
    lines = [line for line in lines if json.loads(line)["data"] == "pbmc_10x_3techs"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    found = read_report(tmp_path)
    assert found.unreadable == 0 and found.labels["qbmvi_long"] == "qbmvi_long"
    assert found.blocks["scpoli"] == "supervised"
    assert {"qbmvi_long", "gaussian"} <= set(found.paired["method"])
    config = json.loads((log / "benchmark" / "config.json").read_text())
    config["methods"]["qbmvi_long"] = {"label": "QBMVI, a longer schedule"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = Page(write_report(tmp_path).read_text()).said
    assert "QBMVI, a longer schedule" in said


def test_the_columns_named_here_are_metrics():
    assert set(report.HEADLINE) <= {metric.name for metric in report.METRICS}
