import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from support.machines import peaked_ising

from scvi_qbm import pl
from scvi_qbm.benchmark.sampling.instances import sherrington_kirkpatrick
from scvi_qbm.landscape import find_attractors, merge_tree
from scvi_qbm.samplers import get_sampler


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_amplitude_trajectories():
    model = sherrington_kirkpatrick(10, 0, field_sd=0.3)
    sampler = get_sampler("cim_cac", trajectories=2, n_steps=200)
    info = sampler.sample(model, n_samples=5, seed=0).info
    ax = pl.amplitude_trajectories(info, run=1)
    assert len(ax.lines) == 12  # ten spins, the ancilla, the line at zero
    up = int((info["trajectories"][1, -1] >= 0).sum())
    assert labels(ax) == [f"ends positive ({up})", f"ends negative ({11 - up})"]
    (strip,) = ax.child_axes
    np.testing.assert_array_equal(strip.lines[0].get_ydata(), info["gains"])
    with pytest.raises(ValueError, match="trajectories=1"):
        pl.amplitude_trajectories({})


@pytest.fixture(scope="module")
def tempered():
    sampler = get_sampler("parallel_tempering", n_chains=8, record_levels=True)
    return sampler.sample(peaked_ising(24, 2, sd=0.4), n_samples=400, seed=0).info


def test_tempering_diagnostics(tempered):
    swaps, flow, energies = pl.tempering_diagnostics(tempered)
    accepted, overlap, target = (line.get_ydata() for line in swaps.lines)
    np.testing.assert_array_equal(accepted, tempered["swap_rates"])
    assert (0 < overlap).all() and (overlap < 1).all()
    assert list(target) == [0.5, 0.5]
    np.testing.assert_array_equal(flow.lines[1].get_ydata(), tempered["flow"])
    assert f"{tempered['round_trips']:,} round trips" in flow.get_title()
    # One outline a level, each of area one; the ends of the ladder are named.
    assert len(energies.patches) == len(tempered["betas"])
    for outline in energies.patches:
        values, edges, _ = outline.get_data()
        assert (values * np.diff(edges)).sum() == pytest.approx(1)
    assert labels(energies) == ["β = 0", "β = 1"]
    with pytest.raises(ValueError, match="record_levels=True"):
        pl.tempering_diagnostics({"betas": [0, 1]})


def test_tempering_diagnostics_of_levels_that_do_not_overlap(tempered):
    apart = tempered | {
        "betas": np.array([0.0, 1.0]),
        "swap_rates": np.zeros(1),
        "level_energies": np.array([[[0.0, -90.0], [1.0, -91.0]]]),
        "flow": np.array([1.0, 0.0]),
        "target_swap_rate": None,
        "round_trips": 0,
        "round_trip_rate": 0.0,
    }
    swaps = pl.tempering_diagnostics(apart)[0]
    assert labels(swaps) == ["swaps accepted", "overlap of energies"]
    assert [list(line.get_ydata()) for line in swaps.lines] == [[0.0], [0.0]]


def history(**columns):
    return {name: pd.DataFrame({name: values}) for name, values in columns.items()}


PARTS = {
    f"{part}_{where}": [3.0, 2.0, 1.0]
    for part in ("elbo", "reconstruction_loss", "kl_local")
    for where in ("train", "validation")
}
NEGATIVE = dict.fromkeys(["log_z", "log_z_se", "energy_gap", "energy_gap_se"], [0.5, 0.4, 0.3])


def test_training_curves():
    axes = pl.training_curves(history(**PARTS, **NEGATIVE, log_z_drift=[0.1, 0.2, 0.3]))
    assert [ax.get_ylabel().split(" (")[0] for ax in axes] == [
        "negative ELBO", "reconstruction", "KL", "log Z ± 2 se", "energy gap ± 2 se",
        "drift of log Z",
    ]  # fmt: skip
    assert all(labels(ax) == ["train", "held out"] for ax in axes[:3])
    np.testing.assert_array_equal(axes[5].lines[-1].get_ydata(), [0.1, 0.2, 0.3])
    assert len(axes[3].collections) == 1  # the band of errors


def test_training_curves_of_a_heuristic_and_without_couplings():
    drawn = {"beta_drawn": [np.nan, 1.3, 1.2], "beta_corrected": [0.9, 1.0, 1.0]}
    last = pl.training_curves(history(**PARTS, **NEGATIVE, **drawn))[5]
    assert labels(last) == ["drawn", "corrected"]
    assert list(last.lines[1].get_ydata()) == [1.3, 1.2]  # before the first draw there is none
    assert len(pl.training_curves(history(**PARTS))) == 3


