"""QBMVI: scvi-tools' SCVI with binary latents and a Boltzmann-machine prior."""

from __future__ import annotations

import inspect
import pickle
import warnings
from typing import Any, Literal

# rich 15 no longer loads this submodule by itself, and scvi-tools 1.4.2 counts on it.
import pandas as pd
import rich.pretty  # noqa: F401
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager, _constants
from scvi.data._utils import _get_adata_minify_type
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.model import SCVI

from scvi_qbm._checks import as_keys, check_expression, check_setup_keys, glimpse
from scvi_qbm._numbers import positive, positive_int
from scvi_qbm._signature import full_signature
from scvi_qbm.data.rows import is_on_disk
from scvi_qbm.module import QBMVAE
from scvi_qbm.recipes import get_recipe
from scvi_qbm.relaxations import get_relaxation
from scvi_qbm.samplers import Sampler

from ._alignment import AlignmentMixin
from ._data import DataMixin
from ._differential import DifferentialMixin
from ._expression import ExpressionMixin
from ._generation import GenerationMixin
from ._landscape import LandscapeMixin
from ._likelihood import LikelihoodMixin
from ._programs import ProgramsMixin
from ._representation import RepresentationMixin
from ._summary import show, summarise
from ._training import TrainingMixin

__all__ = ["QBMVI"]

_KNOWN = {
    "gene_likelihood": ("nb", "zinb", "poisson", "normal"),
    "normal_variance": ("learned", "fixed"),
}
_KEYS = (
    "batch_key", "size_factor_key", "categorical_covariate_keys", "continuous_covariate_keys",
)  # fmt: skip
_SAID = (
    "n_hidden", "n_latent", "n_layers", "dropout_rate", "gene_likelihood", "prior", "relaxation",
    "sampler",
)  # fmt: skip


