"""What label units add to a model: their last fit, predictions, and machines with a label set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scvi import REGISTRY_KEYS
from torch import Tensor

from scvi_qbm.novelty import fit_types, squared_distance
from scvi_qbm.prior import fit_labels

from ._label_levels import LabelLevelsField, LabelTable, label_table

# A child of scvi-tools' logger, which is the one that users see.
logger = logging.getLogger("scvi.qbm")

LabelledOutlierScore = Literal["novelty", "entropy", "kl", "reconstruction", "elbo"]

_ALL = 2**63
_MAX_LABELLED = 200_000
_REPLAYED = 2000
_OFF, _NEVER = 20.0, 1e4  # nats
_TINY = 1e-9


class LabelsMixin:
    """Methods of :class:`QBMANVI` that read and write the label units."""

    # Of the last fit: shares of the configurations, each its labels as (level, name).
    _label_shares_: dict[tuple[tuple[int, Any], ...], float] | None = None
    # Where their cells lie in the embedding.
    _known_types_: dict[str, Any] | None = None

    def _read_labels(self) -> None:
        """Labels as registered: names, levels, which cells have one."""
        state = self.get_state_registry(REGISTRY_KEYS.LABELS_KEY)
        keys = self.registry_["setup_args"]["labels_key"]
        self.label_keys_ = [keys] if isinstance(keys, str) else list(keys)
        self.original_label_key = state.original_key
        self.unlabeled_category_ = state.unlabeled_category
        self._label_table: LabelTable = label_table(
            state.categorical_mapping,
            self.unlabeled_category_,
            self.label_keys_,
            state.get(LabelLevelsField.STAGES, ()),  # not in the registry of a data module
        )
        self._label_mapping = np.array(
            [name for _, name in self._label_table.labels], dtype=object
        )
        self.n_labels = len(self._label_mapping)
        self._labeled_indices = self._unlabeled_indices = np.array([], dtype=int)
        if self.adata is not None:
            codes = np.ravel(self.adata_manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY))
            known = ~self._label_table.allowed[codes].all(1)
            self._labeled_indices = np.flatnonzero(known)
            self._unlabeled_indices = np.flatnonzero(~known)

    def _fit_prior(
        self,
        loader: Callable[[], Iterable[dict[str, Tensor]]] | None,
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        """Label units by the labelled cells, then the others by all."""
        if not self.module.prior.is_frozen:
            pull = self._parameters_of_prior()
            self._fit_labels(loader)
            super()._fit_prior(loader, lr=lr, weight_decay=weight_decay)  # type: ignore[misc]
            self._pull_ = pull
        elif self._label_shares_ and set(self._configurations()) - self._label_shares_.keys():
            self._fit_labels(loader, n_fixed=self._n_fitted_labels())

    def _forget_fits(self) -> None:
        super()._forget_fits()  # type: ignore[misc]
        if not self.module.prior.is_frozen:
            self._label_shares_ = self._known_types_ = None

    def _n_fitted_labels(self) -> int:
        return len({label for row in self._label_shares_ or {} for label in row})

    @torch.no_grad()
    def _fit_labels(
        self, loader: Callable[[], Iterable[dict[str, Tensor]]] | None, n_fixed: int = 0
    ) -> None:
        """Fit label units; with ``n_fixed`` only those that a query has brought."""
        prior, known = self.module.prior, self.module.allowed
        mean, n_seen = torch.zeros(prior.n_latent, device=self.device), 0
        for qz, _ in self._posteriors(loader and loader()):
            mean += qz.probs.sum(0)
            n_seen += len(qz.probs)
        q, allowed = [], []
        for qz, tensors in self._posteriors(
            loader and loader(), self._labeled_indices, limit=_MAX_LABELLED
        ):
            there = known[tensors[REGISTRY_KEYS.LABELS_KEY].flatten().long()]
            some = ~there.all(1)
            q.append(qz.probs[some])
            allowed.append(there[some])
        if n_fixed:
            # The reference's cells are not here, but its machine can draw cells like them.
            old = np.array([k in (self._label_shares_ or {}) for k in self._configurations()])
            rows = self._label_table.configurations[old]
            drawn = self._draw_states(rows, _REPLAYED, "parallel_tempering", None, seed=0)
            drawn = torch.from_numpy(drawn.astype(np.float32)).to(self.device)
            q.append(drawn[:, : prior.n_latent])
            y = drawn[:, None, prior.n_latent :]
            allowed.append((y == prior.configurations).all(-1))
        if not sum(map(len, q)):
            return
        q, allowed = torch.cat(q), torch.cat(allowed)
        if n_fixed < self.n_labels:
            fit_labels(prior, q, allowed, mean / n_seen, n_fixed=n_fixed)
        self.module.negative_phase.refresh_log_z(final=True, over_ranks=False)
        shares = torch.softmax(prior.label_logits(q, allowed), -1).mean(0).tolist()
        self._label_shares_ = dict(zip(self._configurations(), shares, strict=True))

    @torch.no_grad()
    def _fit_alignment(self, loader: Iterable[dict[str, Tensor]] | None = None) -> None:
        """Batches, and then where the known types lie."""
        super()._fit_alignment(loader)  # type: ignore[misc]
        prior, known = self.module.prior, self.module.allowed
        names, codes, types = self._configurations(), [], []
        for qz, tensors in self._posteriors(loader, self._labeled_indices, limit=_MAX_LABELLED):
            allowed = known[tensors[REGISTRY_KEYS.LABELS_KEY].flatten().long()]
            some = ~allowed.all(1)
            codes.append(self._represent(qz, tensors, "aligned")[some].cpu())
            best = prior.label_logits(qz.probs[some], allowed[some]).argmax(-1)
            types += [names[k] for k in best.tolist()]
        if types:
            self._known_types_ = fit_types(torch.cat(codes).numpy(), types, self._known_types_)

    def _configurations(self) -> list[tuple[tuple[int, Any], ...]]:
        """Labels of each configuration."""
        labels = self._label_table.labels
        return [
            tuple(labels[i] for i in np.flatnonzero(row))
            for row in self._label_table.configurations
        ]

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Any:
        model = super().load(*args, **kwargs)  # type: ignore[misc]
        # For data modules scvi-tools makes the module anew, from its constructor alone.
        model.module.allowed = torch.from_numpy(model._label_table.allowed).to(model.device)
        return model

    @classmethod
    def load_query_data(cls, *args: Any, **kwargs: Any) -> Any:
        """Map new data onto a trained model; labels that it lacks become units.

        Until training they are never predicted. Training leaves the reference's label units as
        they are, and fits the new ones to the query's labelled cells and to states of the
        reference's machine.

        Parameters
        ----------
        *args, **kwargs
            As :meth:`QBMVI.load_query_data`. Cells may be labelled or not; without a column of
            labels none is.

        Returns
        -------
        QBMANVI
            A model of the new data, to be trained further.

        Raises
        ------
        ValueError
            As :meth:`QBMVI.load_query_data`.
        """
        model = super().load_query_data(*args, **kwargs)  # type: ignore[misc]
        model.was_pretrained_ = False
        n_new = model.n_labels - (model._n_fitted_labels() or model.n_labels)
        if n_new:
            names = ", ".join(map(repr, model._label_mapping[-n_new:]))
            logger.info(f"New labels: {names}. Each becomes a unit.")
            with torch.no_grad():
                model.module.prior.a[-n_new:] = _OFF  # until they are fitted
            if model.module.dispersion == "gene-label":
                px_r, at = model.module.px_r.data, model.n_labels - n_new
                px_r[:, at + 1 :] = px_r[:, at : at + 1].clone()  # as unlabelled cells'
        if n_new and (pull := model._pull_) is not None:
            # As ever for the embedding: new labels are never on.
            off, U = torch.full((n_new,), _NEVER), pull["U"]
            U = torch.cat([U, torch.zeros(len(U), n_new)], 1)
            model._pull_ = pull | {"a": torch.cat([pull["a"], off]), "U": U}
        if n_new and model._attractors_ is not None:
            states = model._attractors_["states"]
            wider = np.concatenate([states, np.zeros((len(states), n_new), states.dtype)], 1)
            model._attractors_ = model._attractors_ | {"states": wider}
        return model

    @torch.inference_mode()
    def predict(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        soft: bool = False,
        batch_size: int | None = None,
        use_posterior_mean: bool = True,
        dataloader: Iterator[dict[str, Tensor | None]] | None = None,
        *,
        threshold: float = 0.0,
        adapt_proportions: bool = False,
    ) -> NDArray[Any] | pd.DataFrame:
        """Predict labels of cells, or their probabilities.

        Parameters
        ----------
        adata, indices
            As :meth:`QBMVI.get_latent_representation`. Existing labels are ignored.
        soft
            Return probabilities.
        batch_size
            Cells at once; ``scvi.settings.batch_size`` if None.
        use_posterior_mean
            Predict from the probabilities of the cells' units; if False, from one draw of their
            code, which differs from call to call.
        dataloader
            As :meth:`QBMVI.get_latent_representation`.
        threshold
            Return the unlabelled category if no label is as probable as this.
        adapt_proportions
            Estimate the proportions of the types among these cells, and use them instead of those
            of the labelled cells. For data of another composition. It can lose a rare type that
            resembles a common one (docs/labels.md).

        Returns
        -------
        numpy.ndarray | pandas.DataFrame
            One label per cell; with several levels, a data frame with one column per level. With
            ``soft``, a data frame of probabilities, cells by labels; with several levels its
            columns are pairs of level and label.

        Raises
        ------
        ValueError
            If ``threshold`` is not in [0, 1].
        """
        hard, probabilities = self._hard_and_soft(
            adata, indices, batch_size, dataloader,
            draw=not use_posterior_mean, threshold=threshold, adapt_proportions=adapt_proportions,
        )  # fmt: skip
        return probabilities if soft else hard

    def _hard_and_soft(
        self,
        *cells: Any,
        draw: bool = False,
        threshold: float = 0.0,
        adapt_proportions: bool = False,
    ) -> tuple[Any, pd.DataFrame]:
        """Labels and their probabilities, as :meth:`predict` returns them."""
        if isinstance(threshold, str) or not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must be from 0 to 1, got {threshold}.")
        p = self._probabilities(*cells, draw=draw)
        if adapt_proportions:
            known = self._label_shares_ or {}
            shares = np.array([known.get(k, 0.0) for k in self._configurations()])
            p = _adapted(p, shares)
        columns = pd.Index(self._label_mapping)
        adata, indices, *_, dataloader = cells
        names = None if dataloader is not None else self._names(adata, indices)
        found = self._best_labels(p, threshold)
        if len(self.label_keys_) == 1:
            hard = found[0]
        else:
            hard = pd.DataFrame(dict(zip(self.label_keys_, found, strict=True)), index=names)
            columns = pd.MultiIndex.from_tuples(
                [(self.label_keys_[level], name) for level, name in self._label_table.labels]
            )
        soft = pd.DataFrame(p @ self._label_table.configurations, index=names, columns=columns)
        return hard, soft

    def _best_labels(self, p: NDArray[np.float64], threshold: float) -> list[NDArray[Any]]:
        """For each level the best label among those that go with the coarser ones."""
        S = self._label_table.configurations
        found = []
        for level in range(len(self.label_keys_)):
            units = self._label_table.units(level)
            shares = p @ S[:, units]
            best = units[shares.argmax(1)]
            names = self._label_mapping[best].copy()
            sure = (shares.max(1) >= threshold) & (shares.max(1) > 0)
            names[~sure] = self.unlabeled_category_
            found.append(names)
            p = p * np.where(sure[:, None], S[:, best].T, 1)
        return found

    @torch.inference_mode()
    def get_outlier_scores(  # type: ignore[override]
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        score: LabelledOutlierScore = "novelty",
        batch_size: int | None = None,
    ) -> pd.Series:
        r"""Outlier score of each cell, or uncertainty of its label.

        Parameters
        ----------
        adata, indices
            As :meth:`QBMVI.get_outlier_scores`.
        score
            ``"novelty"`` finds cells of types that had no label: :math:`\log H + \log d^2`. H is
            the entropy; d is the Mahalanobis distance, in the default embedding, to the nearest
            type that is known, with one covariance for all types.
            ``"entropy"``: of the label's probabilities (of the finest level), in nats; high
            between two known types. Others as :meth:`QBMVI.get_outlier_scores`.
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

        References
        ----------
        Lee et al. (2018), NeurIPS 31 (the distance).
        """
        if score not in get_args(LabelledOutlierScore):
            raise ValueError(
                f"Unknown score {score!r}. Available: {', '.join(get_args(LabelledOutlierScore))}."
            )
        if score not in ("novelty", "entropy"):
            return super().get_outlier_scores(adata, indices, score, batch_size)  # type: ignore[misc]
        p = self._probabilities(adata, indices, batch_size)
        values = -(p * np.log(p.clip(1e-300))).sum(1)
        if score == "novelty":
            if self._known_types_ is None:
                self._fit_alignment()  # training was cut short
            codes = self.get_latent_representation(adata, indices, batch_size=batch_size)
            distance = squared_distance(codes, self._known_types_)
            values = np.log(values.clip(_TINY)) + np.log(distance.clip(_TINY))
        return pd.Series(values, index=self._names(adata, indices), name=score)

    @torch.inference_mode()
    def _probabilities(
        self,
        adata: Any,
        indices: Any,
        batch_size: int | None,
        dataloader: Any = None,
        *,
        draw: bool = False,
    ) -> NDArray[np.float64]:
        """Of the configurations of labels, ``(n_cells, n_configurations)``."""
        # As SCANVI's, a query predicts before it is trained; a new model is warned of.
        self._check_if_trained()
        if self._label_shares_ is None and self.is_trained and self.adata is not None:
            pull = self._parameters_of_prior()
            self._fit_labels(None)  # training was cut short
            self._pull_ = self._pull_ or pull
        loader = self._minibatches(adata, indices, batch_size, dataloader, empty_is_fine=True)
        q = torch.zeros(0, self.module.n_latent)
        q = torch.cat([q, *(qz.probs.cpu() for qz, _ in self._posteriors(loader, limit=_ALL))])
        if draw:
            q = torch.bernoulli(q)
        logits = self.module.prior.label_logits(q.to(self.device)).double()
        p: NDArray[np.float64] = torch.softmax(logits, -1).cpu().numpy()
        return p

    def get_elbo(self, *args: Any, with_labels: bool = True, **kwargs: Any) -> Any:
        """Evidence lower bound: nats a cell, higher is better.

        Parameters
        ----------
        *args
            As :meth:`QBMVI.get_elbo`.
        with_labels
            For cells with a label bound log p(x, y). If False, log p(x) for all cells, which
            compares with :class:`QBMVI`.
        **kwargs
            As :meth:`QBMVI.get_elbo`.

        Returns
        -------
        torch.Tensor | tuple[float, float]
            As :meth:`QBMVI.get_elbo`.

        Raises
        ------
        ValueError
            As :meth:`QBMVI.get_elbo`.
        """
        with self.module.labels_seen(with_labels):
            return super().get_elbo(*args, **kwargs)  # type: ignore[misc]

    def get_marginal_ll(self, *args: Any, with_labels: bool = True, **kwargs: Any) -> Any:
        """Importance-weighted log-likelihood.

        Parameters
        ----------
        *args
            As :meth:`QBMVI.get_marginal_ll`.
        with_labels
            As :meth:`get_elbo`.
        **kwargs
            As :meth:`QBMVI.get_marginal_ll`.

        Returns
        -------
        float | torch.Tensor
            As :meth:`QBMVI.get_marginal_ll`.
        """
        with self.module.labels_seen(with_labels):
            return super().get_marginal_ll(*args, **kwargs)  # type: ignore[misc]

    def _losses(self, *args: Any) -> Any:
        with self.module.labels_seen(False):
            return super()._losses(*args)  # type: ignore[misc]


def _adapted(p: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities with the proportions of these cells in place of those they were fitted with.

    Saerens et al. (2002), Neural Computation 14, 21; one cell of each is added, so that none
    vanishes.
    """
    proportions, out = shares, p
    for _ in range(1000):
        out = p * (proportions / shares.clip(1e-9))
        out /= out.sum(1, keepdims=True)
        new = (out.sum(0) + 1) / (len(p) + len(shares))
        if np.abs(new - proportions).max() < 1e-6:
            break
        proportions = new
    return out
