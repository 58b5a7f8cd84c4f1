"""Many tempered chains at once: the state behind gibbs, parallel tempering and AIS.

A *ladder* is one chain a level of the path ``p_lam(s) ~ exp(base.s - lam * U(s))``; level 0 is
``lam = 0`` (independent spins) in tempering, the last is ``lam = 1``, the target. Ladders are
packed into chunks of about 64 lanes, the unit of SIMD width, cache use and threading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scvi_qbm.diagnostics import effective_sample_size, rhat_limit, split_rhat
from scvi_qbm.ising import Ising

from .kernels import anneal_chunk, refresh_chunk, run_chunk
from .rng import lane_states
from .simd import aligned_zeros
from .threads import spread

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

LANES = 64
REFRESH = 256

_ARRAYS = (
    "spins", "fields", "energy", "lam", "rng", "lane_at", "heading", "accepted", "proposed",
    "mean_spins",
)  # fmt: skip
_NUMBERS = ("n_means", "round_trips", "sweeps", "n_updates")


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass
class Chains:
    """State of ``n_chains`` ladders; the last axis of the chunk arrays counts lanes.

    ``spins`` float32 (n_chunks, n, W), ``fields`` float32 (n_chunks, W, stride), ``energy``
    float64 (n_chunks, W), ``lam`` float32 (n_chunks, W), ``rng`` uint32 (n_chunks, 4, W),
    ``lane_at`` and ``heading`` int64: see ``kernels.py``.
    """

    ising: Ising
    base: F64
    ladder: F64
    n_chains: int
    J: F32
    linear: F32
    spins: F32
    fields: F32
    energy: F64
    lam: F32
    rng: NDArray[np.uint32]
    lane_at: NDArray[np.int64]
    heading: NDArray[np.int64]
    accepted: F64
    entropy: np.random.SeedSequence
    proposed: NDArray[np.int64]
    mean_spins: F64
    n_means: int = 0
    round_trips: int = 0
    sweeps: int = 0
    n_updates: int = 0

    @property
    def n_levels(self) -> int:
        """Levels of each ladder."""
        return int(self.ladder.shape[0])

    @property
    def swap_rates(self) -> F64:
        """Mean acceptance probability of each pair of neighbours, NaN where none was proposed."""
        with np.errstate(invalid="ignore"):
            out: F64 = self.accepted / self.proposed
        return out

    @property
    def log_z_base(self) -> float:
        """Log Z at lam = 0, where spins are independent."""
        return float(np.logaddexp(self.base, -self.base).sum())

    def forget(self) -> None:
        """Reset the swap statistics."""
        self.accepted[:] = 0
        self.proposed[:] = 0
        self.round_trips = 0
        self.heading[:] = 0

    def at_levels(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of lanes, (n_chunks, W), in the order of the levels: (n_chains, n_levels)."""
        chunks = np.arange(len(values))[:, None, None]
        return values[chunks, self.lane_at].reshape(-1, self.n_levels)[: self.n_chains]

    def states(self, level: int = -1) -> NDArray[np.int8]:
        """Spins at one level, int8 (n_chains, n)."""
        lanes = self.lane_at[:, :, level]
        picked = np.take_along_axis(self.spins, lanes[:, None, :], axis=2)
        out = picked.transpose(0, 2, 1).reshape(-1, self.ising.n_spins)[: self.n_chains]
        return out.astype(np.int8)

    def retarget(self, ising: Ising) -> None:
        """Point the chains at another model of the same size."""
        n = ising.n_spins
        if n != self.ising.n_spins:
            raise ValueError(
                f"The chains hold {self.ising.n_spins} spins, the new model has {n}: start anew."
            )
        self.ising = ising
        self.J[:, :n] = ising.J
        self.linear[:] = ising.b - self.base
        self.refresh()

    def refresh(self) -> None:
        """Recompute fields and energies from the spins, removing float32 drift."""
        used = self.lane_at.shape[1] * self.n_levels
        # Not numpy's matmul: BLAS threads that spin beside torch's make training crawl.
        for spins, fields, energy in zip(self.spins, self.fields, self.energy, strict=True):
            refresh_chunk(self.J, self.linear, spins, fields, energy, used)

    def relevel(self, ladder: F64) -> Chains:
        """The same ladders on other levels: each takes the state of the nearest old level."""
        new = start(self.ising, ladder, self.n_chains, self.entropy, self.base)
        nearest = np.abs(self.ladder[None, :] - new.ladder[:, None]).argmin(axis=1)
        stacked = np.stack([self.states(level) for level in nearest], axis=1)
        n_chunks, per_chunk = new.lane_at.shape[:2]
        used = per_chunk * new.n_levels
        padded = np.resize(stacked, (n_chunks * per_chunk, *stacked.shape[1:]))
        new.spins[:, :, :used] = padded.reshape(n_chunks, used, -1).transpose(0, 2, 1)
        new.sweeps, new.n_updates = self.sweeps, self.n_updates
        new.mean_spins, new.n_means = self.mean_spins, self.n_means
        new.refresh()
        return new

    def follow_means(self, horizon: int) -> None:
        """Average the spins of the target level over the last ``horizon`` calls or so."""
        self.n_means = min(self.n_means + 1, horizon)
        self.mean_spins += (self.states().mean(axis=0) - self.mean_spins) / self.n_means

    def rebase(self, shrink: float) -> None:
        """Have independent spins of the mean spins seen, shrunk, at lam = 0; lam = 1 stays."""
        self.base = np.arctanh(shrink * self.mean_spins)
        self.retarget(self.ising)

    def adopt(self, spins: NDArray[np.int8]) -> None:
        """Put states, int8 (any number, n), at the target level of the ladders, cyclically."""
        n_chunks, per_chunk = self.lane_at.shape[:2]
        placed = np.resize(spins, (n_chunks, per_chunk, self.ising.n_spins))
        for c in range(n_chunks):
            self.spins[c][:, self.lane_at[c, :, -1]] = placed[c].T
        self.refresh()


