"""The machine with label units: couplings, states with a label set, new cells of a type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray

from scvi_qbm.ising import Ising
from scvi_qbm.prior.negative_phase import correct
from scvi_qbm.samplers import Sampler, get_sampler

from ._label_levels import LabelTable

_MAX_DRAWS = 20  # as many times the states asked for, where some have no label or two


class LabelMachineMixin:
    """Methods of :class:`QBMANVI` that draw from its machine or read its label units."""

    _label_table: LabelTable
    _label_mapping: NDArray[Any]

    def get_label_couplings(self) -> pd.DataFrame:
        """How label and code units go together.

        How to read it: a coupling of c nats multiplies a label's odds by ``exp(c)`` when the unit
        switches on, all other units unchanged. Only differences between labels of one level mean
        something. The units' genes are in :meth:`get_gene_programs`.

        Returns
        -------
        pandas.DataFrame
            -U in nats, labels by units ``unit_0``, ...; positive where they like to be on
            together.
        """
        U = -self.module.prior.U.detach().cpu().double().numpy().T
        names = self._label_mapping
        if len(self.label_keys_) > 1:
            names = [f"{self.label_keys_[k]}: {name}" for k, name in self._label_table.labels]
        units = [f"unit_{i}" for i in range(U.shape[1])]
        return pd.DataFrame(U, index=names, columns=units)

    def sample_prior(
        self,
        n_samples: int = 1000,
        sampler: str | Sampler = "parallel_tempering",
        sampler_options: dict[str, Any] | None = None,
        seed: int | None = None,
        *,
        label: Any = None,
    ) -> NDArray[np.int8]:
        """Binary codes from the Boltzmann prior, of any label or of one.

        Parameters
        ----------
        n_samples, sampler, sampler_options, seed
            As :meth:`QBMVI.sample_prior`.
        label
            Draw codes of this label: its unit is set, and the sampler draws from the machine of
            the other units. Where levels share a name it is that of the finest.

        Returns
        -------
        numpy.ndarray
            int8 ``(n_samples, n_latent)``, 0 and 1.

        Raises
        ------
        ValueError
            If ``n_samples`` < 1, or the sampler or the label is unknown.
        """
        if seed is None:
            seed = int(torch.randint(2**31 - 1, ()).item())
        return self._draw(n_samples, sampler, sampler_options, seed, label=label)[0]

    def _draw(
        self,
        n_samples: int,
        sampler: str | Sampler,
        sampler_options: dict[str, Any] | None,
        seed: int,
        *,
        label: Any = None,
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        S = self._label_table.configurations
        wanted = S if label is None else S[S[:, self._unit_of(label)] == 1]
        states = self._draw_states(wanted, n_samples, sampler, sampler_options, seed)
        n = self.module.n_latent
        columns: dict[str, Any] = {}
        for level, key in enumerate(self.label_keys_):
            units = self._label_table.units(level)
            on = states[:, n:][:, units]
            names = self._label_mapping[units][on.argmax(1)].copy()
            names[~on.any(1)] = self.unlabeled_category_
            columns[key] = pd.Categorical(names)
        return states[:, :n], columns

    def _draw_states(
        self,
        wanted: NDArray[np.float32],
        n_samples: int,
        sampler: str | Sampler,
        sampler_options: dict[str, Any] | None,
        seed: int,
    ) -> NDArray[np.int8]:
        """States of all units, with their labels in one of these configurations."""
        if n_samples < 1:
            raise ValueError(f"`n_samples` must be at least 1, got {n_samples}.")
        n = self.module.n_latent
        # Label units that are the same in all of them are set, the others drawn.
        state = np.zeros(n + wanted.shape[1], dtype=np.int8)
        state[n:] = wanted[0]
        free = np.append(np.ones(n, dtype=bool), (wanted != wanted[0]).any(0))
        W, h = self.prior
        field = h[free] + W[np.ix_(free, ~free)] @ state[~free]
        machine = Ising.from_boltzmann(W[np.ix_(free, free)], field)
        chosen = correct(get_sampler(sampler, **(sampler_options or {})), int(free.sum()))
        rows = {row.tobytes() for row in wanted.astype(np.int8)}
        found: list[NDArray[np.int8]] = []
        for k in range(_MAX_DRAWS):
            drawn = np.tile(state, (n_samples, 1))
            drawn[:, free] = chosen.sample(machine, n_samples=n_samples, seed=seed + k).binary
            found.append(drawn[[y.tobytes() in rows for y in drawn[:, n:]]])
            if sum(map(len, found)) >= n_samples:
                return np.concatenate(found)[:n_samples]
        raise RuntimeError(
            f"Only {sum(map(len, found))} of {_MAX_DRAWS * n_samples} states have labels that go "
            "together. Has the model been trained?"
        )

    def _unit_of(self, label: Any) -> int:
        found = [i for i, name in enumerate(self._label_mapping) if np.array_equal(name, label)]
        if not found:
            raise ValueError(
                f"Unknown label {label!r}. Available: {', '.join(map(repr, self._label_mapping))}."
            )
        return found[-1]

    @torch.inference_mode()
    def generate(  # type: ignore[override]
        self,
        n_cells: int = 1000,
        batch: Any = None,
        library_size: float | None = None,
        sampler: str | Sampler = "parallel_tempering",
        sampler_options: dict[str, Any] | None = None,
        adata: AnnData | None = None,
        batch_size: int = 256,
        seed: int | None = None,
        *,
        label: Any = None,
    ) -> AnnData:
        """New cells with their labels: codes and labels from the prior, decoded, counts drawn.

        Parameters
        ----------
        n_cells, batch, library_size, sampler, sampler_options, adata, batch_size, seed
            As :meth:`QBMVI.generate`.
        label
            Make cells of this label only.

        Returns
        -------
        anndata.AnnData
            As of :meth:`QBMVI.generate`; labels are those drawn with the codes, not those of the
            borrowed cells.

        Raises
        ------
        TypeError
            If ``batch`` is a list.
        ValueError
            As :meth:`QBMVI.generate`, and if the label is unknown.
        """
        return self._generate(
            n_cells, batch, library_size, sampler, sampler_options, adata, batch_size, seed,
            label=label,
        )  # fmt: skip

    def _states(self, **cells: Any) -> NDArray[Any]:
        codes = super()._states(**cells)  # type: ignore[misc]
        logits = self.module.prior.label_logits(torch.from_numpy(codes).to(self.device))
        best = logits.argmax(-1).cpu().numpy()
        return np.concatenate([codes, self._label_table.configurations[best]], 1)
