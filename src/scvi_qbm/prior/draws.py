"""Where negative samples are drawn: by a sampler on the host, or where the parameters are.

Two implementations of one protocol, see :class:`Draws`. Both keep *persistent chains*: a step of
training moves them a few sweeps on, towards the parameters as they are then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scvi_qbm.ising import Ising
from scvi_qbm.samplers import ChainSampler, Sampler
from scvi_qbm.samplers.engine import Chains, pool, processors
from scvi_qbm.samplers.engine.torch_chains import TorchChains, pack, unpack
from scvi_qbm.samplers.parallel_tempering import ParallelTempering
from scvi_qbm.samplers.torch_tempering import TorchTempering

from .saved import pack_chains, unpack_chains

#: Couplings W and biases h, in nats.
Parameters = tuple[Tensor, Tensor]

_DIVERGED = (
    "The Boltzmann machine's parameters are not finite: training has diverged. "
    "Lower lr or bm_lr in plan_kwargs, or pass gradient_clip_val to train()."
)
# A sampler without chains of its own gives so many states a step.
_INDEPENDENT = 256


def _is_time_to_adapt(step: int) -> bool:
    # The machine changes fastest at the start.
    return step in (8, 16, 32) or step % 50 == 0


class Draws(Protocol):
    """Samples of a Boltzmann machine whose parameters change at every step.

    ``submit`` asks for a draw, ``collect`` hands it over; between them the caller does something
    else. ``anchor`` puts states at equilibrium into the chains.
    """

    #: Steps taken so far.
    steps: int

    def snapshot(self, W: Tensor, h: Tensor) -> Parameters:
        """Copies of the parameters, in the precision and place of the draws."""

    @property
    def is_pending(self) -> bool:
        """Whether a draw is under way."""

    def submit(self, W: Tensor, h: Tensor, seed: Callable[[], int]) -> None:
        """Start a draw from the machine as it is now; none is under way."""

    def collect(self) -> tuple[Parameters, Tensor]:
        """Parameters that the draw was made for, and its codes, 0 and 1 ``(n_samples, n)``."""

    def start_from(self, spins: NDArray[np.int8]) -> None:
        """Begin with these states, -1 and +1 ``(any number, n)``: there are no chains yet."""

    def anchor(self, spins: NDArray[np.int8]) -> None:
        """Give such states to the chains that there are."""

    def forget(self) -> None:
        """Other parameters have come from elsewhere: drop the draw under way, keep the states."""

    def cancel(self) -> None:
        """End a draw under way, so that no machine's queue keeps the process alive."""

    def spins(self) -> NDArray[np.int8] | None:
        """States of the chains, if there are any."""

    def state(self) -> dict[str, Any]:
        """Tensors, numbers, lists and strings, for a checkpoint."""

    def load(self, state: dict[str, Any], stream: int) -> None:
        """Go on from :meth:`state`; with another ``stream`` by other random numbers."""


