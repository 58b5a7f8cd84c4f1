"""Parallel tempering in batched torch kernels, where the model is: on a GPU or any device."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scvi_qbm.diagnostics import effective_sample_size, split_rhat
from scvi_qbm.ising import Ising
from scvi_qbm.samplers.engine import torch_chains as _torch_chains

from .parallel_tempering import _HORIZON, _LOOK_EVERY, _SHRINK, ParallelTempering, tuned_ladder

__all__ = ["TorchTempering"]


class TorchTempering(ParallelTempering):
    r"""Parallel tempering as torch kernels over all ladders and levels at once, on any device.

    The law, the ladder and its tuning are those of
    :class:`~scvi_qbm.samplers.parallel_tempering.ParallelTempering`. A sweep takes the spins in
    blocks, each given all the others: a Gaussian auxiliary variable makes the spins of a block
    independent, so that they are drawn at once. Small couplings get large blocks and few kernels;
    strong ones blocks down to a single spin, the sequential heat bath. On a CPU the numba kernels
    of ``parallel_tempering`` are faster; this one is for a model on an accelerator, whose work it
    never interrupts: ``step`` and ``retarget_tensors`` wait for nothing. It takes the place of
    ``parallel_tempering`` there by itself (``docs/training.md``).

    Parameters
    ----------
    n_chains
        Independent ladders; each gives one state of the target at a time.
    n_sweeps
        Sweeps (each followed by swaps) between kept samples.
    n_burn_in
        Sweeps before the first kept sample, the tuning of the ladder included.
    n_levels
        Number of temperatures; tuned to ``swap_rate`` by default.
    swap_rate
        Target acceptance of swaps, in (0, 1).
    reference
        What the ladder starts from at :math:`\lambda = 0`: ``"uniform"``, ``"fields"`` or
        ``"magnetisation"``.
    device
        ``"cpu"``, ``"cuda"``, or another that torch knows; a CUDA device where there is one by
        default. Same seed, same device, same states.

    Raises
    ------
    ValueError
        If an option is out of range, or the device unknown or not there.

    Notes
    -----
    ``info`` is that of ``parallel_tempering``, without levels, and has the ``device``. On a CUDA
    device a sweep is one CUDA graph; neither it nor anything else here has run on a GPU yet.

    References
    ----------
    Martens and Sutskever (2010), AISTATS 9, 517 (the auxiliary variable); Syed et al. (2022), JRSS
    B 84, 321 (the ladder).
    """

    name: ClassVar[str] = "torch_tempering"

    def __init__(
        self,
        n_chains: int = 32,
        n_sweeps: int = 5,
        n_burn_in: int = 1000,
        n_levels: int | None = None,
        swap_rate: float = 0.5,
        reference: str = "uniform",
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(n_chains, n_sweeps, n_burn_in, n_levels, swap_rate, reference)
        self.device = _checked(device)

    def _start(self, target: Ising, entropy: np.random.SeedSequence) -> Any:
        generator = _torch_chains.generator_on(self.device, entropy)
        base = target.b if self.reference == "fields" else None
        return _torch_chains.start(target, self._first_ladder(), self.n_chains, generator, base)

    def step(self, state: Any, n_sweeps: int | None = None) -> Any:
        """Advance every ladder by sweeps, each followed by swaps; does not wait for the device.

        Parameters
        ----------
        state
            The ladders; advanced in place.
        n_sweeps
            The sampler's own ``n_sweeps`` by default.

        Returns
        -------
        scvi_qbm.samplers.engine.torch_chains.TorchChains
            The same ladders.
        """
        left = self.n_sweeps if n_sweeps is None else n_sweeps
        if self.reference != "magnetisation":
            _torch_chains.run(state, left)
            return state
        while left > 0:
            _torch_chains.run(state, min(left, _LOOK_EVERY))
            state.follow_means(_HORIZON)
            left -= _LOOK_EVERY
        return state

    def retarget(self, state: Any, ising: Ising, beta: float = 1.0) -> Any:
        """Point the ladders at another model, keeping their states and levels.

        Parameters
        ----------
        state
            The ladders; changed in place.
        ising
            A model of as many spins.
        beta
            Inverse temperature, >= 0, in units of 1 / energy.

        Returns
        -------
        scvi_qbm.samplers.engine.torch_chains.TorchChains
            The same ladders.

        Raises
        ------
        ValueError
            If the model has another number of spins.
        """
        J, b = (beta * torch.from_numpy(x.copy()) for x in (ising.J, ising.b))
        self.retarget_tensors(state, J, b)
        state.choose_block()
        return state

    def retarget_tensors(self, state: Any, J: Tensor, b: Tensor) -> Any:
        """As :meth:`retarget`, with couplings and fields that may be on the device already.

        Parameters
        ----------
        state
            The ladders; changed in place.
        J
            Couplings times the inverse temperature, ``(n_spins, n_spins)``, symmetric with zero
            diagonal; not checked.
        b
            Fields times the inverse temperature, ``(n_spins,)``.

        Returns
        -------
        scvi_qbm.samplers.engine.torch_chains.TorchChains
            The same ladders.

        Raises
        ------
        ValueError
            If the model has another number of spins.
        """
        if len(b) != state.n_spins:
            raise ValueError(
                f"The chains hold {state.n_spins} spins, the new model has {len(b)}: start anew."
            )
        state.retarget(J.detach(), b.detach())
        return state

    def adapt(self, state: Any) -> Any:
        """Re-place the levels by the swap rates seen, and the reference by the spins seen.

        The one method of training's that waits for the device.

        Parameters
        ----------
        state
            The ladders. Without swaps of every pair since the last call they stay as they are.

        Returns
        -------
        scvi_qbm.samplers.engine.torch_chains.TorchChains
            The ladders, new ones if there are more levels or fewer; swap statistics start afresh.
        """
        state.check()
        if state.proposed.min(initial=1) == 0:
            return state
        ladder = tuned_ladder(state, self.swap_rate, self.n_levels)
        if len(ladder) != state.n_levels or np.abs(ladder - state.ladder).max() > 1e-3:
            state = _torch_chains.relevel(state, ladder)
        if self.reference == "magnetisation":
            state.base.copy_(torch.atanh(_SHRINK * state.mean_spins))
        state.choose_block()
        state.forget()
        return state

    def spins(self, state: Any) -> NDArray[np.int8]:
        """States at the target temperature, on the host.

        Parameters
        ----------
        state
            The chains.

        Returns
        -------
        numpy.ndarray
            int8 ``(n_chains, n_spins)``, -1 and +1; a copy.
        """
        out: NDArray[np.int8] = state.states().to("cpu", torch.int8).numpy()
        return out

    def _gather(self, chains: Any, n_samples: int) -> tuple[NDArray[np.int8], dict[str, Any]]:
        kept = []
        for _ in range(-(-n_samples // self.n_chains)):
            _torch_chains.run(chains, self.n_sweeps)
            kept.append(chains.states().to(torch.int8))
        chains.check()
        spins = torch.stack(kept).cpu().numpy()
        info = {"n_updates": chains.n_updates, "n_chains": self.n_chains}
        info["device"] = str(self.device)
        if len(spins) >= 4:
            # Without the constant, which neither of them sees.
            J, b = (x.cpu().numpy() for x in (chains.J, chains.b))
            energies = -(spins * (0.5 * (spins @ J) + b)).sum(axis=-1, dtype=np.float64).T
            info["rhat_energy"] = split_rhat(energies)
            info["ess_energy"] = effective_sample_size(energies)
        return spins.reshape(-1, chains.n_spins)[:n_samples], info


def _checked(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        out = torch.device(device)
        torch.empty(1, device=out)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device` {device!r} cannot be used: {error}") from error
    return out
