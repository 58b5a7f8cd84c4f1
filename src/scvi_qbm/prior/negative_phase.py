"""The negative phase of training: samples of the prior for its gradient, and log Z along the way.

One step of training: :meth:`NegativePhase.submit` before the forward pass, and in the loss
:meth:`NegativePhase.collect`, whose samples go to :meth:`BoltzmannPrior.surrogate`. Every so often
:meth:`NegativePhase.refresh_log_z`.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvi_qbm.diagnostics import total_variation
from scvi_qbm.ising import Ising
from scvi_qbm.logz import LogPartition
from scvi_qbm.samplers import Sampler, get_sampler
from scvi_qbm.samplers.corrected import Corrected, CorrectedState
from scvi_qbm.samplers.engine import run
from scvi_qbm.samplers.exact import boltzmann_distribution
from scvi_qbm.samplers.parallel_tempering import ParallelTempering
from scvi_qbm.samplers.torch_tempering import TorchTempering

from .boltzmann import BoltzmannPrior
from .draws import DeviceDraws, Draws, HostDraws
from .log_z import LogZTracker, NegativePhaseReport
from .saved import n_units

__all__ = ["NegativePhase"]

_TEMPERING = ("parallel_tempering", "torch_tempering")
# A corrected heuristic's distance to the exact distribution: up to so many units, from so many
# states.
_ENUMERABLE, _DISTANCE_STATES = 14, 4096
# Above: of energies in bins, beside those of tempered chains.
_BINS, _CHAINS = 10, 32
# Nats: of a prior with no larger differences no energy tells anything.
_FLAT = 1e-3


def correct(sampler: Sampler, n_units: int, n_threads: int | None = None) -> Sampler:
    """A sampler fit for a prior: a heuristic one is finished by Gibbs sweeps.

    Parameters
    ----------
    sampler
        Any sampler.
    n_units
        Units of the machine; larger ones take more sweeps, ``max(10, n_units // 10)`` a step.
    n_threads
        Threads of the sweeps.

    Returns
    -------
    scvi_qbm.samplers.Sampler
        The sampler itself, if its guarantee is not ``heuristic``.
    """
    if sampler.guarantee != "heuristic":
        return sampler
    return Corrected(sampler, n_sweeps=max(10, n_units // 10), n_threads=n_threads)


class NegativePhase:
    """Samples of a Boltzmann prior for its gradient, from persistent chains; and its log Z.

    The training chains temper from independent units with the machine's own means, which is cheap
    and mixes fast. A second set, tempered from uniform spins, gives log Z and checks on them at
    every estimate, and hands over its states.

    Parameters
    ----------
    prior
        The prior, whose ``log_z`` and ``log_z_se`` are kept up to date.
    sampler
        Name or instance, from :func:`scvi_qbm.list_samplers`. ``"parallel_tempering"`` becomes
        ``"torch_tempering"`` where the parameters are on an accelerator, and that one draws where
        they are (an instance of the former draws on the host). One whose guarantee is
        ``heuristic`` (CIM, annealers, dimod, Kaiwu) is corrected: every 50 steps 64 chains start
        afresh from its states, and Gibbs sweeps follow, see :func:`correct`. For other numbers
        pass ``sampler="corrected"`` or a :class:`~scvi_qbm.samplers.corrected.Corrected`.
    sampler_options
        Options of the sampler, where it is given by name. Tempering and Gibbs run 32 chains (16
        above 128 units) and ``max(5, n_units // 25)`` sweeps a step by default.

    Raises
    ------
    ValueError
        If the sampler is unknown.
    """

    def __init__(
        self,
        prior: BoltzmannPrior,
        sampler: str | Sampler = "parallel_tempering",
        sampler_options: dict[str, Any] | None = None,
    ) -> None:
        self.prior = prior
        # Weights that come from elsewhere bring their own log Z.
        prior.register_load_state_dict_post_hook(self._weights_replaced)
        self.sampler = _sampler_for(prior.n_units, sampler, dict(sampler_options or {}))
        self._follows_device = isinstance(sampler, str) and sampler == "parallel_tempering"
        self.draws: Draws = HostDraws(self.sampler)
        self.tracker = LogZTracker()
        # Number of the heuristic's last draw, and what there is to say of it.
        self._of_draw: tuple[float, tuple[float, ...]] | None = None
        self._place()

    def _place(self) -> None:
        """Draw where the parameters are, if the sampler can; states move along."""
        device = self.prior.h.device
        follows = self._follows_device and device.type != "cpu"
        if follows or isinstance(self.sampler, TorchTempering):
            if isinstance(self.draws, DeviceDraws) and self.draws.device == device:
                return
            new: Draws = DeviceDraws(self.sampler, device)
        elif isinstance(self.draws, HostDraws):
            return
        else:
            new = HostDraws(self.sampler)
        spins = self.draws.spins()
        if spins is not None:
            new.start_from(spins)
        self.draws = new
        self.tracker.forget()

    @torch.compiler.disable
    def submit(self) -> None:
        """Start drawing samples of the prior as it is now; does nothing if that is under way.

        On the host a thread draws. On an accelerator the draw goes into its queue, and parameters
        that are not finite are found where the chains adapt, every 50 steps at the latest.

        Raises
        ------
        ValueError
            If the prior's parameters are not finite.
        """
        self._place()
        if self.draws.is_pending:
            return
        W, h = (x.detach() for x in self.prior.machine())
        try:
            self.draws.submit(W, h, _seed)
        except RuntimeError as error:
            # Some devices lack an operation; then as ever, on the host.
            if self.draws.steps or not self._follows_device:
                raise
            warnings.warn(
                f"Negative samples come from the host, as {self.prior.h.device} cannot: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            self._follows_device = False
            self.draws = HostDraws(self.sampler)
            self.draws.submit(W, h, _seed)

    @torch.compiler.disable
    def collect(self) -> Tensor:
        """The samples, for one step of training; ``prior.log_z`` is carried along.

        Returns
        -------
        torch.Tensor
            0 and 1, float32, ``(n_samples, n_units)``.
        """
        if not self.draws.is_pending:
            self.submit()
        parameters, z = self.draws.collect()
        self.tracker.follow(self.prior.log_z, parameters, z)
        return z

    def refresh_log_z(
        self, *, final: bool = False, over_ranks: bool = True
    ) -> NegativePhaseReport:
        """Estimate log Z by tempered chains, and compare the training samples with them.

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
            Energies in nats; ``prior.log_z`` and ``prior.log_z_se`` are updated.
        """
        prior = self.prior
        tracked, ising = float(prior.log_z), prior.ising()
        value, equilibrium = self.tracker.estimate(ising, _seed, final=final)
        gap, gap_se = self.tracker.energy_gap(equilibrium)
        # Modes that the training chains miss reach them here, and their gradient next.
        self.draws.anchor(self.tracker.reference.states())
        n_steps = self.tracker.anchor(self.draws.snapshot(*prior.machine()))
        value = _over_ranks(value) if over_ranks else value
        prior.log_z.fill_(value.value)
        prior.log_z_se.fill_(value.standard_error)
        return NegativePhaseReport(
            value.value,
            value.standard_error,
            tracked - value.value,
            gap,
            gap_se,
            float(self.tracker.reference.n_levels),
            float(n_steps),
            *self._heuristic_report(ising),
        )

    def _heuristic_report(self, ising: Ising) -> tuple[float, ...]:
        """Temperatures and distance of a corrected heuristic, as in the report."""
        sampler, state = self.sampler, getattr(self.draws, "chains", None)
        if not (isinstance(sampler, Corrected) and isinstance(state, CorrectedState)):
            return ()
        sampler.adapt(sampler.retarget(state, ising))
        if self._of_draw is None or self._of_draw[0] != state.n_draws:
            told = *_distance_of_draw(state), sampler.machine_share(state)
            self._of_draw = float(state.n_draws), told
        report = (
            *(state.beta_drawn, state.beta_drawn_se, state.beta_corrected),
            *self._of_draw[1],
            self._of_draw[0],
        )
        if self.prior.n_units > _ENUMERABLE:
            return report
        kept = []
        for _ in range(-(-_DISTANCE_STATES // sampler.n_chains) if sampler.n_sweeps else 1):
            # Not by step(), which would ask the machine for more states.
            run(state.chains, sampler.n_sweeps, n_threads=sampler.n_threads)
            kept.append(sampler.spins(state))
        return *report, *total_variation(np.concatenate(kept), boltzmann_distribution(ising))

    def keep_draws(self, directory: Path) -> None:
        """Keep what a machine answers, see :meth:`~scvi_qbm.samplers.base.Sampler.keep_draws`.

        Parameters
        ----------
        directory
            A folder; nothing is written where the sampler costs nothing.
        """
        self.sampler.keep_draws(directory)

    @contextlib.contextmanager
    def fewer_draws(self, times: int) -> Iterator[None]:
        """Within the context, start afresh from a heuristic's states so many times more rarely.

        Parameters
        ----------
        times
            Factor of the steps between draws, >= 1.

        Yields
        ------
        None
            Nothing.
        """
        sampler = self.sampler
        if not isinstance(sampler, Corrected):
            yield
            return
        before, sampler.redraw_every = sampler.redraw_every, sampler.redraw_every * times
        try:
            yield
        finally:
            sampler.redraw_every = before

    def cancel(self) -> None:
        """Give up the draw under way: a machine's queue must not keep the process alive."""
        self.draws.cancel()

    def _weights_replaced(self, *_: Any) -> None:
        self.draws.forget()
        self.tracker.forget()

    def state(self) -> dict[str, Any]:
        """What :meth:`load` needs to go on: chains and what log Z is tracked by.

        Returns
        -------
        dict[str, Any]
            Tensors, numbers, lists and strings only, as a checkpoint wants them.
        """
        return {"draws": self.draws.state(), "log_z": self.tracker.state()}

    def load(self, state: dict[str, Any], stream: int | None = None) -> None:
        """Go on where :meth:`state` was taken.

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
        stream = _rank() if stream is None else stream
        for saved in (state["draws"]["chains"], state["log_z"]["reference"]):
            if saved is not None and n_units(saved) != self.prior.n_units:
                raise ValueError(
                    f"The checkpoint's chains have {n_units(saved)} units, this model "
                    f"{self.prior.n_units}."
                )
        self._place()
        self._of_draw = None
        self.draws.load(state["draws"], stream)
        like = self.draws.snapshot(*self.prior.machine())
        self.tracker.load(state["log_z"], like, stream)


def _distance_of_draw(state: CorrectedState) -> tuple[float, float]:
    """Total variation of a machine's states to their distribution, and what is unavoidable."""
    model, reads = state.drawn_for, state.reads
    if model.n_spins <= _ENUMERABLE:
        return total_variation(reads, boltzmann_distribution(model))
    tempering = ParallelTempering(n_chains=_CHAINS, n_burn_in=300, n_threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log Z is looked at, and warned of, elsewhere
        there = tempering.sample(model, n_samples=32 * _CHAINS, seed=state.n_draws)
    if np.ptp(there.energies) < _FLAT:
        return math.nan, math.nan
    edges = np.quantile(there.energies, np.linspace(0, 1, _BINS + 1)[1:-1])
    distribution, seen = (
        np.bincount(np.searchsorted(edges, x), minlength=_BINS) / len(x)
        for x in (there.energies, model.energy(reads))
    )
    one_over_n = 1 / len(reads) + 1 / max(there.info["ess_energy"], 1.0)
    floor = np.sqrt(distribution * (1 - distribution) * one_over_n / (2 * math.pi)).sum()
    return float(0.5 * np.abs(distribution - seen).sum()), float(floor)


def _sampler_for(n_units: int, sampler: str | Sampler, options: dict[str, Any]) -> Sampler:
    if isinstance(sampler, str) and sampler in (*_TEMPERING, "gibbs"):
        # A larger machine moves more between steps and mixes more slowly (logbook/training.md).
        n_sweeps = max(5, n_units // 25)
        n_chains = 32 if n_units <= 128 else 16
        options = {"n_chains": n_chains, "n_sweeps": n_sweeps} | options
    if isinstance(sampler, str) and sampler in _TEMPERING:
        options = {"reference": "magnetisation"} | options
    out = correct(get_sampler(sampler, **options), n_units, options.get("n_threads"))
    if isinstance(sampler, str) and "n_threads" not in options:
        # One thread, beside torch's.
        for each in (out, getattr(out, "source", None)):
            if hasattr(each, "n_threads"):
                each.n_threads = 1
    return out


def _seed() -> int:
    """A seed from torch's generator (scvi.settings.seed sets it), another on each rank."""
    return int(torch.randint(2**62, ()).item()) + _rank()


def _rank() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if distributed else 0


def _over_ranks(value: LogPartition) -> LogPartition:
    """Mean of the ranks' independent estimates: all must quote, and stop by, the same ELBO."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    n_ranks = torch.distributed.get_world_size()
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    parts = torch.tensor(
        [value.value, value.standard_error**2], dtype=torch.float64, device=device
    )
    torch.distributed.all_reduce(parts)
    mean, variance = (parts / n_ranks).tolist()
    return LogPartition(mean, math.sqrt(variance / n_ranks))
