"""Boltzmann samplers: numpy and numba; torch only where one of them is asked for that needs it.

See :func:`get_sampler`, :func:`list_samplers`, :func:`register_sampler`.
"""

from .base import ChainSampler, Guarantee, Sampler, SampleSet
from .registry import get_sampler, list_samplers, register_sampler

__all__ = [
    "ChainSampler",
    "Guarantee",
    "SampleSet",
    "Sampler",
    "get_sampler",
    "list_samplers",
    "register_sampler",
]
