"""Differential expression: which cells are compared, and how, for this model's likelihoods."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scvi.model import SCVI

from scvi_qbm._checks import as_positions

from ._expression import by_name


def _difference(x: NDArray[Any], y: NDArray[Any], pseudocounts: float) -> NDArray[Any]:
    # Values are natural logarithms already, so their difference is a fold change in base e.
    return (x - y) / np.log(2.0)


class DifferentialMixin:
    """:meth:`differential_expression`, with its choices of cells checked."""

    def differential_expression(self, *args: Any, **kwargs: Any) -> pd.DataFrame:
        """Differential expression, see :meth:`scvi.model.SCVI.differential_expression`.

        ``weights="importance"`` uses this model's prior (:meth:`get_importance_weights`). With
        ``gene_likelihood="normal"``, ``mode="change"`` takes differences of the log-normalised
        values as log fold changes, in base 2 (they must be natural logarithms, ``sc.pp.log1p``),
        and the columns ``raw_normalized_mean``, which assume counts, are left out.

        Parameters
        ----------
        *args, **kwargs
            As there.

        Returns
        -------
        pandas.DataFrame
            As there, a row a gene and comparison.

        Raises
        ------
        TypeError
            If there are more arguments than upstream takes.
        KeyError
            If ``groupby`` is no column of ``obs``.
        ValueError
            If a group has no cells, no other cells are left to compare it with, or ``idx1`` or
            ``idx2`` is no choice of cells.
        """
        kwargs |= by_name(SCVI.differential_expression, args)
        if kwargs.get("groupby") is None and kwargs.get("idx1") is None:
            raise ValueError("Compare what? Pass groupby=, a column of adata.obs, or idx1=.")
        kwargs |= self._groups(**kwargs) | self._chosen(**kwargs)
        for name in ("batchid1", "batchid2"):
            if isinstance(kwargs.get(name), str):  # upstream goes through its letters
                kwargs[name] = [kwargs[name]]
        if self.module.gene_likelihood != "normal":
            return super().differential_expression(**kwargs)
        if kwargs.get("mode") == "change" and kwargs.get("change_fn") in (None, "log-fold"):
            kwargs |= {"change_fn": _difference, "pseudocounts": 0.0}
        out = super().differential_expression(**kwargs)
        return out.drop(columns=[c for c in out if c.startswith("raw_normalized_mean")])

    def _chosen(
        self, adata: AnnData | None = None, idx1: Any = None, idx2: Any = None, **_: Any
    ) -> dict[str, Any]:
        """Positions of the cells of ``idx1`` and ``idx2``: positions, masks or queries."""
        found: dict[str, Any] = {}
        for name, chosen in (("idx1", idx1), ("idx2", idx2)):
            if chosen is None:
                continue
            obs = self._validate_anndata(adata).obs
            if isinstance(chosen, str):
                try:
                    cells = as_positions(obs.eval(chosen), len(obs))
                except Exception as error:
                    raise ValueError(
                        f"{name}={chosen!r} is no query of adata.obs: {error}. Columns: "
                        f"{', '.join(map(repr, obs.columns))}."
                    ) from error
            else:
                cells = as_positions(chosen, len(obs))
            if not len(cells):
                raise ValueError(f"No cells in {name}={chosen!r}.")
            found[name] = cells
        if "idx1" in found and "idx2" not in found and len(np.unique(found["idx1"])) == len(obs):
            raise ValueError("idx1 has all cells: there are none left to compare them with.")
        return found

    def _groups(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        group1: Any = None,
        group2: Any = None,
        **_: Any,
    ) -> dict[str, Any]:
        """The groups as ``obs`` has them: the cluster "0" for the number 0."""
        if groupby is None:
            return {}
        obs = self._validate_anndata(adata).obs
        if groupby not in obs:
            raise KeyError(
                f"groupby={groupby!r} is not in adata.obs. Available: "
                f"{', '.join(map(repr, obs.columns))}."
            )
        values = obs[groupby].dropna().unique()
        names = {str(value): value for value in values}
        if len(names) < len(values):
            raise ValueError(f"obs[{groupby!r}] mixes numbers and text of the same name.")
        if obs[groupby].isna().any() and obs[groupby].dtype != object:
            if not isinstance(obs[groupby].dtype, pd.CategoricalDtype | np.dtype):
                raise ValueError(
                    f"obs[{groupby!r}] has missing values, which {obs[groupby].dtype} cannot "
                    f"compare. First: adata.obs[{groupby!r}] = "
                    f"adata.obs[{groupby!r}].astype(object)."
                )

        def named(group: Any) -> Any:
            if str(group) not in names:
                raise ValueError(
                    f"No cells of group {group!r} in obs[{groupby!r}]. Available: "
                    f"{', '.join(map(repr, names))}."
                )
            return names[str(group)]

        found: dict[str, Any] = {}
        if group1 is not None:
            several = pd.api.types.is_list_like(group1)
            found["group1"] = [named(group) for group in (group1 if several else [group1])]
            if not found["group1"]:
                raise ValueError("`group1` names no group.")
        else:
            found["group1"] = sorted(names.values(), key=str)  # without categories that are empty
        if group2 is not None:
            found["group2"] = named(group2)
        elif len(names) < 2:
            raise ValueError(
                f"obs[{groupby!r}] has one group only, {next(iter(names))!r}: there is nothing to "
                "compare it with."
            )
        return found


# What scvi-tools documents is what help() and editors show.
DifferentialMixin.differential_expression.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    SCVI.differential_expression
)
