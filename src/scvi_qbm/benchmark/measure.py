"""One row of the benchmark: fit, embed, score."""

from __future__ import annotations

import hashlib
import json
import platform
import time
import zipfile
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from scvi_qbm._files import replacing
from scvi_qbm.benchmark.data.specs import load_data
from scvi_qbm.distributions import fast_counts
from scvi_qbm.model import QBMVI

from .config import DataSpec, Task
from .methods import get_method
from .methods.common import budget
from .rows import folder_of
from .scores import Reference, prepare_reference, score_embedding

_PACKAGES = ("scvi-qbm", "scvi-tools", "torch", "numpy", "scanpy", "scib-metrics", "anndata")


def measure(
    task: Task,
    spec: DataSpec,
    out: Path,
    *,
    max_epochs: int | None = None,
    groups: tuple[str, ...] | None = None,
    scored: tuple[str, ...] = (),
    n_jobs: int = 1,
) -> dict[str, Any]:
    """Measure a row; what fails becomes a row that says why.

    The embedding is kept in ``out/embeddings``, and used again if only scores are missing.
    """
    started = time.perf_counter()
    row: dict[str, Any] = {
        "status": "ok",
        "reason": "",
        "date": _now(),
        "versions": _versions(),
    }
    try:
        adata, reference = prepared(spec, out)
        row |= {"n_cells": adata.n_obs, "n_genes": adata.n_vars}
        embedding, fitted, afresh = _embedding(task, spec, adata, out, max_epochs)
        row |= fitted
        if groups is not None and afresh:
            groups = tuple(dict.fromkeys((*groups, *scored)))
        scores, artifacts = score_embedding(
            embedding, reference, groups=groups, seed=task.seed, n_jobs=n_jobs
        )
        row |= scores | {"scored": _now()}
        path = out / "artifacts" / task.data / folder_of(task.method) / f"{task.seed}.npz"
        if not afresh and path.exists():
            with np.load(path, allow_pickle=False) as kept:
                artifacts = dict(kept) | artifacts
        _save(path, artifacts)
    except ImportError as error:
        row |= {"status": "absent", "reason": str(error)}
    except Exception as error:  # noqa: BLE001 - a method's failure is a row, not the end
        import traceback

        traceback.print_exc()
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    row["seconds_total"] = round(time.perf_counter() - started, 2)
    return row


@lru_cache(maxsize=1)
def prepared(spec: DataSpec, out: Path) -> tuple[AnnData, Reference]:
    """A data set and what its scores compare with; its labels go to ``out/references``.

    The last pair is kept in memory.
    """
    adata = load_data(spec)
    reference = prepare_reference(
        adata,
        layer=None,
        batch_key=spec.batch_key,
        label_key=spec.label_key,
        fine_label_key=spec.fine_label_key,
        root_key=spec.root_key,
        root_label=spec.root_label,
        pseudotime_per_batch=spec.pseudotime_per_batch,
    )
    parts = {
        "labels": reference.labels,
        "batch": reference.batch,
        "pseudotime": reference.pseudotime,
    }
    path = out / "references" / f"{spec.name}.npz"
    if not path.exists():
        # By every worker that finds none.
        _save(path, {k: v for k, v in parts.items() if v is not None}, alone=False)
    return adata, reference


def _embedding(
    task: Task, spec: DataSpec, adata: AnnData, out: Path, max_epochs: int | None
) -> tuple[NDArray[Any], dict[str, Any], bool]:
    """Embedding, columns about its fit, and whether it was fitted just now."""
    method = get_method(task.method)
    own = budget(method.max_epochs, adata.n_obs)
    epochs = spec.max_epochs or max_epochs or own
    key = json.dumps([str(task), str(spec), epochs, adata.n_obs, adata.n_vars], sort_keys=True)
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    path = out / "embeddings" / task.data / folder_of(task.method) / f"{task.seed}.npz"
    # One that is damaged is made anew, as one of other settings is.
    with suppress(FileNotFoundError, zipfile.BadZipFile, EOFError, KeyError, ValueError):
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["fingerprint"]) == fingerprint:
                return kept["embedding"], json.loads(str(kept["fitted"])), False
    options: dict[str, Any] = {"batch_key": spec.batch_key}
    if method.uses_labels:
        if spec.label_key is None:
            raise ValueError(f"{method.label} needs a label column.")
        options["label_key"] = spec.label_key
    before = _reset_peak_memory()
    processor = time.process_time()
    with fast_counts():  # as QBMVI has it: cost should not differ by that
        result = method.run(adata, seed=task.seed, max_epochs=epochs, **options)
    fitted = {
        "seconds": round(result.seconds, 2),
        # Of all threads, setting up included: what a busy machine does not change.
        "cpu_seconds": round(time.process_time() - processor, 2),
        "memory_mb": round(max(_peak_memory_mb() - before, 0.0), 1),
        "n_dimensions": int(result.embedding.shape[1]),
        "likelihood": method.likelihood,
        "validation_elbo": result.validation_elbo,
        # Of the fit: scores may be computed afresh, later and by other code.
        "date": _now(),
        "versions": _versions(),
    }
    history = getattr(result.model, "history", None) or {}
    if "elbo_train" in history:
        # The trainer's limit: scANVI's second training has one of its own.
        limit = getattr(getattr(result.model, "trainer", None), "max_epochs", epochs)
        fitted |= {"epochs": len(history["elbo_train"]), "max_epochs": limit}
    if method.likelihood and result.model is not None:
        fitted |= _held_out_likelihood(result.model)
    embedding = np.asarray(result.embedding, dtype=np.float32)
    info = {"fingerprint": fingerprint, "fitted": json.dumps(fitted)}
    _save(path, {"embedding": embedding, **{k: np.array(v) for k, v in info.items()}})
    return embedding, fitted, True


def _held_out_likelihood(
    model: Any, *, n_samples: int = 100, max_cells: int = 256
) -> dict[str, float]:
    """Importance-weighted log-likelihood of held-out cells (Burda et al. 2016).

    Nats per cell of the first ``max_cells`` held-out cells, which are the same for all models of
    one seed. The error of log Z is the same in every cell, hence in the mean.
    """
    out = {}
    held_out = model.validation_indices
    if held_out is not None and len(held_out):
        value = model.get_marginal_ll(
            indices=np.sort(held_out[:max_cells]), n_mc_samples=n_samples, return_mean=False
        )
        out["validation_iwae"] = float(value.mean())
    if isinstance(model, QBMVI):
        out["log_z_se"] = float(model.get_log_partition().standard_error)
    return out


def _save(path: Path, arrays: dict[str, Any], *, alone: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, alone=alone) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


@lru_cache
def _code() -> str:
    """A digest of this package's files: rows of one version number may be of different code."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    out = {"python": platform.python_version(), "code": _code()}
    for name in _PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def _reset_peak_memory() -> float:
    """What the process holds already, in MiB: earlier rows leave their libraries."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux: the peak is then that of the whole process
        pass
    return _peak_memory_mb()


def _peak_memory_mb() -> float:
    """Peak resident memory since the last reset, in MiB."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
