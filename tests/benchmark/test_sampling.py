import json

import numpy as np
import pandas as pd
import pytest
from support.machines import peaked_ising

from scvi_qbm.benchmark.rows import Rows
from scvi_qbm.benchmark.sampling import optimum
from scvi_qbm.benchmark.sampling import parts as sampling
from scvi_qbm.benchmark.sampling.instances import (
    moebius_ladder,
    moebius_optimum,
    planted,
    sherrington_kirkpatrick,
    spectral,
)
from scvi_qbm.benchmark.sampling.optimum import success_row, time_to_solution
from scvi_qbm.benchmark.sampling.parts import PARTS, energy_slope, run_sampling
from scvi_qbm.benchmark.sampling.pictures import draw_distribution, draw_reweighting
from scvi_qbm.benchmark.sampling.solvers import SOLVERS, available, run_solver
from scvi_qbm.samplers import get_sampler
from scvi_qbm.samplers.exact import all_energies


@pytest.mark.parametrize("n", [6, 8, 10, 12, 16])
def test_moebius_optimum_equals_enumeration(n):
    energies = all_energies(moebius_ladder(n))
    assert energies.min() == moebius_optimum(n)
    if n % 4 == 0 and n > 4:
        assert (energies == energies.min()).sum() == n  # one domain wall, in n places


def test_moebius_is_three_regular():
    J = moebius_ladder(20).J
    assert (J.sum(axis=1) == -3).all() and (J == J.T).all()
    with pytest.raises(ValueError, match="even"):
        moebius_ladder(7)


@pytest.mark.parametrize("n", [8, 16, 200])
def test_the_spectral_baseline_solves_moebius_ladders(n):
    model = moebius_ladder(n)
    assert (model.energy(spectral(model, 100, seed=0)) <= moebius_optimum(n)).mean() > 0.95


def test_planted_state_is_the_ground_state():
    for seed in range(5):
        model, ground = planted(14, 0.6, seed)
        assert all_energies(model).min() == pytest.approx(ground)


def test_sherrington_kirkpatrick_scale():
    model = sherrington_kirkpatrick(400, 0, field_sd=0.5)
    assert (model.J**2).sum() / 400 == pytest.approx(1.0, rel=0.03)
    assert model.b.std() == pytest.approx(0.5, rel=0.1)


def test_energy_slope_is_the_difference_of_temperatures():
    """On exact samples it is right and its error calibrated; on wrong ones it is not."""
    model = peaked_ising(12, 0, sd=0.4)
    z = []
    for seed in range(40):
        cold, hot = (
            get_sampler("exact").sample(model, beta, 2000, seed=2 * seed + k).energies
            for k, beta in enumerate((1.0, 0.8))
        )
        slope, error = energy_slope(cold, hot)
        z.append((slope - 0.2) / error)
    assert abs(np.mean(z)) < 4 / np.sqrt(40) and 0.7 < np.std(z) < 1.35
    cold = get_sampler("exact").sample(model, 1.2, 2000, seed=0).energies
    slope, error = energy_slope(cold, hot)
    assert (slope - 0.2) / error > 4


def test_time_to_solution():
    assert time_to_solution(0.5, 2.0) == pytest.approx(2 * np.log(0.01) / np.log(0.5))
    assert time_to_solution(1.0, 2.0) == 2.0 and time_to_solution(0.0, 2.0) == np.inf


def test_success_row():
    model = peaked_ising(12, 0)
    row = success_row(SOLVERS["SA"], model, float(all_energies(model).min()), 0.2, 0)
    assert row["rate"] > 0.5 and row["successes"] <= row["runs"] and row["best_energy"] < 0
    assert row["rate_low"] < row["rate"] < row["rate_high"] or row["rate"] == 1.0
    row = success_row(SOLVERS["SA"], model, -1e9, 0.05, 0)
    assert row["rate"] == 0 and row["tts99"] == np.inf and np.isfinite(row["tts99_low"])