class QBMVI(
    TrainingMixin,
    DataMixin,
    AlignmentMixin,
    RepresentationMixin,
    LikelihoodMixin,
    DifferentialMixin,
    ExpressionMixin,
    LandscapeMixin,
    ProgramsMixin,
    GenerationMixin,
    SCVI,
):
    """Single-cell variational inference with a Boltzmann-machine prior over binary latents.

    A drop-in for :class:`scvi.model.SCVI`: the same set-up, training and downstream methods.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        Registry of a data module, for training without ``adata``.
    recipe
        ``"default"``: 64 binary units (128 from 8,000 cells on), negative binomial likelihood,
        one hidden layer of 128.
        ``"paper"``: the architecture and optimisation of "Quantum-Boosted High-Fidelity Deep
        Learning" (256 units, two linear layers, squared error on log-normalised values).
        Explicit arguments override the recipe.
    relaxation
        ``"spike_exponential"`` (both recipes) or ``"overlapping_exponential"``, see
        :func:`scvi_qbm.relaxations.list_relaxations`.
    relaxation_beta
        Sharpness of the relaxation; its own default (the paper's 0.5) if None.
    prior
        ``"boltzmann"``, or ``"bernoulli"``: an independent prior (W = 0) with learned biases,
        as a control.
    sampler
        Sampler of the negative phase: a name (see :func:`scvi_qbm.list_samplers`) or a sampler.
    sampler_options
        Options of the sampler.
    normal_variance
        For ``gene_likelihood="normal"``: ``"learned"`` per gene, or ``"fixed"``, which makes the
        reconstruction term the squared error.
    **kwargs
        As :class:`scvi.model.SCVI` and :class:`scvi.module.VAE`: ``n_hidden``, ``n_latent``
        (binary units, >= 2), ``n_layers``, ``dropout_rate``, ``dispersion``,
        ``gene_likelihood``, ``use_observed_lib_size``, ``encode_covariates``,
        ``batch_representation``, ``use_batch_norm`` and so on. ``gene_likelihood="normal"`` is
        for log-normalised values and has a free mean (upstream's is library size times softmax).
        ``latent_distribution`` and ``var_activation`` have no effect: the posterior is binary.

    Raises
    ------
    TypeError
        If an argument is unknown.
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
        *,
        recipe: str = "default",
        relaxation: str | None = None,
        relaxation_beta: float | None = None,
        prior: Literal["boltzmann", "bernoulli"] = "boltzmann",
        sampler: str | Sampler = "parallel_tempering",
        sampler_options: dict[str, Any] | None = None,
        normal_variance: Literal["learned", "fixed"] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("latent_distribution", "var_activation"):
            if kwargs.pop(name, None) is not None:
                warnings.warn(
                    f"`{name}` has no effect: the posterior is binary and has no variance of its "
                    "own.",
                    UserWarning,
                    stacklevel=2,
                )
        unknown = kwargs.keys() - inspect.signature(self._module_cls).parameters.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no argument {', '.join(sorted(unknown))}.")
        # Resolved here and saved resolved: a later change of a recipe cannot break old models.
        given = {"relaxation": relaxation, "normal_variance": normal_variance, **kwargs}
        arguments = get_recipe(recipe).model_for(_n_cells(adata, registry))
        arguments |= {k: v for k, v in given.items() if v is not None}
        if relaxation_beta is None:
            relaxation_beta = get_relaxation(arguments["relaxation"]).default_beta
        arguments |= {
            "relaxation_beta": relaxation_beta,
            "prior": prior,
            "sampler": sampler,
            "sampler_options": sampler_options,
        }
        _check_arguments(arguments)
        _check_saving(sampler, sampler_options)
        if (
            adata is None
            and registry is not None
            and not kwargs.get("use_observed_lib_size", True)
        ):
            raise ValueError(
                "use_observed_lib_size=False needs the data at hand, for the mean library size of "
                "each batch: leave it out with a data module, or pass adata."
            )
        super().__init__(adata, registry, **arguments)
        if self.adata is not None:
            self._genes = self.adata.var_names
            if self.summary_stats.n_vars != self.adata.n_vars:
                raise ValueError(
                    f"adata has {self.adata.n_vars} genes, but was set up with "
                    f"{self.summary_stats.n_vars}. Run setup_anndata again."
                )
        self._pool_library_sizes()
        self._check_data(self.adata)
        said = ", ".join(f"{k}: {arguments[k]}" for k in _SAID)
        self._model_summary_string = (
            f"{type(self).__name__} model with the following parameters: \n{said}, "
            f"recipe: {recipe}."
        )
        self.recipe_ = recipe
        # By name, as load() builds modules from these names.
        self.init_params_ = {"kwargs": {}, "non_kwargs": {"recipe": recipe, **arguments}}

    def _pool_library_sizes(self) -> None:
        """The mean of the others' variance for a batch whose cells do not tell it."""
        variances = getattr(self.module, "library_log_vars", None)
        if variances is None or (variances > 0).all():
            return
        known = variances[variances > 0]
        variances[variances <= 0] = known.mean() if len(known) else 1.0
        warnings.warn(
            "In some batches library sizes do not vary, as in one of a single cell. Their prior "
            f"gets the mean variance of the others, {float(variances.max()):.2g}.",
            UserWarning,
            stacklevel=3,
        )

    def summary(self, *, silent: bool = False) -> pd.Series:
        """One table of the model, its data, its prior and its training.

        How to read it: ``elbo`` is minus ``reconstruction`` minus ``kl`` (log Z is in the KL), at
        the epoch whose weights the model has, before the final fit of the prior. Higher is
        better; compare models on held-out cells only. :meth:`get_elbo` gives the present value
        with its error. ``verdict`` says whether the training samples followed the prior, see
        :class:`~scvi_qbm.prior.NegativePhaseReport`.

        Parameters
        ----------
        silent
            Do not print it.

        Returns
        -------
        pandas.Series
            Plain values, always the same entries, by part and name: ``summary["prior", "log_z"]``.
            Parts are ``data``, ``model``, ``prior``, ``training``, ``train`` and ``held_out``
            (nats a cell), ``negative_phase`` (energies in nats). None or NaN where something does
            not apply or is not known.
        """
        out = summarise(self)
        if not silent:
            show(out)
        return out

    # What was checked last: data, number and a few of their values, which normalising changes.
    _checked: tuple[Any, ...] | None = None

    def _check_data(self, adata: AnnData | None, *, to_train: bool = True) -> None:
        """Raise where data that the model is to read cannot be modelled."""
        if adata is None or _get_adata_minify_type(adata) is not None:
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
        x = self.get_anndata_manager(adata, required=True).get_from_registry(REGISTRY_KEYS.X_KEY)
        if getattr(x, "nnz", 1) == 0:
            return  # what is left of minified data; to be minified again before any use
        seen = (id(adata), adata.n_obs, glimpse(x), to_train)
        if seen == self._checked:
            return
        # A pass over a file takes long: after the first, its beginning must do.
        most = 8192 if is_on_disk(x) and self._checked is not None else None
        check_expression(
            x, likelihood=gene_likelihood, where=where, most=most, only_read=not to_train
        )
        self._checked = seen

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
        categorical_covariate_keys = as_keys(categorical_covariate_keys, "categorical covariates")
        continuous_covariate_keys = as_keys(continuous_covariate_keys, "continuous covariates")
        setup_method_args = cls._get_setup_method_args(**locals())
        check_setup_keys(adata, layer, {"labels_key": labels_key})
        labels = CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, labels_key)
        cls._register(adata, labels, setup_method_args, **kwargs)

    @classmethod
    def _register(
        cls,
        adata: AnnData,
        labels: CategoricalObsField,
        setup_method_args: dict[str, Any],
        *,
        use_minified: bool = True,
        **kwargs: Any,
    ) -> None:
        given = setup_method_args["setup_args"]
        layer, keys = given["layer"], {k: v for k, v in given.items() if k in _KEYS}
        check_setup_keys(adata, layer, keys)
        fields = [
            # Whether these are counts is checked against the likelihood in __init__.
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, keys["batch_key"]),
            labels,
            NumericalObsField(
                REGISTRY_KEYS.SIZE_FACTOR_KEY, keys["size_factor_key"], required=False
            ),
            CategoricalJointObsField(
                REGISTRY_KEYS.CAT_COVS_KEY, keys["categorical_covariate_keys"]
            ),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, keys["continuous_covariate_keys"]),
        ]
        minify_type = _get_adata_minify_type(adata)
        if minify_type is not None and use_minified:
            fields += cls._get_fields_for_adata_minification(minify_type)
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)


