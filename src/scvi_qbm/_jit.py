"""Compiled functions, kept between processes where there is a place to keep them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` with NumPy's error model and a cache.

    Numba refuses to cache where neither the package nor the user's home can be written; the
    function is then compiled in each process.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, error_model="numpy", **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return njit(error_model="numpy", **options)(function)

    return compiled
