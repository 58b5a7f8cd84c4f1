"""Models and data that come and go: saved, minified, queried, in the wrong order."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scvi.data._utils import _get_adata_minify_type, _validate_adata_dataloader_input
from scvi.model import SCVI
from scvi.model.base._save_load import _load_saved_files

from scvi_qbm._checks import as_positions, check_registered
from scvi_qbm._numbers import positive_int
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
        target = Path(os.path.realpath(dir_path))
        if target.exists() and not overwrite:
            raise ValueError(
                f"{dir_path} already exists. Pass overwrite=True, or another directory."
            )
        self._check_own_genes()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Within the directory if it is there: it may be a disk of its own, or its parent closed.
        beside = target if target.is_dir() else target.parent
        try:
            with tempfile.TemporaryDirectory(
                prefix=f".{target.name}-", suffix=".tmp", dir=beside
            ) as folder:
                super().save(folder, prefix, True, *args, **kwargs)  # type: ignore[misc]
                target.mkdir(exist_ok=True)
                if kwargs.get("save_anndata"):
                    # Last to come back: killed in between, nothing loads with other data.
                    (target / f"{prefix or ''}model.pt").unlink(missing_ok=True)
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
        self._check_own_genes()
        if adata is not None and adata is not self.adata:
            self._check_other(adata)
        with _unseen_explained(type(self).__name__):
            adata = super()._validate_anndata(adata, **kwargs)
        self._check_data(adata, to_train=False)
        return adata

    def _check_other(self, adata: AnnData) -> None:
        """Raise where data that the model was not made with do not fit it."""
        if not isinstance(adata, AnnData):
            if not hasattr(adata, "obs"):
                raise TypeError(f"`adata` is an AnnData, not a {type(adata).__name__}.")
            return  # a collection
        names = self.get_var_names() if self._genes is None else self._genes
        _check_order(adata, names)
        check_registered(adata, self.registry_)
        if self.minified_data_type is not None and _get_adata_minify_type(adata) is None:
            raise ValueError(
                "The model's data are minified, and these are not. For cells with their counts "
                f"load the model with them: {type(self).__name__}.load(directory, adata=adata)."
            )

    # Names of the genes that the network's inputs stand for.
    _genes: pd.Index | None = None

    def _check_own_genes(self) -> None:
        """Raise if the genes of the model's own data were moved or dropped since."""
        adata = self.adata
        if adata is None or self._genes is None or adata.var_names is self._genes:
            return
        if adata.n_vars != len(self._genes) or _moved(adata.var_names, self._genes).any():
            raise ValueError(
                "The genes of the model's data were subset or reordered in place after set-up, "
                "and the model reads them by position. Load the model with the data as they were."
            )
        self._genes = adata.var_names  # other names for the same genes

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike[str],
        adata: AnnData | None = None,
        *args: Any,
        prefix: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model that :meth:`save` wrote.

        Parameters
        ----------
        dir_path, adata, *args, prefix, **kwargs
            As :meth:`scvi.model.SCVI.load`.

        Returns
        -------
        QBMVI
            The model.

        Raises
        ------
        ValueError
            If there is no model, or ``adata`` has other batches, or its genes stand elsewhere.
        """
        if isinstance(adata, AnnData):
            url = kwargs.get("backup_url")
            saved = _load_saved_files(dir_path, False, prefix, "cpu", url)
            _check_order(adata, saved[1])
            check_registered(adata, saved[0]["registry_"])
        with _unseen_explained(cls.__name__):
            model = super().load(dir_path, adata, *args, prefix=prefix, **kwargs)  # type: ignore[misc]
        return model

    def _make_data_loader(
        self,
        adata: AnnData,
        indices: Any = None,
        *args: Any,
        data_loader_class: Any = None,
        **kwargs: Any,
    ) -> Any:
        if kwargs.get("batch_size") is not None:
            kwargs["batch_size"] = positive_int(kwargs["batch_size"], "batch_size")
        manager = self.get_anndata_manager(adata)
        if manager is not None:
            indices = as_positions(indices, adata.n_obs)
            if not len(indices):
                raise ValueError("`indices` has no cells.")
        if data_loader_class is None and manager is not None and reads_from_disk(manager):
            data_loader_class = OnDiskDataLoader
        return super()._make_data_loader(
            adata, indices, *args, data_loader_class=data_loader_class, **kwargs
        )

    def _minibatches(
        self,
        adata: Any,
        indices: Any,
        batch_size: int | None,
        dataloader: Any,
        *,
        empty_is_fine: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The caller's loader, or one of some cells: scvi-tools' methods take either."""
        _validate_adata_dataloader_input(self, adata, dataloader)
        if dataloader is not None:
            return dataloader
        adata = self._validate_anndata(adata)
        if empty_is_fine and indices is not None and not len(as_positions(indices, adata.n_obs)):
            return []
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

    @staticmethod
    def prepare_query_anndata(adata: Any, reference_model: Any, *args: Any, **kwargs: Any) -> Any:
        """Bring genes into the reference's order, missing ones as zeros.

        Parameters
        ----------
        adata, reference_model, *args, **kwargs
            As :meth:`scvi.model.SCVI.prepare_query_anndata`.

        Returns
        -------
        anndata.AnnData | pandas.Index | None
            As there.

        Raises
        ------
        ValueError
            If names of genes or cells are not unique, or there is no ``X``.
        """
        if isinstance(reference_model, os.PathLike):
            reference_model = os.fspath(reference_model)
        if isinstance(adata, AnnData) and adata.X is None:
            raise ValueError(
                "The query has no X, which scvi-tools pads with zeros for missing genes: "
                "adata.X = adata.layers['counts'] first."
            )
        if isinstance(adata, AnnData) and not adata.obs_names.is_unique:
            raise ValueError("Names of cells are not unique: adata.obs_names_make_unique() first.")
        if isinstance(adata, AnnData) and not adata.var_names.is_unique:
            raise ValueError(
                f"Gene {adata.var_names[adata.var_names.duplicated()][0]!r} is there twice: which "
                "one is the reference's? First: adata.var_names_make_unique(), or drop one."
            )
        return SCVI.prepare_query_anndata(adata, reference_model, *args, **kwargs)

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
        if isinstance(reference_model, os.PathLike):
            reference_model = os.fspath(reference_model)
        if isinstance(adata, AnnData) and isinstance(reference_model, cls):
            check_registered(adata, reference_model.registry_)
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


