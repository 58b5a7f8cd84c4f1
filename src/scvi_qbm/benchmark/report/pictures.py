"""The report's pictures: from rows and artifacts to embedded PNGs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scvi_qbm.benchmark import pictures
from scvi_qbm.benchmark.pictures.cells import confused_groups
from scvi_qbm.benchmark.report.html import Html, details, picture, tag
from scvi_qbm.benchmark.report.read import FOLDED, SUMMARY, Report
from scvi_qbm.benchmark.rows import folder_of

# Shown first where not all fit, in this order; by name, so that no result decides who is shown.
FIRST = (
    "qbmvi", "bernoulli", "gaussian", "scvi", "harmony", "pca", "qbmvi_paper", "gaussian_paper",
)  # fmt: skip
RIVALS = ("gaussian", "bernoulli", "scvi", "qbmvi", "pca")
_PER_GRID = 5


def summary_picture(report: Report) -> Iterator[Html]:
    """The reference beside the methods, over all data sets."""
    chosen = report.overall
    titles = report.titles(report.headline(columns=SUMMARY))
    others = {
        m: report.labels[m]
        for m in report.methods
        if report.blocks[m] not in FOLDED and (chosen["method"] == m).any()
    }
    if titles and others and chosen[chosen["metric"].isin(titles)]["mean"].notna().any():
        name = report.labels.get(report.reference, report.reference)
        yield _draw(
            f"{name} minus each method",
            "Right of the line it is ahead; mean and 95 % interval, over "
            f"{'data sets' if len(report.data) > 1 else 'seeds'}.",
            lambda: pictures.paired_differences(
                chosen, titles, others, report.blocks, reference_label=name
            ),
        )


def score_pictures(report: Report, data: str) -> Iterator[Html]:
    """Scores by seed and paired differences of one data set."""
    rows, means = report.on(report.rows, data), report.on(report.means, data)
    rows = rows[rows["status"] == "ok"]
    methods = {m: report.labels[m] for m in report.methods if (rows["method"] == m).any()}
    titles = report.titles(report.headline(data))
    if titles and methods:
        yield _draw(
            "Scores by seed",
            f"{len(rows)} runs; raw scores, panels have their own scales.",
            lambda: pictures.score_dots(
                rows, means, titles, methods, report.blocks, reference=report.reference
            ),
        )
    differences = report.on(report.paired, data)
    if differences["mean"].notna().any():
        name = report.labels.get(report.reference, report.reference)
        columns = [*report.headline(data), "validation_iwae"]
        others = {m: label for m, label in methods.items() if m != report.reference}
        yield _draw(
            f"Paired differences from {name}",
            "Over common seeds. Bounds in nats only where the likelihood is the same.",
            lambda: pictures.paired_differences(
                differences, report.titles(columns), others, report.blocks, reference_label=name
            ),
        )


def cell_pictures(report: Report, data: str) -> Iterator[Html]:
    """UMAPs, confusions, pseudotime and scores by epoch, as far as they were kept."""
    yield from _curves(report, data)
    known = _arrays(report.directory / "references" / f"{data}.npz")
    kept = {m: _artifacts(report, data, m) for m in report.methods}
    umaps = {m: a for m, a in kept.items() if "umap" in a}
    if umaps and "labels" in known:
        order = _first(report, list(umaps))
        order += [m for m in umaps if m not in order]
        for start in range(0, len(order), _PER_GRID):
            part = order[start : start + _PER_GRID]
            chunk = {report.labels[m]: umaps[m]["umap"] for m in part}
            seeds = _seeds(umaps, part)
            image = _draw(
                "UMAP of the embeddings" if start == 0 else "UMAP, further methods",
                f"{seeds} Illustration only: distances in a UMAP mean little.",
                lambda chunk=chunk: pictures.embedding_grid(
                    chunk, known["labels"], known.get("batch")
                ),
            )
            yield image if start == 0 else details("UMAP of further methods", image)
    yield from _confusions(report, data)
    times = {m: a for m, a in kept.items() if "pseudotime" in a}
    if times and "pseudotime" in known:
        order = _first(report, list(times))[:4]
        yield _draw(
            "Pseudotime",
            f"{_seeds(times, order)} Against the reference, computed without integration.",
            lambda: pictures.pseudotime_comparison(
                known["pseudotime"],
                {report.labels[m]: times[m]["pseudotime"] for m in order},
            ),
        )


def cost_picture(report: Report, data: str) -> Iterator[Html]:
    """Time and memory on one data set."""
    rows = report.on(report.rows, data)
    rows = rows[rows["status"] == "ok"]
    if "seconds" in rows and rows["seconds"].gt(0).any():
        methods = {m: report.labels[m] for m in report.methods if (rows["method"] == m).any()}
        yield _draw(
            "Time and memory",
            "Of fitting and embedding; runs may have shared the machine.",
            lambda: pictures.cost(rows, methods, report.blocks, reference=report.reference),
        )


def _curves(report: Report, data: str) -> Iterator[Html]:
    curves = report.on(report.curves, data)
    if curves.empty:
        return
    columns = [m for m in report.metrics if m in curves and curves[m].notna().any()]
    methods = {m: report.labels.get(m, m) for m in curves["method"].unique()}
    if columns:
        yield _draw(
            "Scores in the course of training",
            "Trained without early stopping, scored at the epochs marked.",
            lambda: pictures.score_by_epoch(curves, report.titles(columns), methods),
        )


def _confusions(report: Report, data: str) -> Iterator[Html]:
    ours = _mean_confusion(report, data, report.reference)
    rivals = (m for m in [*RIVALS, *report.methods] if m != report.reference)
    found = ((m, _mean_confusion(report, data, m)) for m in rivals)
    rival = next(((m, c) for m, c in found if c is not None), None)
    if ours is None:
        return
    matrix, labels, n = ours
    name = report.labels.get(report.reference, report.reference)
    seeds = f"Cross-validated classifier, mean of {n} {'seed' if n == 1 else 'seeds'}."
    if rival is not None and list(rival[1][1]) == list(labels):
        both = {name: matrix, report.labels[rival[0]]: rival[1][0]}
        if confused_groups(list(both.values())):
            yield _draw(
                "The types that are confused most",
                f"{seeds} Groups by the mean of both, so that they favour neither.",
                lambda: pictures.confusion_zoom(both, labels),
            )
    yield details(
        "All types",
        _draw(
            f"Confusion of all types, {name}",
            seeds,
            lambda: pictures.confusion_matrix(matrix, labels, title=name),
        ),
    )


def _mean_confusion(
    report: Report, data: str, method: str
) -> tuple[NDArray[np.float64], list[str], int] | None:
    """Mean over seeds of a method's confusions, its labels, and the number of seeds."""
    found = []
    for path in _paths(report, data, method):
        arrays = _arrays(path)
        if "confusion" in arrays and "confusion_labels" in arrays:
            found.append((arrays["confusion"], [str(v) for v in arrays["confusion_labels"]]))
    same = [c for c, labels in found if labels == found[0][1] and c.shape == found[0][0].shape]
    return (np.mean(same, axis=0), found[0][1], len(same)) if found else None


