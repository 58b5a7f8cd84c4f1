"""QBMVI: scvi-tools' SCVI with binary latents and a Boltzmann-machine prior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

# rich 15 no longer loads this submodule by itself, and scvi-tools 1.4.2 counts on it.
import rich.pretty  # noqa: F401
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data._utils import _get_adata_minify_type, _validate_adata_dataloader_input
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.model import SCVI
from scvi.module._constants import MODULE_KEYS
from scvi.train._config import merge_kwargs
from scvi.utils import setup_anndata_dsp
from torch import Tensor

from scvi_qbm._checks import check_expression, check_setup_keys
from scvi_qbm.ising import Ising
from scvi_qbm.logz import LogPartition, Method, log_partition
from scvi_qbm.module import QBMVAE
from scvi_qbm.plan import QBMTrainingPlan
from scvi_qbm.recipes import get_recipe
from scvi_qbm.relaxations import get_relaxation

__all__ = ["QBMVI", "PriorParameters"]

Representation = Literal["probabilities", "logits", "zeta", "binary"]
_LIKELIHOODS = ("nb", "zinb", "poisson", "normal")


class PriorParameters(NamedTuple):
    """A Boltzmann machine ``E(z) = h.z + z'Wz/2``: W float64 (n, n), h float64 (n,)."""

    W: NDArray[np.float64]
    h: NDArray[np.float64]

    @property
    def ising(self) -> Ising:
        """The same machine over spins ``s = 2z - 1``, for any sampler."""
        return Ising.from_boltzmann(self.W, self.h)


