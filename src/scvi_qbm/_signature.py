"""Constructors that hand arguments on still say all of their arguments."""

from __future__ import annotations

import inspect

__all__ = ["full_signature"]


def full_signature(cls: type) -> inspect.Signature:
    """Signature of a class with ``**kwargs`` replaced by what its bases take.

    scvi-tools rebuilds modules of saved models from the names in their signature, and editors
    complete from it.
    """
    parameters: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        own = list(inspect.signature(base.__init__).parameters.values())[1:]
        for parameter in own:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                parameters.setdefault(parameter.name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    positional = [p for p in parameters.values() if p.default is p.empty]
    named = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters.values() if p not in positional]
    return inspect.Signature([*positional, *named])
