"""QBMVI: scvi-tools' SCVI with binary latents and a Boltzmann-machine prior."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

# rich 15 no longer loads this submodule by itself, and scvi-tools 1.4.2 counts on it.
import rich.pretty  # noqa: F401
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data._utils import _get_adata_minify_type
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.model import SCVI
from torch import Tensor

from scvi_qbm._checks import check_expression, check_setup_keys
from scvi_qbm.module import QBMVAE
from scvi_qbm.recipes import get_recipe
from scvi_qbm.relaxations import get_relaxation
from scvi_qbm.samplers import Sampler

from ._data import DataMixin
from ._expression import ExpressionMixin
from ._generation import GenerationMixin
from ._landscape import LandscapeMixin
from ._latent import LatentMixin
from ._posterior import PosteriorMixin
from ._saving import SavingMixin
from ._summary import SummaryMixin
from ._training import TrainingMixin

__all__ = ["QBMVI"]

_LIKELIHOODS = ("nb", "zinb", "poisson", "normal")


class QBMVI(
    TrainingMixin,
    SavingMixin,
    DataMixin,
    LatentMixin,
    PosteriorMixin,
    ExpressionMixin,
    LandscapeMixin,
    GenerationMixin,
    SummaryMixin,
    SCVI,
):
    """Single-cell variational inference with a Boltzmann-machine prior over binary latents.

    A drop-in for :class:`scvi.model.SCVI`: the same set-up, training and downstream methods.
    Arguments left at None take their value from ``recipe``.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of a data module, for training without ``adata``.
    n_hidden
        Units per hidden layer. Default recipe: 128.
    n_latent
        Binary latent units. Default recipe: 64.
    n_layers
        Hidden layers of encoder and decoder. Default recipe: 1.
    dropout_rate
        Dropout of the encoder.
    dispersion
        As :class:`scvi.model.SCVI`.
    gene_likelihood
        ``"nb"`` (default recipe), ``"zinb"``, ``"poisson"`` for counts; ``"normal"`` for
        log-normalised values, with a free mean (upstream's is library size times softmax).
    use_observed_lib_size
        As :class:`scvi.model.SCVI`.
    recipe
        ``"default"``, or ``"paper"``: the architecture and optimisation of "Quantum-Boosted
        High-Fidelity Deep Learning" (256 latents, two linear layers, spike-and-exponential with
        beta 0.5, squared error on log-normalised values, Adam 1e-2 and 1e-3, patience 10).
    relaxation
        ``"spike_exponential"`` (default recipe) or ``"overlapping_exponential"``, see
        :func:`scvi_qbm.relaxations.list_relaxations`.
    relaxation_beta
        Sharpness of the relaxation. All recipes: 0.5.
    prior
        ``"boltzmann"``, or ``"bernoulli"``: independent units with learned biases, the twin to
        compare with.
    sampler
        Sampler of the negative phase: a name (see :func:`scvi_qbm.list_samplers`) or a sampler.
    sampler_options
        Its options.
    normal_variance
        For ``gene_likelihood="normal"``: ``"learned"`` per gene, or ``"fixed"``, which makes the
        reconstruction term the squared error.
    encode_covariates, deeply_inject_covariates, batch_representation
        As :class:`scvi.module.VAE`.
    use_batch_norm, use_layer_norm
        ``"encoder"``, ``"decoder"``, ``"both"`` or ``"none"``. Default recipe: batch norm in both.
    extra_payload_autotune
        As :class:`scvi.module.VAE`.
    extra_encoder_kwargs, extra_decoder_kwargs, batch_embedding_kwargs
        As :class:`scvi.module.VAE`; the encoder's go to :class:`scvi.nn.FCLayers`.
    var_activation
        Accepted so that scripts written for SCVI run, with a warning: a binary posterior has no
        variance of its own to activate.

    Raises
    ------
    ValueError
        If a name is unknown, ``n_latent`` < 2, or the data cannot be modelled: negative, NaN or
        infinite values, non-integers with a count likelihood, cells without any counts.

    Examples
    --------
    >>> import scvi_qbm
    >>> from scvi_qbm.data import pbmc68k
    >>> adata = pbmc68k()
    >>> scvi_qbm.QBMVI.setup_anndata(adata, layer="counts")
    >>> model = scvi_qbm.QBMVI(adata)
    >>> model.train()  # doctest: +SKIP
    >>> adata.obsm["X_qbmvi"] = model.get_latent_representation()  # doctest: +SKIP
    """

    _module_cls = QBMVAE
    _LATENT_QZM_KEY = "qbmvi_latent_qzm"
    _LATENT_QZV_KEY = "qbmvi_latent_qzv"

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: int | None = None,
        n_latent: int | None = None,
        n_layers: int | None = None,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["nb", "zinb", "poisson", "normal"] | None = None,
        use_observed_lib_size: bool = True,
        recipe: str = "default",
        relaxation: str | None = None,
        relaxation_beta: float | None = None,
        prior: Literal["boltzmann", "bernoulli"] = "boltzmann",
        sampler: str | Sampler = "parallel_tempering",
        sampler_options: dict[str, Any] | None = None,
        normal_variance: Literal["learned", "fixed"] | None = None,
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: Literal["one-hot", "embedding"] = "one-hot",
        use_batch_norm: Literal["encoder", "decoder", "none", "both"] | None = None,
        use_layer_norm: Literal["encoder", "decoder", "none", "both"] | None = None,
        extra_payload_autotune: bool = False,
        extra_encoder_kwargs: dict[str, Any] | None = None,
        extra_decoder_kwargs: dict[str, Any] | None = None,
        batch_embedding_kwargs: dict[str, Any] | None = None,
        var_activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if var_activation is not None:
            warnings.warn(
                "`var_activation` has no effect: the posterior is binary and has no variance of "
                "its own.",
                UserWarning,
                stacklevel=2,
            )
        defaults = get_recipe(recipe).model
        # Resolved here and saved resolved: a later change of a recipe cannot break old models.
        n_hidden = defaults["n_hidden"] if n_hidden is None else n_hidden
        n_latent = defaults["n_latent"] if n_latent is None else n_latent
        n_layers = defaults["n_layers"] if n_layers is None else n_layers
        gene_likelihood = gene_likelihood or defaults["gene_likelihood"]
        relaxation = relaxation or defaults["relaxation"]
        if relaxation_beta is None:
            own = relaxation == defaults["relaxation"]
            relaxation_beta = (
                defaults["relaxation_beta"] if own else get_relaxation(relaxation).default_beta
            )
        if relaxation_beta <= 0:
            raise ValueError(f"`relaxation_beta` must be positive, got {relaxation_beta}.")
        normal_variance = normal_variance or defaults["normal_variance"]
        use_batch_norm = use_batch_norm or defaults["use_batch_norm"]
        use_layer_norm = use_layer_norm or defaults["use_layer_norm"]

        if gene_likelihood not in _LIKELIHOODS:
            raise ValueError(
                f"Unknown gene_likelihood {gene_likelihood!r}. Available: "
                f"{', '.join(_LIKELIHOODS)}."
            )
        if normal_variance not in ("learned", "fixed"):
            raise ValueError(
                f"Unknown normal_variance {normal_variance!r}. Available: learned, fixed."
            )
        if adata is None and registry is not None and not use_observed_lib_size:
            raise ValueError(
                "use_observed_lib_size=False needs the data at hand, for the mean library size of "
                "each batch: leave it out with a data module, or pass adata."
            )
        super().__init__(
            adata,
            registry,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            use_observed_lib_size=use_observed_lib_size,
            log_variational=gene_likelihood != "normal",
            relaxation=relaxation,
            relaxation_beta=relaxation_beta,
            prior=prior,
            sampler=sampler,
            sampler_options=sampler_options,
            normal_variance=normal_variance,
            encode_covariates=encode_covariates,
            deeply_inject_covariates=deeply_inject_covariates,
            batch_representation=batch_representation,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            extra_payload_autotune=extra_payload_autotune,
            extra_encoder_kwargs=extra_encoder_kwargs,
            extra_decoder_kwargs=extra_decoder_kwargs,
            batch_embedding_kwargs=batch_embedding_kwargs,
        )
        self._check_data(empty_is_fine=True)
        self._model_summary_string = (
            f"QBMVI model with the following parameters: \nn_hidden: {n_hidden}, n_latent: "
            f"{n_latent}, n_layers: {n_layers}, dropout_rate: {dropout_rate}, dispersion: "
            f"{dispersion}, gene_likelihood: {gene_likelihood}, prior: {prior}, relaxation: "
            f"{relaxation}, sampler: {sampler}, recipe: {recipe}."
        )
        self.recipe_ = recipe
        self.init_params_ = self._get_init_params(locals())

    def _check_data(self, *, empty_is_fine: bool = False) -> None:
        if self.adata is None or self.minified_data_type is not None:
            return
        gene_likelihood = self.module.gene_likelihood
        arguments = self.registry_["setup_args"]
        if gene_likelihood == "normal" and arguments.get("size_factor_key") is not None:
            raise ValueError(
                "gene_likelihood='normal' models values that are normalised already: leave out "
                "size_factor_key in setup_anndata."
            )
        if gene_likelihood == "normal" and not self.module.use_observed_lib_size:
            raise ValueError(
                "gene_likelihood='normal' has a free mean and no library size: leave out "
                "use_observed_lib_size=False."
            )
        layer = arguments.get("layer")
        where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        if empty_is_fine and getattr(x, "nnz", 1) == 0:
            return  # what is left of minified data; to be minified again before any use
        check_expression(x, likelihood=gene_likelihood, where=where)

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say which parts of an AnnData the model reads. The data stay as they are.

        Parameters
        ----------
        adata
            Cells by genes. Fields of scvi-tools' own (``_scvi_batch``, ``_scvi_labels``, a key in
            ``uns``) are added.
        layer
            Layer with the counts (log-normalised values for ``gene_likelihood="normal"``); ``X``
            if None.
        batch_key
            Column of ``obs`` with the batch; one batch if None.
        labels_key
            Column of ``obs`` with labels, which only ``dispersion="gene-label"`` and the tools of
            scvi-tools use.
        size_factor_key
            Column of ``obs`` with size factors on a linear scale, used instead of library sizes.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of ``obs`` whose effects are to be taken out of the latent code, as the batch's
            are: nothing that you want to see there.
        **kwargs
            Of ``AnnDataManager.register_fields``.

        Raises
        ------
        KeyError
            If the layer or a key is not there; nothing is registered then.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        check_setup_keys(
            adata,
            layer,
            {
                "batch_key": batch_key,
                "labels_key": labels_key,
                "size_factor_key": size_factor_key,
                "categorical_covariate_keys": categorical_covariate_keys,
                "continuous_covariate_keys": continuous_covariate_keys,
            },
        )
        fields = [
            # Whether these are counts is checked against the likelihood in __init__.
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, labels_key),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
        ]
        minify_type = _get_adata_minify_type(adata)
        if minify_type is not None:
            fields += cls._get_fields_for_adata_minification(minify_type)
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)
