"""QBMANVI: QBMVI with cell types as units of the Boltzmann machine."""

from __future__ import annotations

import warnings
from typing import Any

import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.data._utils import _is_minified
from torch import Tensor

from scvi_qbm._checks import as_keys, check_setup_keys
from scvi_qbm._signature import full_signature
from scvi_qbm.labelled_module import QBMANVAE
from scvi_qbm.labelled_plan import QBMANTrainingPlan

from ._label_levels import LabelLevelsField
from ._label_machine import LabelMachineMixin
from ._labels import LabelsMixin
from ._qbmvi import QBMVI

__all__ = ["QBMANVI"]

_EPOCHS_MORE = 10


class QBMANVI(LabelsMixin, LabelMachineMixin, QBMVI):
    """QBMVI with cell types as units of its Boltzmann prior, for label transfer.

    QBMANVI extends :class:`QBMVI` as :class:`scvi.model.SCANVI` extends
    :class:`scvi.model.SCVI`: some cells have labels, and the model predicts those of the others,
    with probabilities.

    By default labels enter training only through the ELBO, so labelled and unlabelled cells get
    similar codes. After training the label units are fitted to the labelled cells, by a logistic
    regression with a cross-validated penalty. For an embedding that labels shape, use
    ``train(plan_kwargs={"classification_ratio": 50})``; its probabilities are too high.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`.
    registry
        As :class:`QBMVI`.
    **kwargs
        As :class:`QBMVI`; ``prior`` must be ``"boltzmann"``.

    Raises
    ------
    ValueError
        As :class:`QBMVI`; if no cell has a label, or all that have one have the same.

    Examples
    --------
    >>> import scvi_qbm
    >>> from scvi_qbm.data import pbmc68k
    >>> adata = pbmc68k()
    >>> adata.obs["known"] = adata.obs["cell_type"].astype(str)
    >>> adata.obs.loc[adata.obs_names[::2], "known"] = "Unknown"
    >>> scvi_qbm.QBMANVI.setup_anndata(adata, "known", "Unknown", layer="counts")
    >>> model = scvi_qbm.QBMANVI(adata)
    >>> model.train()  # doctest: +SKIP
    >>> adata.obs["predicted"] = model.predict()  # doctest: +SKIP
    """

    _module_cls = QBMANVAE
    _training_plan_cls = QBMANTrainingPlan
    _LATENT_QZM_KEY = "qbmanvi_latent_qzm"
    _LATENT_QZV_KEY = "qbmanvi_latent_qzv"

    def __init__(
        self, adata: AnnData | None = None, registry: dict | None = None, **kwargs: Any
    ) -> None:
        if kwargs.get("prior", "boltzmann") != "boltzmann":
            raise ValueError("QBMANVI has label units in its machine: prior must be 'boltzmann'.")
        super().__init__(adata, registry, **kwargs)
        self._read_labels()
        table = self._label_table
        if len(table.configurations) < 2:
            raise ValueError(
                f"obs[{self.original_label_key!r}] has "
                f"{'one label only' if len(table.labels) else 'no labels'} beside "
                f"{self.unlabeled_category_!r}: at least two are needed to tell them apart."
            )
        self.module.set_labels(table.configurations, table.allowed)
        self.was_pretrained_ = False

    def _default_epochs(self, datamodule: Any) -> int | None:
        return _EPOCHS_MORE if self.was_pretrained_ else super()._default_epochs(datamodule)

    def _plan_defaults(self) -> dict[str, Any]:
        return {"n_epochs_kl_warmup": None} if self.was_pretrained_ else {}

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData,
        labels_key: str | list[str],
        unlabeled_category: str | int | float,
        layer: str | None = None,
        batch_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        use_minified: bool = True,
        **kwargs: Any,
    ) -> None:
        """Say which parts of an AnnData the model reads. The data stay as they are.

        Parameters
        ----------
        adata
            As :meth:`QBMVI.setup_anndata`.
        labels_key
            Column of ``obs`` with the labels; or a list of columns, from coarse to fine. A cell
            may have a label of one level and lack the others.
        unlabeled_category
            Value in these columns of cells without a label.
        layer, batch_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
            As :meth:`QBMVI.setup_anndata`.
        use_minified
            Register the latents of minified data, if ``adata`` has them.
        **kwargs
            As :meth:`QBMVI.setup_anndata`.

        Raises
        ------
        KeyError
            If the layer or a key is not there; nothing is registered then.
        ValueError
            If a label is missing (NaN), or there is no column or category to look for.
        """
        categorical_covariate_keys = as_keys(categorical_covariate_keys, "categorical covariates")
        continuous_covariate_keys = as_keys(continuous_covariate_keys, "continuous covariates")
        setup_method_args = cls._get_setup_method_args(**locals())
        keys = [labels_key] if isinstance(labels_key, str) else list(labels_key or [])
        if not keys or len(set(keys)) < len(keys):
            raise ValueError(
                "`labels_key` is a column of obs, or a list of different ones, not "
                f"{labels_key!r}."
            )
        if pd.isna(unlabeled_category):
            raise ValueError(
                "`unlabeled_category` is a value of the column, such as 'Unknown', not "
                f"{unlabeled_category!r}. First: adata.obs[{keys[0]!r}] = "
                f"adata.obs[{keys[0]!r}].astype(object).fillna('Unknown')."
            )
        if kwargs.get("source_registry") is None:
            check_setup_keys(adata, layer, {"labels_key": keys})
            given = adata.obs[keys].astype(object)
            if not given.isna().to_numpy().any() and not (given == unlabeled_category).any(
                axis=None
            ):
                warnings.warn(
                    f"No cell is {unlabeled_category!r} in {', '.join(keys)}: all count as "
                    "labelled.",
                    UserWarning,
                    stacklevel=2,
                )
        field = LabelLevelsField(REGISTRY_KEYS.LABELS_KEY, keys, unlabeled_category)
        cls._register(adata, field, setup_method_args, use_minified=use_minified, **kwargs)

    @classmethod
    def from_qbmvi_model(
        cls,
        qbmvi_model: QBMVI,
        unlabeled_category: str | int | float,
        labels_key: str | list[str] | None = None,
        adata: AnnData | None = None,
    ) -> QBMANVI:
        """A model with label units that starts from a trained one without.

        Parameters
        ----------
        qbmvi_model
            A trained QBMVI, whose arguments the model has too.
        unlabeled_category, labels_key
            As :meth:`setup_anndata`. ``labels_key`` may be left out if the model was set up with
            one.
        adata
            Data with the labels; the model's if None.

        Returns
        -------
        QBMANVI
            To be trained, for 10 epochs by default.

        Raises
        ------
        TypeError
            If the model is no QBMVI.
        ValueError
            If there are no labels, the data are minified, or their batches are not the model's.
        """
        if not isinstance(qbmvi_model, QBMVI) or isinstance(qbmvi_model, QBMANVI):
            raise TypeError(f"A QBMVI is needed, not a {type(qbmvi_model).__name__}.")
        qbmvi_model._check_if_trained(message="The QBMVI has not been trained yet.")
        if _is_minified(qbmvi_model.adata if adata is None else adata) and (
            adata is not None
            or qbmvi_model.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR
        ):
            raise ValueError("The data are minified, and training needs their counts.")
        given = dict(qbmvi_model.registry_["setup_args"])
        labels_key = labels_key or given["labels_key"]
        if labels_key is None:
            raise ValueError("The QBMVI was set up without labels: pass labels_key=.")
        if adata is None:
            adata = qbmvi_model.adata
        else:
            qbmvi_model._validate_anndata(adata)
        given |= {"labels_key": labels_key, "unlabeled_category": unlabeled_category}
        cls.setup_anndata(adata, **given, use_minified=False)
        arguments = qbmvi_model.init_params_["non_kwargs"]
        model = cls(adata, **arguments)
        weights = qbmvi_model.module.state_dict()
        _check_categories(qbmvi_model, model)
        if model.module.dispersion == "gene-label":
            weights["px_r"] = _by_label(qbmvi_model, model, weights["px_r"])
        model.module.load_state_dict(weights, strict=False)
        model.was_pretrained_ = True
        return model


