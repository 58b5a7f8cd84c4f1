"""A million cells: memory, cost of an epoch, and growth. Run by ``make bench-scale``.

Each measurement is a process of its own, so that its peak memory is its own; both models of a
ratio run in turn, in that one process. Rows are added to CSV files as they come, and those that
are there are not measured again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
GENES, BATCHES = 2000, 8


def data_file(folder: Path, n_cells: int) -> Path:
    """An h5ad of simulated counts, written a part at a time.

    50,000 cells come from ``datasets.simulate`` (12 types, 8 batches, 400 counts a cell); the
    file repeats them, each time with every count drawn anew from a Poisson distribution around it.
    """
    path = folder / f"cells_{n_cells}.h5ad"
    if path.exists():
        return path
    import h5py
    from anndata.io import sparse_dataset, write_elem
    from scipy import sparse

    from scvi_qbm.data import simulate

    folder.mkdir(parents=True, exist_ok=True)
    n_seed = min(n_cells, 50_000)
    seed = simulate(n_seed, GENES, n_types=12, n_batches=BATCHES, depth=400.0, seed=0)
    counts, rng, obs = seed.layers["counts"], np.random.default_rng(0), []
    partial = path.with_suffix(".part")
    with h5py.File(partial, "w") as file:
        for start in range(0, n_cells, n_seed):
            part = counts[: min(n_seed, n_cells - start)].copy()
            if start:
                part.data = rng.poisson(part.data).astype(np.float32)
                part.eliminate_zeros()
            if not start:
                write_elem(file, "X", part)
            else:
                sparse_dataset(file["X"]).append(sparse.csr_matrix(part))
            obs.append(seed.obs[["batch", "cell_type"]].iloc[: part.shape[0]])
        frame = pd.concat(obs, ignore_index=True)
        frame.index = frame.index.astype(str)
        write_elem(file, "obs", frame)
        write_elem(file, "var", seed.var[[]])
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    partial.replace(path)
    return path


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def made(cls, adata, n_latent):
    import scvi

    scvi.settings.seed = 0
    cls.setup_anndata(adata, batch_key="batch")
    return cls(adata, n_latent=n_latent, gene_likelihood="nb")


def opened(path: Path, storage: str):
    import anndata

    from scvi_qbm.data import open_on_disk

    return anndata.read_h5ad(path) if storage == "memory" else open_on_disk(path)


def timer():
    from lightning.pytorch.callbacks import Callback

    class Timer(Callback):
        """Seconds and steps of an epoch's training, without its first steps; validation apart."""

        first, seconds, steps = 20, 0.0, 0

        def on_train_batch_start(self, trainer, plan, batch, batch_idx):
            if batch_idx == self.first:
                self.start = time.perf_counter()

        def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx):
            if batch_idx >= self.first:
                self.seconds = time.perf_counter() - self.start
                self.steps = batch_idx + 1 - self.first

    return Timer()


def steps_of(model, n_steps, extra=None, epochs=1):
    """Milliseconds a training step."""
    clock = timer()
    model.train(
        max_epochs=epochs, limit_train_batches=n_steps, train_size=1.0, callbacks=[clock],
        enable_progress_bar=False, early_stopping=False,
        plan_kwargs={"n_epochs_kl_warmup": None}, **(extra or {}),
    )  # fmt: skip
    return 1e3 * clock.seconds / clock.steps


def out_of_core(path, storage, model_name, n_latent):
    """One epoch over all cells and the latents of all of them, written as they come."""
    import scvi

    from scvi_qbm import QBMVI

    started = time.perf_counter()
    adata = opened(path, storage)
    model = made(QBMVI if model_name == "QBMVI" else scvi.model.SCVI, adata, n_latent)
    loaded = time.perf_counter() - started
    clock = timer()
    model.train(
        max_epochs=1, callbacks=[clock], enable_progress_bar=False, early_stopping=False,
        batch_size=128,
    )  # fmt: skip
    row = {"open_s": loaded, "cells_per_s": 128 * clock.steps / clock.seconds}
    row["trained_peak_mb"] = peak_mb()
    if model_name == "QBMVI":
        started = time.perf_counter()
        model.write_latent_representation(path.with_suffix(".npy"), batch_size=512, silent=True)
        row["latent_cells_per_s"] = adata.n_obs / (time.perf_counter() - started)
    return row | {"peak_mb": peak_mb()}


