"""The sweep of ``torch_tempering`` in batched torch kernels.

Spins are updated block by block, each block B given all the others through a Gaussian auxiliary
variable (Martens and Sutskever 2010). With ``A = J_BB + D``, D a multiple of the identity that
makes A positive definite, and ``A = LL'``, at inverse temperature lam of the path in
``_torch_chains``,

    y | s ~ N(sqrt(lam) L's_B, 1);
    s_B | y independent spins in the fields base + lam f + sqrt(lam) L y,

where f are the fields c + Js of the other blocks. So a block is drawn at once, in the fields
``base + lam (f + A s_B) + sqrt(lam) L xi``. They come fresh from the spins by one matrix product:
nothing is kept that could drift. The law is kept for any D; the larger lam D, the more often a
spin stays. A block of one spin is the sequential heat bath (D = 0); larger ones trade mixing for
fewer kernels.

Nothing in a sweep waits for the device, no shape depends on a value, and state changes in place:
it can be captured as a CUDA graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from scvi_qbm.samplers.engine.torch_chains import TorchChains

BLOCKS = (128, 64, 32, 16, 8, 4, 2, 1)
# Effective samples a sweep fall as exp(-_STICKY D), and a sweep has so many kernels whatever the
# blocks, and so many a block (docs/samplers.md).
_STICKY, _KERNELS, _KERNELS_A_BLOCK = 0.8, 45, 3
_SQUARINGS = 7
# Half the step of float32 uniforms: 0 is the one value whose logit is infinite.
_SMALLEST = 2.0**-25


def sweep(chains: TorchChains) -> None:
    """Update every spin of all lanes once, block by block, in place."""
    spins, lam, block = chains.spins, chains.lam, chains.block
    n, n_lanes = spins.shape
    linear = (chains.b - chains.base)[:, None]
    xi = spins.new_empty(len(chains.root), block, n_lanes).normal_(generator=chains.generator)
    # s = +1 where the field exceeds logistic noise: probability expit(2 field).
    margin = torch.empty_like(spins).uniform_(generator=chains.generator)
    margin.clamp_(min=_SMALLEST).logit_().mul_(0.5).add_(chains.base[:, None])
    margin.addcmul_(torch.bmm(chains.root, xi).flatten(0, 1)[:n], lam.sqrt())
    one = torch.ones_like(lam)
    for first in range(0, n, block):
        rows = slice(first, first + block)
        fields = torch.addmm(linear[rows], chains.A[rows], spins)
        torch.copysign(one, margin[rows].addcmul_(fields, lam), out=spins[rows])


def swap(chains: TorchChains) -> None:
    """Propose to exchange the levels of even or odd neighbours, in turn, in place."""
    lane_at, levels, heading = chains.lane_at, chains.levels, chains.heading
    partner = chains.partners.index_select(0, chains.parity)[0]
    energy = chains.energies().view(lane_at.shape).gather(1, lane_at)
    gap = energy - energy.index_select(1, partner)
    accept = ((levels - levels[partner]) * gap).clamp_(max=0).exp_()
    own = torch.arange(len(levels), device=levels.device)
    # Both of a pair look at the same number.
    draw = torch.rand(lane_at.shape, generator=chains.generator, device=levels.device)
    draw = draw.index_select(1, torch.minimum(own, partner))
    lane_at.copy_(torch.where(draw < accept, lane_at.index_select(1, partner), lane_at))
    chains.lam.view(lane_at.shape).scatter_(1, lane_at, levels.expand(lane_at.shape))
    # Probabilities, not outcomes: less noise at no cost.
    lower = partner > own
    chains.swaps[0].add_(accept.sum(0) * lower)
    chains.swaps[1].add_(lower, alpha=chains.n_chains)
    chains.parity.neg_().add_(1)

    hot, cold = lane_at[:, :1], lane_at[:, -1:]
    chains.trips.add_((heading.gather(1, hot) == 2).sum())
    heading.scatter_(1, hot, 1)
    at_cold = heading.gather(1, cold)
    heading.scatter_(1, cold, at_cold + (at_cold == 1))


def diagonal_blocks(J: Tensor, block: int) -> Tensor:
    """(n_blocks, block, block), the last one padded with zeros."""
    n_blocks = -(-len(J) // block)
    missing = n_blocks * block - len(J)
    padded = torch.nn.functional.pad(J, (0, missing, 0, missing))
    return padded.view(n_blocks, block, n_blocks, block).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def shifts(blocks: Tensor) -> Tensor:
    """What to add to the diagonal of each block so that it is positive definite, (n_blocks,).

    Minus the smallest eigenvalue, from above: the largest of 1 - M is at most the root of the
    Frobenius norm of a power. For eigenvalues torch would wait for the device.
    """
    scale = blocks.abs().sum(-1).amax(-1).clamp(min=1e-30)
    power = torch.eye(blocks.shape[-1], device=blocks.device) - blocks / scale[:, None, None]
    norm = torch.linalg.matrix_norm(power)
    log_top = norm.log()
    for k in range(_SQUARINGS):
        power = power / norm[:, None, None]
        power = power @ power
        norm = torch.linalg.matrix_norm(power)
        log_top = log_top + norm.log() / 2 ** (k + 1)
    return scale * (torch.expm1(log_top) + 1e-4) + 1e-6


def best_block(J: Tensor) -> int:
    """The size of block with the most effective samples a kernel; waits for the device."""
    costs = {}
    for block in (size for size in BLOCKS if size < 2 * len(J)):
        with full_precision(J.device):
            shift = float(shifts(diagonal_blocks(J, block)).mean())
        n_kernels = _KERNELS + _KERNELS_A_BLOCK * -(-len(J) // block)
        costs[block] = np.log(n_kernels) + _STICKY * shift
    return min(costs, key=lambda size: costs[size])


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No gradients, and products in float32 whatever is chosen for the network around us."""
    matmuls: tuple[Any, ...] = ()
    chosen: Any = None
    try:
        chosen = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
    except RuntimeError:  # chosen through torch's newer settings, which it will not have mixed
        backends: Any = torch.backends
        matmuls = backends.cuda.matmul, backends.mkldnn.matmul
        chosen = [matmul.fp32_precision for matmul in matmuls]
        for matmul in matmuls:
            matmul.fp32_precision = "ieee"
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if matmuls:
            for matmul, precision in zip(matmuls, chosen, strict=True):
                matmul.fp32_precision = precision
        else:
            torch.set_float32_matmul_precision(chosen)


