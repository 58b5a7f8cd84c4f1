"""Changed input of the encoder, a decoder that adds up profiles, a cycle through both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scvi_qbm import QBMVI
from scvi_qbm.module import QBMVAE


class ChangedInputVAE(QBMVAE):
    """Changes of the counts that the encoder sees; the decoder explains them as they are.

    ``depth``: counts are scaled to this library size. ``mask``: share of genes set to zero in
    training. ``shallow``: in training, depth is scaled by a factor from 1 - ``shallow`` to 1.
    """

    options: dict[str, float] = {}

    def _regular_inference(self, x: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        seen, library = x, torch.log(x.sum(1, keepdim=True))
        if depth := self.options.get("depth"):
            seen = seen * (depth / seen.sum(1, keepdim=True))
        if self.training and (mask := self.options.get("mask")):
            seen = seen * (torch.rand_like(seen) >= mask)
        if self.training and (shallow := self.options.get("shallow")):
            seen = seen * (1 - shallow * torch.rand(len(seen), 1))
        out = super()._regular_inference(seen, *args, **kwargs)
        out["library"] = library.expand_as(out["library"])
        return out


class ChangedInput(QBMVI):
    """QBMVI on :class:`ChangedInputVAE`."""

    _module_cls = ChangedInputVAE


class AdditiveDecoder(torch.nn.Module):
    """Every unit says, on and off, a profile for each batch; profiles add up as counts do.

    As DRVI's splits (Moinfar and Theis 2024) pooled by logsumexp, for codes in [0, 1]. A network
    shared by all units maps (unit, state, batch) to a log profile: once a batch, not once a cell.
    """

    def __init__(self, n_latent: int, n_genes: int, n_batch: int, width: int = 128) -> None:
        super().__init__()
        nn = torch.nn
        self.units = nn.Parameter(torch.randn(2 * n_latent, width))
        self.batches = nn.Parameter(torch.randn(n_batch, width) / 8)
        self.hidden = nn.Sequential(
            nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU()
        )
        self.inject = nn.Linear(n_batch, width, bias=False)
        self.profile = nn.Linear(width, n_genes)
        self.genes = nn.Linear(n_batch, n_genes, bias=False)
        nn.init.zeros_(self.genes.weight)

    def forward(self, dispersion: str, z: Tensor, library: Tensor, batch: Tensor, *_: Tensor):
        both = torch.cat([z, 1 - z], -1)
        shape = both.shape[:-1]
        both = both.reshape(-1, both.shape[-1])
        where = batch.reshape(-1).long().expand(shape).reshape(-1)
        rate = both.new_zeros(len(both), self.profile.out_features)
        for b in where.unique():
            rows = where == b
            hidden = self.hidden(self.units + self.batches[b]) + self.inject.weight[:, b]
            log_profile = self.profile(hidden) + self.genes.weight[:, b]
            rate[rows] = both[rows] @ log_profile.clamp(max=20).exp()
        scale = (rate / rate.sum(-1, keepdim=True)).reshape(*shape, -1)
        return scale, None, library.exp() * scale, torch.zeros_like(scale)


class AdditiveVAE(QBMVAE):
    """QBMVAE with :class:`AdditiveDecoder`."""

    options: dict[str, float] = {}

    def __init__(self, n_input: int, n_batch: int = 0, *args: Any, **kwargs: Any) -> None:
        super().__init__(n_input, n_batch, *args, **kwargs)
        self.decoder = AdditiveDecoder(self.n_latent, n_input, max(n_batch, 1))


class AdditiveCodes(QBMVI):
    """QBMVI on :class:`AdditiveVAE`."""

    _module_cls = AdditiveVAE


class PenalisedVAE(QBMVAE):
    """A term of the codes in the loss of training, where there are batches; its ``weight``."""

    options: dict[str, float] = {}

    def penalty(self, tensors: Any, inference_outputs: Any) -> Tensor:
        raise NotImplementedError

    def loss(
        self, tensors: Any, inference_outputs: Any, generative_outputs: Any, kl_weight: Any = 1.0
    ) -> Any:
        out = super().loss(tensors, inference_outputs, generative_outputs, kl_weight)
        if self.training and torch.is_grad_enabled() and self.n_batch > 1:
            penalty = self.penalty(tensors, inference_outputs)
            out.loss = out.loss + self.options["weight"] * penalty
        return out


class CycleVAE(PenalisedVAE):
    """Cells decoded as of another batch must be encoded as they were.

    As sysVI's cycle loss (Hrovatin et al. 2024), on probabilities of units. ``weight``: of the
    squared distance, summed over units.
    """

    def penalty(self, tensors: Any, inference_outputs: Any) -> Tensor:
        batch = tensors["batch"]
        other = (batch + torch.randint_like(batch, 1, self.n_batch)) % self.n_batch
        inputs = self._get_generative_input(tensors, inference_outputs)
        seen = self.generative(**inputs | {"batch_index": other})["px"].mean
        # By running statistics, as cells are encoded in the end.
        self.z_encoder.eval()
        again = self.z_encoder(torch.log1p(seen))[0].probs
        self.z_encoder.train()
        return ((again - inference_outputs["qz"].probs) ** 2).sum(-1).mean()


class CycleCodes(QBMVI):
    """QBMVI on :class:`CycleVAE`."""

    _module_cls = CycleVAE


class AlignedVAE(PenalisedVAE):
    """Codes of every batch should have one law: energy distance between batches of a minibatch.

    Szekely and Rizzo 2013, of probabilities of units. ``weight``: nats a cell for a distance of 1.
    ``width``: if given, batches are compared after weighing cells to the composition they have in
    common, min of the densities under a Gaussian kernel of this share of the mean squared distance
    between cells. Differences of composition cost nothing then, shifts within the kernel do.
    """

    def penalty(self, tensors: Any, inference_outputs: Any) -> Tensor:
        code, batch = inference_outputs["qz"].probs, tensors["batch"].long().squeeze(1)
        return alignment(code, batch, self.n_batch, self.options.get("width"))


def alignment(code: Tensor, batch: Tensor, n_batch: int, width: float | None) -> Tensor:
    """Energy distance between batches, over all pairs, weighed by their shares of cells."""
    squared = ((code[:, None] - code) ** 2).sum(-1)
    apart = (squared + 1e-6).sqrt()
    member = torch.nn.functional.one_hot(batch, n_batch)
    member = member[:, member.sum(0) >= 5].to(code)
    size = member.sum(0)
    kernel = torch.zeros_like(squared)
    if width:
        kernel = torch.exp(-squared.detach() / (2 * width * squared.detach().mean()))
        kernel = kernel.fill_diagonal_(0)
    # Density of each batch at each cell, a cell not counted in its own.
    density = (kernel @ member) / (size - member)
    total = code.new_zeros(())
    for a in range(len(size)):
        for b in range(a):
            weights = []
            for here, there in ((a, b), (b, a)):
                w = member[:, here]
                if width:
                    ratio = density[:, there] / density[:, here].clamp(min=1e-6)
                    w = w * ratio.clamp(max=1)
                weights.append(w)
            mass = torch.stack([w.sum() for w in weights]) / size[[a, b]]
            if mass.min() < 0.05:
                continue
            u, v = (w / w.sum() for w in weights)
            between = u @ apart @ v
            within = [(w @ apart @ w) / (1 - w @ w).clamp(min=0.1) for w in (u, v)]
            energy = 2 * between - within[0] - within[1]
            total = total + size[a] * size[b] / size.sum() ** 2 * mass.min() * energy
    return total


class AlignedCodes(QBMVI):
    """QBMVI on :class:`AlignedVAE`."""

    _module_cls = AlignedVAE