def loaders(path):
    """Minibatches alone, no network: ours from disk, ours' twin in memory, scvi-tools' own."""
    import scvi
    import torch
    from scvi.dataloaders import AnnDataLoader

    from scvi_qbm.data import OnDiskDataLoader

    rows = {}
    for name, storage, cls in (
        ("disk", "disk", OnDiskDataLoader),
        ("memory", "memory", AnnDataLoader),
        ("scvi-tools, disk", "backed", AnnDataLoader),
    ):
        import anndata

        adata = (
            anndata.read_h5ad(path, backed="r") if storage == "backed" else opened(path, storage)
        )
        manager = made(scvi.model.SCVI, adata, 10).adata_manager
        torch.manual_seed(0)
        n, started = 0, 0.0
        for k, batch in enumerate(cls(manager, batch_size=128, shuffle=True)):
            if k == 10:
                started = time.perf_counter()
            n += (k >= 10) * len(batch["X"])
            if k >= 10 and time.perf_counter() - started > 20:
                break
        rows[f"cells_per_s {name}"] = n / (time.perf_counter() - started)
        del adata, manager
    return rows


def epoch_cost(path, storage, n_latent, n_steps, rounds):
    """Milliseconds a step of both models in turn; the median ratio over rounds.

    ``fast``: SCVI with our negative binomials, so that the prior alone makes the difference.
    """
    import scvi

    from scvi_qbm import QBMVI
    from scvi_qbm.data import OnDiskDataSplitter
    from scvi_qbm.distributions import fast_counts

    adata = opened(path, storage)
    classes = {"SCVI": scvi.model.SCVI, "QBMVI": QBMVI}
    if storage == "disk":  # SCVI under our loader
        classes["SCVI"] = type(
            "SCVI", (scvi.model.SCVI,), {"_data_splitter_cls": OnDiskDataSplitter}
        )
    models = {name: made(cls, adata, n_latent) for name, cls in classes.items()}
    # A machine that has learned something needs more temperatures than a new one.
    steps_of(models["QBMVI"], 1500, epochs=-(-1500 * 128 // adata.n_obs))
    steps_of(models["SCVI"], 50)

    def fast():
        with fast_counts():
            return steps_of(models["SCVI"], n_steps)

    runs = {
        "scvi": lambda: steps_of(models["SCVI"], n_steps),
        "qbmvi": lambda: steps_of(models["QBMVI"], n_steps),
        "fast": fast,
    }
    times = []
    for k in range(rounds):  # each is first, second and last in turn
        order = [list(runs)[(k + j) % 3] for j in range(3)]
        times.append({name: runs[name]() for name in order})
    table = pd.DataFrame(times)
    row = {f"{name}_ms": table[name].median() for name in runs}
    for name, other in (("ratio", "scvi"), ("ratio_fast", "fast")):
        ratio = table["qbmvi"] / table[other]
        row |= {name: ratio.median(), f"{name}_low": ratio.min(), f"{name}_high": ratio.max()}
    return row | {"date": time.strftime("%Y-%m-%d")}


def growth(n_latent, n_chains, path, rounds):
    """Milliseconds of a draw, of log Z and of a whole step, for a machine of this size."""
    import torch

    from scvi_qbm import QBMVI

    adata = opened(path, "disk")
    import scvi

    scvi.settings.seed = 0
    QBMVI.setup_anndata(adata, batch_key="batch")
    options = {} if n_chains is None else {"n_chains": n_chains}
    model = QBMVI(
        adata, n_latent=n_latent, gene_likelihood="nb",
        sampler_options={"n_threads": 1} | options,
    )  # fmt: skip
    step_ms = steps_of(model, 320, epochs=-(-320 * 128 // adata.n_obs))
    phase = model.module.negative_phase
    draws = []
    for _ in range(rounds):
        started = time.perf_counter()
        phase.submit()
        phase.collect()
        draws.append(time.perf_counter() - started)
    phase.refresh_log_z()
    started = time.perf_counter()
    phase.refresh_log_z()
    log_z = time.perf_counter() - started
    return {
        "chains": phase.sampler.n_chains, "sweeps": phase.sampler.n_sweeps,
        "levels": phase.draws.chains.n_levels, "step_ms": step_ms,
        "draw_ms": 1e3 * float(np.median(draws)), "log_z_ms": 1e3 * log_z,
        "chains_mb": sum(
            x.nbytes for x in vars(phase.draws.chains).values() if isinstance(x, np.ndarray)
        ) / 2**20,
        "peak_mb": peak_mb(), "torch_threads": torch.get_num_threads(),
    }  # fmt: skip


def ddp(path, n_processes, per_process):
    """Milliseconds a step of training shared by processes, and of their all-reduce alone."""
    import torch

    from scvi_qbm import QBMVI

    model = made(QBMVI, opened(path, "disk"), 64)
    spread = {"devices": n_processes, "strategy": "ddp_find_unused_parameters_true"}
    options = {"accelerator": "cpu", "batch_size": per_process}
    step_ms = steps_of(model, 320, options | (spread if n_processes > 1 else {}))
    n_bytes = 4 * sum(p.numel() for p in model.module.parameters())
    reduce_ms = 0.0
    if n_processes > 1:
        flat = torch.zeros(n_bytes // 4)
        for k in range(60):
            if k == 10:
                started = time.perf_counter()
            torch.distributed.all_reduce(flat)
        reduce_ms = 1e3 * (time.perf_counter() - started) / 50
        if torch.distributed.get_rank():
            sys.exit()
    return {
        "step_ms": step_ms, "cells_per_s": 1e3 * n_processes * per_process / step_ms,
        "gradient_mb": n_bytes / 2**20, "all_reduce_ms": reduce_ms,
    }  # fmt: skip


TASKS = {
    "out_of_core": out_of_core,
    "loaders": loaders,
    "cost": epoch_cost,
    "growth": growth,
    "ddp": ddp,
}


def tasks(args) -> list[tuple[str, dict]]:
    out: list[tuple[str, dict]] = []
    for n in args.cells:
        path = str(data_file(args.data, n))
        out.append(("loaders", {"path": path}))
        for storage, model in (("disk", "QBMVI"), ("memory", "QBMVI"), ("memory", "SCVI")):
            out.append(
                (
                    "out_of_core",
                    {"path": path, "storage": storage, "model_name": model, "n_latent": 64},
                )
            )
        for n_latent in (64, 256):
            for storage in ("memory", "disk"):
                out.append(
                    (
                        "cost",
                        {
                            "path": path,
                            "storage": storage,
                            "n_latent": n_latent,
                            "n_steps": args.steps,
                            "rounds": args.rounds,
                        },
                    )
                )
    small = str(data_file(args.data, min(args.cells)))
    for n_latent in (32, 64, 128, 256, 512, 1024):
        out.append(
            ("growth", {"n_latent": n_latent, "n_chains": None, "path": small, "rounds": 50})
        )
    for n_chains in (8, 16, 64, 128):
        out.append(("growth", {"n_latent": 64, "n_chains": n_chains, "path": small, "rounds": 50}))
    large = str(data_file(args.data, max(args.cells)))
    for n_processes, per_process in ((1, 128), (2, 64), (2, 128)):
        out.append(
            ("ddp", {"path": large, "n_processes": n_processes, "per_process": per_process})
        )
    return [t for t in out if not args.only or t[0] in args.only]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("bench-output/scale-data"))
    parser.add_argument("--out", type=Path, default=Path("bench-output/scale"))
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(TASKS))
    parser.add_argument("--task", help="one task as JSON; for the processes this one starts")
    args = parser.parse_args()
    if args.task:
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        name, options = json.loads(args.task)
        options = {k: Path(v) if k == "path" else v for k, v in options.items()}
        print("ROW " + json.dumps(TASKS[name](**options)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for name, options in tasks(args):
        file = args.out / f"{name}.csv"
        table = pd.read_csv(file) if file.exists() else pd.DataFrame()
        key = {k: Path(v).stem if k == "path" else v for k, v in options.items()}
        key = {("data" if k == "path" else k): v for k, v in key.items()}
        wanted = {k: str(v) for k, v in key.items()}
        if any(
            all(
                str(row.get(k)).removesuffix(".0").replace("nan", "None") == v
                for k, v in wanted.items()
            )
            for row in table.to_dict("records")
        ):
            continue
        print(name, key, flush=True)
        command = [sys.executable, __file__, "--task", json.dumps([name, options])]
        result = subprocess.run(command, capture_output=True, text=True)
        found = [line[4:] for line in result.stdout.splitlines() if line.startswith("ROW ")]
        if not found:
            print(result.stderr[-2000:])
            continue
        row = key | json.loads(found[-1])
        print(
            "   ",
            {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()},
            flush=True,
        )
        table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
        table.to_csv(file, index=False)


if __name__ == "__main__":
    main()
