"""Samplers by name: ours, those of installed plugins, and those registered at run time."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from .base import Sampler

__all__ = [
    "SamplerDescription",
    "describe_samplers",
    "get_sampler",
    "list_samplers",
    "register_sampler",
]

# Entry points of this group are samplers of installed packages.
ENTRY_POINT_GROUP = "scvi_qbm.samplers"

Target = str | Callable[..., Sampler]

_BUILT_IN: dict[str, Target] = {
    "cim": "scvi_qbm.samplers.cim:MeanFieldCIM",
    "cim_cac": "scvi_qbm.samplers.cim:AmplitudeCorrectedCIM",
    "cim_cfc": "scvi_qbm.samplers.cim:ChaoticFeedbackCIM",
    "cim_gaussian": "scvi_qbm.samplers.cim:GaussianStateCIM",
    "cim_sfc": "scvi_qbm.samplers.cim:SeparatedFeedbackCIM",
    "corrected": "scvi_qbm.samplers.corrected:Corrected",
    "dimod": "scvi_qbm.samplers.adapters.dimod:Dimod",
    "dwave_annealing": "scvi_qbm.samplers.adapters.dimod:DWaveAnnealing",
    "exact": "scvi_qbm.samplers.exact:Exact",
    "gauged": "scvi_qbm.samplers.gauged:Gauged",
    "gibbs": "scvi_qbm.samplers.gibbs:Gibbs",
    "kaiwu": "scvi_qbm.samplers.adapters.kaiwu.adapter:Kaiwu",
    "openjij_annealing": "scvi_qbm.samplers.adapters.dimod:OpenJijAnnealing",
    "parallel_tempering": "scvi_qbm.samplers.parallel_tempering:ParallelTempering",
    "simulated_annealing": "scvi_qbm.samplers.simulated_annealing:SimulatedAnnealing",
    "simulated_bifurcation": "scvi_qbm.samplers.adapters.bifurcation:SimulatedBifurcation",
    "solve": "scvi_qbm.samplers.adapters.solve:SolveAdapter",
    "torch_tempering": "scvi_qbm.samplers.torch_tempering:TorchTempering",
}
_registered: dict[str, Target] = {}


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def list_samplers() -> list[str]:
    """Names that :func:`get_sampler` knows; listing imports no back end.

    Returns
    -------
    list[str]
        Ours, registered ones and those of installed plugins, sorted.
    """
    return sorted({*_BUILT_IN, *_registered, *_plugins()})


def register_sampler(name: str, target: Target, *, overwrite: bool = False) -> None:
    """Make a sampler available by name in this process.

    A package that ships one declares an entry point in the group ``scvi_qbm.samplers`` instead.

    Parameters
    ----------
    name
        Name for :func:`get_sampler` and ``QBMVI(sampler=...)``.
    target
        A :class:`~scvi_qbm.samplers.base.Sampler` subclass, a function that returns an instance,
        or ``"module:attribute"``, imported on first use.
    overwrite
        Replace a sampler of the same name.

    Raises
    ------
    ValueError
        If the name is taken, or a string target has no colon.
    TypeError
        If the target is neither a string nor callable.
    """
    if not isinstance(target, str) and not callable(target):
        raise TypeError("`target` must be a Sampler class, a function, or 'module:attribute'.")
    if isinstance(target, str) and target.count(":") != 1:
        raise ValueError(f"`target` must look like 'module:attribute', got {target!r}.")
    if name in list_samplers() and not overwrite:
        raise ValueError(f"A sampler named {name!r} exists; pass overwrite=True to replace it.")
    _registered[name] = target


def _load(name: str) -> Callable[..., Sampler]:
    if name not in list_samplers():
        raise ValueError(
            f"Unknown sampler {name!r}. Available: {', '.join(list_samplers())}. For one of your "
            "own, first import the module that registers it."
        )
    target: Any = _registered.get(name) or _BUILT_IN.get(name)
    if target is None:
        return _plugins()[name].load()  # type: ignore[no-any-return]
    if isinstance(target, str):
        target = import_attribute(target)
    return target  # type: ignore[no-any-return]


def import_attribute(path: str) -> Any:
    """What ``"module:attribute"`` names."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"{path} cannot be imported ({error}): install it, or put its folder on PYTHONPATH. "
            "A saved model needs that as well."
        ) from error


