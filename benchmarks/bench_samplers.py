"""Speed of the samplers against their peers, in one run. Run by ``make bench-samplers``.

    python benchmarks/bench_samplers.py [rates] [threads] [ess] [training] [memory]

Rates and effective samples are medians over interleaved rounds, so that a busy machine slows all
rows alike: trust the ratios. Distribution of the same kernel build: ``make test``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
import tracemalloc
import warnings
from collections.abc import Callable

import numpy as np
from numba import njit

from scvi_qbm.benchmark.sampling.instances import sherrington_kirkpatrick
from scvi_qbm.diagnostics import effective_sample_size
from scvi_qbm.samplers import engine, get_sampler

ROUNDS = 7


def interleaved(work: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median of each function's value over rounds in which all take turns."""
    for measure in work.values():
        measure()
    values = [{name: measure() for name, measure in work.items()} for _ in range(rounds)]
    return {name: float(np.median([v[name] for v in values])) for name in work}


def table(title: str, rows: list[list[str]], header: list[str]) -> None:
    print(f"\n### {title}\n")
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


def our_rate(ising, beta: float, metropolis: bool) -> Callable[[], float]:
    chains = engine.start(ising, np.ones(1), 64, np.random.SeedSequence(0))
    engine.anneal(chains, np.full(200, beta), metropolis=metropolis)
    betas = np.full(max(10, int(2e7 / (64 * ising.n_spins))), beta)

    def measure() -> float:
        before, start = chains.n_updates, time.perf_counter()
        engine.anneal(chains, betas, metropolis=metropolis)
        return (chains.n_updates - before) / (time.perf_counter() - start) / 1e9

    return measure


def slope_rate(call: Callable[[int], None], n_updates_a_sweep: int, sweeps: int):
    """Updates per ns from the difference of two lengths: calls cost them their set-up."""

    def measure() -> float:
        times = []
        for k in (sweeps, 4 * sweeps):
            start = time.perf_counter()
            call(k)
            times.append(time.perf_counter() - start)
        return 3 * sweeps * n_updates_a_sweep / (times[1] - times[0]) / 1e9

    return measure


def dwave_rate(ising, beta: float, proposal: str):
    import dimod
    from dwave.samplers import SimulatedAnnealingSampler

    bqm = dimod.BinaryQuadraticModel(np.triu(-ising.J, 1), "SPIN")
    sampler, n = SimulatedAnnealingSampler(), ising.n_spins

    def call(sweeps: int) -> None:
        sampler.sample(
            bqm, num_reads=4, num_sweeps_per_beta=sweeps, beta_schedule_type="custom",
            beta_schedule=[beta], proposal_acceptance_criteria=proposal, seed=1,
        )  # fmt: skip

    return slope_rate(call, 4 * n, max(20, int(2e5 / n)))


def openjij_rate(ising, beta: float):
    import openjij

    bqm = openjij.BinaryQuadraticModel.from_numpy_matrix(np.triu(-ising.J, 1), vartype="SPIN")
    sampler, n = openjij.SASampler(), ising.n_spins

    def call(sweeps: int) -> None:
        sampler.sample(bqm, num_reads=4, schedule=[[beta, sweeps]], sparse=False)

    return slope_rate(call, 4 * n, max(40, int(4e5 / n)))


@njit(error_model="numpy", fastmath=True)
def _plain_sweeps(J, s, f, beta, sweeps, seed):
    np.random.seed(seed)
    n = len(s)
    for _ in range(sweeps):
        for i in range(n):
            new = 1.0 if np.random.random() < 1 / (1 + np.exp(-2 * beta * f[i])) else -1.0
            change = new - s[i]
            if change != 0:
                s[i] = new
                for j in range(n):
                    f[j] += change * J[i, j]


