"""Expression: what scvi-tools' RNASeqMixin gets wrong for binary codes or other likelihoods."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from scvi.module.base._decorators import _move_data_to_device
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid

from scvi_qbm._checks import as_positions
from scvi_qbm._numbers import positive, positive_int


def _genes(var_names: pd.Index, names: Any) -> list[str] | None:
    """Names of genes as a list; a ValueError says which are not there."""
    if names is None:
        return None
    genes = [names] if isinstance(names, str) else list(names)
    missing = [gene for gene in genes if gene not in var_names]
    if missing or not genes:
        raise ValueError(
            f"Not among the genes (adata.var_names): {', '.join(map(repr, missing[:5]))}"
            f"{' ...' if len(missing) > 5 else ''}."
            if genes
            else "`gene_list` names no gene."
        )
    return genes


def by_name(method: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Positional arguments under the names that this version of scvi-tools gives them."""
    names = list(inspect.signature(method).parameters)[1:]
    if len(args) > len(names):
        raise TypeError(f"{method.__name__} takes {len(names)} arguments, got {len(args)}.")
    return dict(zip(names, args, strict=False))


class ExpressionMixin:
    """Corrections of :class:`scvi.model.base.RNASeqMixin`."""

    def get_normalized_expression(self, *args: Any, **kwargs: Any) -> Any:
        """Decoded expression, see :meth:`scvi.model.SCVI.get_normalized_expression`.

        For ``gene_likelihood="normal"`` this is the mean of the log-normalised values, whatever
        their library size.

        Parameters
        ----------
        *args, **kwargs
            As there.

        Returns
        -------
        pandas.DataFrame | numpy.ndarray
            As there, cells by genes.

        Raises
        ------
        TypeError
            If there are more arguments than upstream takes.
        ValueError
            If ``library_size`` is not positive, or given for ``gene_likelihood="normal"``; if a
            gene of ``gene_list`` is not there; if samples are weighted by importance and there are
            none.
        """
        kwargs |= by_name(SCVI.get_normalized_expression, args)
        if kwargs.get("dataloader") is None:
            # Upstream uses them for more than its loader.
            n_obs = self._validate_anndata(kwargs.get("adata")).n_obs
            kwargs["indices"] = as_positions(kwargs.get("indices"), n_obs)
        library_size = kwargs.get("library_size", 1)
        if self.module.gene_likelihood == "normal" and library_size not in (1, "latent"):
            raise ValueError(
                "gene_likelihood='normal' models log-normalised values, which have no library "
                f"size: leave out library_size={library_size!r}."
            )
        if library_size != "latent":
            positive(library_size, "library_size")
        if np.size(kwargs.get("transform_batch", 1)) == 0:
            raise ValueError("`transform_batch` names no batch.")
        var_names = pd.Index(self.get_var_names())
        genes = _genes(var_names, kwargs.get("gene_list"))
        kwargs["gene_list"] = genes
        # Upstream names the rows after cells, which samples of a population are not.
        pooled = kwargs.get("n_samples_overall") is not None and not kwargs.get("return_numpy")
        if pooled:
            kwargs["return_numpy"] = True
        # Upstream scales the very tensor that importance weights are computed from.
        afterwards = kwargs.get("weights") == "importance" and library_size not in (1, "latent")
        if afterwards:
            kwargs["library_size"] = 1
        out = super().get_normalized_expression(**kwargs)
        if afterwards:
            out = out * library_size
        if genes is None:
            return pd.DataFrame(out, columns=var_names) if pooled else out
        # As asked for; upstream's order is the data's.
        there = var_names[var_names.isin(genes)]
        place = there.get_indexer(genes) if there.is_unique else np.arange(len(there))
        if pooled:
            out = pd.DataFrame(out, columns=there)
        return out.iloc[:, place] if isinstance(out, pd.DataFrame) else out[..., place]

    @torch.inference_mode()
    def get_importance_weights(
        self,
        adata: AnnData | None,
        indices: Any,
        qz: Distribution,
        px: Distribution,
        zs: Tensor,
        max_cells: int = 1024,
        truncation: bool = False,
        n_mc_samples: int = 500,
        n_mc_samples_per_pass: int = 250,
        **data_loader_kwargs: Any,
    ) -> NDArray[Any]:
        r"""Weights of posterior samples that favour codes likely across the whole population.

        :math:`w(z) \propto \sum_n \frac{p(z)\,p(x_n | z)}{p(x_n) \sum_m q(z | x_m)}` over anchor
        cells n, m, with the Boltzmann machine's normalised p(z). Binary states are drawn from
        :math:`q(z | x, \zeta)`, so that (z, :math:`\zeta`) are joint draws and the relaxation
        cancels between prior and posterior.

        Parameters
        ----------
        adata, indices
            Data and cells.
        qz, px
            Posteriors of the cells, and likelihoods at the samples.
        zs
            Continuous codes, ``(n_cells, n_latent)`` or ``(n_samples, n_cells, n_latent)``.
        max_cells
            Anchor cells at most, drawn at random.
        truncation
            Clamp weights from below at their mean, as upstream does.
        n_mc_samples, n_mc_samples_per_pass
            For the marginal likelihoods of the anchors.
        **data_loader_kwargs
            Of the loader of the anchors.

        Returns
        -------
        numpy.ndarray
            float64, a weight a sample of ``zs`` (samples and cells flattened); they sum to 1.

        Raises
        ------
        ValueError
            If ``max_cells``, ``n_mc_samples`` or ``n_mc_samples_per_pass`` is below 1.

        References
        ----------
        Boyeau et al. (2023), PNAS 120, e2209124120 (scvi-tools' estimator, for a Gaussian prior).
        """
        for name, value in (
            ("max_cells", max_cells),
            ("n_mc_samples", n_mc_samples),
            ("n_mc_samples_per_pass", n_mc_samples_per_pass),
        ):
            positive_int(value, name)
        adata, device = self._validate_anndata(adata), self.device
        indices = as_positions(indices, adata.n_obs)
        anchors = np.arange(len(indices))
        if len(indices) > max_cells:
            anchors = np.random.choice(anchors, size=max_cells, replace=False)
        log_px = self.get_marginal_ll(
            adata,
            indices=indices[anchors],
            return_mean=False,
            n_mc_samples=n_mc_samples,
            n_mc_samples_per_pass=n_mc_samples_per_pass,
        )
        # Binary states are drawn given zeta, so that the relaxation cancels.
        z = qz.sample_binary(zs).to(device)
        z = z.reshape(-1, z.shape[-1])
        logits = qz.logits[torch.from_numpy(anchors)].to(device)
        log_pz = self.module.prior.log_prob(z).cpu().reshape(-1, 1)
        log_qz = (z @ logits.T + logsigmoid(-logits).sum(1)).cpu().reshape(-1, len(anchors))
        px = type(px)(**{name: getattr(px, name).to(device) for name in px.arg_constraints})
        log_px_z = []
        for tensors in self._make_data_loader(
            adata=adata, indices=indices[anchors], batch_size=1, **data_loader_kwargs
        ):
            tensors = _move_data_to_device(tensors, device)
            x = tensors[REGISTRY_KEYS.X_KEY]
            if self.module.gene_likelihood != "normal":
                size = (
                    tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY]
                    if self.module.use_size_factor_key
                    else x.sum(-1, keepdim=True)
                )
                mean = px.scale * size
                setattr(px, "rate" if self.module.gene_likelihood == "poisson" else "mu", mean)
            log_px_z.append(px.log_prob(x).sum(-1).cpu().reshape(-1, 1))
        log_weight = torch.logsumexp(
            log_pz
            + torch.cat(log_px_z, 1)
            - log_px.cpu().reshape(1, -1)
            - torch.logsumexp(log_qz, 1, keepdim=True),
            dim=1,
        ).double()
        if truncation:
            mean = torch.logsumexp(log_weight, 0) - np.log(len(log_weight))
            log_weight = log_weight.clamp_min(mean)
        return torch.softmax(log_weight, 0).numpy()

    @torch.inference_mode()
    def _get_denoised_samples(
        self,
        adata: AnnData | None = None,
        indices: Any = None,
        n_samples: int = 25,
        batch_size: int = 64,
        rna_size_factor: int = 1000,
        transform_batch: Any = None,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        **data_loader_kwargs: Any,
    ) -> NDArray[Any]:
        """Samples for gene-gene correlations, (n_cells, n_genes[, n_samples]).

        Where upstream fails: for ``poisson`` the rate at drawn codes, times ``rna_size_factor``;
        for ``normal`` the mean at drawn codes. Neither likelihood has the gene's own biological
        noise that the negative binomial's gamma carries.
        """
        likelihood = self.module.gene_likelihood
        if likelihood not in ("poisson", "normal"):
            return super()._get_denoised_samples(
                adata, indices, n_samples, batch_size, rna_size_factor, transform_batch,
                dataloader, **data_loader_kwargs,
            )  # fmt: skip
        if dataloader is not None:
            transform_batch = None
        loader = self._minibatches(adata, indices, batch_size, dataloader, **data_loader_kwargs)
        factor = rna_size_factor if likelihood == "poisson" else 1
        out = []
        for tensors in loader:
            _, generative = self.module.forward(
                tensors=tensors,
                inference_kwargs={"n_samples": n_samples},
                generative_kwargs=self._get_transform_batch_gen_kwargs(transform_batch),
                compute_loss=False,
            )
            values = (factor * generative["px"].get_normalized("scale")).cpu().numpy()
            out.append(np.transpose(values, (1, 2, 0)) if n_samples > 1 else values)
        return np.concatenate(out, axis=0)

    @torch.inference_mode()
    def get_likelihood_parameters(
        self,
        adata: AnnData | None = None,
        indices: Any = None,
        n_samples: int = 1,
        give_mean: bool = False,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        **data_loader_kwargs: Any,
    ) -> dict[str, NDArray[Any]]:
        """Parameters of p(x | z) at draws of the posterior.

        Parameters
        ----------
        adata, indices
            As :meth:`scvi.model.SCVI.get_likelihood_parameters`.
        n_samples
            Draws a cell, >= 1.
        give_mean
            Average over the draws.
        batch_size
            Cells at once; ``scvi.settings.batch_size`` if None.
        dataloader, **data_loader_kwargs
            As :meth:`scvi.model.SCVI.get_likelihood_parameters`.

        Returns
        -------
        dict[str, numpy.ndarray]
            Arrays ``([n_samples,] n_cells, n_genes)``: ``mean`` always; ``dispersions`` (inverse)
            for ``nb`` and ``zinb``; ``dropout`` for ``zinb``; ``scale``, the standard deviation,
            for ``normal``.

        Raises
        ------
        ValueError
            If ``n_samples`` < 1.
        """
        positive_int(n_samples, "n_samples")
        loader = self._minibatches(adata, indices, batch_size, dataloader, **data_loader_kwargs)
        names = {
            "nb": {"mean": "mu", "dispersions": "theta"},
            "zinb": {"mean": "mu", "dispersions": "theta", "dropout": "zi_probs"},
            "poisson": {"mean": "rate"},
            "normal": {"mean": "loc", "scale": "scale"},
        }[self.module.gene_likelihood]
        out: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
        for tensors in loader:
            _, generative = self.module.forward(
                tensors=tensors, inference_kwargs={"n_samples": n_samples}, compute_loss=False
            )
            px = generative["px"]
            mean = getattr(px, names["mean"])
            for name, attribute in names.items():
                value = torch.broadcast_to(getattr(px, attribute), mean.shape)
                out[name].append(value.cpu().numpy())
        joined = {name: np.concatenate(values, axis=-2) for name, values in out.items()}
        if give_mean and n_samples > 1:
            joined = {name: values.mean(0) for name, values in joined.items()}
        return joined

    def get_latent_library_size(self, *args: Any, **kwargs: Any) -> NDArray[Any]:
        """Library sizes, see :meth:`scvi.model.SCVI.get_latent_library_size`.

        Parameters
        ----------
        *args, **kwargs
            As there.

        Returns
        -------
        numpy.ndarray
            As there, ``(n_cells, 1)``.

        Raises
        ------
        ValueError
            For ``gene_likelihood="normal"``, which has none.
        """
        if self.module.gene_likelihood == "normal":
            raise ValueError("gene_likelihood='normal' has no library size.")
        return super().get_latent_library_size(*args, **kwargs)


# What scvi-tools documents is what help() and editors show.
ExpressionMixin.get_normalized_expression.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    SCVI.get_normalized_expression
)