def with_couplings(frame, n_latent=8):
    kept = {"tool": "couplings", "pairs": frame, "n_latent": n_latent}
    return AnnData(uns={"qbm": {"couplings": kept}})


def test_coupling_matrix_has_all_of_them():
    frame = pd.DataFrame({"unit_a": [0, 1], "unit_b": [3, 2], "coupling": [2.0, -1.0]})
    (image,) = pl.coupling_matrix(with_couplings(frame, 4)).images
    shown = image.get_array()
    np.testing.assert_array_equal(shown, shown.T)
    assert sorted(shown.ravel()) == [-1, -1, *[0] * 12, 2, 2]


def test_coupling_graph_draws_the_strongest():
    frame = pd.DataFrame(
        {"unit_a": [0, 2, 1, 0], "unit_b": [5, 7, 3, 2], "coupling": [2.0, -1.0, 0.5, 0.1]}
    )
    ax = pl.coupling_graph(with_couplings(frame), n_edges=3, labels={5: "CD3E"})
    assert len(ax.patches) == 3
    widths = [p.get_linewidth() for p in ax.patches]
    assert widths == sorted(widths)  # the strongest on top
    first, weak = ax.patches[-1], ax.patches[-2]
    assert first.get_linestyle() == "-" != weak.get_linestyle()
    assert first.get_edgecolor() != weak.get_edgecolor()
    texts = {t.get_text() for t in ax.texts}
    assert texts == {"0", "CD3E", "2", "7", "1", "3"}
    with pytest.raises(ValueError, match="No coupling"):
        pl.coupling_graph(with_couplings(frame.assign(coupling=0.0)))


def test_coupled_units_are_neighbours_on_the_circle():
    pairs = [(k, k + 4, 1.0) for k in range(4)] + [(0, 1, 0.1), (2, 3, 0.1), (1, 2, 0.05)]
    frame = pd.DataFrame(pairs, columns=["unit_a", "unit_b", "coupling"])
    ax = pl.coupling_graph(with_couplings(frame))
    place = {t.get_text(): np.array(t.get_position()) for t in ax.texts}
    for k in range(4):
        apart = np.linalg.norm(place[str(k)] - place[str(k + 4)])
        assert apart < 1.07 * 2 * np.sin(np.pi / 8) + 1e-6


def with_attractors(energies, tree):
    groups = np.arange(len(energies))
    kept = {"tool": "attractors", "group": groups, "tree": tree, "energies": energies, "depth": 1}
    obs = pd.DataFrame({"attractor": pd.Categorical(groups.astype(str))})
    obs.index = obs.index.astype(str)
    return AnnData(obs=obs, uns={"qbm": {"attractor": kept}})


def test_attractors_are_drawn_as_groups_with_their_barriers():
    """Minima of one group are one leaf; the pass between groups is the lowest of any path."""
    energies = np.array([0.0, 1.0, 0.5, 4.0])
    passes = np.array([[0, 2, 7, 9], [2, 1, 6, 9], [7, 6, 0.5, 9], [9, 9, 9, 4.0]])
    adata = with_attractors(energies, merge_tree(energies, passes))
    adata.uns["qbm"]["attractor"]["group"] = np.array([1, 1, 0, 2])
    ax = pl.attractors(adata)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "0", "1"]
    stems = [tuple(np.round(line.get_ydata(), 6)) for line in ax.lines]
    assert sorted(stems) == [(0.5, 6.0, 6.0, 0.0), (4.0, 9.0, 9.0, 6.0)]


def test_attractors_of_one_and_of_many():
    machine = np.zeros((4, 4)), -np.ones(4)  # everything on is the only minimum
    one = find_attractors(machine, np.eye(4, dtype=np.int8))
    assert len(one.sizes) == 1 and one.tree.shape == (0, 4)
    ax = pl.attractors(with_attractors(one.energies, one.tree))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0"] and len(ax.lines) == 1
    energies = np.arange(80.0)
    tree = merge_tree(energies, np.maximum(energies[:, None], energies) + 1)
    ax = pl.attractors(with_attractors(energies, tree))
    assert len(ax.get_xticklabels()) == 60