def rates() -> None:
    """Attempted updates per ns, dense SK."""
    rows = []
    for n in (256, 1024):
        ising = sherrington_kirkpatrick(n, 0)
        for beta in (0.5, 1.0, 2.0):
            got = interleaved(
                {
                    "heat bath": our_rate(ising, beta, False),
                    "Metropolis": our_rate(ising, beta, True),
                    "dwave Gibbs": dwave_rate(ising, beta, "Gibbs"),
                    "dwave Metropolis": dwave_rate(ising, beta, "Metropolis"),
                    "openjij": openjij_rate(ising, beta),
                }
            )
            ratios = (
                got["heat bath"] / got["dwave Gibbs"],
                got["Metropolis"] / got["dwave Metropolis"],
                got["Metropolis"] / got["openjij"],
            )
            rows.append([str(n), str(beta), *(f"{v:.4f}" for v in got.values()),
                         *(f"{r:.1f}x" for r in ratios)])  # fmt: skip
    header = ["n", "beta", "ours, heat bath", "ours, Metropolis", "dwave Gibbs",
              "dwave Metropolis", "openjij Metropolis", "heat bath / dwave", "Metropolis / dwave",
              "Metropolis / openjij"]  # fmt: skip
    table("Attempted updates per ns, dense SK, one thread", rows, header)