def _check_categories(before: QBMVI, after: QBMVI) -> None:
    """Weights go by the numbers of batches and covariates, which must mean the same."""
    for key in (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.CAT_COVS_KEY):
        if key not in before.adata_manager.data_registry:
            continue
        there, here = (dict(m.get_state_registry(key)) for m in (before, after))
        for name in ("categorical_mapping", "mappings"):
            if name not in there:
                continue
            pairs = [(there[name], here[name])]
            if isinstance(there[name], dict):
                pairs = [(there[name][k], here[name][k]) for k in there[name]]
            for a, b in pairs:
                if list(a) != list(b):
                    raise ValueError(
                        f"The model numbers {key} as {list(a)}, these data as {list(b)}. Pass "
                        "data with all of the model's categories, and in its order."
                    )


def _by_label(before: QBMVI, after: QBMANVI, px_r: Tensor) -> Tensor:
    """Dispersions by label, moved to where each label is now."""
    there, here = (
        list(m.get_state_registry(REGISTRY_KEYS.LABELS_KEY).categorical_mapping)
        for m in (before, after)
    )
    out = after.module.px_r.detach().clone()
    for place, name in enumerate(here):
        if name in there:
            out[:, place] = px_r[:, there.index(name)]
    return out


QBMANVI.__signature__ = full_signature(QBMANVI)  # type: ignore[attr-defined]