def _check_saving(sampler: Any, options: Any) -> None:
    """Warn now of a machine that ``save`` cannot pickle, rather than after hours of training."""
    try:
        pickle.dumps((sampler, options))
    except Exception as error:  # noqa: BLE001 - pickle raises whatever an object raises
        warnings.warn(
            f"This model cannot be saved: its sampler cannot be pickled ({error}). Name the "
            "machine as 'module:attribute' instead of handing over an object.",
            UserWarning,
            stacklevel=3,
        )


def _n_cells(adata: AnnData | None, registry: dict | None) -> int:
    """Cells that the model is built for, as far as that is known."""
    if adata is not None:
        return int(adata.n_obs)
    fields = (registry or {}).get(_constants._FIELD_REGISTRIES_KEY, {})
    stats = fields.get(REGISTRY_KEYS.X_KEY, {}).get(_constants._SUMMARY_STATS_KEY, {})
    return int(stats.get("n_cells", 0))


def _check_arguments(arguments: dict[str, Any]) -> None:
    for name, known in _KNOWN.items():
        if arguments[name] not in known:
            raise ValueError(f"Unknown {name} {arguments[name]!r}. Available: {', '.join(known)}.")
    for name in ("n_latent", "n_hidden", "n_layers"):
        positive_int(arguments[name], name, {"n_latent": 2, "n_hidden": 1, "n_layers": 0}[name])
    positive(arguments["relaxation_beta"], "relaxation_beta")


QBMVI.__signature__ = full_signature(QBMVI)  # type: ignore[attr-defined]
