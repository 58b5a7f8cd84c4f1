"""What the sweep of ``torch_chains`` is made of: blocks, precision, and a CUDA graph of it all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCKS = (128, 64, 32, 16, 8, 4, 2, 1)
# Effective samples a sweep fall as exp(-_STICKY D), and a sweep has so many kernels whatever the
# blocks, and so many a block (docs/samplers.md).
_STICKY, _KERNELS, _KERNELS_A_BLOCK = 0.8, 45, 3
_SQUARINGS = 7


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
def undone(generator: torch.Generator, changing: tuple[Tensor, ...]) -> Iterator[None]:
    """The tensors and the random numbers are afterwards as they were before."""
    before, random = [x.clone() for x in changing], generator.get_state()
    try:
        yield
    finally:
        for now, then in zip(changing, before, strict=True):
            now.copy_(then)
        generator.set_state(random)


def captured(
    advance: Callable[[], None],
    device: torch.device,
    generator: torch.Generator,
    changing: tuple[Tensor, ...],
) -> Callable[[], None]:
    """``advance`` as a CUDA graph; as it is elsewhere, or if that fails.

    Not yet run on a GPU. ``changing`` is what it writes to.
    """
    if device.type != "cuda":
        return advance
    cuda: Any = torch.cuda
    before: list[tuple[torch.Generator, Tensor]] = []
    try:
        with cuda.device(device):
            default = cuda.default_generators[cuda.current_device()]
            before = [(each, each.get_state()) for each in (generator, default)]
            # A stream of this device; torch's own for captures may be another's.
            side, current, graph = cuda.Stream(), cuda.current_stream(), cuda.CUDAGraph()
            side.wait_stream(current)
            with cuda.stream(side):
                with undone(generator, changing):
                    for _ in range(3):
                        advance()
                side.synchronize()
                graph.register_generator_state(generator)
                # Other threads (pinned memory of data loaders) may use the device meanwhile.
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    advance()
                finally:
                    graph.capture_end()
            current.wait_stream(side)
    except (RuntimeError, AttributeError) as error:
        # A capture that broke off leaves generators that wait for its end.
        for each, state in before:
            fresh = torch.Generator(device).set_state(state)
            each.graphsafe_set_state(fresh.graphsafe_get_state())
        warnings.warn(
            f"No CUDA graph of the sweep, which will be slower: {error}",
            RuntimeWarning,
            stacklevel=3,
        )
        return advance
    replay: Callable[[], None] = graph.replay
    return replay
