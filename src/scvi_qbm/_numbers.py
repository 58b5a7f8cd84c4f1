"""Checks of numbers that are given as options; an error names the option and what it may be."""

from __future__ import annotations

import math
import operator


def positive_int(value: int, name: str, minimum: int = 1) -> int:
    """``value`` as an int of at least ``minimum``."""
    try:
        out = operator.index(value)
    except TypeError:
        hint = f": {name}={int(value)}" if isinstance(value, float) and value == value // 1 else ""
        raise TypeError(f"`{name}` must be a whole number, got {value!r}{hint}.") from None
    if out < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {out}.")
    return out


def as_seed(seed: int | None) -> int | None:
    """``seed`` as a whole number of at least 0; None stays."""
    return None if seed is None else positive_int(seed, "seed", 0)


def positive(value: float, name: str) -> float:
    """``value`` as a finite float above 0."""
    if isinstance(value, str):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    out = float(value)
    if not (math.isfinite(out) and out > 0):
        raise ValueError(f"`{name}` must be finite and > 0, got {out}.")
    return out


def one_of(value: str, choices: tuple[str, ...], name: str) -> str:
    """``value`` if it is among the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")
    return value
