"""Tempered chains as torch tensors, on any device: the state behind ``torch_tempering``.

All levels of all ladders are columns ("lanes") of one tensor; a lane sits at inverse temperature
``lam`` of the path ``p_lam(s) ~ exp(base.s - lam * U(s))`` with ``U(s) = -s'Js/2 - c.s`` and
``c = b - base``, as in ``chains.py``.

Spins are updated block by block, each block B given all the others through a Gaussian auxiliary
variable (Martens and Sutskever 2010). With ``A = J_BB + D``, D a multiple of the identity that
makes A positive definite, and ``A = LL'``, at inverse temperature lam,

    y | s ~ N(sqrt(lam) L's_B, 1);
    s_B | y independent spins in the fields base + lam f + sqrt(lam) L y,

where f are the fields c + Js of the other blocks. So a block is drawn at once, in the fields
``base + lam (f + A s_B) + sqrt(lam) L xi``. They come fresh from the spins by one matrix product:
nothing is kept that could drift. The distribution is kept for any D; the larger lam D, the more
often a spin stays. A block of one spin is the sequential heat bath (D = 0); larger ones trade
mixing for fewer kernels.

Nothing in a sweep waits for the device, no shape depends on a value, and state changes in place:
it can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scvi_qbm.ising import Ising

from . import torch_kernels as kernels

F64 = NDArray[np.float64]

# Half the step of float32 uniforms: 0 is the one value whose logit is infinite.
_SMALLEST = 2.0**-25

_STATE = ("J", "b", "base", "lane_at", "heading", "swaps", "trips", "parity", "mean_spins",
          "n_means")  # fmt: skip


@dataclass
class TorchChains:
    """State of ``n_chains`` ladders of ``n_levels`` lanes; R lanes in all, n spins.

    ``spins`` (n, R), -1 and +1; ``lam`` (R,); ``J`` (n, n), ``b``, ``base`` and ``mean_spins``
    (n,): float32. ``A`` (n, n) is J with the blocks' D on its diagonal, ``root`` (n_blocks, B, B)
    their L; ``faults`` (1,) counts models that had none. ``lane_at`` int64 (n_chains, n_levels):
    which of a ladder's lanes is at each level; ``heading`` int64, the same shape, by lane: 0
    unknown, 1 to cold, 2 to hot. ``swaps`` (2, n_levels): acceptance probabilities and proposals
    of the pairs (k, k + 1); ``trips``, ``n_means`` and ``parity`` (1,).
    """

    ladder: F64
    n_chains: int
    generator: torch.Generator
    spins: Tensor
    lam: Tensor
    J: Tensor
    A: Tensor
    root: Tensor
    faults: Tensor
    b: Tensor
    base: Tensor
    lane_at: Tensor
    heading: Tensor
    swaps: Tensor
    trips: Tensor
    parity: Tensor
    mean_spins: Tensor
    n_means: Tensor
    levels: Tensor
    partners: Tensor
    n_updates: int = 0
    block: int = 0
    advance: Callable[[], None] | None = None

    @property
    def n_levels(self) -> int:
        """Levels of each ladder."""
        return len(self.ladder)

    @property
    def n_spins(self) -> int:
        """Spins of a state."""
        return len(self.b)

    @property
    def device(self) -> torch.device:
        """Where the chains are."""
        return self.spins.device

    @property
    def proposed(self) -> F64:
        """Swaps proposed by pair of neighbours; waits for the device."""
        return _numpy(self.swaps[1, :-1])

    @property
    def swap_rates(self) -> F64:
        """Mean acceptance probability by pair, NaN where none was proposed; waits."""
        with np.errstate(invalid="ignore"):
            out: F64 = _numpy(self.swaps[0, :-1]) / self.proposed
        return out

    @property
    def round_trips(self) -> int:
        """Round trips of all replicas; waits for the device."""
        return int(self.trips)

    def forget(self) -> None:
        """Reset the swap statistics."""
        for counts in (self.swaps, self.trips, self.heading):
            counts.zero_()

    def states(self, level: int = -1) -> Tensor:
        """Spins at one level, float32 (n_chains, n)."""
        first = torch.arange(self.n_chains, device=self.device) * self.n_levels
        return self.spins.index_select(1, first + self.lane_at[:, level]).T

    def energies(self) -> Tensor:
        """U of every lane, float32 (R,), less half the trace of A: the same for all."""
        twice = torch.addmm(2 * (self.b - self.base)[:, None], self.A, self.spins)
        return (self.spins * twice).sum(0).mul_(-0.5)

    def sweep(self) -> None:
        """Update every spin of all lanes once, block by block, in place."""
        spins, lam, block = self.spins, self.lam, self.block
        n, n_lanes = spins.shape
        linear = (self.b - self.base)[:, None]
        xi = spins.new_empty(len(self.root), block, n_lanes).normal_(generator=self.generator)
        # s = +1 where the field exceeds logistic noise: probability expit(2 field).
        margin = torch.empty_like(spins).uniform_(generator=self.generator)
        margin.clamp_(min=_SMALLEST).logit_().mul_(0.5).add_(self.base[:, None])
        margin.addcmul_(torch.bmm(self.root, xi).flatten(0, 1)[:n], lam.sqrt())
        one = torch.ones_like(lam)
        for first in range(0, n, block):
            rows = slice(first, first + block)
            fields = torch.addmm(linear[rows], self.A[rows], spins)
            torch.copysign(one, margin[rows].addcmul_(fields, lam), out=spins[rows])

    def swap(self) -> None:
        """Propose to exchange the levels of even or odd neighbours, in turn, in place."""
        lane_at, levels, heading = self.lane_at, self.levels, self.heading
        partner = self.partners.index_select(0, self.parity)[0]
        energy = self.energies().view(lane_at.shape).gather(1, lane_at)
        gap = energy - energy.index_select(1, partner)
        accept = ((levels - levels[partner]) * gap).clamp_(max=0).exp_()
        own = torch.arange(len(levels), device=levels.device)
        # Both of a pair look at the same number.
        draw = torch.rand(lane_at.shape, generator=self.generator, device=levels.device)
        draw = draw.index_select(1, torch.minimum(own, partner))
        lane_at.copy_(torch.where(draw < accept, lane_at.index_select(1, partner), lane_at))
        self.lam.view(lane_at.shape).scatter_(1, lane_at, levels.expand(lane_at.shape))
        # Probabilities, not outcomes: less noise at no cost.
        lower = partner > own
        self.swaps[0].add_(accept.sum(0) * lower)
        self.swaps[1].add_(lower, alpha=self.n_chains)
        self.parity.neg_().add_(1)

        hot, cold = lane_at[:, :1], lane_at[:, -1:]
        self.trips.add_((heading.gather(1, hot) == 2).sum())
        heading.scatter_(1, hot, 1)
        at_cold = heading.gather(1, cold)
        heading.scatter_(1, cold, at_cold + (at_cold == 1))

    @property
    def changing(self) -> tuple[Tensor, ...]:
        """What a sweep and its swaps write to."""
        return (self.spins, self.lam, self.lane_at, self.heading, self.swaps, self.trips,
                self.parity)  # fmt: skip

    def retarget(self, J: Tensor, b: Tensor) -> None:
        """Point the chains at another model of the same size; the blocks stay. Does not wait."""
        with kernels.full_precision(self.device):
            self.J.copy_(J)
            self.b.copy_(b)
            blocks = kernels.diagonal_blocks(self.J, self.block)
            shift = kernels.shifts(blocks)[:, None].expand(-1, self.block)
            self.A.copy_(self.J).diagonal().copy_(shift.flatten()[: self.n_spins])
            root, info = torch.linalg.cholesky_ex(blocks + torch.diag_embed(shift))
            self.root.copy_(root)
            fine = root.isfinite().all() & self.b.isfinite().all() & (info == 0).all()
            self.faults.add_(~fine)

    def choose_block(self) -> None:
        """The size of block with the most effective samples a kernel; waits for the device."""
        self.set_block(kernels.best_block(self.J))

    def set_block(self, block: int) -> None:
        """Go on with blocks of another size."""
        if block != self.block:
            shape = -(-self.n_spins // block), block, block
            self.block, self.root, self.advance = block, self.J.new_empty(shape), None
            self.retarget(self.J, self.b)

    def check(self) -> None:
        """Raise a ValueError if a model since the start had parameters that are not finite."""
        if self.faults.item():
            raise ValueError("Couplings or fields are not finite in single precision: start anew.")

    def adopt(self, spins: Tensor) -> None:
        """Put states, (any number, n), at the target level of the ladders, cyclically."""
        ladders = torch.arange(self.n_chains, device=self.device)
        lanes = ladders * self.n_levels + self.lane_at[:, -1]
        self.spins[:, lanes] = spins.to(self.spins)[ladders % len(spins)].T

    def follow_means(self, horizon: int) -> None:
        """Average the spins of the target level over the last ``horizon`` calls or so."""
        self.n_means.add_(1).clamp_(max=horizon)
        self.mean_spins.add_((self.states().mean(0) - self.mean_spins) / self.n_means)

    def rebase(self, shrink: float) -> None:
        """Have independent spins of the mean spins seen, shrunk, at lam = 0; lam = 1 stays."""
        self.base.copy_(torch.atanh(shrink * self.mean_spins))

    def relevel(self, ladder: F64) -> TorchChains:
        """The ladders on other levels: each takes the state of the nearest old level.

        As many levels stay in their places, so that a CUDA graph of the sweep stays good.
        """
        nearest = np.abs(self.ladder[None, :] - ladder[:, None]).argmin(axis=1)
        spins = torch.stack([self.states(int(level)).T for level in nearest], dim=2).flatten(1)
        if len(ladder) == self.n_levels:
            self.ladder = np.array(ladder, dtype=np.float64)
            self.levels.copy_(torch.from_numpy(self.ladder))
            self.spins.copy_(spins)
            self.lam.copy_(self.levels.repeat(self.n_chains))
            self.lane_at.copy_(torch.arange(len(ladder)))
            self.parity.zero_()
            self.forget()
            return self
        new = from_spins(spins, ladder, self.n_chains, self.base, self.generator)
        new.J.copy_(self.J)
        new.b.copy_(self.b)
        new.choose_block()
        new.mean_spins, new.n_means = self.mean_spins, self.n_means
        new.n_updates = self.n_updates
        return new


def _numpy(x: Tensor) -> F64:
    out: F64 = x.cpu().double().numpy()
    return out


def generator_on(device: torch.device, entropy: np.random.SeedSequence) -> torch.Generator:
    """The device's generator, seeded."""
    seed = int(entropy.generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


def from_spins(
    spins: Tensor, ladder: F64, n_chains: int, base: Tensor, generator: torch.Generator
) -> TorchChains:
    """Ladders at the states ``spins`` (n, n_chains * n_levels), without a model yet."""
    n, device, n_levels = len(spins), spins.device, len(ladder)
    order = np.arange(n_levels)
    # At parity 0 the pairs are (0, 1), (2, 3), ..., at parity 1 (1, 2), ...; ends stay alone.
    pairs = np.stack([order ^ 1, ((order + 1) ^ 1) - 1])
    partners = np.where((pairs < 0) | (pairs >= n_levels), order, pairs)
    levels = torch.tensor(ladder, dtype=torch.float32, device=device)

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return TorchChains(
        ladder=np.array(ladder, dtype=np.float64),
        n_chains=n_chains,
        generator=generator,
        spins=spins,
        lam=levels.repeat(n_chains),
        J=zeros(n, n),
        A=zeros(n, n),
        root=zeros(0),
        faults=zeros(1, dtype=torch.int64),
        b=zeros(n),
        base=base.clone(),
        lane_at=torch.arange(n_levels, device=device).repeat(n_chains, 1),
        heading=zeros(n_chains, n_levels, dtype=torch.int64),
        swaps=zeros(2, n_levels),
        trips=zeros(1, dtype=torch.int64),
        parity=zeros(1, dtype=torch.int64),
        mean_spins=zeros(n),
        n_means=zeros(1),
        levels=levels,
        partners=torch.tensor(partners, device=device),
    )


def start(
    ising: Ising, ladder: F64, n_chains: int, generator: torch.Generator, base: F64 | None = None
) -> TorchChains:
    """As :func:`.chains.start`, on the generator's device."""
    n, device = ising.n_spins, generator.device
    fields = tensor(np.zeros(n) if base is None else base, device)
    shape = n, n_chains * len(ladder)
    up = torch.rand(shape, generator=generator, device=device) < torch.sigmoid(2 * fields)[:, None]
    chains = from_spins(2 * up.float() - 1, ladder, n_chains, fields, generator)
    chains.J.copy_(tensor(ising.J, device))
    chains.b.copy_(tensor(ising.b, device))
    chains.choose_block()
    return chains


def tensor(x: NDArray[Any], device: torch.device) -> Tensor:
    """A float32 copy on the device."""
    return torch.from_numpy(np.asarray(x, dtype=np.float32).copy()).to(device)


def run(chains: TorchChains, n_sweeps: int) -> None:
    """Advance all ladders by sweeps, each followed by swaps; does not wait for the device."""

    def advance() -> None:
        chains.sweep()
        chains.swap()

    with kernels.full_precision(chains.device):
        if chains.advance is None:
            chains.advance = kernels.captured(
                advance, chains.device, chains.generator, chains.changing
            )
        for _ in range(n_sweeps):
            chains.advance()
    chains.n_updates += n_sweeps * chains.spins.numel()


def collect(
    chains: TorchChains, n_samples: int, n_sweeps: int
) -> tuple[NDArray[np.int8], dict[str, Any]]:
    """As :func:`.chains.collect`, without levels; waits for the device at the end."""
    kept = []
    for _ in range(-(-n_samples // chains.n_chains)):
        run(chains, n_sweeps)
        kept.append(chains.states().to(torch.int8))
    chains.check()
    spins = torch.stack(kept).cpu().numpy()
    return spins, {
        "n_updates": chains.n_updates,
        "n_chains": chains.n_chains,
        "n_sweeps": n_sweeps,
    }


def pack(chains: TorchChains) -> dict[str, Any]:
    """Everything that :func:`unpack` needs: tensors of the CPU, numbers, strings."""
    return {
        "device": chains.device.type,
        "n_chains": chains.n_chains,
        "n_updates": chains.n_updates,
        "block": chains.block,
        "ladder": torch.from_numpy(chains.ladder.copy()),
        "generator": chains.generator.get_state().cpu().clone(),
        "spins": chains.spins.to("cpu", torch.int8, copy=True),
        "lam": chains.lam.to("cpu", copy=True),
        **{name: getattr(chains, name).to("cpu", copy=True) for name in _STATE},
    }


def unpack(saved: dict[str, Any], device: torch.device, stream: int = 0) -> TorchChains:
    """The chains that :func:`pack` saw, on a device.

    With a ``stream`` other than 0, or on another kind of device, their states go on with other
    random numbers.
    """
    state = saved["generator"].cpu()
    if stream or saved["device"] != device.type:
        words = state.numpy().tobytes()
        generator = generator_on(
            device, np.random.SeedSequence([stream, *np.frombuffer(words, np.uint8).tolist()])
        )
    else:
        generator = torch.Generator(device)
        generator.set_state(state)
    spins = saved["spins"].to(device, torch.float32)
    base = saved["base"].to(device)
    chains = from_spins(spins, saved["ladder"].cpu().numpy(), saved["n_chains"], base, generator)
    for name in ("lam", *_STATE):
        getattr(chains, name).copy_(saved[name])
    chains.n_updates = saved["n_updates"]
    chains.set_block(saved["block"])
    return chains
