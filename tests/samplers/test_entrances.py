"""Whatever reaches a sampler: right, or an error of ours."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from support.odd import is_ours

from scvi_qbm import get_sampler, list_samplers
from scvi_qbm.ising import Ising
from scvi_qbm.samplers.registry import describe_samplers

J = np.array([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    "matrix",
    [sparse.csr_matrix(J), sparse.coo_array(J), J.astype(bool), pd.DataFrame(J), J.tolist()],
)
def test_the_same_couplings_in_other_words(matrix):
    np.testing.assert_array_equal(Ising(matrix, np.zeros(2)).J, J)


@pytest.mark.parametrize(
    "matrix",
    [
        np.ma.masked_array(J, mask=[[0, 1], [1, 0]]),
        J + 1j,
        J.astype(str),
        J.astype("datetime64[s]"),
        [["a", "b"], ["c", "d"]],
    ],
)
def test_what_is_no_numbers(matrix):
    with pytest.raises(TypeError, match="`J`") as error:
        Ising(matrix, np.zeros(2))
    assert is_ours(error.value)


def test_a_mask_that_hides_nothing():
    np.testing.assert_array_equal(Ising(np.ma.masked_array(J), np.zeros(2)).J, J)


@pytest.mark.parametrize("seed", [np.random.default_rng(0), "a", 1.5, -1])
@pytest.mark.parametrize("name", ["exact", "gibbs", "parallel_tempering"])
def test_seeds(name, seed):
    sampler = get_sampler(name)
    calls = [lambda: sampler.sample(Ising(J, np.zeros(2)), 1.0, 10, seed=seed)]
    if hasattr(sampler, "init"):
        calls.append(lambda: sampler.init(Ising(J, np.zeros(2)), seed=seed))
    for call in calls:
        with pytest.raises((TypeError, ValueError), match="`seed`") as error:
            call()
        assert is_ours(error.value)


@pytest.mark.parametrize("name", sorted(set(list_samplers())))
def test_options_that_are_needed_are_named(name):
    try:
        get_sampler(name)
    except (TypeError, ImportError, RuntimeError) as error:
        assert is_ours(error)
        if isinstance(error, TypeError):
            assert f"{name!r} needs the option" in str(error)
            summary = next(row.summary for row in describe_samplers() if row.name == name)
            assert "(needs " in summary


def test_kernels_without_a_place_for_their_cache(tmp_path):
    """Numba refuses to cache where neither the package nor the home can be written."""
    code = (
        "import numba.core.caching as c\n"
        "getattr(c, 'CacheImpl', getattr(c, '_CacheImpl', None))._locator_classes = []\n"
        "import numpy as np\n"
        "from scvi_qbm import get_sampler\n"
        "from scvi_qbm.ising import Ising\n"
        "out = get_sampler('gibbs').sample(Ising(np.zeros((2, 2)), np.zeros(2)), 1.0, 10)\n"
        "from scvi_qbm.landscape import find_attractors\n"
        "print(out.spins.shape)\n"
    )
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert out.stdout.strip() == "(10, 2)", out.stderr
