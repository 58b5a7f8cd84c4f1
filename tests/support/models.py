"""Models to test with, small and trained for seconds, and data that come from elsewhere."""

import numpy as np
import scvi
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

import scvi_qbm
from scvi_qbm.logz import log_partition
from scvi_qbm.prior import BoltzmannPrior

FAST = {"max_epochs": 2, "enable_progress_bar": False}


def fitted(adata, *, layer="counts", setup=None, train=None, seed=0, **kwargs):
    scvi.settings.seed = seed
    adata = adata.copy()
    scvi_qbm.QBMVI.setup_anndata(adata, layer=layer, **(setup or {}))
    kwargs = {"n_latent": 12, "n_hidden": 32} | kwargs
    model = scvi_qbm.QBMVI(adata, **kwargs)
    model.train(**(FAST | (train or {})))
    return model


def prior_of_training(model):
    """The Boltzmann machine that the encoder was trained with, before its last fit."""
    prior = BoltzmannPrior(model.module.n_latent)
    with torch.no_grad():
        prior.h.copy_(model._pull_["h"])
        prior.W_upper.copy_(model._pull_["W_upper"])
    prior.log_z.fill_(log_partition(prior.ising(), method="exact").value)
    return prior


class DataModule(LightningDataModule):
    """The interface of scvi.dataloaders' modules for LaminDB and the Census, over an AnnData.

    Theirs cannot be installed here. As ``style="lamin"``, missing labels are the int 0, as
    ``"census"`` an empty tensor; other missing covariates are None.
    """

    def __init__(
        self, adata, layer, *, style="lamin", covariates=(), held_out=0, labels_key=None, names=()
    ):
        super().__init__()
        self.adata, self.style, self.covariates = adata, style, list(covariates)
        x = adata.layers[layer] if layer else adata.X
        self.x = torch.from_numpy(x.toarray()).float()
        self.batch = torch.from_numpy(adata.obs["batch"].cat.codes.to_numpy(np.int64))
        codes = [adata.obs[key].cat.codes.to_numpy(np.int64) for key in self.covariates]
        self.codes = torch.from_numpy(np.stack(codes or [np.zeros(adata.n_obs)], axis=1))
        self.n_train = adata.n_obs - held_out
        self.n_obs, self.n_vars = adata.shape
        self.n_batch = adata.obs["batch"].nunique()
        self.labels_key, self.names = labels_key, list(names)
        self.n_labels, self.n_samples = len(self.names), 0
        labels = adata.obs[labels_key] if labels_key else np.zeros(adata.n_obs)
        numbers = [self.names.index(x) if labels_key else 0 for x in labels]
        self.labels = torch.tensor(numbers)
        self.batch_labels, self.label_keys = adata.obs["batch"].cat.categories, None
        self._log_hyperparams = False
        self.allow_zero_length_dataloader_with_multiple_devices = False

    def _loader(self, part, **kwargs):
        data = TensorDataset(self.x[part], self.batch[part], self.codes[part], self.labels[part])
        return DataLoader(data, batch_size=128, **kwargs)

    def train_dataloader(self):
        return self._loader(slice(self.n_train), shuffle=True)

    def val_dataloader(self):
        if self.n_train < self.n_obs:
            return self._loader(slice(self.n_train, None))

    def inference_dataloader(self):
        return [self.on_before_batch_transfer(b, 0) for b in self._loader(slice(None))]

    def on_before_batch_transfer(self, batch, dataloader_idx):
        x, batch_index, codes, labels = batch
        lamin = self.style == "lamin"
        no_labels = 0 if lamin else torch.empty(0)
        return {
            "X": x,
            "batch": batch_index[:, None],
            "labels": labels[:, None] if self.names else no_labels,
            "extra_categorical_covs": codes if self.covariates else None,
            "extra_continuous_covs": None,
            "sample": None if lamin else torch.empty(0),
        }

    @property
    def registry(self):
        covariates = {"data_registry": {}, "state_registry": {}, "summary_stats": {}}
        categorical = {**covariates, "summary_stats": {"n_extra_categorical_covs": 0}}
        if self.covariates:
            mapping = {k: self.adata.obs[k].cat.categories.to_numpy() for k in self.covariates}
            categorical = {
                "data_registry": {"attr_key": "_scvi_extra_categorical_covs", "attr_name": "obsm"},
                "state_registry": {
                    "field_keys": self.covariates,
                    "mapping": mapping,
                    "n_cats_per_key": [len(v) for v in mapping.values()],
                },
                "summary_stats": {"n_extra_categorical_covs": len(mapping)},
            }
        return {
            "scvi_version": scvi.__version__,
            "model_name": "QBMANVI" if self.names else "QBMVI",
            "setup_args": {
                "layer": None,
                "batch_key": "batch",
                "labels_key": self.labels_key,
                "samples_key": None,
                "size_factor_key": None,
                "categorical_covariate_keys": self.covariates or None,
                "continuous_covariate_keys": None,
            },
            "field_registries": {
                "X": {
                    "data_registry": {"attr_name": "X", "attr_key": None},
                    "state_registry": {
                        "n_obs": self.n_obs,
                        "n_vars": self.n_vars,
                        "column_names": self.adata.var_names.to_numpy(),
                    },
                    "summary_stats": {"n_vars": self.n_vars, "n_cells": self.n_obs},
                },
                "batch": {
                    "data_registry": {"attr_name": "obs", "attr_key": "_scvi_batch"},
                    "state_registry": {
                        "categorical_mapping": self.batch_labels,
                        "original_key": "batch",
                    },
                    "summary_stats": {"n_batch": self.n_batch},
                },
                "labels": {
                    "data_registry": {"attr_name": "obs", "attr_key": "_scvi_labels"},
                    "state_registry": {
                        "categorical_mapping": np.array(self.names) if self.names else None,
                        "original_key": self.labels_key,
                        "unlabeled_category": "Unknown",
                    },
                    "summary_stats": {"n_labels": self.n_labels},
                },
                "size_factor": covariates,
                "extra_categorical_covs": categorical,
                "extra_continuous_covs": {
                    **covariates,
                    "summary_stats": {"n_extra_continuous_covs": 0},
                },
            },
            "setup_method_name": "setup_datamodule",
        }