class HostDraws:
    """A sampler at work in a thread of the host, beside the encoder's and decoder's work."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.steps = 0
        self.chains: Any = None
        self._first_spins: NDArray[np.int8] | None = None
        self._pending: tuple[int, Parameters, Future[NDArray[np.int8]]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return self.__dict__ | {"_pending": None}

    def snapshot(self, W: Tensor, h: Tensor) -> Parameters:
        # Copies, also where they are in double precision on the host already.
        to = {"device": "cpu", "dtype": torch.float64, "copy": True}
        return W.detach().to(**to), h.detach().to(**to)

    @property
    def is_pending(self) -> bool:
        # A fork leaves the thread behind.
        return self._pending is not None and self._pending[0] == os.getpid()

    def submit(self, W: Tensor, h: Tensor, seed: Callable[[], int]) -> None:
        parameters = self.snapshot(W, h)
        drawn_seed = seed()
        if not all(torch.isfinite(x).all() for x in parameters):
            raise ValueError(_DIVERGED)
        future = pool(1).submit(self._draw, parameters, drawn_seed)
        self._pending = (os.getpid(), parameters, future)
        # Beside torch only on a processor of its own: OpenMP's threads spin while they wait, and
        # one busy processor too many can make a step 30 times slower. Nor beside anyone where it
        # reseeds generators that are not its own.
        spare = h.device.type != "cpu" or processors() > torch.get_num_threads()
        if not spare or self.sampler.touches_global_state:
            self._wait(future)

    def _draw(self, parameters: Parameters, seed: int) -> NDArray[np.int8]:
        # Checked in submit: validation would cost a tenth of the draw.
        ising = Ising._from_valid_boltzmann(*(x.numpy() for x in parameters))
        sampler = self.sampler
        if not isinstance(sampler, ChainSampler):
            return sampler.sample(ising, n_samples=_INDEPENDENT, seed=seed).spins
        if self.chains is None:
            self.chains = sampler.init(ising, seed=seed)
            if self._first_spins is not None and isinstance(self.chains, Chains):
                self.chains.adopt(self._first_spins)
            self._first_spins = None
        else:
            self.chains = sampler.retarget(self.chains, ising)
        self.chains = sampler.step(self.chains)
        self.steps += 1
        if _is_time_to_adapt(self.steps):
            self.chains = sampler.adapt(self.chains)
        return sampler.spins(self.chains)

    def collect(self) -> tuple[Parameters, Tensor]:
        assert self._pending is not None
        (_, parameters, future), self._pending = self._pending, None
        self._wait(future)
        return parameters, torch.from_numpy(((future.result() + 1) // 2).astype(np.float32))

    def start_from(self, spins: NDArray[np.int8]) -> None:
        self._first_spins = spins

    def anchor(self, spins: NDArray[np.int8]) -> None:
        self._settle()
        if isinstance(self.chains, Chains):
            self.chains.adopt(spins)

    def forget(self) -> None:
        self._settle()
        self._pending = None

    def cancel(self) -> None:
        self.sampler.cancel()
        if self.is_pending:
            wait([self._pending[2]], timeout=10)
        self._pending = None

    def spins(self) -> NDArray[np.int8] | None:
        self._settle()
        return self.chains.states() if isinstance(self.chains, Chains) else None

    def state(self) -> dict[str, Any]:
        self._settle()
        return {"kind": "host", "steps": self.steps, "chains": pack_chains(self.chains)}

    def load(self, state: dict[str, Any], stream: int) -> None:
        self.forget()
        self.chains, self.steps = None, 0
        if state["chains"] is None:
            return
        if state["kind"] == "host":
            self.chains, self.steps = unpack_chains(state["chains"], stream), state["steps"]
        else:
            there = unpack(state["chains"], torch.device("cpu"))
            self.start_from(there.states().to(torch.int8).numpy())

    def _wait(self, future: Future[NDArray[np.int8]]) -> None:
        try:
            wait([future])
        except (KeyboardInterrupt, SystemExit):
            self.cancel()
            raise

    def _settle(self) -> None:
        """Wait for the thread, whatever comes of it."""
        if self.is_pending:
            wait([self._pending[2]])


class DeviceDraws:
    """Chains on the parameters' device: no step of training waits for it.

    The host waits at the first step and where the ladder is adapted (after 8, 16, 32 and every 50
    steps); there parameters that are not finite are found.
    """

    def __init__(self, sampler: ParallelTempering, device: torch.device) -> None:
        self.sampler = TorchTempering(
            sampler.n_chains,
            sampler.n_sweeps,
            n_levels=sampler.n_levels,
            swap_rate=sampler.swap_rate,
            reference=sampler.reference,
            device=device,
        )
        self.device = device
        self.steps = 0
        self.chains: TorchChains | None = None
        self._first_spins: NDArray[np.int8] | None = None
        self._pending: tuple[Parameters, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A random generator and a CUDA graph stay where they are.
        chains = None if self.chains is None else pack(self.chains)
        return self.__dict__ | {"chains": chains}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.chains is not None:
            self.chains = unpack(state["chains"], self.device)

    def snapshot(self, W: Tensor, h: Tensor) -> Parameters:
        W, h = W.detach().to(self.device), h.detach().to(self.device)
        return W.float(), h.float().clone()

    @property
    def is_pending(self) -> bool:
        return self._pending is not None

    def submit(self, W: Tensor, h: Tensor, seed: Callable[[], int]) -> None:
        parameters = self.snapshot(W, h)
        if self.chains is None:
            self._check(parameters)
            arrays = (x.cpu().double().numpy() for x in parameters)
            self.chains = self.sampler.init(Ising.from_boltzmann(*arrays), seed=seed())
            if self._first_spins is not None:
                self.chains.adopt(torch.from_numpy(self._first_spins))
            self._first_spins = None
        else:
            W, h = parameters
            self.sampler.retarget_tensors(self.chains, -W / 4, -(h / 2 + W.sum(1) / 4))
        self.sampler.step(self.chains)
        self.steps += 1
        if _is_time_to_adapt(self.steps):
            self._check(parameters)
            self.chains = self.sampler.adapt(self.chains)
        self._pending = parameters, (self.chains.states() + 1) / 2

    def collect(self) -> tuple[Parameters, Tensor]:
        assert self._pending is not None
        drawn, self._pending = self._pending, None
        return drawn

    def start_from(self, spins: NDArray[np.int8]) -> None:
        self._first_spins = spins

    def anchor(self, spins: NDArray[np.int8]) -> None:
        if self.chains is not None:
            self.chains.adopt(torch.from_numpy(spins))

    def forget(self) -> None:
        self._pending = None
        if self.chains is not None:
            self.chains.faults.zero_()
            self.chains.forget()

    def cancel(self) -> None:
        self._pending = None

    def spins(self) -> NDArray[np.int8] | None:
        return None if self.chains is None else self.sampler.spins(self.chains)

    def state(self) -> dict[str, Any]:
        chains = None if self.chains is None else pack(self.chains)
        return {"kind": "device", "steps": self.steps, "chains": chains}

    def load(self, state: dict[str, Any], stream: int) -> None:
        self._pending = self.chains = None
        self.steps = 0
        if state["chains"] is None:
            return
        if state["kind"] == "device":
            self.chains, self.steps = unpack(state["chains"], self.device, stream), state["steps"]
        elif isinstance(there := unpack_chains(state["chains"], 0), Chains):
            self.start_from(there.states())

    def _check(self, parameters: Parameters) -> None:
        if not all(torch.isfinite(x).all() for x in parameters):
            self.chains = None
            raise ValueError(_DIVERGED)
