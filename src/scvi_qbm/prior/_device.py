"""The negative phase where the machine's parameters are: no step of training waits for it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scvi_qbm.ising import Ising
from scvi_qbm.samplers.engine.torch_chains import TorchChains, pack, unpack
from scvi_qbm.samplers.engine.torch_kernels import full_precision
from scvi_qbm.samplers.parallel_tempering import ParallelTempering
from scvi_qbm.samplers.torch_tempering import TorchTempering

ADAPT_EARLY, ADAPT_EVERY, RECENT = (8, 16, 32), 50, 16
DIVERGED = (
    "The Boltzmann machine's parameters are not finite: training has diverged. "
    "Lower lr or bm_lr in plan_kwargs, or pass gradient_clip_val to train()."
)

Parameters = tuple[Tensor, Tensor]


def energy(parameters: Parameters, z: Tensor) -> Tensor:
    """Energies of codes ``(n_codes, n)`` under couplings and biases, in nats."""
    W, h = parameters
    return z @ h + 0.5 * ((z @ W) * z).sum(-1)


class DeviceNegativePhase:
    """Persistent chains on the parameters' device, and what log Z is followed by.

    The steps of :class:`~scvi_qbm.prior.BoltzmannPrior`, in tensors. The host waits for the device
    at the first step and where the ladder is adapted (after 8, 16, 32 and every 50 steps); there
    parameters that are not finite are found.
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
        self.chains: TorchChains | None = None
        self.steps = self.since = 0
        self.recent: deque[Tensor] = deque(maxlen=RECENT)
        self.tracked: Parameters | None = None
        self.pending: tuple[Parameters, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A random generator and a CUDA graph stay where they are.
        chains = None if self.chains is None else pack(self.chains)
        return self.__dict__ | {"chains": chains}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.chains is not None:
            self.chains = unpack(state["chains"], self.sampler.device)

    @property
    def device(self) -> torch.device:
        return self.sampler.device

    def to(self, device: torch.device) -> DeviceNegativePhase:
        """The same phase on another device."""
        new = DeviceNegativePhase(self.sampler, device)
        new.load(self.state())
        return new

    def prefetch(
        self, W: Tensor, h: Tensor, seed: Callable[[], int], spins: NDArray[np.int8] | None
    ) -> None:
        """Put a step's draw in the device's queue, of the couplings and biases as they are.

        ``seed`` and ``spins`` (states to go on from, if there are any) are for the first step.
        """
        if self.pending is not None:
            return
        parameters = W.detach().float(), h.detach().float().clone()
        if self.chains is None:
            self._check(parameters)
            arrays = (x.cpu().double().numpy() for x in parameters)
            self.chains = self.sampler.init(Ising.from_boltzmann(*arrays), seed=seed())
            if spins is not None:
                self.chains.adopt(torch.from_numpy(spins))
        else:
            W, h = parameters
            self.sampler.retarget_tensors(self.chains, -W / 4, -(h / 2 + W.sum(1) / 4))
        self.sampler.step(self.chains)
        self.steps += 1
        if self.steps in ADAPT_EARLY or self.steps % ADAPT_EVERY == 0:
            self._check(parameters)
            self.chains = self.sampler.adapt(self.chains)
        self.pending = parameters, (self.chains.states() + 1) / 2

    def collect(self, log_z: Tensor) -> Tensor:
        r"""The draw's codes, 0 and 1 ``(n_chains, n)``; ``log_z`` is carried along, in place.

        By :math:`-\log\langle e^{\Delta E}\rangle` over samples of the *new* machine.
        """
        assert self.pending is not None
        (parameters, z), self.pending = self.pending, None
        with full_precision(z.device):
            # At the parameters they were drawn for: the step that follows lifts these samples.
            self.recent.append(energy(parameters, z))
            if self.tracked is not None:
                step = parameters[0] - self.tracked[0], parameters[1] - self.tracked[1]
                mean = torch.logsumexp(energy(step, z), 0) - math.log(len(z))
                log_z.sub_(mean.to(log_z))
        self.tracked = parameters
        self.since += 1
        return z

    def anchor(self, W: Tensor, h: Tensor, spins: NDArray[np.int8]) -> int:
        """Log Z is known for W and h now; ``spins`` are states at equilibrium to go on from.

        Returns the steps since the last time.
        """
        if self.chains is not None:
            self.chains.adopt(torch.from_numpy(spins))
        self.tracked = W.detach().float(), h.detach().float().clone()
        self.recent.clear()
        n_steps, self.since = self.since, 0
        return n_steps

    def forget(self) -> None:
        """Other parameters have come from elsewhere; the states stay, what was seen does not."""
        self.pending = self.tracked = None
        self.recent.clear()
        if self.chains is not None:
            self.chains.faults.zero_()
            self.chains.forget()

    def energies(self) -> list[NDArray[np.float64]]:
        """Of the last steps' samples, in nats; waits for the device."""
        return [x.cpu().double().numpy() for x in self.recent]

    def spins(self) -> NDArray[np.int8] | None:
        """States to go on from elsewhere, if there are any; waits for the device."""
        return None if self.chains is None else self.sampler.spins(self.chains)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: tensors of the CPU, numbers, lists."""
        tracked = None if self.tracked is None else [x.cpu().clone() for x in self.tracked]
        return {
            "device": None if self.chains is None else pack(self.chains),
            "steps": self.steps,
            "since": self.since,
            "recent": [x.cpu().clone() for x in self.recent],
            "tracked": tracked,
        }

    def load(self, state: dict[str, Any], stream: int = 0) -> None:
        """Go on from :meth:`state`; with another ``stream``, with other random numbers."""
        chains = state.get("device")
        self.chains = None if chains is None else unpack(chains, self.device, stream)
        # Without chains the next ones are new, and their ladder is to be tuned from the start.
        self.steps, self.since = state["steps"] if chains else 0, state["since"]
        self.recent = deque(map(self._tensor, state["recent"]), maxlen=RECENT)
        tracked = state["tracked"]
        self.tracked = tracked and tuple(map(self._tensor, tracked))
        self.pending = None

    def _tensor(self, x: Tensor) -> Tensor:
        return x.to(self.device, torch.float32)

    def _check(self, parameters: Parameters) -> None:
        if not all(torch.isfinite(x).all() for x in parameters):
            self.chains = None
            raise ValueError(DIVERGED)
