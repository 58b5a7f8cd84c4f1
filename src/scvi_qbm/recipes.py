"""Named sets of defaults: architecture for ``QBMVI(recipe=...)``, optimisation for ``train``."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["RECIPES", "Recipe", "get_recipe", "kl_warmup"]


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
    """

    model: dict[str, Any]
    plan: dict[str, Any]
    train: dict[str, Any]


_DEFAULT = Recipe(
    model={
        "n_hidden": 128,
        "n_latent": 64,
        "n_layers": 1,
        "gene_likelihood": "nb",
        "relaxation": "spike_exponential",
        "relaxation_beta": 0.5,
        "normal_variance": "learned",
        "use_batch_norm": "both",
        "use_layer_norm": "none",
    },
    plan={"lr": 5e-3, "bm_lr": 1e-3, "eps": 1e-8, "n_epochs_kl_warmup": 20},
    train={"batch_size": 128, "early_stopping_patience": 10},
)
#: Recipe by name.
RECIPES = {
    "default": _DEFAULT,
    # Encoder and decoder of two linear layers each (4000 -> 512 -> 256 in the paper), layer norm
    # as in the authors' code, squared error on log-normalised values, no KL warm-up.
    "paper": Recipe(
        model={
            "n_hidden": 512,
            "n_latent": 256,
            "n_layers": 1,
            "gene_likelihood": "normal",
            "relaxation": "spike_exponential",
            "relaxation_beta": 0.5,
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


def kl_warmup(n_epochs: int | None, max_epochs: int | None) -> int | None:
    """Epochs of KL warm-up within a budget: half of them at most.

    scvi-tools takes 8 epochs for a million cells; they must not all be warm-up. Models that are
    compared share this rule.

    Parameters
    ----------
    n_epochs
        What the recipe says; None for no warm-up.
    max_epochs
        The budget; None if it is not limited.

    Returns
    -------
    int | None
        Epochs, or None for no warm-up.
    """
    if n_epochs is None or max_epochs is None:
        return n_epochs
    return min(n_epochs, max(max_epochs, 0) // 2) or None
