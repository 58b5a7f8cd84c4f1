"""Named sets of defaults: architecture for ``QBMVI(recipe=...)``, optimisation for ``train``."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["RECIPES", "Recipe", "get_recipe"]


class Recipe(NamedTuple):
    """Defaults that apply where the user says nothing.

    Parameters
    ----------
    model
        Arguments of :class:`~scvi_qbm.QBMVI`.
    plan
        Arguments of :class:`~scvi_qbm.plan.QBMTrainingPlan`.
    train
        Arguments of ``QBMVI.train``.
    many_cells
        Arguments of the model that differ from :data:`MANY_CELLS` cells on.
    """

    model: dict[str, Any]
    plan: dict[str, Any]
    train: dict[str, Any]
    many_cells: dict[str, Any] = {}

    def model_for(self, n_cells: int) -> dict[str, Any]:
        """Arguments of the model for so many cells.

        Parameters
        ----------
        n_cells
            Of the data that it is built for; 0 if that is not known.

        Returns
        -------
        dict[str, Any]
            A copy.
        """
        return self.model | (self.many_cells if n_cells >= MANY_CELLS else {})


#: From so many cells on, more units pay (docs/results.md).
MANY_CELLS = 8_000


#: Recipe by name. Every default of ours stands here, or in the signature of what it is for.
RECIPES = {
    "default": Recipe(
        model={
            "n_hidden": 128,
            "n_latent": 64,
            "n_layers": 1,
            "dropout_rate": 0.1,
            "gene_likelihood": "nb",
            "relaxation": "spike_exponential",
            "normal_variance": "learned",
            "use_batch_norm": "both",
            "use_layer_norm": "none",
        },
        plan={"lr": 5e-3, "eps": 1e-8, "n_epochs_kl_warmup": 20},
        train={"batch_size": 128, "early_stopping_patience": 10},
        many_cells={"n_latent": 128},
    ),
    # Encoder and decoder of two linear layers each (4000 -> 512 -> 256 in the paper), layer norm
    # as in the authors' code, squared error on log-normalised values, no KL warm-up.
    "paper": Recipe(
        model={
            "n_hidden": 512,
            "n_latent": 256,
            "n_layers": 1,
            "dropout_rate": 0.1,
            "gene_likelihood": "normal",
            "relaxation": "spike_exponential",
            "normal_variance": "fixed",
            "use_batch_norm": "none",
            "use_layer_norm": "both",
        },
        plan={"lr": 1e-2, "bm_lr": 1e-3, "eps": 1e-8, "n_epochs_kl_warmup": None},
        train={"batch_size": 256, "early_stopping_patience": 10},
    ),
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Parameters
    ----------
    name
        A key of :data:`RECIPES`: ``"default"`` or ``"paper"``.

    Returns
    -------
    Recipe
        Defaults of the model, its training plan and ``train``.

    Raises
    ------
    ValueError
        If there is none of that name; the message lists those there are.
    """
    if name not in RECIPES:
        raise ValueError(f"Unknown recipe {name!r}. Available: {', '.join(RECIPES)}.")
    return RECIPES[name]


def resolve_plan(name: str, given: dict[str, Any], max_epochs: int | None) -> dict[str, Any]:
    """Arguments of the training plan: the recipe's, where the user says nothing.

    An ``lr`` without a ``bm_lr`` sets both: the plan takes a fifth. KL warm-up takes half of
    ``max_epochs`` at most: scvi-tools takes 8 epochs for a million cells, and they must not all be
    warm-up.
    """
    plan = get_recipe(name).plan | given
    if "lr" in given and "bm_lr" not in given:
        plan.pop("bm_lr", None)
    if "n_epochs_kl_warmup" in given:
        return plan
    n_epochs = plan["n_epochs_kl_warmup"]
    if given.get("n_steps_kl_warmup"):
        n_epochs = None
    elif n_epochs is not None and max_epochs is not None:
        n_epochs = min(n_epochs, max(max_epochs, 0) // 2) or None
    return plan | {"n_epochs_kl_warmup": n_epochs}
