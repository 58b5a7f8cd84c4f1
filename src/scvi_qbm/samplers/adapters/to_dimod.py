"""Our samplers as D-Wave's Ocean has them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from scvi_qbm._numbers import positive_int
from scvi_qbm.ising import Ising
from scvi_qbm.samplers.base import Sampler, SampleSet
from scvi_qbm.samplers.registry import get_sampler

from .dimod import require

__all__ = ["to_dimod"]


def to_dimod(sampler: str | Sampler, **options: Any) -> Any:
    """One of our samplers as a ``dimod.Sampler``, for Ocean's composites and tools.

    Its ``sample(bqm, num_reads=1, beta=1.0, seed=None)`` returns a ``dimod.SampleSet`` of the
    model's vartype and labels, offset included in the energies, our ``info`` in its ``info``;
    ``sample_ising`` and ``sample_qubo`` follow from it. Unknown arguments are ignored with
    dimod's warning. ``beta`` is in units of 1 / energy of the model given.

    Parameters
    ----------
    sampler
        Name or instance, as for :func:`~scvi_qbm.samplers.get_sampler`.
    **options
        Options of a sampler given by name.

    Returns
    -------
    Any
        An instance of ``dimod.Sampler``.

    Raises
    ------
    ImportError
        If dimod is missing.
    ValueError, TypeError
        As :func:`~scvi_qbm.samplers.get_sampler`.
    """
    return _dimod_class()(get_sampler(sampler, **options))


def _ising_of(bqm: Any, labels: list[Any]) -> Ising:
    spin = bqm.change_vartype("SPIN", inplace=False)
    linear, (row, column, quadratic), offset = spin.to_numpy_vectors(variable_order=labels)
    couplings = np.zeros((len(labels), len(labels)))
    couplings[row, column] = -np.asarray(quadratic, dtype=np.float64)
    return Ising(couplings + couplings.T, -np.asarray(linear, np.float64), float(offset))


@functools.cache
def _dimod_class() -> Any:
    dimod = require("dimod")
    base: Any = dimod.Sampler

    class ScviQbmSampler(base):  # type: ignore[misc]
        """A sampler of scvi_qbm in dimod's terms; see :func:`to_dimod`."""

        def __init__(self, sampler: Sampler) -> None:
            self.sampler = sampler
            self._parameters: dict[str, list[str]] = {"num_reads": [], "beta": [], "seed": []}
            self._properties = {
                "name": sampler.name,
                "guarantee": sampler.guarantee,
                "category": "software",
            }

        @property
        def parameters(self) -> dict[str, list[str]]:
            return self._parameters

        @property
        def properties(self) -> dict[str, str]:
            return self._properties

        def __reduce__(self) -> tuple[Any, ...]:  # the class has no importable name
            return to_dimod, (self.sampler,)

        def sample(
            self,
            bqm: Any,
            num_reads: int = 1,
            beta: float = 1.0,
            seed: int | None = None,
            **kwargs: Any,
        ) -> Any:
            self.remove_unknown_kwargs(**kwargs)
            num_reads = positive_int(num_reads, "num_reads")
            labels = list(bqm.variables)
            if labels:
                out = self.sampler.sample(_ising_of(bqm, labels), beta, num_reads, seed)
            else:  # an Ising has at least one spin
                out = SampleSet(
                    np.empty((num_reads, 0), np.int8), np.full(num_reads, float(bqm.offset))
                )
            answer = dimod.SampleSet.from_samples(
                (out.spins, labels), vartype="SPIN", energy=out.energies, info=out.info
            )
            return answer.change_vartype(bqm.vartype, inplace=False)

    return ScviQbmSampler
