"""What the chain samplers on the engine's ladders share."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scvi_qbm._numbers import as_seed, positive_int
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import engine

from .base import ChainSampler

# States looked at in the second half of the burn-in, by which small runs are judged.
_LOOKS = 8
# Nats: what a spin in a larger field does no longer depends on it; an error that shows.
_MATTERS, _NOTICED = 50.0, 0.01


class LadderSampler(ChainSampler):
    """Gibbs chains, as ladders of one level; an algorithm overrides what it does otherwise."""

    record_levels = False
    _advice = ""

    def __init__(
        self,
        n_chains: int = 64,
        n_sweeps: int = 10,
        n_burn_in: int = 1000,
        n_threads: int | None = None,
    ) -> None:
        self.n_chains = positive_int(n_chains, "n_chains")
        self.n_sweeps = positive_int(n_sweeps, "n_sweeps")
        self.n_burn_in = positive_int(n_burn_in, "n_burn_in", 0)
        self.n_threads = engine.checked_threads(n_threads)

    def init(self, ising: Ising, beta: float = 1.0, seed: int | None = None) -> Any:
        target = ising.scaled(beta)
        _check_precision(target, self.name)
        return self._start(target, np.random.SeedSequence(as_seed(seed)))

    def step(self, state: Any, n_sweeps: int | None = None) -> Any:
        self._run(state, self.n_sweeps if n_sweeps is None else n_sweeps)
        return state

    def retarget(self, state: Any, ising: Ising, beta: float = 1.0) -> Any:
        state.retarget(ising.scaled(beta))
        return state

    def spins(self, state: Any) -> NDArray[np.int8]:
        out: NDArray[np.int8] = state.states()
        return out

    def _start(self, target: Ising, entropy: np.random.SeedSequence) -> Any:
        """Chains at random states; the target has its temperature already."""
        return engine.start(target, np.ones(1), self.n_chains, entropy)

    def _run(self, state: Any, n_sweeps: int) -> None:
        engine.run(state, n_sweeps, n_threads=self.n_threads)

    def _collect(self, state: Any, n_samples: int) -> tuple[NDArray[np.int8], dict[str, Any]]:
        """States ``(n_rounds, n_chains, n_spins)``, at least ``n_samples``, and the report."""
        return engine.collect(
            state, n_samples, self.n_sweeps, self.n_threads, levels=self.record_levels
        )

    def _tune(self, state: Any, n_sweeps: int) -> Any:
        """The first half of the burn-in."""
        return self.step(state, n_sweeps)

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        target = ising.scaled(beta)
        _check_precision(target, self.name)
        n_tuning = self.n_burn_in // 2
        chains = self._tune(self._start(target, entropy), n_tuning)
        looks = []
        for n_sweeps in np.diff(np.linspace(n_tuning, self.n_burn_in, _LOOKS + 1).astype(int)):
            if n_sweeps:
                chains = self.step(chains, int(n_sweeps))
                looks.append(self.spins(chains))
        kept, info = self._collect(chains, n_samples)
        info |= {"n_burn_in": self.n_burn_in}
        info |= engine.mixing(target, kept, self._judged(looks, kept))
        info |= self._report(chains, beta)
        faults = self._faults(chains, info)
        if faults:
            warnings.warn(
                f"Sampler {self.name!r} has not mixed: {', '.join(faults)}. Use more burn-in "
                f"(n_burn_in) or sweeps (n_sweeps){self._advice}.",
                RuntimeWarning,
                stacklevel=3,
            )
        return kept.reshape(-1, ising.n_spins)[:n_samples], info

    def _judged(
        self, looks: list[NDArray[np.int8]], kept: NDArray[np.int8]
    ) -> NDArray[np.int8] | None:
        """Of a run that is shorter than its burn-in the states, evenly spaced, of both."""
        looked = self.n_burn_in - self.n_burn_in // 2
        if not looks or len(kept) * self.n_sweeps >= looked:
            return None
        stride = max(1, looked // len(looks) // self.n_sweeps)
        return np.concatenate([np.stack(looks), kept[stride - 1 :: stride]])

    def _report(self, state: Any, beta: float) -> dict[str, Any]:
        """What ``info`` has beside."""
        return {}

    def _faults(self, state: Any, info: dict[str, Any]) -> list[str]:
        """Signs that the chains have not mixed."""
        return disagreement(info)


def _check_precision(target: Ising, name: str) -> None:
    """Warn where fields in single precision lose a coupling or field that matters."""
    size = np.abs(np.column_stack([target.J, target.b]))
    rounding = size.sum(axis=1) * np.finfo(np.float32).eps
    lost = (0 < size) & (size < _MATTERS) & (rounding[:, None] > _NOTICED)
    if lost.any():
        warnings.warn(
            f"Sampler {name!r} computes in single precision: beside fields of "
            f"{size.sum(axis=1).max():.1e} nats differences below {rounding.max():.1g} nats are "
            f"lost, and the model has couplings or fields of {size[lost].min():.1g}. Rescale it, "
            "or enumerate it with 'exact'.",
            RuntimeWarning,
            stacklevel=4,
        )


def disagreement(info: dict[str, Any]) -> list[str]:
    """Each R-hat that is too large, in words."""
    limit = info.get("rhat_limit", np.inf)
    of = {"rhat_energy": "energy", "rhat_overlap": "overlap with the best state"}
    return [
        f"R-hat of the {name} {info[key]:.3f} (wanted < {limit:.2f})"
        for key, name in of.items()
        if info.get(key, 0.0) > limit
    ]
