"""Kill a training on a million cells at random, again and again, and compare how it ends.

    python benchmarks/scale_recovery.py bench-output/scale-data/cells_1000000.h5ad --out DIR

Part of ``make bench-scale``. Epochs are cut to ``--steps`` steps: a kill costs one at most.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pandas as pd


def train(path: Path, out: Path, epochs: int, steps: int) -> None:
    import scvi
    import torch

    from scvi_qbm import QBMVI
    from scvi_qbm.data import open_on_disk

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    scvi.settings.seed = 0
    adata = open_on_disk(path)
    QBMVI.setup_anndata(adata, batch_key="batch")
    model = QBMVI(adata)
    (out / "started").touch()
    model.train(
        max_epochs=epochs, limit_train_batches=steps, limit_val_batches=50, early_stopping=False,
        enable_progress_bar=False, checkpoint_dir=out / "run",
    )  # fmt: skip
    state = {
        "weights": model.module.state_dict(),
        "chains": model.module.negative_phase.state(),
        "optimisers": [o.state_dict() for o in model.trainer.optimizers],
        "history": {key: table.to_csv() for key, table in model.history.items()},
    }
    torch.save(state, out / "end.pt")


def start(args: argparse.Namespace, name: str) -> subprocess.Popen:
    out = args.out / name
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, str(args.path), "--out", str(out), "--child"]
    return subprocess.Popen([*command, f"--epochs={args.epochs}", f"--steps={args.steps}"])


def differences(one, other, name="") -> list[str]:
    import torch

    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{name}: keys"]
        return [d for k in one for d in differences(one[k], other[k], f"{name}.{k}")]
    if isinstance(one, list | tuple):
        return [
            d for k, pair in enumerate(zip(one, other, strict=True))
            for d in differences(*pair, f"{name}.{k}")
        ]  # fmt: skip
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench-output/scale-recovery"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--within", type=float, default=15, help="seconds to a kill, at most")
    parser.add_argument("--csv", type=Path, default=Path("bench-output/scale/recovery.csv"))
    parser.add_argument("--child", action="store_true")
    args = parser.parse_args()
    if args.child:
        return train(args.path, args.out, args.epochs, args.steps)
    import torch

    shutil.rmtree(args.out, ignore_errors=True)
    if start(args, "whole").wait():
        sys.exit("the unbroken run failed")
    seed = random.randrange(10**6)
    generator, steps = random.Random(seed), []
    last = args.out / "killed" / "run" / "last.ckpt"
    print(f"seed {seed}")
    while len(steps) < args.kills:
        (args.out / "killed" / "started").unlink(missing_ok=True)
        child = start(args, "killed")
        while not (args.out / "killed" / "started").exists():
            time.sleep(0.05)
        time.sleep(generator.uniform(2, args.within))
        if child.poll() is not None:
            break
        child.send_signal(signal.SIGKILL)
        child.wait()
        found = torch.load(last, weights_only=True)["global_step"] if last.exists() else -1
        steps.append(found)
        print(f"killed; the checkpoint is of step {found}", flush=True)
    code = start(args, "killed").wait()
    ends = [torch.load(args.out / k / "end.pt", weights_only=True) for k in ("whole", "killed")]
    found = differences(*ends)
    row = {
        "data": args.path.stem, "epochs": args.epochs, "steps": args.steps, "kills": len(steps),
        "seed": seed, "checkpoints": " ".join(map(str, steps)), "exit": code,
        "differences": len(found),
    }  # fmt: skip
    print(row, found[:5])
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([row]).to_csv(args.csv, index=False)
    if code or found:
        sys.exit("the runs differ")


if __name__ == "__main__":
    main()
