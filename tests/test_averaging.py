"""The average of the weights that a model ends with."""

from types import SimpleNamespace

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback

import scvi_qbm
from scvi_qbm.averaging import WeightAveraging
from scvi_qbm.benchmark.methods import METHODS, gaussian_twin

QUIET = {"max_epochs": 6, "enable_progress_bar": False}


def fake(n_batches=10, accumulate=1):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    module[0].bias.requires_grad_(False)
    trainer = SimpleNamespace(
        global_step=0, num_training_batches=n_batches, accumulate_grad_batches=accumulate
    )
    return SimpleNamespace(module=module), trainer


def walk(callback, plan, trainer, n_steps, seed=0):
    """Random weights step by step; what they were."""
    generator, seen = torch.Generator().manual_seed(seed), []
    layer, norm = plan.module
    for _ in range(n_steps):
        callback.on_train_batch_start(trainer, plan)
        with torch.no_grad():
            for tensor in (layer.weight, norm.weight, norm.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, plan)
        seen.append([x.detach().clone() for x in (layer.weight, norm.weight, norm.running_var)])
    return seen


def expected(seen, n):
    out = seen[0]
    for k, tensors in enumerate(seen[1:], start=2):
        weight = 1 / min(k, n)
        out = [(1 - weight) * a + weight * b for a, b in zip(out, tensors, strict=True)]
    return out


@pytest.mark.parametrize(
    ("n_steps", "n_epochs", "batches", "accumulate", "window"),
    [(7, 5, 10, 1, 7), (100, 0.5, 10, 1, 5), (100, 1, 10, 2, 5), (100, 5, float("inf"), 1, 100),
     (100, 0.01, 10, 1, 1)],
)  # fmt: skip
def test_the_formula(n_steps, n_epochs, batches, accumulate, window):
    plan, trainer = fake(batches, accumulate)
    callback = WeightAveraging(n_steps, n_epochs)
    bias, mean = plan.module[0].bias.clone(), plan.module[1].running_mean.clone()
    seen = walk(callback, plan, trainer, 30)
    # Steps that only gather gradients do not count.
    callback.on_train_batch_end(trainer, plan)
    callback.on_train_end(trainer, plan)
    layer, norm = plan.module
    found = (layer.weight, norm.weight, norm.running_var)
    for a, b in zip(found, expected(seen, window), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(layer.bias, bias)
    assert torch.equal(norm.running_mean, mean)


def test_more_steps_go_on_from_the_last_weights():
    whole, trainer = fake()
    one = WeightAveraging(8)
    walk(one, whole, trainer, 12)
    walk(one, whole, trainer, 9, seed=1)
    one.on_train_end(trainer, whole)

    plan, trainer = fake()
    first = WeightAveraging(8)
    last = walk(first, plan, trainer, 12)[-1]
    first.on_train_end(trainer, plan)
    averaged = plan.module[0].weight.clone()
    assert not torch.equal(averaged, last[0])
    second = WeightAveraging(8)
    second.load_state_dict(first.state_dict())
    # A finished run without a further step keeps its average.
    second.on_train_end(trainer, plan)
    assert torch.equal(plan.module[0].weight, averaged)
    second.on_train_batch_start(trainer, plan)
    assert torch.equal(plan.module[0].weight, last[0])
    walk(second, plan, trainer, 9, seed=1)
    second.on_train_end(trainer, plan)
    for a, b in zip(plan.module.parameters(), whole.module.parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", [{"n_steps": 0}, {"n_epochs": 0.0}])
def test_bad_windows(options):
    with pytest.raises(ValueError, match="must be at least 1"):
        WeightAveraging(**options)


class Recorder(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        state = pl_module.module.state_dict()
        self.seen.append({k: v.detach().clone() for k, v in state.items()})


def made(pbmc, **kwargs):
    scvi.settings.seed = 0
    adata = pbmc.copy()
    scvi_qbm.QBMVI.setup_anndata(adata, layer="counts", batch_key="batch")
    return scvi_qbm.QBMVI(adata, **({"n_latent": 8, "n_hidden": 16} | kwargs))


def test_training_ends_with_the_average(pbmc):
    recorder, plain = Recorder(), made(pbmc)
    plain.train(**QUIET, callbacks=[recorder])
    model = made(pbmc)
    model.train(**QUIET, weight_averaging=True)
    # The same training, to the bit.
    for key in ("elbo_validation", "elbo_train", "log_z"):
        np.testing.assert_array_equal(
            model.history[key].to_numpy(float), plain.history[key].to_numpy(float)
        )
    seen, window = recorder.seen, min(100, 5 * len(recorder.seen) // QUIET["max_epochs"])
    names = [k for k, v in seen[0].items() if v.is_floating_point() and "log_z" not in k]
    assert {"prior.W_upper", "prior.h"} < set(names)
    mean = expected([[step[k] for k in names] for step in seen], window)
    state = model.module.state_dict()
    for name, value in zip(names, mean, strict=True):
        torch.testing.assert_close(state[name], value, msg=name)
        assert torch.equal(plain.module.state_dict()[name], seen[-1][name])
        # So far from the last weights that those would not pass for it.
        constant = torch.equal(seen[0][name], seen[-1][name])
        assert constant or not torch.allclose(value, seen[-1][name], rtol=1e-4, atol=1e-4)
    # log Z is that of the machine it ends with.
    W, h = model.prior
    z = (np.arange(2**8)[:, None] >> np.arange(8)) & 1
    exact = np.logaddexp.reduce(-(z @ h) - 0.5 * ((z @ W) * z).sum(1))
    assert abs(model.get_log_partition().value - exact) < 0.05


def test_the_twin_is_averaged_as_well(pbmc):
    kwargs = {"layer": "counts", "batch_key": "batch", "max_epochs": 6}
    quiet = {"enable_progress_bar": False}
    recorder = Recorder()
    gaussian_twin(pbmc, train_kwargs=quiet | {"callbacks": [recorder]}, **kwargs)
    twin = METHODS["gaussian_averaged"].run(pbmc, **kwargs).model.module.state_dict()
    names = [k for k, v in twin.items() if v.is_floating_point()]
    window = min(100, 5 * len(recorder.seen) // kwargs["max_epochs"])
    mean = expected([[step[k] for k in names] for step in recorder.seen], window)
    for name, value in zip(names, mean, strict=True):
        torch.testing.assert_close(twin[name], value, msg=name)
    assert not torch.allclose(twin["px_r"], recorder.seen[-1]["px_r"], rtol=1e-4, atol=1e-4)
