"""``torch_tempering`` beside the numba sampler on the host. Run by ``make bench-device``.

    python benchmarks/bench_device.py [speed] [blocks] [--device cuda] [--out bench-output]

``speed``: a training step's draw (a new machine, then its sweeps) by units and chains, its sweeps
and updates a second, and its distance to the device's roofline: the same arithmetic and traffic at
the rates of a large product and a large copy, measured first. ``blocks``: effective samples of the
energy by size of block, the trade that ``best_block`` makes.

All numbers are medians over rounds in which device and host take turns: trust the ratios.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scvi_qbm.benchmark.sampling.instances import sherrington_kirkpatrick
from scvi_qbm.diagnostics import effective_sample_size
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import get_sampler
from scvi_qbm.samplers.engine import torch_chains
from scvi_qbm.samplers.engine.torch_kernels import BLOCKS, full_precision

UNITS, CHAINS, LEVELS = (64, 128, 256, 512, 1024), (16, 64, 256, 1024), 6
# A CPU has had enough of it by then.
CHAINS_ON_CPU = CHAINS[:2]
# Couplings of the default recipe's machine on pbmc_10x_3techs, 30 epochs: J of sd 0.12 / sqrt(n)
# at 256 units, 0.20 / sqrt(n) at 64.
TRAINED = 0.2
VIEWS = ("view", "slice", "select.int", "squeeze", "expand", "aten::t", "detach", "alias", "empty",
         "as_strided", "permute", "transpose", "_unsafe_view", "new_empty")  # fmt: skip


class Kernels(TorchDispatchMode):
    """Counts operations that run on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not any(view in func.name() for view in VIEWS)
        return func(*args, **(kwargs or {}))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - start) / repeats


