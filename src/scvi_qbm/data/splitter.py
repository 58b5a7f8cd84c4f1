"""Which loader gives which cells."""

from __future__ import annotations

from typing import Any

from scvi.dataloaders import DataSplitter

from scvi_qbm.data.in_memory import ResumableDataLoader

__all__ = ["QBMDataSplitter"]


class QBMDataSplitter(DataSplitter):
    """scvi-tools' splitter, whose training loader can go on in the middle of an epoch."""

    train_loader_cls: Any = ResumableDataLoader

    def train_dataloader(self) -> Any:
        """Make the loader of the cells that are trained on.

        Returns
        -------
        ResumableDataLoader
            Shuffled anew in every epoch.
        """
        return self.train_loader_cls(
            self.adata_manager,
            indices=self.train_idx,
            shuffle=True,
            drop_last=self.drop_last,
            load_sparse_tensor=self.load_sparse_tensor,
            pin_memory=self.pin_memory,
            **self.data_loader_kwargs,
        )
