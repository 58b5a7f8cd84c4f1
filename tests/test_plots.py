import matplotlib

matplotlib.use("Agg")
import pytest

from scvi_qbm.benchmark.instances import sherrington_kirkpatrick
from scvi_qbm.plots import amplitude_trajectories
from scvi_qbm.samplers import get_sampler


def test_amplitude_trajectories():
    model = sherrington_kirkpatrick(10, 0, field_sd=0.3)
    sampler = get_sampler("cim_cac", trajectories=2, n_steps=200)
    ax = amplitude_trajectories(sampler.sample(model, n_samples=5, seed=0).info, run=1)
    assert len(ax.lines) == 12  # ten spins, the ancilla, the net gain
    with pytest.raises(ValueError, match="trajectories=1"):
        amplitude_trajectories({})
