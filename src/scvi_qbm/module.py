"""QBMVAE: scvi-tools' VAE with binary latents and a Boltzmann-machine prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from scvi import REGISTRY_KEYS
from scvi.module import VAE
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput, auto_move_data
from scvi.utils import unsupported_if_adata_minified
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from scvi_qbm._numbers import positive_int
from scvi_qbm._signature import full_signature
from scvi_qbm.distributions import (
    FreeNormal,
    NegativeBinomial,
    ScaledPoisson,
    ZeroInflatedNegativeBinomial,
)
from scvi_qbm.encoders import BinaryEncoder
from scvi_qbm.prior import BernoulliPrior, BoltzmannPrior, NegativePhase
from scvi_qbm.prior.boltzmann import BinaryPrior
from scvi_qbm.recipes import get_recipe
from scvi_qbm.relaxations import get_relaxation
from scvi_qbm.samplers import Sampler

__all__ = ["ExpressionVAE", "QBMVAE"]

_DEFAULT = get_recipe("default").model

# A Gaussian of this standard deviation has -log p(x) = (x - mean)^2 + constant: the paper's MSE.
_FIXED_LOG_SD = math.log(math.sqrt(0.5))


@contextmanager
def _unchecked(device: torch.device) -> Iterator[None]:
    """No checks of arguments where the host would have to wait for an accelerator."""
    if device.type == "cpu":
        yield
        return
    checked = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checked)


class ExpressionVAE(VAE):
    r""":class:`scvi.module.VAE` whose ``normal`` likelihood has a free mean.

    Upstream's ``normal`` forces the mean to be library size times a softmax. Here the decoder's
    output *is* the mean, as log-normalised values need; the library size is not used. All other
    likelihoods are upstream's, negative binomials faster on a CPU.

    Parameters
    ----------
    *args
        As :class:`scvi.module.VAE`.
    normal_variance
        For ``gene_likelihood="normal"``. ``"learned"``: a variance per gene (or as
        ``dispersion`` says). ``"fixed"``: 1/2, so that :math:`-\log p(x|z)` is the squared error
        plus a constant.
    **kwargs
        As :class:`scvi.module.VAE`.
    """

    def __init__(
        self, *args: Any, normal_variance: Literal["learned", "fixed"] = "learned", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.normal_variance = normal_variance
        if self.gene_likelihood != "normal":
            return
        self.decoder.px_scale_decoder[1] = nn.Identity()
        if normal_variance == "fixed":
            del self.px_r
            self.register_buffer("px_r", torch.full((self.n_input,), _FIXED_LOG_SD))
        elif self.dispersion != "gene-cell":
            nn.init.zeros_(self.px_r)

    @auto_move_data
    def _regular_inference(
        self,
        x: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        n_samples: int = 1,
    ) -> dict[str, Any]:
        out = super()._regular_inference(x, batch_index, cont_covs, cat_covs, n_samples)
        if self.gene_likelihood == "normal":
            out[MODULE_KEYS.LIBRARY_KEY] = torch.zeros_like(out[MODULE_KEYS.LIBRARY_KEY])
        return out

    @auto_move_data
    def generative(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        z = kwargs["z"] if "z" in kwargs else args[0]
        self._draws = len(z) if z.ndim == 3 else None
        try:
            with _unchecked(z.device):
                out = super().generative(*args, **kwargs)
        finally:
            self._draws = None
        out[MODULE_KEYS.PX_KEY] = self._distribution(out[MODULE_KEYS.PX_KEY])
        return out

    def compute_embedding(self, key: str, indices: Tensor) -> Tensor:
        # Upstream joins it to codes as they are, which have a dimension more for several draws.
        out = super().compute_embedding(key, indices)
        return out if self._draws is None else out.expand(self._draws, *out.shape)

    # Draws a cell of the codes that are being decoded.
    _draws: int | None = None

    def _distribution(self, px: Any) -> Distribution:
        checks = None if px.scale.is_cpu else False
        if self.gene_likelihood == "normal":
            return FreeNormal(px.loc, px.scale, checks)
        if self.gene_likelihood == "poisson":
            return ScaledPoisson(px.rate, px.scale, checks)
        distributions = {"nb": NegativeBinomial, "zinb": ZeroInflatedNegativeBinomial}
        names = ("mu", "theta", "scale", "zi_logits")
        parameters = {name: getattr(px, name) for name in names if name in vars(px)}
        return distributions[self.gene_likelihood](**parameters)


class QBMVAE(ExpressionVAE):
    r"""Variational auto-encoder with binary latents and a Boltzmann-machine prior.

    Posterior :math:`q(z|x) = \prod_l \mathrm{Bernoulli}(q_l(x))`, relaxed to a continuous code
    for the decoder; prior :math:`p(z) \propto e^{-h^\top z - \frac{1}{2} z^\top W z}`. The KL
    term is exact, log Z included, so the ELBO that scvi-tools logs is a true bound up to the
    error of log Z (``prior.log_z_se``).

    Parameters
    ----------
    n_input, n_batch
        Numbers of genes and of batches.
    n_latent
        Binary latent units, >= 2.
    gene_likelihood
        As :class:`scvi.module.VAE`, but for ``"normal"``, see :class:`ExpressionVAE`.
    log_variational
        Whether the encoder sees log(1 + x); if None, for count likelihoods.
    relaxation, relaxation_beta
        Name (see :func:`scvi_qbm.relaxations.list_relaxations`) and sharpness of the relaxation;
        its own default if None.
    prior
        ``"boltzmann"``, or ``"bernoulli"`` for independent units (its W = 0 twin).
    sampler, sampler_options
        Where the negative phase's samples come from, see :class:`~scvi_qbm.prior.NegativePhase`.
    latent_distribution, var_activation
        Of Gaussian posteriors, which scvi-tools hands on; not used.
    **kwargs
        As :class:`ExpressionVAE`.

    Attributes
    ----------
    prior
        :class:`~scvi_qbm.prior.BoltzmannPrior` or :class:`~scvi_qbm.prior.BernoulliPrior`.
    negative_phase
        What trains a Boltzmann prior, :class:`~scvi_qbm.prior.NegativePhase`; None for
        independent units.

    Raises
    ------
    ValueError
        If the relaxation, prior or sampler is unknown, or ``n_latent`` < 2.
    """

    def __init__(
        self,
        n_input: int,
        n_batch: int = 0,
        *,
        n_latent: int = _DEFAULT["n_latent"],
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = _DEFAULT["gene_likelihood"],
        log_variational: bool | None = None,
        relaxation: str = _DEFAULT["relaxation"],
        relaxation_beta: float | None = None,
        prior: Literal["boltzmann", "bernoulli"] = "boltzmann",
        sampler: str | Sampler = "parallel_tempering",
        sampler_options: dict[str, Any] | None = None,
        latent_distribution: str = "normal",
        var_activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        if log_variational is None:
            log_variational = gene_likelihood != "normal"
        super().__init__(
            n_input,
            n_batch,
            n_latent=n_latent,
            gene_likelihood=gene_likelihood,
            log_variational=log_variational,
            **kwargs,
        )
        gaussian = self.z_encoder
        self.z_encoder = BinaryEncoder(
            gaussian.encoder,
            gaussian.mean_encoder.in_features,
            n_latent,
            get_relaxation(relaxation),
            relaxation_beta,
        )
        self.negative_phase: NegativePhase | None = None
        if prior == "boltzmann":
            self.prior: BinaryPrior = BoltzmannPrior(n_latent)
            self.negative_phase = NegativePhase(self.prior, sampler, sampler_options)
        elif prior == "bernoulli":
            self.prior = BernoulliPrior(n_latent)
        else:
            raise ValueError(f"Unknown prior {prior!r}. Available: boltzmann, bernoulli.")

    @auto_move_data
    def _cached_inference(
        self,
        qzm: Tensor,
        qzv: Tensor,
        observed_lib_size: Tensor,
        n_samples: int = 1,
    ) -> dict[str, Any]:
        qz = self.z_encoder.from_moments(qzm, qzv)
        library = torch.log(observed_lib_size)
        if self.gene_likelihood == "normal":
            library = torch.zeros_like(library)
        if n_samples > 1:
            library = library.unsqueeze(0).expand((n_samples, *library.shape))
        return {
            MODULE_KEYS.Z_KEY: qz.sample((n_samples,) if n_samples > 1 else ()),
            MODULE_KEYS.QZ_KEY: qz,
            MODULE_KEYS.QL_KEY: None,
            MODULE_KEYS.LIBRARY_KEY: library,
        }

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        library: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
        y: Tensor | None = None,
        transform_batch: Tensor | None = None,
    ) -> dict[str, Any]:
        out = super().generative(
            z, library, batch_index, cont_covs, cat_covs, size_factor, y, transform_batch
        )
        out[MODULE_KEYS.PZ_KEY] = None
        return out

    def _labels_of(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the prior is told of a minibatch beside its codes: here, nothing."""
        return {}

    @unsupported_if_adata_minified
    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float | Tensor = 1.0,
    ) -> LossOutput:
        """Negative ELBO with the KL of the codes weighted by ``kl_weight``.

        In training mode the prior's own gradient rides along with weight 1 and value 0: warm-up
        must not starve the Boltzmann machine, and its surrogate is not part of the ELBO.

        Parameters
        ----------
        tensors
            A minibatch.
        inference_outputs, generative_outputs
            What ``inference`` and :meth:`generative` returned for it.
        kl_weight
            Weight of KL(q(z|x) || p(z)); below 1 the value is no ELBO.

        Returns
        -------
        scvi.module.base.LossOutput
            The loss averaged over cells; reconstruction and KL a cell, ``(n_cells,)``. All in
            nats.
        """
        qz = inference_outputs[MODULE_KEYS.QZ_KEY]
        labels = self._labels_of(tensors)
        kl_z = self.prior.kl(qz.logits, **labels)
        kl_l = torch.zeros_like(kl_z)
        if not self.use_observed_lib_size:
            kl_l = torch.distributions.kl_divergence(
                inference_outputs[MODULE_KEYS.QL_KEY], generative_outputs[MODULE_KEYS.PL_KEY]
            ).sum(dim=1)
        x = tensors[REGISTRY_KEYS.X_KEY]
        reconstruction = -generative_outputs[MODULE_KEYS.PX_KEY].log_prob(x).sum(-1)
        loss = torch.mean(reconstruction + kl_weight * kl_z + kl_l)
        if self.training and torch.is_grad_enabled() and not self.prior.is_frozen:
            negatives = None if self.negative_phase is None else self.negative_phase.collect()
            surrogate = self.prior.surrogate(qz.probs.detach(), negatives, **labels)
            loss = loss + surrogate - surrogate.detach()
        payload = {}
        if self.extra_payload_autotune:
            payload = {
                "z": inference_outputs[MODULE_KEYS.Z_KEY],
                "batch": tensors[REGISTRY_KEYS.BATCH_KEY],
                "labels": tensors[REGISTRY_KEYS.LABELS_KEY],
            }
        return LossOutput(
            loss=loss,
            reconstruction_loss=reconstruction,
            kl_local={MODULE_KEYS.KL_L_KEY: kl_l, MODULE_KEYS.KL_Z_KEY: kl_z},
            extra_metrics=payload,
        )

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self,
        tensors: dict[str, Tensor],
        n_mc_samples: int,
        return_mean: bool = False,
        n_mc_samples_per_pass: int = 1,
    ) -> Tensor | float:
        r"""Importance-weighted log-likelihood :math:`\log \frac1K \sum_k p(x, z_k) / q(z_k | x)`.

        Weights live on (z, :math:`\zeta`) together, where the relaxation cancels; the prior is
        normalised by log Z.
        In expectation it is at least the ELBO and at most log p(x).

        Parameters
        ----------
        tensors
            A minibatch.
        n_mc_samples
            Number K of samples a cell.
        return_mean
            Whether to average over the cells.
        n_mc_samples_per_pass
            Samples decoded at once; trades memory for speed.

        Returns
        -------
        torch.Tensor | float
            ``(n_cells,)`` in nats, or its mean as a float.

        Raises
        ------
        ValueError
            If ``n_mc_samples`` or ``n_mc_samples_per_pass`` is below 1.

        References
        ----------
        Burda et al. (2016), Importance Weighted Autoencoders, arXiv:1509.00519, equation 8.
        """
        left = positive_int(n_mc_samples, "n_mc_samples")
        at_once = positive_int(n_mc_samples_per_pass, "n_mc_samples_per_pass")
        inference = self.inference(**self._get_inference_input(tensors, full_forward_pass=True))
        qz, ql = inference[MODULE_KEYS.QZ_KEY], inference[MODULE_KEYS.QL_KEY]
        x, batch_index = tensors[REGISTRY_KEYS.X_KEY], tensors[REGISTRY_KEYS.BATCH_KEY]
        labels = self._labels_of(tensors)
        log_weights = []
        while left > 0:
            size = min(at_once, left)
            left -= size
            z, zeta = qz.sample_joint((size,))
            log_weight = self.prior.log_prob(z, **labels) - qz.binary_log_prob(z).sum(-1)
            library = inference[MODULE_KEYS.LIBRARY_KEY].expand(size, -1, -1)
            if not self.use_observed_lib_size:
                library = ql.sample((size,))
                mean, variance = self._compute_local_library_params(batch_index)
                p_l = Normal(mean, variance.sqrt()).log_prob(library)
                log_weight = log_weight + (p_l - ql.log_prob(library)).sum(-1)
            outputs = inference | {MODULE_KEYS.Z_KEY: zeta, MODULE_KEYS.LIBRARY_KEY: library}
            px = self.generative(**self._get_generative_input(tensors, outputs))
            log_weights.append(log_weight + px[MODULE_KEYS.PX_KEY].log_prob(x).sum(-1))
        out = torch.logsumexp(torch.cat(log_weights), dim=0) - math.log(n_mc_samples)
        return out.mean().item() if return_mean else out.cpu()


QBMVAE.__signature__ = full_signature(QBMVAE)  # type: ignore[attr-defined]
