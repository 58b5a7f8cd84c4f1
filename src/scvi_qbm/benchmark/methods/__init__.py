"""Methods to compare: each a function from AnnData to an embedding and what it knows of itself.

A new method is one function with :func:`pca`'s signature, and one line in ``METHODS``; yours, in
any module that can be imported, is named ``"module:function"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from inspect import signature
from typing import NamedTuple

from scvi_qbm.benchmark.methods.common import MethodResult, aligned, completed, imported
from scvi_qbm.benchmark.methods.learned_prior import learned_prior_twin
from scvi_qbm.benchmark.methods.linear import (
    harmonised,
    labels_embedded,
    pca,
    scanorama,
    shuffled,
)
from scvi_qbm.benchmark.methods.scvi_tools import (
    autozi,
    drvi,
    ldvae,
    scanvi,
    scpoli,
    scvi_model,
    sysvi,
)
from scvi_qbm.benchmark.methods.vae import gaussian_twin, qbmanvi, qbmvi

__all__ = ["METHODS", "Method", "MethodResult", "get_method", "select_methods"]


class Method(NamedTuple):
    """A line of the table of methods.

    Parameters
    ----------
    run
        The function: ``run(adata, batch_key=, seed=, max_epochs=)`` with counts in ``X``; one that
        uses labels takes ``label_key`` as well.
    label
        Its name in tables and pictures.
    summary
        What it is, in a sentence.
    block
        ``unsupervised``; ``variant`` (one of them with one thing changed, which shows what that is
        worth); ``supervised`` (sees the labels that it is judged by); or ``control``.
    likelihood
        Bounds in nats compare only where this is equal; empty if there are none.
    core
        Whether it belongs to the group ``core``.
    n_seeds
        So many seeds at most: 1 where the result does not depend on it.
    max_epochs
        Its epochs where a benchmark does not set them.
    """

    run: Callable[..., MethodResult]
    label: str
    summary: str
    block: str = "unsupervised"
    likelihood: str = ""
    core: bool = False
    n_seeds: int | None = None
    max_epochs: int = 100

    @property
    def uses_labels(self) -> bool:
        """Whether ``run`` takes ``label_key``."""
        return "label_key" in signature(self.run).parameters


_NB, _NORMAL = "nb, counts", "normal, log CP10k"
# scvi-tools' epochs, which its learning rate and epsilon need.
_THEIRS = 400
#: Method by name, in the order of tables.
METHODS: dict[str, Method] = {
    "qbmvi": Method(qbmvi, "QBMVI", "This package's default.", "unsupervised", _NB, True),
    "bernoulli": Method(
        partial(qbmvi, prior="bernoulli"), "QBMVI, W = 0",
        "Its twin with independent Bernoulli units.", "variant", _NB, True,
    ),
    "gaussian": Method(
        gaussian_twin, "Gaussian VAE",
        "Its twin with N(0, I): scVI with 64 latents and QBMVI's optimiser and stopping.",
        "variant", _NB, True,
    ),
    "gaussian_mixture": Method(
        partial(learned_prior_twin, prior="mixture"), "Gaussian VAE, mixture",
        "The Gaussian VAE with a learned prior: a mixture of 64 Gaussians.", "variant", _NB,
    ),
    "gaussian_vamp": Method(
        partial(learned_prior_twin, prior="vamp"), "Gaussian VAE, VampPrior",
        "The Gaussian VAE with a learned prior: posteriors of 64 pseudo-inputs.",
        "variant", _NB,
    ),
    "qbmvi_probabilities": Method(
        partial(qbmvi, representation="probabilities"), "QBMVI, not aligned",
        "The posterior probabilities of its units.", "variant", _NB,
    ),
    "gaussian_aligned": Method(
        aligned(gaussian_twin), "Gaussian VAE, aligned",
        "The Gaussian VAE, its batches aligned as QBMVI's are.", "variant", _NB,
    ),
    "scvi_aligned": Method(
        aligned(scvi_model), "scVI, aligned",
        "scVI, its batches aligned as QBMVI's are.", "variant", _NB, max_epochs=_THEIRS,
    ),
    "gaussian_mixture_aligned": Method(
        aligned(partial(learned_prior_twin, prior="mixture")), "Gaussian VAE, mixture, aligned",
        "Its batches aligned as QBMVI's are.", "variant", _NB,
    ),
    "gaussian_vamp_aligned": Method(
        aligned(partial(learned_prior_twin, prior="vamp")), "Gaussian VAE, VampPrior, aligned",
        "Its batches aligned as QBMVI's are.", "variant", _NB,
    ),
    "scvi_harmony": Method(
        harmonised(scvi_model), "scVI, then Harmony", "Harmony on scVI's embedding.",
        "variant", _NB, max_epochs=_THEIRS,
    ),
    "qbmvi_paper": Method(
        partial(qbmvi, recipe="paper"), "QBMVI, paper",
        "256 units, squared error on log CP10k, learning rates of the paper.",
        "variant", _NORMAL, True,
    ),
    "bernoulli_paper": Method(
        partial(qbmvi, recipe="paper", prior="bernoulli"), "QBMVI, paper, W = 0",
        "The paper recipe's twin with independent Bernoulli units.",
        "variant", _NORMAL,
    ),
    "gaussian_paper": Method(
        partial(gaussian_twin, recipe="paper"), "Gaussian VAE, paper",
        "The paper recipe's twin with N(0, I).", "variant", _NORMAL, True,
    ),
    "scvi": Method(
        scvi_model, "scVI",
        "10 latents, nb, trained as scvi-tools does by default.",
        "unsupervised", _NB, True, max_epochs=_THEIRS,
    ),
    "scvi_fast": Method(
        partial(scvi_model, optimiser="qbmvi"), "scVI, our optimiser",
        "10 latents, with QBMVI's learning rate, epsilon and stopping.",
        "variant", _NB, True,
    ),
    "scvi_wide": Method(
        partial(scvi_model, n_latent=64), "scVI, 64",
        "64 latents, else as scVI.", "variant", _NB, True, max_epochs=_THEIRS,
    ),
    "scvi_zinb": Method(
        partial(scvi_model, gene_likelihood="zinb"), "scVI, zinb",
        "scVI with its default likelihood; else as scVI.", "variant", "zinb, counts",
        max_epochs=_THEIRS,
    ),
    "ldvae": Method(
        ldvae, "LDVAE", "Linear decoder, at its defaults.", "unsupervised",
        "nb, counts, latent library", True, max_epochs=_THEIRS,
    ),
    "autozi": Method(
        autozi, "AUTOZI", "Learned zero inflation, at its defaults.", core=True,
        max_epochs=_THEIRS,
    ),
    "sysvi": Method(
        sysvi, "sysVI", "VampPrior and cycle loss, at its defaults.", n_seeds=2, max_epochs=200
    ),
    "drvi": Method(
        drvi, "DRVI", "Disentangled latents, at its defaults.", n_seeds=2, max_epochs=_THEIRS
    ),
    "pca": Method(pca, "PCA", "50 components of log CP10k, unintegrated.", n_seeds=1),
    "harmony": Method(harmonised(pca), "Harmony", "Harmony on 50 components.", n_seeds=2),
    "scanorama": Method(scanorama, "Scanorama", "Scanorama's embedding.", n_seeds=2),
    "qbmanvi": Method(
        qbmanvi, "QBMANVI", "QBMVI with all labels, cross-entropy weighted by 50.", "supervised",
        n_seeds=2,
    ),
    "scanvi": Method(
        scanvi, "scANVI", "scVI, then trained on all labels.", "supervised", n_seeds=2,
        max_epochs=_THEIRS,
    ),
    "scpoli": Method(
        scpoli, "scPoli", "Prototypes of all labels.", "supervised", n_seeds=2,
        max_epochs=1000,
    ),
    "shuffled": Method(
        shuffled, "shuffled", "Another cell's components: nothing but mixing.", "control",
        n_seeds=1,
    ),
    "labels": Method(
        labels_embedded, "labels embedded", "The labels themselves, with noise.", "control",
        n_seeds=1,
    ),
}  # fmt: skip


def get_method(name: str) -> Method:
    """The method of that name.

    Parameters
    ----------
    name
        A key of ``METHODS``, or ``"module:attribute"`` for a function or a :class:`Method` of
        yours. A function takes an AnnData with counts in ``X`` and the keywords ``batch_key``,
        ``seed`` and ``max_epochs`` (and ``label_key``, if it uses labels), and returns an
        embedding or a :class:`MethodResult`.

    Returns
    -------
    Method
        Its line of the table.

    Raises
    ------
    ValueError
        If there is none (the message lists those there are), or the module has no such function,
        or it does not take those keywords.
    ImportError
        If the module cannot be imported.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" in name:
        return _external(name)
    raise ValueError(
        f"Unknown method {name!r}. Available: {', '.join(METHODS)}; or 'module:function'."
    )