def roofline(device: torch.device) -> tuple[float, float]:
    """Flop and bytes a second: the best of ten large products and copies in float32."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    x = torch.empty(2**28 if device.type == "cuda" else 2**25, device=device)
    y = torch.empty_like(x)
    with full_precision(device):
        product = min(seconds(lambda: a @ b, device, 3) for _ in range(10))
    copy = min(seconds(lambda: y.copy_(x), device, 3) for _ in range(10))
    return 2 * n**3 / product, 2 * x.numel() * x.element_size() / copy


def work_of_a_sweep(n: int, n_lanes: int, block: int) -> tuple[float, float]:
    """Flop and bytes that a sweep and its swaps cannot do without, if nothing stays in a cache."""
    flop = 2 * n_lanes * n * (n + block + n)
    # Spins are read whole by every block and for the energies; A twice; noise is made and used.
    traffic = 4 * (n * n_lanes * (-(-n // block) + 8) + 2 * n * n)
    return flop, traffic


def speed(device: torch.device, rounds: int) -> list[dict[str, object]]:
    flops, bandwidth = roofline(device)
    print(f"{device}: {flops / 1e12:.2f} Tflop/s, {bandwidth / 1e9:.0f} GB/s\n")
    rows = []
    for n in UNITS:
        ising = sherrington_kirkpatrick(n, 0).scaled(TRAINED)
        J, b = (torch.tensor(x, dtype=torch.float32, device=device) for x in (ising.J, ising.b))
        n_sweeps = max(5, n // 25)
        for n_chains in CHAINS if device.type != "cpu" else CHAINS_ON_CPU:
            options = {"n_chains": n_chains, "n_sweeps": n_sweeps, "n_levels": LEVELS}
            ours = get_sampler("torch_tempering", device=device, **options)
            host = get_sampler("parallel_tempering", n_threads=1, **options)
            chains, states = ours.init(ising, seed=0), host.init(ising, seed=0)

            def draw(ours=ours, chains=chains, J=J, b=b) -> None:
                ours.step(ours.retarget_tensors(chains, J, b))
                chains.states()

            def sweeps(chains=chains, n_sweeps=n_sweeps) -> None:
                torch_chains.run(chains, n_sweeps)

            def draw_on_host(host=host, states=states, ising=ising) -> None:
                host.spins(host.step(host.retarget(states, ising)))

            draw(), draw_on_host()
            repeats = max(1, int(0.05 / seconds(draw, device, 1)))
            taken = np.median(
                [
                    (
                        seconds(draw, device, repeats),
                        seconds(sweeps, device, repeats),
                        seconds(draw_on_host, device, 1),
                    )
                    for _ in range(rounds)
                ],
                axis=0,
            )
            with Kernels() as kernels, full_precision(device):
                chains.sweep()
                chains.swap()
            n_lanes, a_sweep = n_chains * LEVELS, taken[1] / n_sweeps
            flop, traffic = work_of_a_sweep(n, n_lanes, chains.block)
            bound = max(flop / flops, traffic / bandwidth)
            rows.append(
                {
                    "device": str(device), "units": n, "chains": n_chains, "levels": LEVELS,
                    "sweeps": n_sweeps, "block": chains.block, "kernels_a_sweep": kernels.count,
                    "draw_ms": 1e3 * taken[0], "host_draw_ms": 1e3 * taken[2],
                    "host_over_device": taken[2] / taken[0], "sweeps_a_s": 1 / a_sweep,
                    "updates_a_ns": n * n_lanes / a_sweep / 1e9,
                    "us_a_kernel": 1e6 * a_sweep / kernels.count,
                    "gflop_s": flop / a_sweep / 1e9, "gb_s": traffic / a_sweep / 1e9,
                    "of_flop": flop / a_sweep / flops,
                    "of_bandwidth": traffic / a_sweep / bandwidth, "of_roofline": bound / a_sweep,
                }
            )  # fmt: skip
            show(rows)
    return rows


def blocks(device: torch.device, rounds: int) -> list[dict[str, object]]:
    """Ladder and states of the numba sampler; then each size of block goes on by itself."""
    machines = {
        "trained, 64 units": sherrington_kirkpatrick(64, 0).scaled(TRAINED),
        "trained, 256 units": sherrington_kirkpatrick(256, 0).scaled(0.12),
        "SK, beta 1.5": sherrington_kirkpatrick(256, 0).scaled(1.5),
    }
    rows = []
    for name, ising in machines.items():
        rng = np.random.default_rng(0)
        ising = Ising(ising.J, 0.1 * rng.normal(size=ising.n_spins))
        host = get_sampler("parallel_tempering", n_chains=32, reference="magnetisation")
        warm = host.warm_up(host.init(ising, seed=0), 1500)
        sizes = [*BLOCKS, ising.n_spins]
        for block in sorted({size for size in sizes if size <= ising.n_spins}):
            generator = torch_chains.generator_on(device, np.random.SeedSequence(1))
            chains = torch_chains.start(ising, warm.ladder, 32, generator, warm.base)
            chains.adopt(torch.from_numpy(warm.states()))
            chosen = chains.block
            chains.set_block(block)
            torch_chains.run(chains, 100)
            kept, taken = [], 0.0
            for _ in range(200 * rounds):
                taken += seconds(lambda c=chains: torch_chains.run(c, 1), device, 1)
                kept.append(chains.states())
            energies = ising.energy(torch.stack(kept).cpu().numpy()).T
            size = effective_sample_size(energies)
            with Kernels() as kernels, full_precision(device):
                chains.sweep()
                chains.swap()
            shift = (chains.A - chains.J).diagonal().mean()
            rows.append(
                {
                    "device": str(device), "machine": name, "levels": chains.n_levels,
                    "block": block, "chosen": "*" if block == chosen else "",
                    "shift": float(shift), "kernels_a_sweep": kernels.count,
                    "ess_a_sweep": size / energies.size, "ess_a_s": size / taken,
                    "ess_a_1000_kernels": 1000 * size / len(kept) / kernels.count,
                }
            )  # fmt: skip
            show(rows)
    return rows


def show(rows: list[dict[str, object]]) -> None:
    """The last row, after the header if it is the first."""
    if len(rows) == 1:
        print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in rows[-1].values())
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parts = {"speed": speed, "blocks": blocks}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    for name in args.parts or parts:
        print(f"\n### {name}\n")
        rows = parts[name](device, args.rounds)
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f"device-{name}-{device.type}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        print(f"\n{path}")


if __name__ == "__main__":
    main()