@contextlib.contextmanager
def _unseen_explained(name: str) -> Iterator[None]:
    """Categories that a model has not seen, in words."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        if "not found in source registry" in said:
            said = said.split(" Cannot transfer")[0]
        elif "categorical failed. Expected categories" in said:
            said = said.removeprefix("Making ").replace(" categorical failed. Expected", ": known")
        else:
            raise
        raise ValueError(
            f"{said} The model has not seen this batch or covariate. Map the data onto it: query "
            f"= {name}.load_query_data(adata, model), then query.train()."
        ) from error


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
    moved = _moved(adata.var_names, names)
    if moved.any():
        raise ValueError(
            f"adata has {moved.sum()} of the model's genes in another order (the first: "
            f"{adata.var_names[moved][0]!r}), and they would be read by position. Use "
            "adata[:, model.get_var_names()].copy(), or prepare_query_anndata where genes are "
            "missing."
        )
    if unknown := int((~adata.var_names.isin(names)).sum()):
        warnings.warn(
            f"{unknown} genes of adata are not among the model's; they are read by position.",
            UserWarning,
            stacklevel=4,
        )


def _moved(names: pd.Index, wanted: pd.Index) -> NDArray[np.bool_]:
    """Which names stand elsewhere among those wanted."""
    if not wanted.is_unique:
        return np.zeros(len(names), dtype=bool)
    places = wanted.get_indexer(names)
    out: NDArray[np.bool_] = (places >= 0) & (places != np.arange(len(names)))
    return out