@lru_cache
def _external(name: str) -> Method:
    found = imported(name)
    if not isinstance(found, Method):
        if not callable(found):
            raise ValueError(f"{name} is no function and no Method, but {type(found).__name__}.")
        summary = (found.__doc__ or "").strip().partition("\n")[0]
        found = Method(found, name.rpartition(":")[2], summary)
    return found._replace(run=completed(found.run, name))


def select_methods(names: Iterable[str]) -> list[str]:
    """Names of methods from names and groups.

    Parameters
    ----------
    names
        Names as :func:`get_method` takes them, ``core``, ``all``, or a block.

    Returns
    -------
    list[str]
        Names, each once, in that order.

    Raises
    ------
    ValueError
        If a name is neither.
    """
    out: list[str] = []
    for name in names:
        if name in METHODS or ":" in name:
            get_method(name)
            chosen = [name]
        elif name == "core":
            chosen = [key for key, method in METHODS.items() if method.core]
        elif name == "all":
            chosen = list(METHODS)
        else:
            chosen = [key for key, method in METHODS.items() if method.block == name]
            if not chosen:
                raise ValueError(
                    f"Unknown method {name!r}. Available: core, all, unsupervised, supervised, "
                    f"control, {', '.join(METHODS)}; or 'module:function' for yours."
                )
        out += [key for key in chosen if key not in out]
    return out
