"""scvi-tools' loader, able to go on in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain, islice
from typing import Any

import torch
from scvi.dataloaders import AnnDataLoader

__all__ = ["ResumableDataLoader"]


class _Order:
    """Order of an epoch's minibatches, each a list of positions; asked for once an epoch."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.resumed: dict[str, Any] = {}
        self.rng: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        resumed = self.resumed
        # The generator of whoever goes on is put back once the order is drawn.
        with torch.random.fork_rng(devices=[]) if resumed else nullcontext():
            if resumed:
                torch.set_rng_state(resumed["rng_state"].cpu())
            self.rng = torch.get_rng_state()
            batches = iter(self.sampler)
            first = next(batches, None)
        rest = batches if first is None else chain([first], batches)
        yield from islice(rest, resumed.get("n_batches", 0), None)


class ResumableDataLoader(AnnDataLoader):
    """scvi-tools' ``AnnDataLoader`` that can go on in the middle of an epoch.

    The order of an epoch is drawn from torch's generator as ever; its state before the draw is
    kept, so that the same order can be drawn once more. Minibatches that were given are not read
    again. With ``num_workers`` and distributed samplers, too.

    Parameters
    ----------
    *args, **kwargs
        As :class:`scvi.dataloaders.AnnDataLoader`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._order: _Order | None = None
        self._coming: dict[str, Any] = {}
        self._n_given = 0
        super().__init__(*args, **kwargs)

    @property
    def _index_sampler(self) -> Any:
        # What torch takes its batches of positions from, here as in the loop over them.
        if self._order is None:
            self._order = _Order(super()._index_sampler)
        return self._order

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch under way is.

        Returns
        -------
        dict[str, Any]
            ``n_batches`` given so far, in the order that torch's generator draws in
            ``rng_state``; ``epoch``, by which distributed samplers draw. Empty before the first.
        """
        order = self._index_sampler
        if order.rng is None:
            return {}
        state = {"n_batches": self._n_given, "rng_state": order.rng}
        epoch = getattr(self.sampler, "epoch", None)
        return state if epoch is None else state | {"epoch": epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next epoch where another one was: once, those after it are whole.

        Parameters
        ----------
        state
            What :meth:`state_dict` returned, of a loader of the same cells and batch size. After
            the last minibatch of an epoch, the next one begins.
        """
        over = state.get("n_batches", 0) >= len(self)
        self._coming = {} if over else dict(state)
        if "epoch" in state:
            self.sampler.set_epoch(state["epoch"])

    def __iter__(self) -> Iterator[Any]:
        self._index_sampler.resumed, self._coming = self._coming, {}
        self._n_given = self._index_sampler.resumed.get("n_batches", 0)
        # Not inside of a generator: here, and not later, torch draws the seed of its workers.
        return self._counted(super().__iter__())

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self._n_given += 1
            yield batch
