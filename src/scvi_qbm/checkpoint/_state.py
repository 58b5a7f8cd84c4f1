"""What Lightning's checkpoints leave out: generators, half an epoch's means, history."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping
from scvi.train import LoudEarlyStopping
from torchmetrics import Metric

__all__ = [
    "early_stopping_state", "epoch_state", "frames", "generators", "load_early_stopping_state",
    "load_epoch_state", "load_generators", "merge_means", "plain_history",
]  # fmt: skip


def generators(device: torch.device) -> dict[str, Any]:
    """States of the random generators that a step may draw from."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, next_gauss = random.getstate()
    out = {
        "torch": torch.get_rng_state(),
        # uint32, which torch stores only of late.
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(words), next_gauss],
    }
    if device.type == "cuda":
        out["device"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        out["device"] = torch.mps.get_rng_state()
    return out


def load_generators(state: dict[str, Any], device: torch.device) -> None:
    """Put :func:`generators` back; those of a device of another kind stay as they are."""
    torch.set_rng_state(state["torch"].cpu())
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), next_gauss))
    if "device" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["device"].cpu(), device)
    elif "device" in state and device.type == "mps":
        torch.mps.set_rng_state(state["device"].cpu())


def _metrics(plan: torch.nn.Module) -> dict[str, Metric]:
    """Sums that make the ELBO; what is put together from them has no state of its own."""
    return {
        name: module
        for name, module in plan.named_modules()
        if isinstance(module, Metric) and module._defaults
    }


def epoch_state(trainer: Any, plan: torch.nn.Module) -> dict[str, Any]:
    """Means over the epoch under way, as far as it went, and what callbacks see."""
    means = {}
    for key, item in trainer.fit_loop.epoch_loop._results.items():
        if item.is_tensor and item.meta.on_epoch and not item.has_reset:
            count = item.cumulated_batch_size if item.meta.is_mean_reduction else None
            means[key] = [_cpu(item.value), None if count is None else _cpu(count)]
    metrics = {
        name: [metric._update_count, {k: _cpu(getattr(metric, k)) for k in metric._defaults}]
        for name, metric in _metrics(plan).items()
    }
    logged = trainer._logger_connector
    kinds = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
    seen = {kind: {k: _cpu(v) for k, v in getattr(logged, kind).items()} for kind in kinds}
    validated = dict(trainer.fit_loop.epoch_loop.val_loop._seen_batches_per_dataloader)
    return {"means": means, "metrics": metrics, "seen": seen, "validated": validated}


def _cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def load_epoch_state(state: dict[str, Any], trainer: Any, plan: torch.nn.Module) -> None:
    """Put :func:`epoch_state` back, except the means, for :func:`merge_means`."""
    metrics, device = _metrics(plan), trainer.strategy.root_device
    if state["validated"]:
        _as_after_a_validation(trainer, state["validated"])
    for name, (count, values) in state["metrics"].items():
        if name in metrics:
            metrics[name]._update_count = count
            metrics[name]._computed = None
            for key, value in values.items():
                setattr(metrics[name], key, value.to(device))
    for kind, values in state["seen"].items():
        known = getattr(trainer._logger_connector, kind)
        known.update(
            {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        )


def _as_after_a_validation(trainer: Any, n_batches: dict[int, int]) -> None:
    """Count its minibatches; start its workers, if they stay, as they draw a seed only once."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    trainer.validating = True
    loop.setup_data()
    trainer.training = True
    loop._seen_batches_per_dataloader.update(n_batches)
    for loader in loop._combined_loader.flattened:
        if getattr(loader, "persistent_workers", False) and loader._iterator is None:
            iter(loader)


def merge_means(state: dict[str, Any], trainer: Any) -> None:
    """Add the steps before a break to the means, once the first step after it made them."""
    results = trainer.fit_loop.epoch_loop._results
    for key, (value, count) in state["means"].items():
        if key not in results:
            continue
        item = results[key]
        value = value.to(item.value.device)
        if item.meta.is_mean_reduction:
            # As it would have been added up: 0 + x is x, to the bit.
            item.value = value + item.value
            item.cumulated_batch_size = count.to(item.value.device) + item.cumulated_batch_size
        elif item.meta.is_sum_reduction:
            item.value = value + item.value
        else:
            item.value = item.meta.reduce_fx(torch.stack([value, item.value]))


def early_stopping_state(trainer: Any) -> list[dict[str, Any]]:
    """What scvi-tools' early stopping counts besides Lightning's."""
    return [
        {"_current_step": c._current_step, "early_stopping_reason": c.early_stopping_reason}
        for c in trainer.callbacks
        if isinstance(c, LoudEarlyStopping)
    ]


def load_early_stopping_state(state: list[dict[str, Any]], trainer: Any) -> None:
    """Put :func:`early_stopping_state` back."""
    callbacks = [c for c in trainer.callbacks if isinstance(c, LoudEarlyStopping)]
    for callback, values in zip(callbacks, state, strict=False):
        callback.__dict__.update(values)


def stopped_early(trainer: Any) -> bool:
    """Whether early stopping ended training."""
    return trainer.should_stop and any(
        isinstance(c, EarlyStopping)
        and (c.stopped_epoch > 0 or getattr(c, "early_stopping_reason", None) is not None)
        for c in trainer.callbacks
    )


def plain_history(history: dict[str, pd.DataFrame] | None) -> dict[str, Any] | None:
    """A history as lists, which need no pandas to be read."""
    if history is None:
        return None
    return {
        key: {
            "column": str(frame.columns[0]),
            "values": frame.iloc[:, 0].tolist(),
            "dtype": str(frame.dtypes.iloc[0]),
            "index": frame.index.tolist(),
            "index_dtype": str(frame.index.dtype),
            "index_name": frame.index.name,
        }
        for key, frame in history.items()
    }


def frames(history: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """The history that :func:`plain_history` saw, types included."""
    return {
        key: pd.DataFrame(
            {item["column"]: pd.Series(item["values"], dtype=item["dtype"]).to_numpy()},
            index=pd.Index(item["index"], dtype=item["index_dtype"], name=item["index_name"]),
        )
        for key, item in history.items()
    }
