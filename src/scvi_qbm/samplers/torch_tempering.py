"""Parallel tempering in batched torch kernels, where the model is: on a GPU or any device."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scvi_qbm.ising import Ising
from scvi_qbm.samplers.engine import torch_chains

from .parallel_tempering import ParallelTempering

__all__ = ["TorchTempering"]


class TorchTempering(ParallelTempering):
    r"""Parallel tempering as torch kernels over all ladders and levels at once, on any device.

    The distribution, the ladder and its tuning are those of
    :class:`~scvi_qbm.samplers.parallel_tempering.ParallelTempering`. A sweep takes the spins in
    blocks, each given all the others: a Gaussian auxiliary variable makes the spins of a block
    independent, so that they are drawn at once. Small couplings get large blocks and few kernels;
    strong ones blocks down to a single spin, the sequential heat bath. On a CPU the numba kernels
    of ``parallel_tempering`` are faster; this one is for a model on an accelerator, whose work it
    never interrupts: ``step`` and ``retarget_tensors`` wait for nothing. There it replaces
    ``parallel_tempering`` by itself.

    Parameters
    ----------
    n_chains, n_sweeps, n_burn_in, n_levels, swap_rate, reference
        As in :class:`~scvi_qbm.samplers.parallel_tempering.ParallelTempering`.
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
    # On a CPU a sweep of few chains costs as much as one of many.
    conformance: ClassVar[dict[str, Any]] = {"n_chains": 256, "n_sweeps": 5, "n_burn_in": 100}

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

    def _ladders(
        self,
        target: Ising,
        ladder: NDArray[np.float64],
        entropy: np.random.SeedSequence,
        base: NDArray[np.float64] | None,
    ) -> Any:
        generator = torch_chains.generator_on(self.device, entropy)
        return torch_chains.start(target, ladder, self.n_chains, generator, base)

    def _run(self, state: Any, n_sweeps: int) -> None:
        torch_chains.run(state, n_sweeps)

    def retarget(self, state: Any, ising: Ising, beta: float = 1.0) -> Any:
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
        Any
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
        # The one method of training's that waits for the device.
        state.check()
        if state.proposed.min(initial=1) > 0:
            state.choose_block()
        return super().adapt(state)

    def spins(self, state: Any) -> NDArray[np.int8]:
        out: NDArray[np.int8] = state.states().to("cpu", torch.int8).numpy()
        return out

    def _collect(self, state: Any, n_samples: int) -> tuple[NDArray[np.int8], dict[str, Any]]:
        spins, info = torch_chains.collect(state, n_samples, self.n_sweeps)
        return spins, {**info, "device": str(self.device)}


def _checked(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        out = torch.device(device)
        torch.empty(1, device=out)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device` {device!r} cannot be used: {error}") from error
    return out
