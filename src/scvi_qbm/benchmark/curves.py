"""Scores by epoch: does a model get there sooner than its twin?"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.progress import track

from scvi_qbm.benchmark.data.specs import resolve
from scvi_qbm.benchmark.metrics.classify import knn_probe

from .config import Config
from .measure import prepared
from .methods import get_method
from .rows import Rows
from .scores import score_embedding

#: Epochs after which an embedding is scored, denser early on, where scores change.
EPOCHS = (1, 2, 3, 5, 8, 12, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400)


class _Embeddings(lightning.Callback):
    """Keeps the embedding of all cells after some epochs; leaves the training as it was."""

    def __init__(self, epochs: Sequence[int]) -> None:
        self.epochs = frozenset(epochs)
        self.kept: dict[int, NDArray[Any]] = {}
        self.model: Any = None

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        if epoch not in self.epochs:
            return
        module = self.model.module
        training, trained = module.training, self.model.is_trained_
        numpy_state = np.random.get_state()
        try:
            with torch.random.fork_rng():
                module.eval()
                self.model.is_trained_ = True
                self.model._alignment_ = None  # not that of an earlier epoch
                self.kept[epoch] = np.asarray(self.model.get_latent_representation())
        finally:
            np.random.set_state(numpy_state)
            self.model.is_trained_ = trained
            module.train(training)


def score_by_epoch(
    config: Config,
    out: Path,
    *,
    methods: Sequence[str] = ("qbmvi", "gaussian"),
    epochs: Sequence[int] = EPOCHS,
    n_threads: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """Score embeddings in the course of training, without early stopping.

    Clustering scores, kNN label entropy and the kNN probe: those that are quick.

    Rows are kept in ``out/curves.jsonl`` as they are ready.
    """
    for name in methods:
        if "on_model" not in signature(get_method(name).run).parameters:
            raise ValueError(f"{name!r} cannot be looked at while it trains; QBMVI and twins can.")
    rows = Rows(Path(out), "curves")
    todo = []
    for seed in range(config.seeds):
        for spec in map(resolve, config.data):
            for name in methods:
                budget = spec.max_epochs or config.max_epochs or get_method(name).max_epochs
                wanted = [e for e in epochs if e <= budget]
                key = {"data": spec.name, "method": name, "seed": seed}
                if {**key, "epoch": wanted[-1]} not in rows:
                    todo.append((spec, key, budget, wanted))
    groups = ("clustering", "local")
    for spec, key, budget, wanted in track(todo, description="Curves", disable=not progress):
        adata, known = prepared(spec, Path(out))
        seed = key["seed"]
        kept = _train(key["method"], adata, spec.batch_key, seed, budget, wanted)
        for epoch, embedding in kept.items():
            if {**key, "epoch": epoch} not in rows:
                scores, _ = score_embedding(
                    embedding, known, groups=groups, seed=seed, n_jobs=n_threads
                )
                scores["knn_f1"] = knn_probe(embedding, known.labels).macro_f1
                rows.add({**key, "epoch": epoch}, scores)
    return rows.frame()


def _train(
    name: str, adata: Any, batch_key: str | None, seed: int, budget: int, epochs: Sequence[int]
) -> dict[int, NDArray[Any]]:
    callback = _Embeddings(epochs)
    get_method(name).run(
        adata,
        batch_key=batch_key,
        seed=seed,
        max_epochs=budget,
        train_kwargs={
            "callbacks": [callback],
            "early_stopping": False,
            "enable_progress_bar": False,
        },
        on_model=lambda model: setattr(callback, "model", model),
    )
    return callback.kept