@contextmanager
def undone(chains: TorchChains) -> Iterator[None]:
    """States and random numbers of the chains are afterwards as they were before."""
    changing = (chains.spins, chains.lam, chains.lane_at, chains.heading, chains.swaps,
                chains.trips, chains.parity)  # fmt: skip
    before, random = [x.clone() for x in changing], chains.generator.get_state()
    try:
        yield
    finally:
        for now, then in zip(changing, before, strict=True):
            now.copy_(then)
        chains.generator.set_state(random)


def captured(chains: TorchChains) -> Callable[[], None]:
    """A sweep and its swaps as a CUDA graph; called as they are elsewhere, or if that fails.

    Not yet run on a GPU.
    """

    def advance() -> None:
        sweep(chains)
        swap(chains)

    if chains.device.type != "cuda":
        return advance
    cuda: Any = torch.cuda
    before: list[tuple[torch.Generator, Tensor]] = []
    try:
        with cuda.device(chains.device):
            default = cuda.default_generators[cuda.current_device()]
            before = [(each, each.get_state()) for each in (chains.generator, default)]
            # A stream of this device; torch's own for captures may be another's.
            side, current, graph = cuda.Stream(), cuda.current_stream(), cuda.CUDAGraph()
            side.wait_stream(current)
            with cuda.stream(side):
                with undone(chains):
                    for _ in range(3):
                        advance()
                side.synchronize()
                graph.register_generator_state(chains.generator)
                # Other threads (pinned memory of data loaders) may use the device meanwhile.
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    advance()
                finally:
                    graph.capture_end()
            current.wait_stream(side)
    except (RuntimeError, AttributeError) as error:
        # A capture that broke off leaves generators that wait for its end.
        for generator, state in before:
            fresh = torch.Generator(chains.device).set_state(state)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
        warnings.warn(
            f"No CUDA graph of the sweep, which will be slower: {error}",
            RuntimeWarning,
            stacklevel=3,
        )
        return advance
    replay: Callable[[], None] = graph.replay
    return replay
