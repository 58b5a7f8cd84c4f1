"""What only a Boltzmann prior has: energies of cells, attractors, couplings, gene programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.module._constants import MODULE_KEYS

from scvi_qbm._checks import as_positions
from scvi_qbm.ising import Ising
from scvi_qbm.landscape import (
    MAX_ATTRACTORS,
    Attractors,
    find_attractors,
    merge_tree,
    nearest_attractor,
    saddles,
)
from scvi_qbm.logz import LogPartition, Method, log_partition

OutlierScore = Literal["elbo", "kl", "reconstruction"]


class PriorParameters(NamedTuple):
    """A Boltzmann machine ``E(z) = h.z + z'Wz/2`` over codes of 0 and 1, energies in nats.

    Parameters
    ----------
    W
        Couplings, float64 ``(n_units, n_units)``, symmetric with zero diagonal. Positive entries
        keep two units from being on together.
    h
        Biases, float64 ``(n_units,)``. Positive entries keep a unit off.
    """

    W: NDArray[np.float64]
    h: NDArray[np.float64]

    @property
    def ising(self) -> Ising:
        """The same machine over spins ``s = 2z - 1``, for any sampler."""
        return Ising.from_boltzmann(self.W, self.h)


class LandscapeMixin:
    """Methods that read the Boltzmann machine."""

    # Arrays of an Attractors, None before they are asked for. Saved, as all that ends with "_".
    _attractors_: dict[str, NDArray[Any]] | None = None

    @property
    def prior(self) -> PriorParameters:
        """The Boltzmann machine's ``W`` (n_units, n_units) and ``h`` (n_units,), a copy."""
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

        Returns
        -------
        scvi_qbm.logz.LogPartition
            ``(value, standard_error)`` in nats.

        Raises
        ------
        ValueError
            If the method is unknown, or ``"exact"`` and there are more than 24 units.
        """
        if method is None:
            prior = self.module.prior
            return LogPartition(float(prior.log_z), float(prior.log_z_se))
        return log_partition(self.prior.ising, method=method, seed=seed)

    @torch.inference_mode()
    def get_energy(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        r"""Where each cell lies in the prior's energy landscape, in nats.

        How to read it: ``free_energy`` is low in states that the prior knows well, and high in
        rare and transitional ones. Compare cells of one model only. ``kl``, which is
        ``free_energy + log Z``, also compares models of the same data.

        Parameters
        ----------
        adata, indices, batch_size
            As :meth:`get_latent_representation`.

        Returns
        -------
        pandas.DataFrame
            One row per cell: ``energy`` :math:`E_q[E(z)]`, exact for a factorised posterior;
            ``entropy`` of q(z|x); ``free_energy`` = energy - entropy; ``kl`` = free_energy +
            log Z; ``map_energy``, the energy of the most probable code.
        """
        logits = torch.from_numpy(
            self.get_latent_representation(
                adata, indices=indices, batch_size=batch_size, representation="logits"
            )
        ).to(self.device)
        prior = self.module.prior
        energy = prior.energy(torch.sigmoid(logits))
        kl = prior.kl(logits)
        free = kl - prior.log_z
        out = {
            "energy": energy,
            "entropy": energy - free,
            "free_energy": free,
            "kl": kl,
            "map_energy": prior.energy((logits > 0).to(logits)),
        }
        frame = pd.DataFrame({k: v.cpu().double().numpy() for k, v in out.items()})
        frame.index = self._names(adata, indices)
        return frame

    def _names(self, adata: AnnData | None, indices: Any) -> pd.Index:
        names = self._validate_anndata(adata).obs_names
        return names if indices is None else names[as_positions(indices, len(names))]

    @torch.inference_mode()
    def get_outlier_scores(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        score: OutlierScore = "kl",
        batch_size: int | None = None,
    ) -> pd.Series:
        """Outlier score of each cell, in nats; higher means less like the training data.

        How to read it: rank cells by it, do not compare with a fixed number. The default finds
        cell types that were not in training (docs/landscape.md compares it with SCVI). For
        damaged cells use ``"elbo"``, which depends on the counts.

        Parameters
        ----------
        adata, indices
            As :meth:`get_latent_representation`.
        score
            ``"kl"``: how unlikely the cell's code is under the prior.
            ``"reconstruction"``: how badly the decoder explains its counts. ``"elbo"``: their
            sum (and, with a latent library size, its divergence), the negative ELBO. These two
            are estimates from one draw of the code, and deeply sequenced cells score high.
        batch_size
            Cells at once; ``scvi.settings.batch_size`` if None.

        Returns
        -------
        pandas.Series
            One score per cell, named ``score``, indexed by the cells' names.

        Raises
        ------
        ValueError
            If the score is unknown, or needs counts and the data are minified.
        """
        if score not in get_args(OutlierScore):
            raise ValueError(
                f"Unknown score {score!r}. Available: {', '.join(get_args(OutlierScore))}."
            )
        if score == "kl":
            values = self.get_energy(adata, indices, batch_size)["kl"].to_numpy()
        elif self.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
            raise ValueError(f"score={score!r} needs counts, and the model's data are minified.")
        else:
            values = self._losses(adata, indices, batch_size)[score]
        return pd.Series(values, index=self._names(adata, indices), name=score)

    def _losses(self, adata: Any, indices: Any, batch_size: int | None) -> dict[str, NDArray[Any]]:
        """The three scores from the same draw of the code."""
        loader = self._make_data_loader(
            adata=self._validate_anndata(adata), indices=indices, batch_size=batch_size
        )
        out: dict[str, list[torch.Tensor]] = {name: [] for name in get_args(OutlierScore)}
        for tensors in loader:
            _, _, loss = self.module(tensors)
            reconstruction = loss.dict_sum(loss.reconstruction_loss)
            out["kl"].append(loss.kl_local[MODULE_KEYS.KL_Z_KEY].cpu())
            out["reconstruction"].append(reconstruction.cpu())
            out["elbo"].append((reconstruction + loss.dict_sum(loss.kl_local)).cpu())
        return {name: torch.cat(values).double().numpy() for name, values in out.items()}

    def get_attractors(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> Attractors:
        """Assign each cell to a local minimum of the prior's energy.

        From the cell's most probable code, flips of single units lower the energy until none
        does. Only minima that the model's own cells reach are used, at most the 2,000 largest.
        They are found at the first call and kept with the model, also for a query mapped onto it.
        A cell that reaches another minimum is assigned to the one behind the lowest barrier.

        How to read it: ``labels`` is a clustering without a resolution parameter. ``merged(2.0)``
        joins minima whose barrier is below 2 nats. ``tree`` holds the merges for a dendrogram.
        Independent units multiply the number of minima, so one cell type can have several.

        Parameters
        ----------
        adata, indices
            As :meth:`get_latent_representation`.
        batch_size
            Cells at once; ``scvi.settings.batch_size`` if None.

        Returns
        -------
        scvi_qbm.landscape.Attractors
            One label per cell; the minima with energies, sizes, barriers and tree, in nats.
            ``sizes`` counts the model's own cells.
        """
        machine = (self.prior.W, self.prior.h)
        cells = {"adata": adata, "indices": indices, "batch_size": batch_size}
        if self._attractors_ is None:
            own = cells if self.adata is None else {"batch_size": batch_size}
            codes = self._states(**own)
            found = find_attractors(machine, codes, barriers=False)
            states, energies = found.states[:MAX_ATTRACTORS], found.energies[:MAX_ATTRACTORS]
            passes = saddles(machine, states)
            self._attractors_ = {
                "states": states,
                "energies": energies,
                "sizes": found.sizes[:MAX_ATTRACTORS],
                "saddles": passes,
                "tree": merge_tree(energies, passes),
            }
        codes = self._states(**cells)
        labels = nearest_attractor(machine, self._attractors_["states"], codes)
        return Attractors(labels=labels, **self._attractors_)

    def _states(self, **cells: Any) -> NDArray[Any]:
        """The most probable state of all units of the prior, 0 and 1, for each cell."""
        return self.get_latent_representation(**cells, representation="binary")

    def get_couplings(self, threshold: float = 0.0) -> pd.DataFrame:
        """The coupling graph between latent units.

        How to read it: a coupling of c nats multiplies the odds of one unit by ``exp(c)`` when the
        other switches on. Couplings are direct: two units may be correlated without one, through
        others.

        Parameters
        ----------
        threshold
            Leave out couplings weaker than this, in nats.

        Returns
        -------
        pandas.DataFrame
            A row a pair, strongest first: ``unit_a`` < ``unit_b``, ``coupling`` = -W in nats,
            positive where the units like to be on together.
        """
        n = self.module.n_latent
        W = self.prior.W[:n, :n]
        a, b = np.triu_indices(len(W), 1)
        frame = pd.DataFrame({"unit_a": a, "unit_b": b, "coupling": -W[a, b]})
        frame = frame[frame["coupling"].abs() >= threshold]
        order = frame["coupling"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].reset_index(drop=True)
