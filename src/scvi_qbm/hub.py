"""A trained model as an scvi-hub model, with a card of its own.

scvi-tools' card helper knows scvi-tools' own classes only; its ``HubModel`` loads any class.
Needs ``pip install 'scvi-qbm[hub]'``.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scvi.hub import HubMetadata, HubModel

from scvi_qbm.model import QBMVI

__all__ = ["model_card", "pull", "push"]

_CARD = """---
license: {license}
library_name: scvi-tools
tags:
- biology
- genomics
- single-cell
- model_cls_name:{name}
- scvi_version:{scvi}
- anndata_version:{anndata}
---

# {name}

A variational auto-encoder of single cells with binary latent units and a Boltzmann-machine prior
([scvi-qbm](https://github.com/scvi-qbm/scvi-qbm), {own}).

{description}

```python
import scvi.hub

hub = scvi.hub.HubModel("this directory")  # pip install scvi-qbm
model = hub.model
```

## Model

| | |
|---|---|
{model}

## Prior

| | |
|---|---|
{prior}

## Data

| | |
|---|---|
{data}

Registered with `{name}.setup_anndata(adata, {setup})`.

## Training

| | |
|---|---|
{training}

## References

{references}
"""


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def model_card(
    model: QBMVI, *, license: str, description: str = "", references: str = "Not provided."
) -> str:
    """The text of a Hugging Face model card, in Markdown with its header.

    Parameters
    ----------
    model
        A trained model.
    license
        As Hugging Face spells it, ``"cc-by-4.0"`` for instance.
    description
        What the model was trained on and for; Markdown.
    references
        Papers; Markdown.

    Returns
    -------
    str
        Markdown: a header for the hub, then model, prior, data, training and references.

    Raises
    ------
    ValueError
        If the model is not trained or the licence is empty.
    """
    if not model.is_trained:
        raise ValueError("The model is not trained: train it before it is described and shared.")
    if not license:
        raise ValueError("A model card needs a licence, 'cc-by-4.0' for instance.")
    parameters = {
        k: v for k, v in model.init_params_["non_kwargs"].items() if v is not None and v != {}
    }
    log_z = model.get_log_partition()
    couplings = model.get_couplings()["coupling"]
    history = model.history or {}
    held_out = model.summary(silent=True)["held_out", "elbo"]
    return _CARD.format(
        name=type(model).__name__,
        license=license,
        scvi=model.registry["scvi_version"],
        anndata=version("anndata"),
        own=version("scvi-qbm"),
        description=description or "No description was given.",
        model=_table(parameters),
        prior=_table(
            {
                "units": model.module.n_latent,
                "log Z (nats)": f"{log_z.value:.2f} (standard error {log_z.standard_error:.2f})",
                "strongest coupling (nats)": f"{couplings.abs().max():.2f}",
            }
        ),
        data=_table(dict(model.summary_stats)),
        setup=", ".join(
            f"{k}={v!r}" for k, v in model.registry["setup_args"].items() if v is not None
        ),
        training=_table(
            {
                "epochs": len(history["elbo_train"]) if "elbo_train" in history else "unknown",
                "ELBO, held-out cells (nats)": "none held out"
                if math.isnan(held_out)
                else f"{held_out:.2f}",
            }
        ),
        references=references,
    )


def push(
    model: QBMVI,
    directory: str | Path,
    *,
    license: str,
    description: str = "",
    references: str = "Not provided.",
    save_anndata: bool = True,
    overwrite: bool = False,
) -> HubModel:
    """Write model, card and metadata to a directory, ready for the hub.

    Parameters
    ----------
    model
        A trained model.
    directory
        Where to write.
    license, description, references
        Of the card, see :func:`model_card`.
    save_anndata
        Whether to write the data too; minify them first where counts must not leave the house.
    overwrite
        Whether to write over what is there.

    Returns
    -------
    scvi.hub.HubModel
        Its ``push_to_huggingface_hub(repo_name)`` uploads the directory.

    Raises
    ------
    FileExistsError
        If the directory is not empty and ``overwrite`` is False; nothing is written then.
    ValueError
        As :func:`model_card`.
    """
    from huggingface_hub import ModelCard

    card = model_card(model, license=license, description=description, references=references)
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()) and not overwrite:
        raise FileExistsError(
            f"{directory} is not empty: pass another one, or overwrite=True to replace what is "
            "called model.pt, adata.h5ad, README.md or _scvi_required_metadata.json there."
        )
    model.save(str(directory), overwrite=True, save_anndata=save_anndata)
    metadata = HubMetadata.from_dir(
        str(directory), anndata_version=version("anndata"), model_parent_module="scvi_qbm"
    )
    hub = HubModel(str(directory), metadata=metadata, model_card=ModelCard(card))
    hub.save(overwrite=overwrite)
    return hub


def pull(source: str | Path, **kwargs: Any) -> HubModel:
    """A model from a directory, or from the Hugging Face hub.

    Parameters
    ----------
    source
        A directory that :func:`push` wrote, or else the name of a repository.
    **kwargs
        For a repository, of ``scvi.hub.HubModel.pull_from_huggingface_hub``.

    Returns
    -------
    scvi.hub.HubModel
        Its ``model`` loads the :class:`~scvi_qbm.QBMVI`.
    """
    if Path(source).is_dir():
        return HubModel(str(source))
    return HubModel.pull_from_huggingface_hub(str(source), **kwargs)