def get_sampler(name: str | Sampler, **options: Any) -> Sampler:
    """A sampler by name.

    Parameters
    ----------
    name
        One of :func:`list_samplers`. An instance is handed back as it is.
    **options
        Passed to the sampler's constructor.

    Returns
    -------
    scvi_qbm.samplers.base.Sampler
        A new instance; ``name`` itself where it is one already.

    Raises
    ------
    ValueError
        If no sampler has that name; the message lists those there are.
    ImportError
        If its module cannot be imported.
    TypeError
        If the sampler does not know an option or lacks one that it needs (the message says which),
        or options come with an instance.

    Examples
    --------
    >>> import scvi_qbm
    >>> scvi_qbm.get_sampler("gibbs", n_chains=8).guarantee
    'mcmc'
    """
    if isinstance(name, Sampler):
        if options:
            raise TypeError("Options cannot be given with a sampler instance.")
        return name
    factory = _load(name)
    known = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    unknown = [] if takes_any else sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f"Sampler {name!r} has no option {', '.join(map(repr, unknown))}. "
            f"Its options: {', '.join(known) or 'none'}."
        )
    missing = [option for option in _required(factory) if option not in options]
    if missing:
        raise TypeError(
            f"Sampler {name!r} needs the option {', '.join(map(repr, missing))}: "
            f"get_sampler({name!r}, {missing[0]}=...), or sampler_options="
            f"{{{missing[0]!r}: ...}} in a model. help({factory.__module__}.{factory.__name__}) "
            "says what it may be."
        )
    return factory(**options)


def _required(factory: Callable[..., Sampler]) -> list[str]:
    """Options that a sampler cannot be made without."""
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(factory).parameters.items()
    return [name for name, p in parameters if p.default is p.empty and p.kind in plain]


def is_sampler(name: str) -> bool:
    """Whether the name stands for a sampler, rather than for a machine with ``solve``.

    A function that needs no argument makes a sampler; one that needs a matrix is a machine.
    """
    target = _load(name)
    if isinstance(target, type):
        return issubclass(target, Sampler)
    return not inspect.isroutine(target) or not _required(target)


def conformance_options(name: str) -> dict[str, Any]:
    """Options with which the conformance kit makes a sampler: its class's ``conformance``."""
    return dict(getattr(_load(name), "conformance", {}))


class SamplerDescription(NamedTuple):
    """One line about a sampler.

    Parameters
    ----------
    name
        Its name in the registry.
    guarantee
        ``"exact"``, ``"mcmc"`` or ``"heuristic"``; ``"?"`` if it does not say, ``"-"`` if it
        cannot be loaded.
    summary
        First line of its docstring, or why it cannot be loaded.
    """

    name: str
    guarantee: str
    summary: str


def describe_samplers() -> list[SamplerDescription]:
    """Name, guarantee and summary of every sampler; one that cannot be loaded says why.

    Returns
    -------
    list[SamplerDescription]
        One a name, in the order of :func:`list_samplers`.
    """
    rows = []
    for name in list_samplers():
        try:
            target = _load(name)
        except Exception as error:  # noqa: BLE001 - a broken plugin must not break the listing
            rows.append(SamplerDescription(name, "-", f"cannot be loaded: {error}"))
            continue
        summary = next(iter((inspect.getdoc(target) or "").splitlines()), "")
        if needed := _required(target):
            summary += f" (needs {', '.join(needed)}=)"
        rows.append(SamplerDescription(name, getattr(target, "guarantee", "?"), summary))
    return rows
