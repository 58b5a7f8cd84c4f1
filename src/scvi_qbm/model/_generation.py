"""New cells from the Boltzmann prior."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from torch.nn.functional import logsigmoid

from scvi_qbm.prior.negative_phase import correct
from scvi_qbm.samplers import Sampler, get_sampler

_ROWS = 256


class GenerationMixin:
    """Methods that draw from the prior."""

    def sample_prior(
        self,
        n_samples: int = 1000,
        sampler: str | Sampler = "parallel_tempering",
        sampler_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> NDArray[np.int8]:
        """Binary codes from the Boltzmann prior.

        Parameters
        ----------
        n_samples
            Number of codes, >= 1.
        sampler
            Name or instance, see :func:`scvi_qbm.list_samplers`. One whose law is ``heuristic`` is
            finished by Gibbs sweeps (``"corrected"``), as in training; for its raw states use
            ``get_sampler(name).sample(model.prior.ising)``.
        sampler_options
            Its options, where it is given by name.
        seed
            Of the sampler; from torch's generator (``scvi.settings.seed``) if None.

        Returns
        -------
        numpy.ndarray
            int8 ``(n_samples, n_latent)``, 0 and 1.

        Raises
        ------
        ValueError
            If ``n_samples`` < 1, or the sampler is unknown.
        """
        chosen = correct(get_sampler(sampler, **(sampler_options or {})), self.module.n_latent)
        if seed is None:
            seed = int(torch.randint(2**31 - 1, ()).item())
        return chosen.sample(self.prior.ising, n_samples=n_samples, seed=seed).binary

    @torch.inference_mode()
    def generate(
        self,
        n_cells: int = 1000,
        batch: str | int | None = None,
        library_size: float | None = None,
        sampler: str | Sampler = "parallel_tempering",
        sampler_options: dict[str, Any] | None = None,
        adata: AnnData | None = None,
        batch_size: int = 256,
        seed: int | None = None,
    ) -> AnnData:
        """New cells: codes from the Boltzmann prior, decoded, with counts drawn.

        How to read it: the prior has no batch, covariates or depth, so each new cell borrows these
        from a real cell (of ``batch``) with a similar code, drawn by :math:`q(z | x)`; drawn
        blindly, depth and composition would not go with the type. Expression comes from the
        decoder alone.

        Parameters
        ----------
        n_cells
            Number of cells, >= 1.
        batch
            A batch to generate, as in ``adata.obs``. If None, batches follow the types that the
            prior draws, whose shares can be far from the data's (docs/landscape.md).
        library_size
            Expected counts of every cell (of ``zinb`` before dropout); those of the borrowed cells
            if None. Not for models with a latent library size, whose cells draw theirs from the
            batch's log-normal law, nor with a size factor or ``gene_likelihood="normal"``.
        sampler, sampler_options
            As :meth:`sample_prior`.
        adata
            Data to borrow from. Defaults to the model's.
        batch_size
            Cells decoded at once.
        seed
            As :meth:`sample_prior`; it also decides cells and counts.

        Returns
        -------
        anndata.AnnData
            Counts (values for ``gene_likelihood="normal"``) in ``X``; batch and covariates in
            ``obs``, and in ``obs["energy"]`` each code's energy in nats; ``obsm["code"]`` the
            codes, int8; ``var`` copied from the data.

        Raises
        ------
        ValueError
            If ``n_cells`` < 1, the batch is not in the data, ``library_size`` is not positive or
            has no meaning, or a covariate is called ``energy``.
        """
        adata = self._validate_anndata(adata)
        module = self.module
        if library_size is not None:
            if library_size <= 0:
                raise ValueError(f"`library_size` must be positive, got {library_size}.")
            if (
                module.gene_likelihood == "normal"
                or module.use_size_factor_key
                or not module.use_observed_lib_size
            ):
                raise ValueError(
                    "This model takes no `library_size`: its cells are scaled by a size factor, a "
                    "latent library size, or not at all."
                )
        if seed is None:
            seed = int(torch.randint(2**31 - 1, ()).item())
        keys = self._obs_keys()
        codes = self.sample_prior(n_cells, sampler, sampler_options, seed)
        rng = np.random.default_rng(seed)
        templates = self._resembling(adata, self._cells_of(adata, batch), codes, rng)
        z = torch.from_numpy(codes.astype(np.float32))
        rows = []
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            loader = self._make_data_loader(adata=adata, indices=templates, batch_size=batch_size)
            for tensors, part in zip(loader, z.split(batch_size), strict=True):
                rows.append(csr_matrix(self._decode(tensors, part, library_size)))
        energy = module.prior.energy(z.to(self.device)).cpu().double().numpy()
        obs = adata.obs.iloc[templates][keys].reset_index(drop=True)
        obs = pd.DataFrame(obs).assign(energy=energy)
        obs.index = [f"generated_{i}" for i in range(n_cells)]
        return AnnData(vstack(rows, format="csr"), obs, adata.var.copy(), obsm={"code": codes})

    def _resembling(
        self,
        adata: AnnData,
        cells: NDArray[np.int64],
        codes: NDArray[np.int8],
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """For each code a cell m of ``cells``, drawn with probability ~ q(z | x_m)."""
        logits = torch.from_numpy(
            self.get_latent_representation(adata, indices=cells, representation="logits")
        ).double()
        off = logsigmoid(-logits).sum(1)
        out = np.empty(len(codes), dtype=np.int64)
        for start in range(0, len(codes), _ROWS):
            z = torch.from_numpy(codes[start : start + _ROWS]).double()
            weights = torch.softmax(z @ logits.T + off, 1).cumsum(1).numpy()
            draws = rng.random(len(z)) * weights[:, -1]
            out[start : start + len(z)] = (weights < draws[:, None]).sum(1)
        return cells[out]

    def _cells_of(self, adata: AnnData, batch: str | int | None) -> NDArray[np.int64]:
        if batch is None:
            return np.arange(adata.n_obs)
        state = self.adata_manager.get_state_registry(REGISTRY_KEYS.BATCH_KEY)
        names = adata.obs[state.original_key]
        cells = np.flatnonzero((names == batch).to_numpy())
        if not len(cells):
            raise ValueError(
                f"No cells of batch {batch!r}. Available: {', '.join(map(repr, names.unique()))}."
            )
        return cells

    def _obs_keys(self) -> list[str]:
        arguments = self.registry_["setup_args"]
        keys = [arguments.get("batch_key")]
        keys += arguments.get("categorical_covariate_keys") or []
        keys += arguments.get("continuous_covariate_keys") or []
        keys = list(dict.fromkeys(key for key in keys if key is not None))
        if "energy" in keys:
            raise ValueError("A batch or covariate is called 'energy': rename it to generate.")
        return keys

    def _decode(
        self, tensors: dict[str, torch.Tensor], z: torch.Tensor, library_size: float | None
    ) -> NDArray[np.float32]:
        module = self.module
        inference = module.inference(**module._get_inference_input(tensors))
        zeta = inference[MODULE_KEYS.QZ_KEY].sample_given(z.to(self.device))
        library = inference[MODULE_KEYS.LIBRARY_KEY]
        if not module.use_observed_lib_size:
            batch_index = tensors[REGISTRY_KEYS.BATCH_KEY].to(self.device)
            mean, variance = module._compute_local_library_params(batch_index)
            library = torch.normal(mean, variance.sqrt())
        elif library_size is not None:
            library = torch.full_like(library, float(np.log(library_size)))
        outputs = inference | {MODULE_KEYS.Z_KEY: zeta, MODULE_KEYS.LIBRARY_KEY: library}
        px = module.generative(**module._get_generative_input(tensors, outputs))
        out: NDArray[np.float32] = px[MODULE_KEYS.PX_KEY].sample().cpu().numpy()
        return out