@pytest.mark.parametrize("name", sorted(available()))
def test_every_solver_reaches_low_energies(name):
    model = moebius_ladder(16) if name == "spectral" else peaked_ising(12, 0)
    energies, seconds = run_solver(SOLVERS[name], model, SOLVERS[name].efforts[-1] % 3001, 8, 0)
    assert len(energies) == 8 and seconds > 0
    every = all_energies(model)
    # The mean of a heuristic's states is far below that of random ones, and none is below all.
    assert every.mean() - energies.mean() > 0.8 * (every.mean() - every.min())
    assert energies.min() > every.min() - 1e-6


def test_rows_survive_an_interruption(tmp_path):
    rows = Rows(tmp_path, "part")
    rows.add({"a": 1}, {"x": 2.0})
    rows.add({"a": 2}, {"x": float("inf")})
    rows.path.write_text(rows.path.read_text() + '{"a": 3, "x"')
    again = Rows(tmp_path, "part")
    assert {"a": 2} in again and {"a": 3} not in again
    again.add({"a": 3}, {"x": 4.0})
    assert list(Rows(tmp_path, "part").frame()["a"]) == [1, 2, 3]


@pytest.fixture
def few(monkeypatch):
    """The whole benchmark with two solvers and three samplers."""
    kept = {k: SOLVERS[k] for k in ("SA", "spectral")}
    distributions = {k: sampling.DISTRIBUTION[k] for k in ("exact", "PT", "CIM mean field")}
    monkeypatch.setattr(sampling, "DISTRIBUTION", distributions)
    monkeypatch.setitem(distributions, "CIM mean field", ("cim", {"n_steps": 100}))
    monkeypatch.setattr(sampling, "trained_machine", lambda *_: peaked_ising(12, 3, sd=0.2))
    for module in (sampling, optimum):
        monkeypatch.setattr(module, "available", lambda: dict(kept))
    monkeypatch.setattr(sampling, "SOLVERS", kept)


@pytest.mark.slow
def test_the_figure_from_end_to_end(tmp_path, few, capsys):
    run_sampling(tmp_path, parts=list(PARTS), quick=True, seed=0)
    for part in PARTS:
        assert (tmp_path / f"{part}.csv").stat().st_size > 100
        assert (tmp_path / f"{part}.png").stat().st_size > 5000
    rows = [
        json.loads(line) for line in (tmp_path / "distribution.jsonl").read_text().splitlines()
    ]
    exact = next(r for r in rows if r["sampler"] == "exact" and r["model"] == "random")
    assert exact["slope"] == pytest.approx(1.0, abs=0.1)
    assert exact["total_variation"] < 1.3 * exact["floor"]
    before = (tmp_path / "optimum.jsonl").read_text()
    run_sampling(tmp_path, parts=["optimum"], quick=True, seed=0)
    assert (tmp_path / "optimum.jsonl").read_text() == before, "measured again"


def test_reweighting_puts_every_sampler_at_its_name():
    # Measured in another order at the second temperature.
    rows = pd.DataFrame(
        [(0.8, "SA", 0.1), (0.8, "PT", 1.0), (1.2, "PT", 1.1), (1.2, "SA", 0.2)],
        columns=["beta", "sampler", "ratio"],
    ).assign(ratio_se=0.05, n_spins=64)
    (ax,) = draw_reweighting(rows)
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    drawn = {
        (names[round(x)], round(float(y), 1))
        for container in ax.containers
        for x, y in zip(*container.lines[0].get_data(), strict=True)
    }
    assert drawn == {("SA", 0.1), ("PT", 1.0), ("PT", 1.1), ("SA", 0.2)}


def test_law_marks_states_never_drawn():
    row = {
        "model": "random", "total_variation": 0.9, "n_samples": 100,
        "energies": [-3.0, -2.0, -1.0], "log_p": [-0.5, -1.5, -2.5],
        "log_frequency": np.log([0.985, 0.005, 0.005]),
    }  # fmt: skip
    axes = draw_distribution(pd.DataFrame([row | {"sampler": f"S{i}"} for i in range(7)]))
    assert len(axes) == 7 and [ax.get_title() for ax in axes][6] == "S6\nTV 0.90"
    drawn, never, distribution = axes[0].lines
    assert list(drawn.get_xdata()) == [-3] and list(never.get_xdata()) == [-2, -1]
    assert list(distribution.get_ydata()) == [-0.5, -1.5, -2.5]
