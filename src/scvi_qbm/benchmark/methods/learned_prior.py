"""Controls: the Gaussian VAE with a prior that is learned, as QBMVI's is, without a machine."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from scvi_qbm.benchmark.methods.common import MethodResult
from scvi_qbm.benchmark.methods.vae import GaussianTwin, gaussian_twin
from scvi_qbm.module import ExpressionVAE

N_COMPONENTS = 64


class JointMixture(Distribution):
    """A mixture of diagonal Gaussians over whole codes.

    Parameters
    ----------
    means, scales
        Of the components, ``(n_components, n_latent)``.
    logits
        Log-weights, ``(n_components,)``.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, means: Tensor, scales: Tensor, logits: Tensor) -> None:
        super().__init__(validate_args=False)
        self.means, self.scales, self.logits = means, scales, logits

    def log_prob(self, z: Tensor) -> Tensor:
        """Joint log-density of codes ``(..., n_latent)`` as ``(..., 1)``.

        scvi-tools sums over the last axis, which leaves it as it is.
        """
        parts = Normal(self.means, self.scales).log_prob(z.unsqueeze(-2)).sum(-1)
        return torch.logsumexp(parts + torch.log_softmax(self.logits, 0), -1, keepdim=True)


class MixturePrior(nn.Module):
    """Free components, all of them parameters."""

    def __init__(self, n_latent: int, n_components: int = N_COMPONENTS) -> None:
        super().__init__()
        self.means = nn.Parameter(0.1 * torch.randn(n_components, n_latent))
        self.log_scales = nn.Parameter(torch.zeros(n_components, n_latent))
        self.logits = nn.Parameter(torch.zeros(n_components))

    def forward(self, encoder: nn.Module) -> JointMixture:
        """The prior as it is now; the encoder is not used."""
        return JointMixture(self.means, self.log_scales.exp(), self.logits)


class VampPrior(nn.Module):
    """Posteriors of learned pseudo-inputs (Tomczak and Welling 2018), over whole codes.

    sysVI's, in scvi-tools, is a product over latents of mixtures, and so has no dependence between
    them.
    """

    def __init__(self, n_input: int, n_components: int = N_COMPONENTS) -> None:
        super().__init__()
        self.inputs = nn.Parameter(torch.zeros(n_components, n_input))
        self.logits = nn.Parameter(torch.zeros(n_components))

    def forward(self, encoder: nn.Module) -> JointMixture:
        """The prior as the encoder and its statistics are now."""
        training = encoder.training
        encoder.eval()  # pseudo-inputs are no minibatch to take statistics of
        posterior, _ = encoder(self.inputs)
        encoder.train(training)
        return JointMixture(posterior.loc, posterior.scale, self.logits)


class LearnedPriorVAE(ExpressionVAE):
    """The Gaussian VAE's module with one of these priors.

    Parameters
    ----------
    n_input
        Number of genes.
    *args
        As :class:`ExpressionVAE`.
    prior
        ``"mixture"`` or ``"vamp"``.
    **kwargs
        As :class:`ExpressionVAE`; the library size is observed.
    """

    def __init__(
        self, n_input: int, *args: Any, prior: Literal["mixture", "vamp"], **kwargs: Any
    ) -> None:
        super().__init__(n_input, *args, **kwargs)
        n_latent = self.n_latent
        self.prior = MixturePrior(n_latent) if prior == "mixture" else VampPrior(n_input)

    def generative(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        out = super().generative(*args, **kwargs)
        return out | {MODULE_KEYS.PZ_KEY: self.prior(self.z_encoder)}

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float | Tensor = 1.0,
    ) -> LossOutput:
        """Upstream's, the divergence from the draw of the code that was decoded."""
        z, qz = (inference_outputs[key] for key in (MODULE_KEYS.Z_KEY, MODULE_KEYS.QZ_KEY))
        pz, px = (generative_outputs[key] for key in (MODULE_KEYS.PZ_KEY, MODULE_KEYS.PX_KEY))
        kl = qz.log_prob(z).sum(-1) - pz.log_prob(z).sum(-1)
        reconstruction = -px.log_prob(tensors[REGISTRY_KEYS.X_KEY]).sum(-1)
        return LossOutput(
            loss=(reconstruction + kl_weight * kl).mean(),
            reconstruction_loss=reconstruction,
            kl_local={MODULE_KEYS.KL_Z_KEY: kl},
        )

    @torch.inference_mode()
    def marginal_ll(
        self,
        tensors: dict[str, Tensor],
        n_mc_samples: int,
        return_mean: bool = False,
        n_mc_samples_per_pass: int = 10,
    ) -> Any:
        """Importance-weighted log-likelihood of each cell in nats; upstream's has N(0, I)."""
        weights = []
        for _ in range(-(-n_mc_samples // n_mc_samples_per_pass)):
            inference = self.inference(
                **self._get_inference_input(tensors), n_samples=max(n_mc_samples_per_pass, 2)
            )
            generative = self.generative(**self._get_generative_input(tensors, inference))
            z, qz = inference[MODULE_KEYS.Z_KEY], inference[MODULE_KEYS.QZ_KEY]
            px, pz = generative[MODULE_KEYS.PX_KEY], generative[MODULE_KEYS.PZ_KEY]
            x = tensors[REGISTRY_KEYS.X_KEY].to(z.device)
            log_p = px.log_prob(x).sum(-1) + pz.log_prob(z).sum(-1)
            weights.append(log_p - qz.log_prob(z).sum(-1))
        drawn = torch.cat(weights)
        out = torch.logsumexp(drawn, 0) - np.log(len(drawn))
        return out.mean().item() if return_mean else out.cpu()


class LearnedPriorTwin(GaussianTwin):
    """The Gaussian VAE with a learned prior, ``prior="mixture"`` or ``"vamp"``."""

    _module_cls = LearnedPriorVAE

    def train(self, *args: Any, **kwargs: Any) -> None:
        """As upstream; the prior is then fitted once more, with the budget that QBMVI's has."""
        super().train(*args, **kwargs)
        moments = self.get_latent_representation(indices=self.train_indices, return_dist=True)
        mean, variance = (torch.from_numpy(x).to(self.device) for x in moments)
        prior, encoder = self.module.prior, self.module.z_encoder
        optimiser = torch.optim.Adam(prior.parameters(), lr=5e-3)
        for _ in range(min(1000, 10 * self.trainer.global_step)):
            rows = torch.randint(len(mean), (512,), device=self.device)
            z = mean[rows] + variance[rows].sqrt() * torch.randn_like(mean[rows])
            optimiser.zero_grad()
            (-prior(encoder).log_prob(z).mean()).backward()
            optimiser.step()
        self.module.zero_grad()


def learned_prior_twin(
    adata: AnnData, *, batch_key: str | None, seed: int, max_epochs: int | None, prior: str
) -> MethodResult:
    """The Gaussian VAE with a learned prior, pseudo-inputs beginning at cells drawn at random."""

    def start(model: Any) -> None:
        if prior == "vamp":
            rows = np.random.default_rng(seed).choice(adata.n_obs, N_COMPONENTS)
            x = sparse.csr_matrix(adata.X[np.sort(rows)]).toarray().astype(np.float32)
            model.module.prior.inputs.data = torch.log1p(torch.from_numpy(x))

    return gaussian_twin(
        adata, batch_key=batch_key, seed=seed, max_epochs=max_epochs, on_model=start,
        model_cls=LearnedPriorTwin, prior=prior,
    )  # fmt: skip
