r"""Continuous relaxations of binary latents, as torch distributions.

A binary unit :math:`z \sim \mathrm{Bernoulli}(q)` is smoothed into :math:`\zeta \sim r(\zeta | z)`
on [0, 1], which is drawn by a differentiable inverse CDF, so that gradients pass from the decoder
to the encoder. The same :math:`r` stands in posterior and prior and cancels in their
Kullback-Leibler divergence (Rolfe 2017, arXiv:1609.02200). Its noise serves training alone, as
dropout does: a trained model decodes :math:`E[\zeta | z]` (:class:`TwoLevel`).
"""

from __future__ import annotations

from .base import BinaryRelaxation, TwoLevel
from .overlapping_exponential import OverlappingExponential
from .spike_exponential import SpikeExponential

__all__ = [
    "BinaryRelaxation",
    "OverlappingExponential",
    "SpikeExponential",
    "TwoLevel",
    "get_relaxation",
    "list_relaxations",
    "register_relaxation",
]

_RELAXATIONS: dict[str, type[BinaryRelaxation]] = {
    "spike_exponential": SpikeExponential,
    "overlapping_exponential": OverlappingExponential,
}


def list_relaxations() -> list[str]:
    """Names that :func:`get_relaxation` knows.

    Returns
    -------
    list[str]
        In alphabetical order, registered ones included.
    """
    return sorted(_RELAXATIONS)


def register_relaxation(name: str, cls: type[BinaryRelaxation]) -> None:
    """Make a relaxation available as ``QBMVI(relaxation=name)``.

    Parameters
    ----------
    name
        A free name.
    cls
        A :class:`BinaryRelaxation` subclass.

    Raises
    ------
    ValueError
        If the name is taken.
    TypeError
        If ``cls`` is not a subclass of :class:`BinaryRelaxation`.
    """
    if not (isinstance(cls, type) and issubclass(cls, BinaryRelaxation)):
        raise TypeError("`cls` must be a subclass of scvi_qbm.relaxations.BinaryRelaxation.")
    if name in _RELAXATIONS:
        raise ValueError(f"A relaxation named {name!r} exists.")
    _RELAXATIONS[name] = cls


def get_relaxation(name: str) -> type[BinaryRelaxation]:
    """The relaxation of that name.

    Parameters
    ----------
    name
        One of :func:`list_relaxations`.

    Returns
    -------
    type[BinaryRelaxation]
        The class, to be called with logits and a sharpness.

    Raises
    ------
    ValueError
        If there is none of that name; the message lists those there are.
    """
    if name not in _RELAXATIONS:
        raise ValueError(
            f"Unknown relaxation {name!r}. Available: {', '.join(list_relaxations())}."
        )
    return _RELAXATIONS[name]
