"""The Boltzmann machine and its negative phase."""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scvi_qbm.diagnostics import total_variation
from scvi_qbm.ising import Ising
from scvi_qbm.logz import LogPartition, bar_from_chains, log_partition
from scvi_qbm.samplers import ChainSampler, Sampler, get_sampler
from scvi_qbm.samplers.corrected import Corrected, CorrectedState
from scvi_qbm.samplers.engine import Chains, pack, pool, processors, run, unpack
from scvi_qbm.samplers.exact import boltzmann_law
from scvi_qbm.samplers.parallel_tempering import ParallelTempering
from scvi_qbm.samplers.torch_tempering import TorchTempering

from ._binary import BinaryPrior
from ._device import ADAPT_EARLY, ADAPT_EVERY, DIVERGED, RECENT, DeviceNegativePhase
from ._plain import to_arrays, to_tensors
from ._report import NegativePhaseReport

__all__ = ["BoltzmannPrior"]

_TARGET_SE = 0.2
_RELAX = 32
_BLOCK = 32
_MAX_SWEEPS = 128
# Distance of a corrected heuristic to the exact law: up to so many units, from so many states.
_ENUMERABLE, _DISTANCE_STATES = 14, 4096

Parameters = tuple[NDArray[np.float64], NDArray[np.float64]]


def _energy(parameters: Parameters, z: NDArray[Any]) -> NDArray[np.float64]:
    # By torch: BLAS threads of numpy that spin beside torch's make training crawl.
    W, h, codes = (torch.from_numpy(x) for x in (*parameters, z.astype(np.float64)))
    out: NDArray[np.float64] = (codes @ h + 0.5 * ((codes @ W) * codes).sum(-1)).numpy()
    return out


def _rank() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if distributed else 0