class QBMVI(SCVI):
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
    latent_distribution
        Only ``"bernoulli"``.
    recipe
        ``"default"``, or ``"paper"``: the architecture and optimisation of "Quantum-Boosted
        High-Fidelity Deep Learning" (256 latents, two linear layers, spike-and-exponential with
        beta 0.5, squared error on log-normalised values, Adam 1e-2 and 1e-3, patience 10).
    relaxation
        ``"spike_exponential"`` (default recipe) or ``"overlapping_exponential"``, see
        :func:`scvi_qbm.relaxations.list_relaxations`.
    relaxation_beta
        Sharpness of the relaxation. Default recipe: 5.
    prior
        ``"boltzmann"``, or ``"bernoulli"``: independent units with learned biases, the twin to
        compare with.
    sampler
        Sampler of the negative phase, see :func:`scvi_qbm.list_samplers`.
    sampler_options
        Its options.
    normal_variance
        For ``gene_likelihood="normal"``: ``"learned"`` per gene, or ``"fixed"``, which makes the
        reconstruction term the squared error.
    encode_covariates, deeply_inject_covariates, batch_representation, use_batch_norm,
    use_layer_norm, extra_payload_autotune, extra_encoder_kwargs, extra_decoder_kwargs,
    batch_embedding_kwargs
        As :class:`scvi.module.VAE`.

    Raises
    ------
    ValueError
        If a name is unknown, ``n_latent`` < 2, or the data cannot be modelled: negative, NaN or
        infinite values, non-integers with a count likelihood, cells without any counts.

    Examples
    --------
    >>> import scvi_qbm
    >>> from scvi_qbm.datasets import pbmc68k
    >>> adata = pbmc68k()
    >>> scvi_qbm.QBMVI.setup_anndata(adata, layer="counts")
    >>> model = scvi_qbm.QBMVI(adata)
    >>> model.train()  # doctest: +SKIP
    >>> adata.obsm["X_qbmvi"] = model.get_latent_representation()  # doctest: +SKIP
    """

    _module_cls = QBMVAE
    _training_plan_cls = QBMTrainingPlan
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
        latent_distribution: Literal["bernoulli"] = "bernoulli",
        recipe: str = "default",
        relaxation: str | None = None,
        relaxation_beta: float | None = None,
        prior: Literal["boltzmann", "bernoulli"] = "boltzmann",
        sampler: str = "parallel_tempering",
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
    ) -> None:
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
            latent_distribution=latent_distribution,
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
        if adata is not None and self.minified_data_type is None:
            self._check_data(gene_likelihood)
        self._model_summary_string = (
            f"QBMVI model with the following parameters: \nn_hidden: {n_hidden}, n_latent: "
            f"{n_latent}, n_layers: {n_layers}, dropout_rate: {dropout_rate}, dispersion: "
            f"{dispersion}, gene_likelihood: {gene_likelihood}, prior: {prior}, relaxation: "
            f"{relaxation}, sampler: {sampler}, recipe: {recipe}."
        )
        self.recipe_ = recipe
        self.init_params_ = self._get_init_params(locals())

    def _check_data(self, gene_likelihood: str) -> None:
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
        check_expression(x, likelihood=gene_likelihood, where=where)

    @classmethod
    @setup_anndata_dsp.dedent
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
        """%(summary)s.

        Parameters
        ----------
        %(param_adata)s
        %(param_layer)s
        %(param_batch_key)s
        %(param_labels_key)s
        %(param_size_factor_key)s
        %(param_cat_cov_keys)s
        %(param_cont_cov_keys)s

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

    def train(  # type: ignore[override]
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int | None = None,
        early_stopping: bool | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        plan_config: Any = None,
        plan_kwargs: Any = None,
        datamodule: Any = None,
        trainer_config: Any = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model; early stopping on ``elbo_validation`` (log Z included) is on.

        Parameters
        ----------
        max_epochs
            At most so many epochs; scvi-tools' heuristic (400 up to 20,000 cells) if None.
        batch_size
            Cells per step. The recipe's (128; paper: 256) if None.
        early_stopping
            On by default wherever cells are held out (not with a ``datamodule``), with the
            recipe's patience of 10, watching from the end of the KL warm-up on.
        plan_kwargs, plan_config
            Override the recipe; see :class:`~scvi_qbm.plan.QBMTrainingPlan`. An ``lr`` without a
            ``bm_lr`` scales both. Of a config object, the fields that differ from its defaults.
        accelerator, devices, train_size, validation_size, shuffle_set_split, load_sparse_tensor,
        datasplitter_kwargs, datamodule, trainer_config, **trainer_kwargs
            As :meth:`scvi.model.SCVI.train`.

        Notes
        -----
        ``model.history`` also has ``log_z``, ``log_z_se``, ``log_z_drift``, ``energy_gap``,
        ``energy_gap_se`` (nats) and more: whether the negative phase is honest, see
        :class:`~scvi_qbm.prior.NegativePhaseReport`.
        """
        recipe = get_recipe(self.recipe_)
        given = merge_kwargs(_changed(plan_config), plan_kwargs, name="plan")
        plan = recipe.plan | given
        if "lr" in given and "bm_lr" not in given:
            plan["bm_lr"] = given["lr"] * recipe.plan["bm_lr"] / recipe.plan["lr"]
        if early_stopping is None:
            n_cells = self.adata.n_obs if datamodule is None else 0
            share = 1 - (train_size or 0.9) if validation_size is None else validation_size
            held_out = int(n_cells * share + 1e-9) > 0
            external = (datasplitter_kwargs or {}).get("external_indexing")
            if external is not None:
                held_out = len(external) > 1 and len(external[1]) > 0
            early_stopping = held_out and datamodule is None
        trainer_kwargs = merge_kwargs(trainer_config, trainer_kwargs, name="trainer")
        if early_stopping:
            warmup = plan.get("n_epochs_kl_warmup") or 0
            trainer_kwargs.setdefault(
                "early_stopping_patience", recipe.train["early_stopping_patience"]
            )
            trainer_kwargs.setdefault("early_stopping_warmup_epochs", warmup)
        try:
            super().train(
                max_epochs=max_epochs,
                accelerator=accelerator,
                devices=devices,
                train_size=train_size,
                validation_size=validation_size,
                shuffle_set_split=shuffle_set_split,
                load_sparse_tensor=load_sparse_tensor,
                batch_size=batch_size or recipe.train["batch_size"],
                early_stopping=early_stopping,
                datasplitter_kwargs=datasplitter_kwargs,
                plan_kwargs=plan,
                datamodule=datamodule,
                **trainer_kwargs,
            )
        except BaseException:
            self.module.prior.cancel()
            # What training leaves behind must not quote an old error bar for a new log Z.
            with suppress(Exception):
                self.module.prior.refresh_log_z()
            raise

    def get_importance_weights(self, *args: Any, **kwargs: Any) -> Any:
        """Not available yet: scvi-tools' weights assume a Gaussian prior.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            "weights='importance' is not available yet: scvi-tools computes these weights for a "
            "Gaussian prior, and this model's is a Boltzmann machine. Use weights='uniform'."
        )

    @torch.inference_mode()
    def get_latent_representation(  # type: ignore[override]
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        representation: Representation = "probabilities",
        **data_loader_kwargs: Any,
    ) -> NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]:
        r"""Latent representation of the cells, deterministic and continuous by default.

        Parameters
        ----------
        adata, indices, batch_size, dataloader, **data_loader_kwargs
            As :meth:`scvi.model.SCVI.get_latent_representation`.
        give_mean
            If False, one draw of the continuous code instead of a representation.
        mc_samples
            Not used: every representation has a closed form.
        return_dist
            If True, mean and variance of the binary units.
        representation
            ``"probabilities"``: :math:`q(z = 1 | x)`, in [0, 1]. ``"logits"``: their log-odds.
            ``"zeta"``: the mean of the continuous code that the decoder sees. ``"binary"``: the
            most probable code, 0 or 1; mind that equal codes tie in neighbour graphs, which
            breaks clustering and UMAP.

        Returns
        -------
        float32 array ``(n_cells, n_latent)``, or a tuple of two with ``return_dist``.

        Raises
        ------
        ValueError
            If the representation is unknown.
        """
        if representation not in get_args(Representation):
            raise ValueError(
                f"Unknown representation {representation!r}. Available: "
                f"{', '.join(get_args(Representation))}."
            )
        self._check_if_trained(warn=False)
        _validate_adata_dataloader_input(self, adata, dataloader)
        if dataloader is None:
            adata = self._validate_anndata(adata)
            dataloader = self._make_data_loader(
                adata=adata, indices=indices, batch_size=batch_size, **data_loader_kwargs
            )
        means, variances = [], []
        for tensors in dataloader:
            outputs = self.module.inference(**self.module._get_inference_input(tensors))
            qz = outputs[MODULE_KEYS.QZ_KEY]
            if return_dist:
                means.append(qz.loc.cpu())
                variances.append(qz.scale.square().cpu())
            elif not give_mean:
                means.append(outputs[MODULE_KEYS.Z_KEY].cpu())
            else:
                means.append(_represent(qz, representation).cpu())
        if return_dist:
            return torch.cat(means).numpy(), torch.cat(variances).numpy()
        return torch.cat(means).numpy()

    @property
    def prior(self) -> PriorParameters:
        """The Boltzmann machine's ``W`` (n_latent, n_latent) and ``h`` (n_latent,), a copy."""
        return PriorParameters(*self.module.prior.parameters_numpy())

    def get_log_partition(
        self, method: Method | None = None, seed: int | None = None
    ) -> LogPartition:
        """Log Z of the prior with its standard error, in nats.

        Parameters
        ----------
        method
            None for the value that the ELBO uses, estimated at the end of training; ``"bar"``,
            ``"ais"`` or ``"exact"`` to estimate it anew, see
            :func:`scvi_qbm.logz.log_partition`.
        seed
            Seed of a new estimate.
        """
        if method is None:
            prior = self.module.prior
            return LogPartition(float(prior.log_z), float(prior.log_z_se))
        return log_partition(self.prior.ising, method=method, seed=seed)


def _changed(config: Any) -> Any:
    """The fields of a config object that its user has set, so that a recipe keeps the others."""
    if not is_dataclass(config):
        return config
    kwargs, defaults = config.to_kwargs(), type(config)().to_kwargs()
    return {k: v for k, v in kwargs.items() if k not in defaults or v != defaults[k]}


def _represent(qz: Any, representation: str) -> Tensor:
    if representation == "logits":
        return qz.logits
    if representation == "zeta":
        return qz.mean
    if representation == "binary":
        return (qz.logits > 0).to(qz.logits.dtype)
    return qz.probs
