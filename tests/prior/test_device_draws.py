"""The negative phase in tensors: nothing waits for a device, and nothing leaves it."""

import contextlib
import warnings

import numpy as np
import pytest
import torch
from support.machines import peaked_ising, phase_of
from torch.utils._python_dispatch import TorchDispatchMode

from scvi_qbm import get_sampler
from scvi_qbm.module import QBMVAE
from scvi_qbm.prior import NegativePhase
from scvi_qbm.prior.draws import DeviceDraws
from scvi_qbm.prior.log_z import LogZTracker
from scvi_qbm.samplers.engine import torch_chains

META = torch.device("meta")


@contextlib.contextmanager
def no_host_round_trip(monkeypatch):
    """Fails on what would make the host wait for a device."""
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique"}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.name().removeprefix("aten::").split(".")[0]
            assert name not in waits, f"{name} waits for the device"
            return func(*args, **(kwargs or {}))

    def refuse(*args, **kwargs):
        raise AssertionError("a copy to the host")

    with monkeypatch.context() as patch, Watch():
        for name in ("cpu", "numpy", "tolist", "item", "__array__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, name, refuse)
        yield


def test_a_step_never_waits_for_the_device(monkeypatch):
    torch.manual_seed(0)
    phase = phase_of(40, "torch_tempering", sd=0.1)
    prior = phase.prior
    optimiser = torch.optim.SGD(prior.parameters(), lr=0.01)
    q = torch.rand(20, 40)
    phase.refresh_log_z()
    for step in range(1, 61):
        adapts = step in (1, 8, 16, 32, 50)
        with warnings.catch_warnings() if adapts else no_host_round_trip(monkeypatch):
            phase.submit()
            prior.surrogate(q, phase.collect()).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert 2 <= phase.draws.chains.n_levels < 8 and phase.draws.steps == 60


def test_the_watch_sees_a_wait(monkeypatch):
    x = torch.ones(1)
    waits = (x.item, x.cpu, x.numpy, x.tolist, x.nonzero)
    for name in [wait.__name__ for wait in waits]:
        with pytest.raises(AssertionError), no_host_round_trip(monkeypatch):
            getattr(x, name)()
    with pytest.raises(AssertionError), no_host_round_trip(monkeypatch):
        bool(x > 0)


def test_a_step_stays_on_one_device(monkeypatch):
    """Tensors without data: what is made elsewhere does not mix, and nothing can be read."""
    generator = torch_chains.generator_on(torch.device("cpu"), np.random.SeedSequence(0))
    chains = torch_chains.start(peaked_ising(40, 0, sd=0.1), np.linspace(0, 1, 5), 3, generator)
    for name, value in vars(chains).items():
        if isinstance(value, torch.Tensor):
            setattr(chains, name, value.to("meta"))
    chains.generator = None
    # autocast knows no such device
    for module in ("prior.log_z", "samplers.engine.torch_kernels"):
        name = f"scvi_qbm.{module}.full_precision"
        monkeypatch.setattr(name, lambda _: contextlib.nullcontext())
    torch_chains.run(chains, 2)
    chains.retarget(chains.J * 2, chains.b)
    chains.follow_means(10)
    assert chains.states().device.type == chains.spins.device.type == "meta"
    draws, tracker = DeviceDraws(get_sampler("torch_tempering"), META), LogZTracker()
    draws.chains = chains
    W, h, log_z = (torch.zeros(shape, device="meta") for shape in ((40, 40), (40,), ()))
    for _ in range(3):
        draws.submit(W, h, None)
        parameters, z = draws.collect()
        tracker.follow(log_z, parameters, z)
        assert z.device.type == "meta" and len(tracker.recent)
    with pytest.raises(RuntimeError, match="meta"):
        chains.check()
    with pytest.raises(RuntimeError, match="device"):
        chains.retarget(chains.J + torch.zeros(40, 40), chains.b)


def test_the_networks_precision_is_not_ours():
    draws, chosen = [], torch.get_float32_matmul_precision()
    for precision, autocast in (("highest", False), ("medium", True)):
        torch.manual_seed(0)
        phase = phase_of(40, "torch_tempering", sd=0.3)
        torch.set_float32_matmul_precision(precision)
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                for _ in range(3):
                    last = phase.collect()
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision(chosen)
        assert last.dtype == torch.float32
        energies = torch.stack([*phase.tracker.recent])
        draws.append((last, phase.prior.log_z.clone(), energies))
    for one, other in zip(*draws, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


LIKELIHOODS = ("nb", "zinb", "poisson", "normal")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_step_of_the_whole_module_reads_no_value(likelihood, monkeypatch):
    """On tensors without data, which cannot be read; the draw has tests of its own above."""
    drawn = torch.zeros(32, 40, device="meta")
    monkeypatch.setattr(NegativePhase, "collect", lambda self: drawn)
    module = QBMVAE(30, 2, n_latent=40, n_hidden=16, gene_likelihood=likelihood)
    module.to("meta").train()
    tensors = {
        "X": torch.zeros(20, 30, device="meta"),
        "batch": torch.zeros(20, 1, dtype=torch.long, device="meta"),
        "labels": torch.zeros(20, 1, dtype=torch.long, device="meta"),
    }
    loss = module(tensors, loss_kwargs={"kl_weight": 0.5})[-1].loss
    loss.backward()
    for part in (module.z_encoder, module.decoder.px_scale_decoder, module.prior):
        assert all(p.grad.is_meta for p in part.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_the_device_waits_for_nothing():
    torch.manual_seed(0)
    module = QBMVAE(30, 2, n_latent=40, n_hidden=16).cuda().train()
    tensors = {
        "X": torch.poisson(torch.rand(20, 30, device="cuda") * 4),
        "batch": torch.zeros(20, 1, dtype=torch.long, device="cuda"),
        "labels": torch.zeros(20, 1, dtype=torch.long, device="cuda"),
    }
    optimiser = torch.optim.Adam(module.parameters(), fused=True)
    for step in range(1, 49):
        waits = step <= 2 or step in (8, 16, 32)
        torch.cuda.set_sync_debug_mode("default" if waits else "error")
        try:
            module.negative_phase.submit()
            module(tensors, loss_kwargs={"kl_weight": 0.5})[-1].loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert module.negative_phase.draws.chains.device.type == "cuda"
