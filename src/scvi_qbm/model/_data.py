"""Models and data that come and go: saved, minified, queried, in the wrong order."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.data._utils import _validate_adata_dataloader_input

from scvi_qbm.data import OnDiskDataLoader, reads_from_disk


class DataMixin:
    """Guards around scvi-tools' saving, minified mode, query mapping and transfer of set-ups."""

    def save(
        self,
        dir_path: str | os.PathLike[str],
        prefix: str | None = None,
        overwrite: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save the model; a model that is there already stays until the new one is complete.

        Parameters
        ----------
        dir_path
            Directory to write.
        prefix
            Prepended to the names of the files.
        overwrite
            Whether to replace what is there; other files in the directory are left alone.
        *args, **kwargs
            As :meth:`scvi.model.SCVI.save`.

        Raises
        ------
        ValueError
            If the directory exists, and ``overwrite`` is not given.
        OSError
            If the disk is full, for example; the directory is as it was then.
        """
        target = Path(dir_path)
        if target.exists() and not overwrite:
            raise ValueError(
                f"{dir_path} already exists. Pass overwrite=True, or another directory."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(
                prefix=f".{target.name}-", suffix=".tmp", dir=target.parent
            ) as folder:
                super().save(folder, prefix, True, *args, **kwargs)  # type: ignore[misc]
                target.mkdir(exist_ok=True)
                for file in sorted(Path(folder).iterdir()):
                    with file.open("rb+") as written:
                        os.fsync(written.fileno())
                    os.replace(file, target / file.name)
                    self._moved(file, target / file.name)
        except Exception as error:
            # torch's writer says of a full disk only that it failed.
            there = "the one there is as it was" if target.exists() else "nothing was written"
            error.add_note(f"The model could not be saved to {target}; {there}.")
            raise

    def _moved(self, before: Path, after: Path) -> None:
        """A backed AnnData goes on from the copy that was written last."""
        adata = self.adata  # type: ignore[attr-defined]
        name = getattr(adata, "filename", None)
        if name is not None and Path(name) == before:
            adata.file.filename = after

    def minify_adata(
        self,
        minified_data_type: str = "latent_posterior_parameters",
        use_latent_qzm_key: str = "X_latent_qzm",
        use_latent_qzv_key: str = "X_latent_qzv",
    ) -> None:
        """Keep the posterior's parameters instead of counts, or beside them.

        ``adata.obsm[use_latent_qzm_key]`` and ``[use_latent_qzv_key]`` must hold what
        ``get_latent_representation(return_dist=True)`` returned: mean and variance of the binary
        units. Nothing is lost: the variance p (1 - p) keeps log-odds exact where p rounds to 1.

        Parameters
        ----------
        minified_data_type, use_latent_qzm_key, use_latent_qzv_key
            As :meth:`scvi.model.SCVI.minify_adata`.

        Raises
        ------
        ValueError
            If the data are minified already, or the moments are not those of binary units.
        KeyError
            If a key is not in ``adata.obsm``.
        """
        if self.minified_data_type is not None:
            raise ValueError(
                f"The model's data are minified already ({self.minified_data_type!r}). Minifying "
                "again would lose the library sizes."
            )
        for key in (use_latent_qzm_key, use_latent_qzv_key):
            if key not in self.adata.obsm:
                raise KeyError(
                    f"{key!r} is not in adata.obsm. First: adata.obsm[{use_latent_qzm_key!r}], "
                    f"adata.obsm[{use_latent_qzv_key!r}] = "
                    "model.get_latent_representation(return_dist=True)."
                )
        mean, variance = (
            np.asarray(self.adata.obsm[key]) for key in (use_latent_qzm_key, use_latent_qzv_key)
        )
        wanted = (self.adata.n_obs, self.module.n_latent)
        if mean.shape != wanted or variance.shape != wanted:
            raise ValueError(
                f"Moments must have shape {wanted}, got {mean.shape} and {variance.shape}."
            )
        if not np.allclose(variance, mean * (1 - mean), atol=1e-5):
            raise ValueError(
                "These are not mean p and variance p (1 - p) of binary units. Use "
                "model.get_latent_representation(return_dist=True) of this very model."
            )
        super().minify_adata(minified_data_type, use_latent_qzm_key, use_latent_qzv_key)

    def _validate_anndata(self, adata: AnnData | None = None, **kwargs: Any) -> AnnData:
        if adata is not None and adata is not self.adata:
            _check_order(adata, self.get_var_names())
        try:
            return super()._validate_anndata(adata, **kwargs)
        except ValueError as error:
            if "not found in source registry" not in str(error):
                raise
            raise ValueError(
                f"{str(error).split(' Cannot transfer')[0]} The model has not seen this batch or "
                f"covariate. Map the data onto it: query = {type(self).__name__}.load_query_data("
                "adata, model), then query.train()."
            ) from error

    def _make_data_loader(
        self, adata: AnnData, *args: Any, data_loader_class: Any = None, **kwargs: Any
    ) -> Any:
        manager = self.get_anndata_manager(adata)
        if data_loader_class is None and manager is not None and reads_from_disk(manager):
            data_loader_class = OnDiskDataLoader
        return super()._make_data_loader(
            adata, *args, data_loader_class=data_loader_class, **kwargs
        )

    def _minibatches(
        self, adata: Any, indices: Any, batch_size: int | None, dataloader: Any, **kwargs: Any
    ) -> Any:
        """The caller's loader, or one of some cells: scvi-tools' methods take either."""
        _validate_adata_dataloader_input(self, adata, dataloader)
        if dataloader is not None:
            return dataloader
        adata = self._validate_anndata(adata)
        return self._make_data_loader(
            adata=adata, indices=indices, batch_size=batch_size, **kwargs
        )

    @staticmethod
    def _get_decoder_cat_cov_shape(module: Any) -> tuple[int, ...] | None:
        # For models of a data module, which load() builds anew. Upstream sums the covariates'
        # categories up: with two covariates it would decode one, of the wrong category.
        n_categories = module.decoder.px_decoder.n_cat_list
        one_hot = module.batch_representation != "embedding"
        return tuple(n_categories[1:] if one_hot else n_categories) or None

    @classmethod
    def load_query_data(
        cls, adata: Any = None, reference_model: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Map new data onto a trained model, the Boltzmann machine frozen (scArches).

        Parameters
        ----------
        adata, reference_model, *args, **kwargs
            As :meth:`scvi.model.SCVI.load_query_data`. Genes must be the reference's, in its
            order: ``prepare_query_anndata`` brings them there.

        Returns
        -------
        QBMVI
            A model of the new data, to be trained further.

        Raises
        ------
        ValueError
            If genes are missing or in another order.
        """
        if isinstance(adata, AnnData) and not (
            kwargs.get("inplace_subset_query_vars") or any(args[1:2])
        ):
            if isinstance(reference_model, cls):
                names = reference_model.get_var_names()
            elif isinstance(reference_model, str):
                names = cls.prepare_query_anndata(
                    None, reference_model, return_reference_var_names=True
                )
            else:
                names = None
            if names is not None:
                missing = np.setdiff1d(names, adata.var_names)
                if len(missing) or adata.n_vars != len(names):
                    raise ValueError(
                        f"The query has {adata.n_vars} genes, the reference {len(names)}, of "
                        f"which {len(missing)} are missing in the query"
                        + (f" (the first: {missing[0]!r})" if len(missing) else "")
                        + f". Use {cls.__name__}.prepare_query_anndata(adata, reference_model) "
                        "first: it orders genes and fills missing ones with zeros."
                    )
                _check_order(adata, names)
        return super().load_query_data(adata, reference_model, *args, **kwargs)


def _check_order(adata: AnnData, names: Any) -> None:
    """Raise where known genes stand elsewhere: upstream reads them by position."""
    names = pd.Index(np.asarray(names))
    if adata.n_vars != len(names):
        raise ValueError(
            f"adata has {adata.n_vars} genes, the model {len(names)}. Use "
            "adata[:, model.get_var_names()].copy(), or prepare_query_anndata where genes are "
            "missing."
        )
    if adata.var_names.equals(names):
        return
    places = names.get_indexer(adata.var_names) if names.is_unique else np.arange(len(names))
    moved = (places >= 0) & (places != np.arange(len(names)))
    if moved.any():
        raise ValueError(
            f"adata has {moved.sum()} of the model's genes in another order (the first: "
            f"{adata.var_names[moved][0]!r}), and they would be read by position. Use "
            "adata[:, model.get_var_names()].copy(), or prepare_query_anndata where genes are "
            "missing."
        )
    if (places < 0).any():
        warnings.warn(
            f"{(places < 0).sum()} genes of adata are not among the model's; they are read by "
            "position.",
            UserWarning,
            stacklevel=4,
        )