def _first(report: Report, methods: list[str]) -> list[str]:
    """The methods to show where not all can be: the reference, those named, all unsupervised."""
    rest = [m for m in report.methods if report.blocks[m] == "unsupervised"]
    order = dict.fromkeys([report.reference, *FIRST, *rest, *report.methods])
    return [m for m in order if m in methods]


def _seeds(arrays: dict[str, dict[str, Any]], methods: list[str]) -> str:
    seeds = {arrays[m]["seed"] for m in methods}
    return f"Seed {seeds.pop()}." if len(seeds) == 1 else "Each method's lowest seed."


def _artifacts(report: Report, data: str, method: str) -> dict[str, Any]:
    """Arrays of the lowest seed for which there is a picture's data."""
    for path in _paths(report, data, method):
        arrays = _arrays(path)
        if "umap" in arrays or "pseudotime" in arrays:
            return arrays | {"seed": path.stem}
    return {}


def _paths(report: Report, data: str, method: str) -> list[Path]:
    folder = report.directory / "artifacts" / data / folder_of(method)
    good = report.on(report.rows, data)
    good = good[(good["method"] == method) & (good["status"] == "ok")]
    # Of runs that count only: a failed attempt may have left a file.
    paths = [folder / f"{seed}.npz" for seed in sorted(good["seed"])]
    return [path for path in paths if path.is_file()]


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}


def _draw(heading: str, caption: str, make: Callable[[], Any]) -> Html:
    """A heading and a picture, or the reason why there is none."""
    import matplotlib.pyplot as plt

    before = set(plt.get_fignums())
    try:
        axes = make()
        figure = axes[0].figure if isinstance(axes, list) else axes.figure
        content = picture(_png(figure), round(96 * figure.get_figwidth()), heading, caption)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        content = tag("p", f"Not drawn: {type(error).__name__}: {error}", class_="quiet")
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
    return Html(tag("h3", heading) + content)


def _png(figure: Any) -> bytes:
    from PIL import Image  # matplotlib's own dependency

    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=140)
    # 256 colours look the same here and take a third of the room.
    Image.open(whole).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        small, format="png", optimize=True
    )
    return small.getvalue()
