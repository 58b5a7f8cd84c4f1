"""Odd models through every sampler: the states of the plain model, or an error of ours."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from support.odd import is_ours

from scvi_qbm import get_sampler
from scvi_qbm.ising import Ising
from scvi_qbm.logz import log_partition
from scvi_qbm.samplers.adapters.to_dimod import to_dimod

SAMPLERS = {
    "exact": {},
    "gibbs": {"n_chains": 4, "n_burn_in": 20},
    "parallel_tempering": {"n_chains": 4, "n_burn_in": 20},
    "simulated_annealing": {"n_sweeps": 20},
    "cim": {},
    "cim_cac": {},
    "corrected": {"sampler": "cim", "n_chains": 4, "n_burn_in": 5},
    "gauged": {"sampler": "gibbs"},
}
FORMS = {
    "array": np.asarray,
    "fortran": np.asfortranarray,
    "list": lambda x: x.tolist(),
    "frame": pd.DataFrame,
    "csr": sparse.csr_matrix,
    "coo_array": sparse.coo_array,
    "float32": lambda x: x.astype(np.float32),
    "object": lambda x: x.astype(object),
    "read only": lambda x: x.copy(),
    "masked": np.ma.masked_array,
}
FAULTS = {
    "nan": lambda J, b: (np.where(J == J.max(), np.nan, J), b),
    "diagonal": lambda J, b: (J + np.eye(len(J)), b),
    "asymmetric": lambda J, b: (J + np.triu(np.ones(J.shape), 1), b),
    "oblong": lambda J, b: (J[:-1], b),
    "field": lambda J, b: (J, b[:-1]),
    "infinite field": lambda J, b: (J, b + np.inf),
    "complex": lambda J, b: (J + 1j, b),
    "text": lambda J, b: (J.astype(str), b),
    "hidden": lambda J, b: (np.ma.masked_array(J, mask=np.eye(len(J))), b),
}
SPECS = st.fixed_dictionaries(
    {
        "n": st.integers(2, 6),
        "seed": st.integers(0, 5),
        "scale": st.sampled_from([0.0, 1e-30, 0.5, 8.0, 1e6]),
        "beta": st.sampled_from([0.0, 0.3, 1.0, np.float32(0.5), 2]),
        "form": st.sampled_from(sorted(FORMS)),
        "fault": st.sampled_from([None, None, *FAULTS]),
        "n_samples": st.sampled_from([1, 7, np.int64(3)]),
        "sampler": st.sampled_from(sorted(SAMPLERS)),
    }
)


def check(spec):
    rng = np.random.default_rng(spec["seed"])
    J = np.triu(rng.integers(-4, 5, (spec["n"],) * 2), 1) * spec["scale"] / 4
    J, b = J + J.T, rng.integers(-4, 5, spec["n"]) * spec["scale"] / 4
    if spec["fault"] is not None:
        with pytest.raises((TypeError, ValueError)) as error:
            Ising(*FAULTS[spec["fault"]](J, b))
        assert is_ours(error.value), repr(error.value)
        return
    plain, odd = Ising(J, b), Ising(FORMS[spec["form"]](J), b.tolist())
    np.testing.assert_allclose(odd.J, J, rtol=1e-6)
    sampler = get_sampler(spec["sampler"], **SAMPLERS[spec["sampler"]])
    call = {"beta": spec["beta"], "n_samples": spec["n_samples"], "seed": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = sampler.sample(plain, **call), sampler.sample(odd, **call)
    assert found.spins.shape == (spec["n_samples"], spec["n"])
    np.testing.assert_array_equal(found.spins, expected.spins)
    energy = -0.5 * np.einsum("si,ij,sj->s", found.spins, J, found.spins) - found.spins @ b
    np.testing.assert_allclose(found.energies, energy, rtol=1e-5, atol=1e-9 * spec["scale"])
    states = 2 * ((np.arange(2 ** spec["n"])[:, None] >> np.arange(spec["n"])) & 1) - 1
    energies = -0.5 * np.einsum("si,ij,sj->s", states, J, states) - states @ b
    value = np.logaddexp.reduce(-float(spec["beta"]) * energies)
    assert log_partition(odd, spec["beta"], method="exact").value == pytest.approx(value)


def check_bqm(spec, vartype, names):
    """The same model as a BQM: dimod's energies are ours."""
    dimod = pytest.importorskip("dimod")
    rng = np.random.default_rng(spec["seed"])
    bqm = dimod.BinaryQuadraticModel(vartype)
    for i in range(spec["n"]):
        bqm.add_variable(names(i), float(rng.integers(-3, 4)))
        for j in range(i):
            bqm.add_interaction(names(i), names(j), float(rng.integers(-3, 4)))
    bqm.offset = 2.5
    sampler = to_dimod(get_sampler("gibbs", n_chains=4, n_burn_in=20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = sampler.sample(bqm, num_reads=5, seed=1)
    assert set(out.variables) == set(bqm.variables) and out.vartype is bqm.vartype
    np.testing.assert_allclose(out.record.energy, bqm.energies(out))


bounded = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
BQMS = (
    SPECS,
    st.sampled_from(["SPIN", "BINARY"]),
    st.sampled_from([int, str, lambda i: ("q", i), lambda i: 100 - i, lambda i: f"x{i}$"]),
)


@settings(max_examples=60, derandomize=True, **bounded)
@given(SPECS)
def test_odd_models(spec):
    check(spec)


@settings(max_examples=20, derandomize=True, **bounded)
@given(*BQMS)
def test_odd_bqms(spec, vartype, names):
    check_bqm(spec, vartype, names)


@pytest.mark.slow
@settings(max_examples=5000, **bounded)
@given(SPECS)
def test_many_odd_models(spec):
    check(spec)


@pytest.mark.slow
@settings(max_examples=1000, **bounded)
@given(*BQMS)
def test_many_odd_bqms(spec, vartype, names):
    check_bqm(spec, vartype, names)
