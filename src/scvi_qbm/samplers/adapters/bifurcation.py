"""Simulated bifurcation: classical oscillators that fall into states of low energy."""

from __future__ import annotations

import threading
import warnings
from importlib import import_module
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from scvi_qbm._numbers import one_of, positive, positive_int
from scvi_qbm.ising import Ising
from scvi_qbm.samplers.base import Guarantee, Sampler

from .reads import energy_scale, n_distinct

__all__ = ["SimulatedBifurcation"]

# The package's constants and torch's generator are the process's.
_LOCK = threading.Lock()


def _require() -> tuple[Any, Any]:
    try:
        return import_module("simulated_bifurcation"), import_module("torch")
    except ImportError as error:
        raise ImportError(
            f"Simulated bifurcation cannot be imported ({error}); it comes with "
            "pip install 'scvi-qbm[bifurcation]'."
        ) from error


class SimulatedBifurcation(Sampler):
    """Simulated bifurcation by the ``simulated-bifurcation`` package: a minimiser.

    Every sample is an agent of its own: oscillators started at random that the couplings push
    apart while a pressure rises from 0 to 1. The dynamics know no temperature: ``beta`` plays no
    part, and a model without couplings and fields gives independent fair coins.

    Parameters
    ----------
    mode
        ``"ballistic"`` (positions drive the couplings; faster) or ``"discrete"`` (their signs
        do; better minima).
    max_steps
        Steps of the integrator; every agent makes them all. The package's early stopping is not
        offered: where torch's default type is float64 it fails, hides the error and returns
        what the first 50 steps reached.
    heated
        Add the thermal term that helps out of poor minima.
    time_step
        Step of the integrator.
    pressure_slope
        The pressure after ``k`` steps is ``min(1, time_step * pressure_slope * k)``: this and
        not ``max_steps`` sets how slow the ramp is. By default the two end together.
    heat_coefficient
        Strength of the thermal term.

    Notes
    -----
    ``info`` has ``n_distinct`` (different states), ``n_steps`` and ``pressure_slope``.

    Raises
    ------
    ImportError
        If the package is missing.
    ValueError
        If ``mode`` is unknown or a number is not positive.
    RuntimeError
        From :meth:`sample`: energies that are not those of the states.

    References
    ----------
    Goto et al. (2021), Science Advances 7, eabe7953; Kanao and Goto (2022), Communications
    Physics 5, 153; simulated-bifurcation 2.0.
    """

    name: ClassVar[str] = "simulated_bifurcation"
    guarantee: ClassVar[Guarantee] = "heuristic"
    touches_global_state: ClassVar[bool] = True

    def __init__(
        self,
        mode: Literal["ballistic", "discrete"] = "ballistic",
        max_steps: int = 1000,
        heated: bool = False,
        time_step: float = 0.1,
        pressure_slope: float | None = None,
        heat_coefficient: float = 0.06,
    ) -> None:
        _require()
        self.mode = one_of(mode, ("ballistic", "discrete"), "mode")
        self.max_steps = positive_int(max_steps, "max_steps")
        self.heated = bool(heated)
        self.time_step = positive(time_step, "time_step")
        self.pressure_slope = positive(
            1 / (self.time_step * self.max_steps) if pressure_slope is None else pressure_slope,
            "pressure_slope",
        )
        self.heat_coefficient = positive(heat_coefficient, "heat_coefficient")

    def _sample(
        self, ising: Ising, beta: float, n_samples: int, entropy: np.random.SeedSequence
    ) -> tuple[NDArray[np.int8], dict[str, Any]]:
        unit = max(float(np.abs(ising.J).max()), float(np.abs(ising.b).max()))
        if unit == 0.0:  # the package divides by the couplings' norm
            coins = np.random.default_rng(entropy).integers(0, 2, (n_samples, ising.n_spins))
            spins = (2 * coins - 1).astype(np.int8)
        else:
            spins = self._minimise(ising, unit, n_samples, entropy)
        return spins, {
            "n_distinct": n_distinct(spins),
            "n_steps": self.max_steps,
            "pressure_slope": self.pressure_slope,
        }

    def _minimise(
        self,
        model: Ising,
        unit: float,
        n_samples: int,
        entropy: np.random.SeedSequence,
    ) -> NDArray[np.int8]:
        package, torch = _require()
        with _LOCK, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            before = package.get_env()
            package.set_env(
                time_step=self.time_step,
                pressure_slope=self.pressure_slope,
                heat_coefficient=self.heat_coefficient,
            )
            try:
                # manual_seed would seed the accelerators' generators too.
                with torch.random.fork_rng(devices=[]), torch.no_grad():
                    torch.default_generator.manual_seed(int(entropy.generate_state(1)[0]))
                    # Its Ising is -s J s / 2 + h s; an ancilla spin for h comes and goes inside.
                    problem = package.Ising(
                        torch.from_numpy(model.J / unit),
                        torch.from_numpy(-model.b / unit),
                        dtype=torch.float32,
                        device="cpu",
                    )
                    states = problem.minimize(
                        agents=n_samples,
                        max_steps=self.max_steps,
                        mode=self.mode,
                        heated=self.heated,
                        early_stopping=False,
                        verbose=False,
                    )
            finally:
                package.set_env(**before)
        for warning in caught:
            # It turns Ctrl-C into this warning and returns half-run states.
            if "interrupted by user" in str(warning.message):
                raise KeyboardInterrupt
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        spins: NDArray[np.int8] = states.t().numpy().astype(np.int8)
        integrated = problem.as_simulated_bifurcation_tensor().double().numpy() * unit
        _check_energies(model, spins, integrated)
        return spins


def _check_energies(model: Ising, spins: NDArray[np.int8], integrated: NDArray[Any]) -> None:
    """Compare our energies with those of the matrix that was integrated, ancilla up."""
    states = np.ones((len(spins), len(integrated)))
    states[:, : model.n_spins] = spins
    theirs = model.offset - 0.5 * np.einsum("ai,ai->a", states @ integrated, states)
    error = np.abs(model.energy(spins) - theirs)
    if not (error <= 1e-5 * energy_scale(model)).all():
        raise RuntimeError(
            "simulated-bifurcation integrated a model whose energies are not ours (off by up to "
            f"{error.max():.3g}): its conventions have changed."
        )
