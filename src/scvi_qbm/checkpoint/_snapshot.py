"""What goes into the file: Lightning's checkpoint and all that it leaves out."""

from __future__ import annotations

from typing import Any

import torch
from scvi.dataloaders import DataSplitter

from scvi_qbm.plan import PRIOR_KEY

from . import _state

__all__ = ["FORMAT", "RUN_KEY", "loader_kind", "snapshot"]

RUN_KEY, FORMAT = "scvi_qbm_run", 1
_SPLIT = ("train_idx", "val_idx", "test_idx")


def snapshot(
    trainer: Any,
    pl_module: Any,
    *,
    finished: str | None,
    settings: dict[str, Any],
    epoch_start: dict[str, Any],
    history_before: Any,
) -> dict[str, Any] | None:
    """A run between two steps, or after the last; on rank 0, for which all ranks do this."""
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    generators = _state.generators(trainer.strategy.root_device)
    mine = {
        "settings": settings,
        "prior": checkpoint.pop(PRIOR_KEY, None),
        "generators": generators,
        "epoch_start": generators if finished else epoch_start,
        "epoch": {} if finished else _state.epoch_state(trainer, pl_module),
    }
    ranks: list[Any] = [mine] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(ranks, mine)
    if not trainer.is_global_zero:
        return None
    if not finished:
        _between_steps(checkpoint["loops"]["fit_loop"])
    # A limit of time is for each call.
    for key in [k for k in checkpoint["callbacks"] if k.startswith("Timer")]:
        del checkpoint["callbacks"][key]
    if ranks[0]["prior"] is not None:
        checkpoint[PRIOR_KEY] = ranks[0]["prior"]
    datamodule, split = trainer.datamodule, {}
    if isinstance(datamodule, DataSplitter):
        split = {k: torch.as_tensor(getattr(datamodule, k)) for k in _SPLIT}
    checkpoint[RUN_KEY] = {
        "format": FORMAT,
        "finished": finished,
        "loader": loader_kind(trainer),
        "split": split,
        "history": _state.plain_history(getattr(trainer.logger, "history", None) or {}),
        "history_before": history_before,
        "early_stopping": _state.early_stopping_state(trainer),
        "ranks": ranks,
    }
    return dict(checkpoint)


def loader_kind(trainer: Any) -> str:
    """``resumable`` in the middle of an epoch, by our loaders' protocol; otherwise ``plain``."""
    states = trainer.fit_loop._combined_loader._state_dicts()
    n_loaders = len(trainer.fit_loop._combined_loader.flattened)
    ours = len(states) == n_loaders and all("n_batches" in state for state in states)
    return "resumable" if ours else "plain"


def _between_steps(loop: dict[str, Any]) -> None:
    """Count the minibatch that was fetched but not trained on as one to come."""
    progress = loop["epoch_loop.batch_progress"]
    progress["is_last_batch"] = False
    for tracker in (progress["total"], progress["current"]):
        tracker.update(dict.fromkeys(("ready", "started", "processed"), tracker["completed"]))
    states = loop["state_dict"].get("combined_loader", [])
    if not all("n_batches" in state for state in states):
        del loop["state_dict"]["combined_loader"]  # another's, which we cannot set back
        return
    for state in states:
        state["n_batches"] = progress["current"]["completed"]
