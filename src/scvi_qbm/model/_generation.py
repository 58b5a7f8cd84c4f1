"""New cells from the Boltzmann prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from scipy.special import logsumexp
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.utils import track
from torch.nn.functional import logsigmoid

from scvi_qbm._numbers import as_seed, positive, positive_int
from scvi_qbm.prior.negative_phase import correct
from scvi_qbm.samplers import Sampler, get_sampler

# Numbers at once, where codes are compared with cells.
_BLOCK = 2**24
_LARGE = 20_000  # cells, from which on there is a progress bar
# Columns of obs that a set-up can name.
_OBS_KEYS = (
    "batch_key", "labels_key", "size_factor_key", "samples_key", "categorical_covariate_keys",
    "continuous_covariate_keys",
)  # fmt: skip


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
            Name or instance, see :func:`scvi_qbm.list_samplers`. One whose guarantee is
            ``heuristic`` is finished by Gibbs sweeps (``"corrected"``), as in training; for its
            raw states use ``get_sampler(name).sample(model.prior.ising)``.
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
        if seed is None:
            seed = int(torch.randint(2**31 - 1, ()).item())
        return self._draw(n_samples, sampler, sampler_options, seed)[0]

    def _draw(
        self,
        n_samples: int,
        sampler: str | Sampler,
        sampler_options: dict[str, Any] | None,
        seed: int,
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        """Codes from the prior, and columns of obs that come with them."""
        chosen = correct(get_sampler(sampler, **(sampler_options or {})), self.module.n_latent)
        return chosen.sample(self.prior.ising, n_samples=n_samples, seed=seed).binary, {}

    @torch.inference_mode()
    def generate(
        self,
        n_cells: int = 1000,
        batch: str | int | Mapping[Any, float] | None = None,
        library_size: float | None = None,
        sampler: str | Sampler = "parallel_tempering",
        sampler_options: dict[str, Any] | None = None,
        adata: AnnData | None = None,
        batch_size: int = 256,
        seed: int | None = None,
    ) -> AnnData:
        """Generate new cells: codes from the Boltzmann prior, decoded, with random counts.

        How to read it: the prior has no batch and no sequencing depth. Each new cell takes these
        and its covariates from a real cell with a similar code. Its expression comes from the
        decoder only. All methods of the model accept the result as ``adata``.

        Parameters
        ----------
        n_cells
            Number of cells, >= 1.
        batch
            Proportions of the batches: None for those of the data; a batch, as in ``adata.obs``,
            for cells of this one only; or a mapping, such as ``{"donor 1": 1, "donor 2": 3}``.
            Each cell goes to the batch with the most similar cells, as far as proportions allow.
        library_size
            Expected counts per cell (``zinb``: before dropout). By default each cell has those of
            the similar real cell. Not available with a latent library size, which is drawn from
            the batch's log-normal distribution, with a size factor, or with
            ``gene_likelihood="normal"``.
        sampler, sampler_options
            As :meth:`sample_prior`.
        adata
            Real cells to take batches, depths and covariates from. Defaults to the model's.
        batch_size
            Cells decoded at once.
        seed
            As :meth:`sample_prior`; it also decides cells and counts, these with ``batch_size``.

        Returns
        -------
        anndata.AnnData
            Counts (values for ``gene_likelihood="normal"``) in ``X`` and in the registered layer;
            in ``obs`` the columns registered by :meth:`setup_anndata`, labels among them, as in
            the similar real cells; ``obs["energy"]``, each code's energy in nats;
            ``obsm["code"]`` the codes, int8; ``var`` copied from the data.

        Raises
        ------
        TypeError
            If ``batch`` is a list.
        ValueError
            If ``n_cells`` < 1, a batch is not in the data, shares are negative or all 0,
            ``library_size`` is not positive or has no meaning, or a covariate is called
            ``energy``.
        """
        return self._generate(
            n_cells, batch, library_size, sampler, sampler_options, adata, batch_size, seed
        )

    def _generate(
        self,
        n_cells: int,
        batch: Any,
        library_size: float | None,
        sampler: str | Sampler,
        sampler_options: dict[str, Any] | None,
        adata: AnnData | None,
        batch_size: int,
        seed: int | None,
        **label: Any,
    ) -> AnnData:
        n_cells, seed = positive_int(n_cells, "n_cells"), as_seed(seed)
        adata = self._validate_anndata(adata)
        module = self.module
        if library_size is not None:
            positive(library_size, "library_size")
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
        codes, labels = self._draw(n_cells, sampler, sampler_options, seed, **label)
        keys = self._obs_keys()
        rng = np.random.default_rng(seed)
        templates = self._resembling(adata, self._batches(adata, batch), codes, rng)
        z = torch.from_numpy(codes.astype(np.float32))
        rows = []
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            loader = self._make_data_loader(adata=adata, indices=templates, batch_size=batch_size)
            bar = track(loader, description="New cells", disable=n_cells <= _LARGE)
            for tensors, part in zip(bar, z.split(batch_size), strict=True):
                rows.append(csr_matrix(self._decode(tensors, part, library_size)))
        energy = module.prior.energy(z.to(self.device)).cpu().double().numpy()
        obs = adata.obs.iloc[templates][keys].reset_index(drop=True)
        obs = pd.DataFrame(obs)
        for column, values in {"energy": energy, **labels}.items():
            obs[column] = values
        obs.index = [f"generated_{i}" for i in range(n_cells)]
        made = AnnData(vstack(rows, format="csr"), obs, adata.var.copy(), obsm={"code": codes})
        if (layer := self.registry_["setup_args"].get("layer")) is not None:
            made.layers[layer] = made.X.copy()
        return made

    def _resembling(
        self,
        adata: AnnData,
        batches: list[tuple[NDArray[np.int64], float]],
        codes: NDArray[np.int8],
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """For each code a cell m drawn ~ q(z | x_m), in batches of the shares asked for."""
        logits = torch.from_numpy(
            self.get_latent_representation(adata, representation="logits")
        ).double()
        off = logsigmoid(-logits).sum(1)
        z = torch.from_numpy(codes).double()
        cells = np.empty((len(codes), len(batches)), dtype=np.int64)
        likeness = np.empty(cells.shape)
        for b, (members, _) in enumerate(batches):
            there, constant = logits[members], off[members]
            rows = max(1, _BLOCK // len(members))
            for start in range(0, len(z), rows):
                log_q = z[start : start + rows] @ there.T + constant
                likeness[start : start + rows, b] = torch.logsumexp(log_q, 1).numpy()
                weights = torch.softmax(log_q, 1).cumsum(1).numpy()
                draws = rng.random(len(weights)) * weights[:, -1]
                cells[start : start + rows, b] = members[(weights < draws[:, None]).sum(1)]
        probabilities = _with_shares(likeness, np.array([share for _, share in batches]))
        cumulative = probabilities.cumsum(1)
        chosen = (cumulative < rng.random(len(z))[:, None] * cumulative[:, -1:]).sum(1)
        return cells[np.arange(len(z)), chosen]

    def _batches(
        self, adata: AnnData, batch: str | int | Mapping[Any, float] | None
    ) -> list[tuple[NDArray[np.int64], float]]:
        """Cells and share of each batch that is asked for."""
        state = self.adata_manager.get_state_registry(REGISTRY_KEYS.BATCH_KEY)
        names = adata.obs[state.original_key]
        if batch is None:
            shares = dict(names.value_counts())
        else:
            if isinstance(batch, pd.Series):
                batch = batch.to_dict()
            if not isinstance(batch, Mapping) and pd.api.types.is_list_like(batch):
                raise TypeError(
                    f"`batch` is one batch or a mapping of shares, not {batch!r}. For several: "
                    f"{dict.fromkeys(batch, 1)!r}."
                )
            shares = dict(batch) if isinstance(batch, Mapping) else {batch: 1.0}
        values = np.array(list(shares.values()), dtype=float)
        if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
            raise ValueError(f"Shares of batches must be 0 or more, and not all 0, got {shares}.")
        found = []
        for name, share in zip(shares, values / values.sum(), strict=True):
            cells = np.flatnonzero((names == name).to_numpy())
            if not len(cells):
                if batch is None:
                    continue  # a category without cells
                raise ValueError(
                    f"No cells of batch {name!r}. "
                    f"Available: {', '.join(map(repr, names.unique().tolist()))}."
                )
            if share > 0:
                found.append((cells, float(share)))
        return found

    def _obs_keys(self) -> list[str]:
        arguments = self.registry_["setup_args"]
        keys: list[str] = []
        for argument in _OBS_KEYS:
            value = arguments.get(argument) or []
            keys += [value] if isinstance(value, str) else value
        keys = list(dict.fromkeys(keys))
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


def _with_shares(log_weights: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[Any]:
    """Probabilities (n, k) ~ exp(log_weights), columns scaled so that their means are ``shares``.

    Rows sum to 1. Iterative proportional fitting: Sinkhorn (1967), Am. Math. Mon. 74, 402.
    """
    scale = np.zeros(len(shares))
    for _ in range(1000):
        logs = log_weights + scale
        logs -= logsumexp(logs, axis=1, keepdims=True)
        wrong = np.log(shares) - (logsumexp(logs, axis=0) - np.log(len(logs)))
        if np.abs(wrong).max() < 1e-3:
            break
        scale += wrong
    return np.exp(logs)