def start(
    ising: Ising,
    ladder: F64,
    n_chains: int,
    entropy: np.random.SeedSequence,
    base: F64 | None = None,
) -> Chains:
    """Ladders at independent states: the distribution at lam = 0, spins in the fields ``base``.

    The target at lam = 1 is ``ising``: scale it by beta first.
    """
    n, n_levels = ising.n_spins, len(ladder)
    per_chunk = max(1, min(n_chains, LANES // n_levels))
    n_chunks = -(-n_chains // per_chunk)
    per_chunk = -(-n_chains // n_chunks)
    width = _round_up(per_chunk * n_levels, 16)
    # 16 floats of padding keep rows from falling on the same cache sets when n is a power of 2.
    stride = _round_up(n, 16) + 16
    base = np.zeros(n) if base is None else np.asarray(base, dtype=np.float64)
    init_entropy, lane_entropy, next_entropy = entropy.spawn(3)
    used = per_chunk * n_levels
    words = lane_states(lane_entropy, n_chunks * used).reshape(4, n_chunks, used)
    rng = np.ones((n_chunks, 4, width), dtype=np.uint32)
    rng[:, :, :used] = words.transpose(1, 0, 2)
    generator = np.random.default_rng(init_entropy)
    up = generator.random((n_chunks * per_chunk, n_levels, n)) < 1 / (1 + np.exp(-2 * base))
    spins = aligned_zeros((n_chunks, n, width), np.float32)
    spins[:] = 1
    spins[:, :, :used] = np.where(up, 1, -1).reshape(n_chunks, used, n).transpose(0, 2, 1)
    lane_at = np.arange(used, dtype=np.int64).reshape(1, per_chunk, n_levels)
    lam = np.zeros((n_chunks, width), dtype=np.float32)
    lam[:, :used] = np.tile(ladder, per_chunk)
    chains = Chains(
        ising=ising,
        base=base,
        ladder=np.array(ladder, dtype=np.float64),
        n_chains=n_chains,
        J=aligned_zeros((n, stride), np.float32),
        linear=np.zeros(n, dtype=np.float32),
        spins=spins,
        fields=aligned_zeros((n_chunks, width, stride), np.float32),
        energy=np.zeros((n_chunks, width)),
        lam=lam,
        rng=rng,
        lane_at=np.repeat(lane_at, n_chunks, axis=0),
        heading=np.zeros((n_chunks, width), dtype=np.int64),
        accepted=np.zeros(max(n_levels - 1, 0)),
        proposed=np.zeros(max(n_levels - 1, 0), dtype=np.int64),
        entropy=next_entropy,
        mean_spins=np.zeros(n),
    )
    chains.retarget(ising)
    return chains


def run(chains: Chains, n_sweeps: int, *, record: bool = False, n_threads: int = 1) -> F64 | None:
    """Advance all ladders by sweeps with a swap after each.

    With ``record`` returns the energies ``U`` by level, float64 (n_sweeps, n_chains, n_levels).
    """
    n_chunks, per_chunk, n_levels = chains.lane_at.shape
    shape = (n_chunks, n_sweeps if record else 0, per_chunk, n_levels)
    trace = np.empty(shape)
    base = chains.base.astype(np.float32)
    accepted = np.zeros((n_chunks, chains.accepted.shape[0]))
    done = 0
    while done < n_sweeps:
        block = min(REFRESH, n_sweeps - done)
        parity = chains.sweeps % 2
        pieces = [
            (
                chains.J,
                base,
                chains.ladder,
                chains.spins[c],
                chains.fields[c],
                chains.energy[c],
                chains.lam[c],
                chains.rng[c],
                chains.lane_at[c],
                chains.heading[c],
                accepted[c],
                block,
                parity,
                trace[c, done : done + block],
            )
            for c in range(n_chunks)
        ]
        chains.round_trips += sum(spread(lambda args: run_chunk(*args), pieces, n_threads))
        for start_at in (0, 1):
            swaps = (block + 1 - (parity != start_at)) // 2
            chains.proposed[start_at::2] += swaps * per_chunk * n_chunks
        chains.sweeps += block
        done += block
        if block == REFRESH:
            chains.refresh()
    chains.accepted += accepted.sum(axis=0)
    chains.n_updates += n_sweeps * n_chunks * per_chunk * n_levels * chains.ising.n_spins
    if not record:
        return None
    return trace.transpose(1, 0, 2, 3).reshape(n_sweeps, -1, n_levels)[:, : chains.n_chains]


def anneal(chains: Chains, betas: F64, n_threads: int = 1, *, metropolis: bool = False) -> None:
    """One sweep of every chain (ladders of one level) at each inverse temperature in turn."""
    used = chains.lane_at.shape[1]
    base = chains.base.astype(np.float32)

    def work(c: int) -> None:
        state = chains.spins[c], chains.fields[c], chains.energy[c], chains.lam[c], chains.rng[c]
        anneal_chunk(chains.J, base, chains.linear, betas, *state, used, REFRESH, metropolis)

    spread(work, range(len(chains.spins)), n_threads)
    chains.sweeps += len(betas)
    chains.n_updates += len(betas) * used * len(chains.spins) * chains.ising.n_spins


def collect(
    chains: Chains, n_samples: int, n_sweeps: int, n_threads: int, *, levels: bool = False
) -> tuple[NDArray[np.int8], dict[str, Any]]:
    """Keep the target level's states every ``n_sweeps`` sweeps, (n_rounds, n_chains, n).

    With ``levels`` the energies of all levels too, and the flow of states along the ladder.
    """
    n_rounds = -(-n_samples // chains.n_chains)
    kept = np.empty((n_rounds, chains.n_chains, chains.ising.n_spins), dtype=np.int8)
    tempered = np.empty((n_rounds if levels else 0, chains.n_chains, chains.n_levels))
    cooling, heating = np.zeros(chains.n_levels), np.zeros(chains.n_levels)
    for t in range(n_rounds):
        run(chains, n_sweeps, n_threads=n_threads)
        kept[t] = chains.states()
        if levels:
            tempered[t] = chains.at_levels(chains.energy)
            heading = chains.at_levels(chains.heading)
            cooling += (heading == 1).sum(axis=0)
            heating += (heading == 2).sum(axis=0)
    info: dict[str, Any] = {
        "n_updates": chains.n_updates,
        "n_chains": chains.n_chains,
        "n_sweeps": n_sweeps,
    }
    if levels:
        info["level_energies"] = tempered
        with np.errstate(invalid="ignore"):
            info["flow"] = cooling / (cooling + heating)
    return kept, info


def mixing(
    ising: Ising, kept: NDArray[np.int8], looks: NDArray[np.int8] | None = None
) -> dict[str, Any]:
    """R-hat of the energy and of the overlap with the best state, and ESS of the energy.

    ``kept`` are states (n_rounds, n_chains, n); R-hat is that of ``looks``, if there are some.
    Fewer than 4 say nothing. Where no fields tell up from down, neither does the overlap.
    """
    kept_energies = ising.energy(kept)
    seen, energies = (kept, kept_energies) if looks is None else (looks, ising.energy(looks))
    out: dict[str, Any] = {}
    if len(seen) >= 4:
        best = seen.reshape(-1, ising.n_spins)[energies.argmin()]
        overlap = seen @ best.astype(np.float64)
        overlap = overlap if ising.b.any() else np.abs(overlap)
        out |= {
            "rhat_energy": split_rhat(energies.T),
            "rhat_overlap": split_rhat(overlap.T),
            "rhat_limit": rhat_limit(kept.shape[1], len(seen)),
        }
    if len(kept) >= 4:
        out["ess_energy"] = effective_sample_size(kept_energies.T)
    return out


def pack(chains: Chains) -> dict[str, Any]:
    """Chains as plain arrays and numbers, for checkpoints: exact to the bit and the next draw."""
    entropy = chains.entropy.entropy
    arrays = {name: getattr(chains, name).copy() for name in _ARRAYS}
    # uint32, which torch stores only of late.
    arrays["rng"] = arrays["rng"].view(np.int32)
    return {
        "J": chains.ising.J.copy(),
        "b": chains.ising.b.copy(),
        "offset": float(chains.ising.offset),
        "base": chains.base.copy(),
        "ladder": chains.ladder.copy(),
        "n_chains": chains.n_chains,
        # 128 bits, which not every reader of checkpoints takes for a number.
        "entropy": [str(e) for e in np.atleast_1d(np.array(entropy, dtype=object))],
        "spawn_key": list(chains.entropy.spawn_key),
        "n_spawned": chains.entropy.n_children_spawned,
        "arrays": arrays,
        "numbers": {name: int(getattr(chains, name)) for name in _NUMBERS},
    }


def unpack(saved: dict[str, Any], stream: int = 0) -> Chains:
    """The chains that :func:`pack` saw; with a ``stream`` they go on with other random numbers."""
    entropy = [int(e) for e in saved["entropy"]]
    chains = start(
        Ising(np.asarray(saved["J"]), np.asarray(saved["b"]), offset=saved["offset"]),
        np.asarray(saved["ladder"]),
        saved["n_chains"],
        np.random.SeedSequence([*entropy, stream]),
        np.asarray(saved["base"]),
    )
    arrays = {name: np.asarray(value) for name, value in saved["arrays"].items()}
    states = arrays.pop("rng").view(np.uint32)
    if not stream:
        chains.rng[...] = states
        chains.entropy = np.random.SeedSequence(
            entropy[0] if len(entropy) == 1 else entropy,
            spawn_key=tuple(saved["spawn_key"]),
            n_children_spawned=saved["n_spawned"],
        )
    for name, value in arrays.items():
        getattr(chains, name)[...] = value
    for name, value in saved["numbers"].items():
        setattr(chains, name, value)
    return chains