def threads() -> None:
    """Two threads against one."""
    rows = []
    for n in (256, 1024):
        ising = sherrington_kirkpatrick(n, 0)
        chains = engine.start(ising, np.linspace(0, 1, 16), 32, np.random.SeedSequence(0))

        def measure(n_threads: int, chains=chains, n: int = n) -> float:
            before, start = chains.n_updates, time.perf_counter()
            engine.run(chains, max(50, 51_200 // n), n_threads=n_threads)
            return (chains.n_updates - before) / (time.perf_counter() - start) / 1e9

        got = interleaved({str(t): functools.partial(measure, t) for t in (1, 2)}, 11)
        rows.append([str(n), f"{got['1']:.3f}", f"{got['2']:.3f}", f"{got['2'] / got['1']:.2f}x"])
    table("Parallel tempering, 32 ladders of 16, updates per ns", rows,
          ["n", "one thread", "two", "ratio"])  # fmt: skip


def _ess_rate(spins: np.ndarray, ising, seconds: float, probe: np.ndarray) -> tuple[float, float]:
    """ESS a second of the energy and of the overlap with a fixed state (its sign included)."""
    energy = ising.energy(spins).T
    overlap = (spins @ probe).T.astype(float)
    return tuple(effective_sample_size(x) / seconds for x in (energy, overlap))


def ess() -> None:
    """Effective samples a second after burn-in, SK at beta = 1.5, n = 256."""
    n, beta = 256, 1.5
    ising = sherrington_kirkpatrick(n, 0)
    probe = np.sign(np.linalg.eigh(ising.J)[1][:, -1])
    target = ising.scaled(beta)
    results: dict[str, tuple[float, float]] = {}

    def chains_of(name: str, options: dict, rounds: int, sweeps: int) -> None:
        sampler = get_sampler(name, n_threads=1, **options)
        state = sampler.init(ising, beta, seed=1)
        warm = getattr(sampler, "warm_up", None)
        state = warm(state, 4000) if warm else sampler.step(state, 4000)
        kept, start = [], time.perf_counter()
        for _ in range(rounds):
            sampler.step(state, sweeps)
            kept.append(sampler.spins(state))
        seconds = time.perf_counter() - start
        results[f"ours: {name}"] = _ess_rate(np.stack(kept), ising, seconds, probe)

    chains_of("parallel_tempering", {"n_chains": 16}, 10_000, 2)
    chains_of("gibbs", {"n_chains": 64}, 6000, 5)

    rng = np.random.default_rng(0)
    kept, seconds = np.empty((6000, 8, n), dtype=np.int8), 0.0
    for c in range(8):
        s = rng.choice([-1.0, 1.0], n).astype(np.float32)
        J32 = target.J.astype(np.float32)
        f = (J32 @ s).astype(np.float32)
        _plain_sweeps(J32, s, f, 1.0, 2000, c)
        start = time.perf_counter()
        for t in range(6000):
            _plain_sweeps(J32, s, f, 1.0, 5, 10_000 * c + t)
            kept[t, c] = s
        seconds += time.perf_counter() - start
    results["plain numba Gibbs"] = _ess_rate(kept, ising, seconds, probe)

    import dimod
    from dwave.samplers import SimulatedAnnealingSampler

    bqm = dimod.BinaryQuadraticModel(np.triu(-ising.J, 1), "SPIN")
    # Sweeps a call: few cost overhead, many throw draws away.
    for proposal, sweeps in itertools.product(("Gibbs", "Metropolis"), (20, 100, 400)):
        reads, rounds = 8, 30_000 // sweeps
        state, kept = None, []
        for t in range(rounds + 8):
            if t == 8:
                start = time.perf_counter()
            extra = {} if state is None else {"initial_states": (state, list(range(n)))}
            out = SimulatedAnnealingSampler().sample(
                bqm, num_reads=reads, num_sweeps_per_beta=sweeps, beta_schedule_type="custom",
                beta_schedule=[beta], proposal_acceptance_criteria=proposal, seed=t, **extra,
            )  # fmt: skip
            state = out.record.sample
            if t >= 8:
                kept.append(state.copy())
        seconds = time.perf_counter() - start
        label = f"dwave SA as a chain, {proposal}, {sweeps} sweeps a call"
        results[label] = _ess_rate(np.stack(kept), ising, seconds, probe)
    best = [max(v[i] for k, v in results.items() if not k.startswith("ours")) for i in (0, 1)]
    rows = [[k, f"{a:.1f}", f"{b:.2f}", f"{a / best[0]:.1f}x", f"{b / best[1]:.1f}x"]
            for k, (a, b) in results.items()]  # fmt: skip
    header = ["sampler", "ESS/s energy", "ESS/s overlap", "/ best peer", "/ best peer"]
    table("Effective samples a second, SK, beta 1.5, n = 256, one thread", rows, header)


def training() -> None:
    """Share of a training step that the negative phase takes, 256 units."""
    import scvi
    import torch
    from anndata import AnnData

    from scvi_qbm import QBMVI

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    scvi.settings.verbosity = 40
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.3, 1.0, size=(10, 2000))
    adata = AnnData(rng.poisson(rates[rng.integers(10, size=4096)]).astype(np.float32))
    QBMVI.setup_anndata(adata)
    rows = []
    for n_chains in (None, 128):
        options = {} if n_chains is None else {"n_chains": n_chains}
        model = QBMVI(adata, n_latent=256, sampler_options={"n_threads": 1} | options)
        model.train(max_epochs=10, enable_progress_bar=False, early_stopping=False)
        phase = model.module.negative_phase
        spent, inner = [], phase.sampler.step

        def timed(*args, inner=inner, spent=spent):
            start = time.perf_counter()
            out = inner(*args)
            spent.append(time.perf_counter() - start)
            return out

        phase.sampler.step = timed
        start = time.perf_counter()
        model.train(max_epochs=10, enable_progress_bar=False, early_stopping=False)
        total = time.perf_counter() - start
        chains = phase.draws.chains
        rows.append([
            str(chains.n_chains), str(phase.sampler.n_sweeps), str(chains.n_levels),
            f"{1e3 * np.median(spent):.2f}", f"{1e3 * total / len(spent):.2f}",
            f"{sum(spent) / total:.0%}",
        ])  # fmt: skip
    header = ["chains", "sweeps a step", "levels", "draw (ms)", "step (ms)", "share of the time"]
    table("Negative phase, 256 units, 2,000 genes, batch 128, one torch thread", rows, header)


def memory() -> None:
    """Peak of what numpy allocates beyond the model: 1,000 replicas of 1,024 spins."""
    ising = sherrington_kirkpatrick(1024, 0)
    rows = []
    for name, options in (("gibbs", {"n_chains": 1000}),
                          ("parallel_tempering", {"n_chains": 50, "n_levels": 20})):  # fmt: skip
        sampler = get_sampler(name, **options)
        sampler.step(sampler.init(sherrington_kirkpatrick(64, 0), seed=0), 3)
        tracemalloc.start()
        sampler.step(sampler.init(ising, seed=0), 3)
        rows.append([name, f"{tracemalloc.get_traced_memory()[1] / 1e6:.0f}"])
        tracemalloc.stop()
    table("Peak memory beyond the model, 1,000 replicas of 1,024 spins", rows, ["sampler", "MB"])


def main() -> None:
    parts = {"rates": rates, "threads": threads, "ess": ess, "training": training,
             "memory": memory}  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    for name in parser.parse_args().parts or parts:
        parts[name]()


if __name__ == "__main__":
    main()