def _over_ranks(value: LogPartition) -> LogPartition:
    """Mean of the ranks' independent estimates: all must quote, and stop by, the same bound."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    n_ranks = torch.distributed.get_world_size()
    backend = torch.distributed.get_backend()
    device = "cuda" if backend == "nccl" else "cpu"
    parts = torch.tensor(
        [value.value, value.standard_error**2], dtype=torch.float64, device=device
    )
    torch.distributed.all_reduce(parts)
    mean, variance = (parts / n_ranks).tolist()
    return LogPartition(mean, math.sqrt(variance / n_ranks))


class BoltzmannPrior(BinaryPrior):
    """A fully connected Boltzmann machine trained by persistent, tempered chains.

    The training chains temper from independent units with the machine's own means, which is cheap
    and mixes fast. A second set, tempered from uniform spins, gives log Z and checks on them at
    every estimate, and hands over its states.

    Parameters
    ----------
    n_latent
        Number of binary units, >= 2.
    sampler
        Name or instance, from :func:`scvi_qbm.list_samplers`. ``"parallel_tempering"`` becomes
        ``"torch_tempering"`` where the parameters are on an accelerator, and that one draws where
        they are (an instance of the former draws on the host). One whose law is ``heuristic``
        (CIM, annealers, dimod, Kaiwu) is corrected: every 50 steps 64 chains start afresh from its
        states, and Gibbs sweeps follow, ``max(10, n_latent // 10)`` a step. For other numbers
        pass ``sampler="corrected"`` or a
        :class:`~scvi_qbm.samplers.corrected.Corrected`.
    sampler_options
        Options of the sampler, where it is given by name. Tempering and Gibbs run 32 chains (16
        above 128 units) and ``max(5, n_latent // 25)`` sweeps a step by default.

    Raises
    ------
    ValueError
        If ``n_latent`` < 2 or the sampler is unknown.
    """

    W_upper: nn.Parameter

    def __init__(
        self,
        n_latent: int,
        sampler: str | Sampler = "parallel_tempering",
        sampler_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(n_latent)
        # Only the strict upper triangle is used and gets gradients.
        self.W_upper = nn.Parameter(torch.zeros(n_latent, n_latent))
        options = dict(sampler_options or {})
        tempering = ("parallel_tempering", "torch_tempering")
        if isinstance(sampler, str) and sampler in (*tempering, "gibbs"):
            # A larger machine moves more between steps and mixes more slowly (docs/training.md).
            n_sweeps = max(5, n_latent // 25)
            n_chains = 32 if n_latent <= 128 else 16
            options = {"n_chains": n_chains, "n_sweeps": n_sweeps} | options
        if isinstance(sampler, str) and sampler in tempering:
            options = {"reference": "magnetisation"} | options
        self._own_threads = not isinstance(sampler, str) or "n_threads" in options
        self.sampler = get_sampler(sampler, **options)
        if self.sampler.law == "heuristic":
            self.sampler = Corrected(
                self.sampler,
                n_sweeps=max(10, n_latent // 10),
                n_threads=options.get("n_threads"),
            )
        self._follows_device = isinstance(sampler, str) and sampler == "parallel_tempering"
        self._device: DeviceNegativePhase | None = None
        self._chains: Any = None
        self._reference: Any = None
        self._steps = self._since = 0
        self._recent: deque[NDArray[np.float64]] = deque(maxlen=RECENT)
        self._tracked: Parameters | None = None
        self._pending: tuple[int, Parameters, Future[NDArray[np.int8]]] | None = None

    def _on_device(self) -> DeviceNegativePhase | None:
        """The negative phase in tensors, if it is to be drawn where the parameters are."""
        device = self.h.device
        follows = self._follows_device and device.type != "cpu"
        if not (follows or isinstance(self.sampler, TorchTempering)):
            return None
        if self._device is None:
            self._device = DeviceNegativePhase(self.sampler, device)
        elif self._device.device != device:
            self._device = self._device.to(device)
        return self._device

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return self.__dict__ | {"_pending": None}

    def _wait(self, future: Future[NDArray[np.int8]]) -> None:
        try:
            wait([future])
        except (KeyboardInterrupt, SystemExit):
            self.cancel()
            raise

    def cancel(self) -> None:
        """Give up the draw under way: a machine's queue must not keep the process alive."""
        self.sampler.cancel()
        if self._pending is not None and self._pending[0] == os.getpid():
            wait([self._pending[2]], timeout=10)
        self._pending = None

    def _settle(self) -> None:
        """Wait for the thread, whatever comes of it."""
        if self._pending is not None and self._pending[0] == os.getpid():
            wait([self._pending[2]])

    def training_state(self) -> dict[str, Any]:
        """What :meth:`load_training_state` needs to go on: chains and what log Z is tracked by.

        Tensors, numbers and lists only, as a Lightning checkpoint wants them. A corrected
        heuristic's chains are not kept: they start afresh from its states every so often anyway.

        Returns
        -------
        dict[str, Any]
            ``chains`` by name, those of an accelerator as ``device``; ``steps`` taken and
            ``since`` the last estimate; ``recent`` energies in nats; ``tracked``, the W and h
            that log Z is known for, or None.
        """
        self._settle()
        on_device = self._on_device()
        chains = {
            name: to_tensors(pack(value))
            for name, value in (("chains", self._chains), ("reference", self._reference))
            if isinstance(value, Chains)
        }
        if on_device is not None:
            return {"chains": chains, **on_device.state()}
        return {
            "chains": chains,
            "steps": self._steps,
            "since": self._since,
            "recent": [torch.from_numpy(x) for x in self._recent],
            "tracked": None if self._tracked is None else [*map(torch.tensor, self._tracked)],
        }

    def load_training_state(self, state: dict[str, Any], stream: int | None = None) -> None:
        """Go on where :meth:`training_state` was taken.

        Parameters
        ----------
        state
            What it returned.
        stream
            Of random numbers: 0 goes on with those of the state, others with their own. The rank
            by default, of which each then has chains of its own.

        Raises
        ------
        ValueError
            If the chains belong to a machine of another size.
        """
        self._settle()
        self._pending = None
        # Lightning's checkpoint has rank 0's chains; the others go on from them by themselves.
        stream = _rank() if stream is None else stream
        from_device = state.get("device")
        for value in (*state["chains"].values(), *([from_device] if from_device else [])):
            if len(value["b"]) != self.n_latent:
                raise ValueError(
                    f"The checkpoint's chains have {len(value['b'])} units, this model "
                    f"{self.n_latent}."
                )
        on_device = self._on_device()
        if on_device is None and from_device:
            # From an accelerator to a host: its chains go on from those states.
            self._device = on_device = DeviceNegativePhase(
                TorchTempering(device="cpu"), torch.device("cpu")
            )
        if on_device is not None:
            on_device.load(state, stream)
        chains = {k: unpack(to_arrays(v), stream) for k, v in state["chains"].items()}
        if not isinstance(self.sampler, Corrected):
            self._chains = chains.get("chains")
        self._reference = chains.get("reference")
        self._steps, self._since = state["steps"], state["since"]
        self._recent = deque((x.cpu().numpy() for x in state["recent"]), maxlen=RECENT)
        tracked = state["tracked"]
        self._tracked = None if tracked is None else tuple(x.cpu().numpy() for x in tracked)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # log Z comes with the weights; what was tracked and seen belongs to those they replace.
        self._settle()
        self._pending, self._tracked = None, None
        self._recent.clear()
        if self._device is not None:
            self._device.forget()
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def W(self) -> Tensor:
        """Couplings in nats, ``(n_latent, n_latent)``, symmetric with zero diagonal."""
        upper = self.W_upper.triu(1)
        return upper + upper.T

    def energy(self, z: Tensor, *, detach: bool = False) -> Tensor:
        """Energy of codes, in nats.

        Parameters
        ----------
        z
            Codes ``(..., n_latent)``, 0 and 1; of probabilities in [0, 1] it is the expectation
            over independent units, as W has no diagonal.
        detach
            No gradients to the machine's parameters.

        Returns
        -------
        torch.Tensor
            Shape ``(...)``.
        """
        upper = self.W_upper.detach() if detach else self.W_upper
        return super().energy(z, detach=detach) + ((z @ upper.triu(1)) * z).sum(-1)

    def parameters_numpy(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Couplings and biases as arrays, in nats.

        Returns
        -------
        W : numpy.ndarray
            float64 ``(n_latent, n_latent)``, symmetric with zero diagonal, a copy.
        h : numpy.ndarray
            float64 ``(n_latent,)``, a copy.
        """
        upper = np.triu(self.W_upper.detach().cpu().double().numpy(), 1)
        return upper + upper.T, super().parameters_numpy()[1]

    def local_field(self, z: Tensor) -> Tensor:
        """Energy of switching each unit on, given the others: ``h + W z``, without gradients.

        Parameters
        ----------
        z
            Codes ``(..., n_latent)``; of probabilities it is the expectation over independent
            units.

        Returns
        -------
        torch.Tensor
            In nats, shape of ``z``: minus the log-odds of each unit under the prior.
        """
        return super().local_field(z) + z @ self.W.detach().to(z)

    def surrogate(self, q: Tensor) -> Tensor:
        """E(q) over cells minus E over negative samples, which it draws. The value means nothing.

        Parameters
        ----------
        q
            Posterior probabilities, ``(n_cells, n_latent)``, detached.

        Returns
        -------
        torch.Tensor
            A scalar for backpropagation.

        Raises
        ------
        ValueError
            If the machine's parameters are not finite.
        """
        negatives = torch.as_tensor(self._collect()).to(q)
        # Linear in the parameters, so the moments are the gradient: no graph through the energies.
        first = q.mean(0) - negatives.mean(0)
        second = q.T @ q / len(q) - negatives.T @ negatives / len(negatives)
        return self.h @ first + (self.W_upper * second.triu(1)).sum()

    @torch.compiler.disable
    def prefetch(self) -> None:
        """Start drawing negative samples in a thread, beside the encoder's and decoder's work.

        On an accelerator they go into its queue instead, and parameters that are not finite are
        found where its chains adapt, every 50 steps at the latest.

        Raises
        ------
        ValueError
            If the machine's parameters are not finite.
        """
        on_device = self._on_device()
        if on_device is not None:
            states = self._chains.states() if isinstance(self._chains, Chains) else None
            try:
                on_device.prefetch(self.W, self.h, self._seed, states)
                self._chains = None
                return
            except RuntimeError as error:
                # Some devices lack an operation; then as ever, on the host.
                if on_device.steps or not self._follows_device:
                    raise
                warnings.warn(
                    f"Negative samples come from the host, as {on_device.device} cannot: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self._follows_device, self._device = False, None
        if self._pending is not None and self._pending[0] != os.getpid():
            self._pending = None  # a fork leaves the thread behind
        if self._pending is None:
            parameters, seed = self.parameters_numpy(), self._seed()
            if not all(np.isfinite(x).all() for x in parameters):
                raise ValueError(DIVERGED)
            # Beside torch only on a processor of its own: OpenMP's threads spin while they wait,
            # and one busy processor too many can make a step 30 times slower.
            # Nor beside anyone where it reseeds generators that are not its own.
            spare = self.h.device.type != "cpu" or processors() > torch.get_num_threads()
            if not self._own_threads:
                for sampler in (self.sampler, getattr(self.sampler, "source", None)):
                    if hasattr(sampler, "n_threads"):
                        sampler.n_threads = 1
            future = pool(1).submit(self._draw, parameters, seed)
            self._pending = (os.getpid(), parameters, future)
            if not spare or self.sampler.touches_global_state:
                self._wait(future)

    @torch.compiler.disable
    def _collect(self) -> NDArray[np.float32] | Tensor:
        """Negative samples as 0 and 1, from the thread if one is at work."""
        self.prefetch()
        if (on_device := self._on_device()) is not None:
            return on_device.collect(self.log_z)
        assert self._pending is not None
        (_, parameters, future), self._pending = self._pending, None
        self._wait(future)
        spins = future.result()
        z = ((spins + 1) // 2).astype(np.float32)
        # At the parameters they were drawn for: the step that follows lifts these very samples.
        self._recent.append(_energy(parameters, z))
        self._since += 1
        self._follow_log_z(parameters, z)
        return z

    def _seed(self) -> int:
        """A seed from torch's generator (scvi.settings.seed sets it), another on each rank."""
        return int(torch.randint(2**62, ()).item()) + _rank()

    def _draw(self, parameters: Parameters, seed: int) -> NDArray[np.int8]:
        # Checked in prefetch: validation would cost a tenth of the draw.
        sampler, ising = self.sampler, Ising._from_valid_boltzmann(*parameters)
        if not isinstance(sampler, ChainSampler):
            return sampler.sample(ising, n_samples=256, seed=seed).spins
        if self._chains is None:
            self._chains = sampler.init(ising, seed=seed)
            if self._device is not None and isinstance(self._chains, Chains):
                # The model has come back from an accelerator.
                if (states := self._device.spins()) is not None:
                    self._chains.adopt(states)
                self._device = None
        else:
            self._chains = sampler.retarget(self._chains, ising)
        self._chains = sampler.step(self._chains)
        self._steps += 1
        # The machine changes fastest at the start: adapt after 8, 16, 32 steps, then regularly.
        if self._steps in ADAPT_EARLY or self._steps % ADAPT_EVERY == 0:
            self._chains = sampler.adapt(self._chains)
        return sampler.spins(self._chains)

    def _follow_log_z(self, current: Parameters, z: NDArray[np.float32]) -> None:
        r"""Carry log Z from the parameters it is known for to those of the newest samples.

        :math:`\Delta = -\log\langle e^{\Delta E}\rangle` over samples of the *new* machine: the
        old ones made the step, which raised their energies above everyone else's.
        """
        if self._tracked is not None:
            step = (current[0] - self._tracked[0], current[1] - self._tracked[1])
            change = _energy(step, z)
            self.log_z -= float(np.logaddexp.reduce(change) - math.log(len(change)))
        self._tracked = current

    def refresh_log_z(
        self, *, final: bool = False, over_ranks: bool = True
    ) -> NegativePhaseReport:
        """Estimate log Z by BAR on tempered chains, and check the negative phase against them.

        Parameters
        ----------
        final
            Start afresh from random states with long burn-in, so that nothing is taken over
            from the training chains: for the value that is reported in the end.
        over_ranks
            Average over the ranks of distributed training, which must all call this.

        Returns
        -------
        NegativePhaseReport
            Energies in nats; ``log_z`` and ``log_z_se`` are updated.
        """
        self._settle()
        parameters = self.parameters_numpy()
        tracked, ising = float(self.log_z), Ising.from_boltzmann(*parameters)
        chains = self._reference_chains(ising)
        value, energies = bar_from_chains(
            chains,
            _BLOCK,
            target_se=_TARGET_SE,
            max_sweeps=_MAX_SWEEPS,
            n_threads=torch.get_num_threads(),
        )
        if final:
            value = log_partition(ising, seed=self._seed())
        gap, gap_se = self._energy_gap(energies + ising.offset)
        if isinstance(self._chains, Chains):
            # Modes that the training chains miss reach them here, and their gradient next.
            self._chains.adopt(chains.states())
        n_steps, self._since = self._since, 0
        if (on_device := self._on_device()) is not None:
            n_steps = on_device.anchor(self.W, self.h, chains.states())
        self._tracked = parameters
        self._recent.clear()
        value = _over_ranks(value) if over_ranks else value
        self.log_z.fill_(value.value)
        self.log_z_se.fill_(value.standard_error)
        return NegativePhaseReport(
            value.value,
            value.standard_error,
            tracked - value.value,
            gap,
            gap_se,
            float(chains.n_levels),
            float(n_steps),
            *self._heuristic_report(ising),
        )

    def _heuristic_report(self, ising: Ising) -> tuple[float, ...]:
        """Temperatures and distance of a corrected heuristic, as in the report."""
        state = self._chains
        if not (isinstance(self.sampler, Corrected) and isinstance(state, CorrectedState)):
            return ()
        self.sampler.adapt(self.sampler.retarget(state, ising))
        temperatures = state.beta_drawn, state.beta_corrected
        if self.n_latent > _ENUMERABLE:
            return temperatures
        rounds = -(-_DISTANCE_STATES // self.sampler.n_chains)
        kept = []
        for _ in range(rounds):
            # Not by step(), which would ask the machine for more states.
            run(state.chains, self.sampler.n_sweeps, n_threads=self.sampler.n_threads)
            kept.append(self.sampler.spins(state))
        law = boltzmann_law(ising)
        return *temperatures, *total_variation(np.concatenate(kept), law)

    def _reference_chains(self, ising: Ising) -> Chains:
        """Chains of their own, tempered from uniform spins: no path learned in training."""
        tempering = ParallelTempering(n_chains=32, n_threads=torch.get_num_threads())
        if self._reference is None:
            self._reference = tempering.init(ising, seed=self._seed())
            self._reference = tempering.warm_up(self._reference, 8 * _RELAX)
        self._reference = tempering.retarget(self._reference, ising)
        self._reference = tempering.adapt(tempering.step(self._reference, _RELAX))
        tempering.step(self._reference, _RELAX // 4)
        return self._reference

    def _energy_gap(self, equilibrium: NDArray[np.float64]) -> tuple[float, float]:
        on_device = self._on_device()
        recent = self._recent if on_device is None else on_device.energies()
        if not recent:
            return 0.0, 0.0
        training = np.stack(recent).mean(axis=0)
        reference = equilibrium.mean(axis=0)
        variance = training.var() / training.size + reference.var() / reference.size
        return float(training.mean() - reference.mean()), float(np.sqrt(variance))
