"""Labels of cells, of one level or several, some of them unknown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scvi.data.fields import LabelsWithUnlabeledObsField


class LabelTable(NamedTuple):
    """What each category of a label field says of the label units.

    Parameters
    ----------
    labels
        Level and name of each label unit, in the order of the field's categories.
    configurations
        0 and 1, ``(n_configurations, n_labels)``: labels that go together, one of each level.
    allowed
        bool ``(n_categories, n_configurations)``: which of them a cell may have.
    """

    labels: list[tuple[int, Any]]
    configurations: NDArray[np.float32]
    allowed: NDArray[np.bool_]

    def units(self, level: int) -> NDArray[np.int64]:
        """Label units of a level.

        Parameters
        ----------
        level
            0 for the coarsest.

        Returns
        -------
        numpy.ndarray
            Their numbers, ``(n_labels_of_the_level,)``.
        """
        return np.flatnonzero([k == level for k, _ in self.labels])


class LabelLevelsField(LabelsWithUnlabeledObsField):
    """scvi-tools' field of labels with unlabelled cells, for one column of ``obs`` or several.

    Several columns, from coarse to fine, become one category a combination, written as JSON.
    Nothing but ``obs["_scvi_labels"]`` is written. Data that are not the model's own may lack the
    columns: their cells count as unlabelled.

    Parameters
    ----------
    registry_key
        As scvi-tools'.
    obs_keys
        Columns of ``obs``, from coarse to fine.
    unlabeled_category
        Value of cells without a label, in any of the columns.
    """

    #: Numbers of categories when the model's data, and then each query's, were registered.
    STAGES = "stages"

    def __init__(
        self, registry_key: str, obs_keys: Sequence[str], unlabeled_category: Any
    ) -> None:
        self.obs_keys = list(obs_keys)
        super().__init__(registry_key, ", ".join(self.obs_keys), unlabeled_category)

    def _get_original_column(self, adata: AnnData) -> NDArray[Any]:
        none = pd.Series(self._unlabeled_category, index=adata.obs_names, dtype=object)
        columns = [adata.obs.get(key, none) for key in self.obs_keys]
        for column in columns:
            if column.isna().any():
                raise ValueError(
                    f"{int(column.isna().sum())} cells have no value in obs[{column.name!r}]. If "
                    f"they are unlabelled: adata.obs[{column.name!r}] = "
                    f"adata.obs[{column.name!r}].astype(object)"
                    f".fillna({self._unlabeled_category!r})."
                )
        if len(columns) == 1:
            return columns[0].to_numpy(dtype=object)
        unlabeled = str(self._unlabeled_category)
        parts = list(zip(*(column.astype(str) for column in columns), strict=True))
        known = {
            part: json.dumps(part) if set(part) != {unlabeled} else self._unlabeled_category
            for part in dict.fromkeys(parts)
        }
        return np.array([known[part] for part in parts], dtype=object)

    def validate_field(self, adata: AnnData) -> None:
        """Nothing to be checked here: see :meth:`register_field`.

        Parameters
        ----------
        adata
            Data to register.
        """

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Give each category a number, the last one to unlabelled cells.

        Parameters
        ----------
        adata
            Data to register.

        Returns
        -------
        dict
            scvi-tools' state registry.

        Raises
        ------
        ValueError
            If a label is missing (NaN).
        """
        values = self._get_original_column(adata)
        names = pd.unique(values[values != self._unlabeled_category])
        try:
            names = np.sort(names)
        except TypeError:  # of several types
            names = np.array(sorted(names, key=str), dtype=object)
        return self._write(adata, values, names, [])

    def transfer_field(
        self,
        state_registry: dict[str, Any],
        adata_target: AnnData,
        extend_categories: bool = False,
        allow_missing_labels: bool = True,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Number the labels of other data as the model does.

        Parameters
        ----------
        state_registry
            Of the model's data.
        adata_target
            The other data.
        extend_categories
            Give numbers to labels that the model's data lack.
        allow_missing_labels
            As scvi-tools'; they may always be missing.
        **kwargs
            Not used.

        Returns
        -------
        dict
            scvi-tools' state registry.

        Raises
        ------
        ValueError
            If there are new labels, and ``extend_categories`` is not given.
        """
        values = self._get_original_column(adata_target)
        names = list(state_registry[self.CATEGORICAL_MAPPING_KEY])[:-1]
        new = sorted(set(values) - {*names, self._unlabeled_category}, key=str)
        if new and not extend_categories:
            several = len(self.obs_keys) > 1
            shown = [" / ".join(json.loads(x)) if several else str(x) for x in new[:5]]
            where = " and ".join(f"obs[{key!r}]" for key in self.obs_keys)
            what = "combinations of labels" if several else "labels"
            raise ValueError(
                f"{what} in {where} that the model does not know: {', '.join(map(repr, shown))}"
                f"{' ...' if len(new) > 5 else ''}. To predict, rename or drop the column: none "
                "is needed. To teach the model new labels: load_query_data(adata, model), then "
                "train()."
            )
        return self._write(adata_target, values, [*names, *new], state_registry[self.STAGES])

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Number of categories, that of unlabelled cells among them.

        Parameters
        ----------
        state_registry
            scvi-tools' state registry.

        Returns
        -------
        dict[str, int]
            ``n_labels``.
        """
        # Upstream sorts them, which labels of several types do not allow.
        return {self.count_stat_key: len(state_registry[self.CATEGORICAL_MAPPING_KEY])}

    def _write(
        self, adata: AnnData, values: NDArray[Any], names: Any, before: list[int]
    ) -> dict[str, Any]:
        mapping = np.empty(len(names) + 1, dtype=object)
        mapping[:] = [*names, self._unlabeled_category]
        number = {name: i for i, name in enumerate(mapping)}
        adata.obs[self.attr_key] = np.array([number[v] for v in values], dtype=np.int64)
        return {
            self.CATEGORICAL_MAPPING_KEY: mapping,
            self.ORIGINAL_ATTR_KEY: self._original_attr_key,
            self.UNLABELED_CATEGORY: self._unlabeled_category,
            self.STAGES: [*before, len(names)],
        }


def label_table(
    mapping: Sequence[Any],
    unlabeled_category: Any,
    keys: Sequence[str],
    stages: Sequence[int] = (),
) -> LabelTable:
    """Which labels there are, and which go together.

    A cell that lacks the label of one level may have any that goes with the others that it has.

    Parameters
    ----------
    mapping
        Categories of the field, that of unlabelled cells among them.
    unlabeled_category
        Value that says so.
    keys
        Columns of the levels, from coarse to fine.
    stages
        Numbers of categories that there were before queries brought others: what went alone then
        may still do so.

    Returns
    -------
    LabelTable
        Labels, configurations and what each category allows.

    Raises
    ------
    ValueError
        If a level has no labels, a fine one never occurs together with a coarse one, or a query's
        labels contradict the reference's levels.
    """
    n_levels = len(keys)
    unknown = str(unlabeled_category)

    def parts(name: Any) -> tuple[Any, ...]:
        if name == unlabeled_category:
            return (None,) * n_levels
        if n_levels == 1:
            return (name,)
        return tuple(None if part == unknown else part for part in json.loads(name))

    rows = [parts(name) for name in mapping]
    some = [row for row in rows if set(row) != {None}]

    def fits(row: Any, full: Any) -> bool:
        return all(a is None or a == b for a, b in zip(row, full, strict=True))

    full: list[Any] = []
    for n in [*stages, len(some)]:
        complete = [row for row in some[:n] if None not in row]
        # A coarse label whose cells never have a fine one goes alone.
        alone = [r for r in some[:n] if None in r and not any(fits(r, f) for f in complete)]
        known = {label for r in full for label in enumerate(r)}
        new = [r for r in some[:n] if r in complete + alone and r not in full]
        for row in new if full else []:
            if set(enumerate(row)) <= known:
                raise ValueError(
                    f"{' / '.join(map(str, row))} contradicts the levels of labels that the model "
                    f"knows: it has seen these labels, and never together. Give such cells "
                    f"{unlabeled_category!r} at one of the levels."
                )
        full += new
    for row in full:
        if row[0] is None:
            raise ValueError(
                f"{next(filter(None, row))!r} has no label in obs[{keys[0]!r}] in any cell: give "
                "the coarse label in one of its cells at least."
            )
    for k, key in enumerate(keys):
        if n_levels > 1 and not any(row[k] is not None for row in rows):
            raise ValueError(f"obs[{key!r}] has no labels beside {unlabeled_category!r}.")
    # By first appearance, so that later labels come last.
    labels = list(dict.fromkeys((k, x) for r in rows for k, x in enumerate(r) if x is not None))
    configurations = np.zeros((len(full), len(labels)), dtype=np.float32)
    for i, row in enumerate(full):
        for label in enumerate(row):
            if label in labels:
                configurations[i, labels.index(label)] = 1
    allowed = np.array([[fits(row, f) for f in full] for row in rows], dtype=bool)
    return LabelTable(labels, configurations, allowed)
