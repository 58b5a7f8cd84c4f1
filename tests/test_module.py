import numpy as np
import pytest
import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from support.machines import codes, fill

from scvi_qbm.logz import log_partition
from scvi_qbm.module import QBMVAE
from scvi_qbm.samplers.exact import boltzmann_distribution


def batch(n_cells=6, n_genes=12, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.poisson(torch.rand(n_cells, n_genes, generator=generator) * 4, generator=generator)
    x[:, 0] += 1
    return {
        REGISTRY_KEYS.X_KEY: x.to(dtype),
        REGISTRY_KEYS.BATCH_KEY: torch.randint(2, (n_cells, 1), generator=generator),
        REGISTRY_KEYS.LABELS_KEY: torch.zeros(n_cells, 1, dtype=torch.long),
    }


def small(n_latent=10, relaxation="spike_exponential", **kwargs):
    torch.manual_seed(0)
    kwargs = {"sampler": "exact", "use_batch_norm": "none", "dropout_rate": 0.0} | kwargs
    module = QBMVAE(
        12, 2, n_latent=n_latent, n_hidden=16, relaxation=relaxation, **kwargs
    ).double()
    if isinstance(module.prior.n_latent, int):
        fill(module.prior, sd=0.6)
    module.prior.log_z.fill_(log_partition(module.prior.ising(), method="exact").value)
    return module


def loss_at(module, tensors, bias, kl_weight, seed=0):
    """Whole loss with the encoder's output shifted by ``bias``, at fixed noise."""
    with torch.no_grad():
        module.z_encoder.logits.bias.copy_(bias)
    torch.manual_seed(seed)
    return module(tensors, loss_kwargs={"kl_weight": kl_weight})


@pytest.mark.parametrize("relaxation", ["spike_exponential", "overlapping_exponential"])
def test_gradient_of_the_whole_loss_in_the_logits(relaxation):
    """Autograd against finite differences of reconstruction plus the *enumerated* KL, n = 10."""
    module, tensors, kl_weight = small(relaxation=relaxation), batch(), 0.7
    bias = module.z_encoder.logits.bias.detach().clone()
    _, _, out = loss_at(module, tensors, bias, kl_weight)
    out.loss.backward()
    gradient = module.z_encoder.logits.bias.grad.clone()
    log_p = module.prior.log_prob(codes(10)).detach()

    def reference(shifted):
        with torch.no_grad():
            inference, _, out = loss_at(module, tensors, shifted, kl_weight)
            q = inference[MODULE_KEYS.QZ_KEY].probs[:, None]
            z = codes(10)[None]
            log_q = (z * q.log() + (1 - z) * (1 - q).log()).sum(-1)
            kl = (log_q.exp() * (log_q - log_p)).sum(-1)
            recon = out.dict_sum(out.reconstruction_loss)
            return (recon + kl_weight * kl).mean().item()

    step, finite = 1e-5, torch.zeros(10, dtype=torch.float64)
    for i in range(10):
        shift = torch.zeros(10, dtype=torch.float64)
        shift[i] = step
        finite[i] = (reference(bias + shift) - reference(bias - shift)) / (2 * step)
    torch.testing.assert_close(gradient, finite, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("kl_weight", [0.0, 0.5, 1.0])
def test_gradient_of_the_whole_loss_in_the_machine(kl_weight):
    """W and h get E(q) - <E>_p of the enumerated distribution, whatever the KL weight."""
    module, tensors = small(), batch()
    n_draws, h, W = 300, 0.0, 0.0
    for _ in range(n_draws):
        module.zero_grad()
        inference, _, out = module(tensors, loss_kwargs={"kl_weight": kl_weight})
        out.loss.backward()
        h, W = h + module.prior.h.grad / n_draws, W + module.prior.W_upper.grad / n_draws
    q = inference[MODULE_KEYS.QZ_KEY].probs.detach()
    distribution, z = torch.from_numpy(boltzmann_distribution(module.prior.ising())), codes(10)
    exact_h = q.mean(0) - distribution @ z
    exact_W = torch.einsum("cl,cm->lm", q, q) / len(q) - torch.einsum(
        "s,sl,sm->lm", distribution, z, z
    )
    tolerance = 5 * 0.5 / np.sqrt(n_draws * 256)
    assert (h - exact_h).abs().max() < tolerance
    assert (W - exact_W.triu(1)).abs().max() < tolerance
    assert exact_W.triu(1).abs().max() > 10 * tolerance


def test_encoder_gradient_depends_on_the_machine():
    """The published code's fault: there the machine cannot reach the encoder."""
    module, tensors = small(), batch()
    gradients = []
    for scale in (0.0, 1.0):
        with torch.no_grad():
            module.prior.W_upper.mul_(scale)
        module.zero_grad()
        torch.manual_seed(0)
        module(tensors)[2].loss.backward()
        gradients.append(module.z_encoder.logits.weight.grad.clone())
        fill(module.prior, sd=0.6)
    assert (gradients[0] - gradients[1]).norm() > 0.05 * gradients[0].norm()


def test_loss_value_is_the_negative_elbo():
    module, tensors = small(), batch()
    inference, _, out = module(tensors, loss_kwargs={"kl_weight": 0.3})
    kl = out.kl_local[MODULE_KEYS.KL_Z_KEY]
    recon = out.dict_sum(out.reconstruction_loss)
    assert out.loss.item() == pytest.approx((recon + 0.3 * kl).mean().item())
    assert (kl > 0).all()
    torch.testing.assert_close(kl, module.prior.kl(inference[MODULE_KEYS.QZ_KEY].logits))


def test_no_negative_phase_outside_training():
    module, tensors = small(), batch()
    module.eval()
    module(tensors)
    assert len(module.negative_phase.tracker.recent) == 0
    module.train()
    with torch.no_grad():
        module(tensors)
    assert len(module.negative_phase.tracker.recent) == 0
    module(tensors)
    assert len(module.negative_phase.tracker.recent) == 1


@pytest.mark.long
def test_elbo_is_below_the_importance_weighted_bound_and_both_below_the_truth():
    """Two latents: log p(x) by enumerating z and integrating zeta on a fine grid of draws."""
    module, tensors = small(n_latent=2), batch(n_cells=4)
    module.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        elbo = torch.stack(
            [-out.dict_sum(out.reconstruction_loss) - out.dict_sum(out.kl_local)
             for out in (module(tensors)[2] for _ in range(2000))]
        ).mean(0)  # fmt: skip
        iw = [module.marginal_ll(tensors, k, n_mc_samples_per_pass=100) for k in (10, 20_000)]
        qz = module.inference(**module._get_inference_input(tensors))[MODULE_KEYS.QZ_KEY]
        prior = torch.zeros(4, dtype=torch.float64)
        for z in codes(2):
            zeta = torch.where(z > 0, qz._icdf_on(torch.rand(20_000, 4, 2).double()), 0.0)
            outputs = module.inference(**module._get_inference_input(tensors))
            library = outputs[MODULE_KEYS.LIBRARY_KEY].expand(20_000, -1, -1)
            outputs = outputs | {MODULE_KEYS.Z_KEY: zeta, MODULE_KEYS.LIBRARY_KEY: library}
            px = module.generative(**module._get_generative_input(tensors, outputs))
            likelihood = px[MODULE_KEYS.PX_KEY].log_prob(tensors["X"]).sum(-1).exp().mean(0)
            prior += module.prior.log_prob(z).exp() * likelihood
    truth = prior.log()
    assert (elbo < iw[1] + 0.02).all() and (elbo < truth).all()
    torch.testing.assert_close(iw[1], truth, atol=0.05, rtol=0)
    assert (iw[0] < truth + 0.5).all()


def test_free_normal_mean_and_fixed_variance():
    module = small(gene_likelihood="normal", normal_variance="fixed", log_variational=False)
    tensors = batch()
    _, generative, out = module(tensors)
    px = generative[MODULE_KEYS.PX_KEY]
    assert (px.loc < 0).any(), "a free mean is neither positive nor normalised"
    squared = ((tensors["X"] - px.loc) ** 2).sum(-1)
    constant = 12 * 0.5 * np.log(np.pi)
    torch.testing.assert_close(out.dict_sum(out.reconstruction_loss), squared + constant)
    assert "px_r" not in dict(module.named_parameters())
    learned = small(gene_likelihood="normal", normal_variance="learned")
    assert "px_r" in dict(learned.named_parameters())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"relaxation": "gumbel"}, "spike_exponential"),
        ({"prior": "gauss"}, "boltzmann, bernoulli"),
        ({"sampler": "qpu"}, "parallel_tempering"),
        ({"n_latent": 1}, "at least 2"),
    ],
)
def test_unknown_names(kwargs, message):
    with pytest.raises(ValueError, match=message):
        QBMVAE(12, 2, **({"n_latent": 4} | kwargs))
