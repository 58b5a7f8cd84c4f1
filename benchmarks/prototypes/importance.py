"""Training on the importance-weighted bound (Burda et al. 2016, arXiv:1509.00519)."""

from __future__ import annotations

from typing import Any

import torch

from scvi_qbm import QBMVI
from scvi_qbm.module import QBMVAE


class ImportanceVAE(QBMVAE):
    """Decoder and machine climb the bound of ``samples`` draws; the encoder the ELBO.

    Tighter bounds starve the encoder's gradient, so it keeps the loose one (as PIWAE of Rainforth
    et al. 2018, arXiv:1802.04537). ``wake``: share of the encoder's gradient that comes from
    reweighted wake-sleep (Bornschein and Bengio 2015, arXiv:1406.2751). ``machine``: if 0, the
    machine climbs the ELBO as well.
    """

    options: dict[str, float] = {}

    def loss(
        self, tensors: Any, inference_outputs: Any, generative_outputs: Any, kl_weight: Any = 1.0
    ) -> Any:
        training, self.training = self.training, False  # Negative samples are drawn below.
        out = super().loss(tensors, inference_outputs, generative_outputs, kl_weight)
        self.training = training
        if not (training and torch.is_grad_enabled()):
            return out
        x, qz, zeta = tensors["X"], inference_outputs["qz"], inference_outputs["z"]
        samples, wake = int(self.options["samples"]), self.options.get("wake", 0.0)
        reconstruction = out.reconstruction_loss["reconstruction_loss"].mean()
        (slope,) = torch.autograd.grad(reconstruction, zeta, retain_graph=True)
        encoder = kl_weight * out.kl_local["kl_divergence_z"].mean() + (zeta * slope).sum()

        with torch.no_grad():
            z, draws = qz.sample_joint((samples,))
            log_weight = self.prior.log_prob(z) - qz.binary_log_prob(z).sum(-1)
        library = inference_outputs["library"].expand(samples, -1, -1)
        inputs = self._get_generative_input(
            tensors, inference_outputs | {"z": draws, "library": library}
        )
        log_likelihood = self.generative(**inputs)["px"].log_prob(x).sum(-1)
        weights = torch.softmax(log_likelihood.detach() + kl_weight * log_weight, dim=0)
        decoder = -(weights * log_likelihood).sum(0).mean()
        units = qz.probs.detach()
        if self.options.get("machine", 1.0):
            chosen = torch.multinomial(weights.T, 1).squeeze(1)
            units = z[chosen, torch.arange(len(chosen))]
        if wake:
            wakeful = -(weights * qz.binary_log_prob(z).sum(-1)).sum(0).mean()
            encoder = (1 - wake) * encoder + wake * wakeful
        loss = encoder + decoder
        if self.prior.h.requires_grad:
            loss = loss + self.prior.surrogate(units)
        out.loss = out.loss.detach() + loss - loss.detach()
        return out


class ImportanceCodes(QBMVI):
    """QBMVI on :class:`ImportanceVAE`."""

    _module_cls = ImportanceVAE
