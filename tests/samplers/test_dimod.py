import pickle
import sys
import unittest
import warnings

import numpy as np
import pytest
from support.machines import peaked_ising

from scvi_qbm.diagnostics import total_variation
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import get_sampler
from scvi_qbm.samplers.adapters.dimod import Dimod, DWaveAnnealing, OpenJijAnnealing
from scvi_qbm.samplers.adapters.to_dimod import to_dimod
from scvi_qbm.samplers.exact import all_energies, all_states, boltzmann_distribution

dimod = pytest.importorskip("dimod", reason="needs scvi-qbm[dimod]")
pytest.importorskip("dwave.samplers", reason="needs scvi-qbm[dimod]")
pytest.importorskip("openjij", reason="needs scvi-qbm[dimod]")

MAKERS = {
    "dwave": lambda: DWaveAnnealing(n_sweeps=300),
    "openjij": lambda: OpenJijAnnealing(n_sweeps=300),
    "dwave by name": lambda: Dimod("dwave.samplers:SimulatedAnnealingSampler"),
    "reference": lambda: Dimod(dimod.RandomSampler()),
    "ours": lambda: Dimod(to_dimod("gibbs", n_chains=16, n_burn_in=50)),
}
ANNEALERS = [name for name in MAKERS if name != "reference"]


class Fake(dimod.Sampler):
    """A dimod sampler that draws fair coins, with the faults asked for."""

    properties, parameters = {}, {}

    def __init__(self, parameters=("num_reads", "seed"), fault=None, reads=None, frozen=False):
        self.parameters = {name: [] for name in parameters}
        self.fault, self.reads, self.frozen, self.calls = fault, reads, frozen, []

    def sample_state(self, n):
        """The state that a frozen one gives."""
        return 2 * np.random.default_rng(0).integers(0, 2, (1, n), dtype=np.int8)[0] - 1

    def sample(self, bqm, **arguments):
        self.calls.append(arguments)
        n_reads = self.reads or arguments.get("num_reads", 1)
        rng = np.random.default_rng(0 if self.frozen else arguments.get("seed"))
        labels = list(bqm.variables)
        states = 2 * rng.integers(0, 2, (n_reads, len(labels)), dtype=np.int8) - 1
        if self.fault == "repeats" or self.frozen:
            states[:] = states[0]
        if self.fault == "empty":
            states = states[:0]
        out = dimod.SampleSet.from_samples_bqm((states, labels), bqm)
        if self.fault == "sign":
            out.record.energy *= -1
        elif self.fault == "nan":
            out.record.energy[0] = np.nan
        elif self.fault == "order":
            out.record.sample[:] = out.record.sample[:, ::-1]
        elif self.fault == "labels":
            out = out.relabel_variables({label: f"x{label}" for label in labels})
        elif self.fault == "shuffled":  # not a fault: columns follow the labels
            order = rng.permutation(len(labels))
            out = dimod.SampleSet.from_samples(
                (states[:, order], [labels[i] for i in order]),
                "SPIN",
                energy=out.record.energy,
                sort_labels=False,
            )
        return out


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("beta", [0.0, 0.7, 1.0])
def test_energies_and_shapes(name, beta):
    model = peaked_ising(7, 1)
    out = MAKERS[name]().sample(model, beta, 37, seed=3)
    assert out.spins.shape == (37, 7) and set(np.unique(out.spins)) == {-1, 1}
    np.testing.assert_allclose(out.energies, model.energy(out.spins))
    assert out.info["guarantee"] == "heuristic" and out.info["n_calls"] >= 1
    assert out.info["n_distinct"] == len(np.unique(out.spins, axis=0))


@pytest.mark.parametrize("name", ANNEALERS)
def test_ground_state(name):
    model = peaked_ising(12, 4)
    out = MAKERS[name]().sample(model, 3.0, 60, seed=0)
    assert out.energies.min() == pytest.approx(all_energies(model).min())


@pytest.mark.parametrize("name", MAKERS)
def test_reads_are_distinct_and_reproducible(name):
    model = peaked_ising(20, 0, sd=0.1, field_sd=0.1)
    sampler = MAKERS[name]()
    first, again, other = (
        sampler.sample(model, n_samples=50, seed=seed).spins for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    if name != "dwave by name":  # by default that one minimises
        assert len(np.unique(first, axis=0)) > 45
    fresh = sampler.sample(model, n_samples=50).spins, sampler.sample(model, n_samples=50).spins
    assert (fresh[0] != fresh[1]).any()


@pytest.mark.parametrize("name", ["dwave", "openjij", "ours"])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_one_spin_and_free_spins(name, beta):
    sampler, size = MAKERS[name](), 2000
    one = Ising(np.zeros((1, 1)), np.array([0.5]))
    expected = np.tanh(0.5 * beta)
    spins = sampler.sample(one, beta, size, seed=0).spins
    assert abs(spins.mean() - expected) < 5 * np.sqrt((1 - expected**2) / size)
    free = sampler.sample(Ising(np.zeros((5, 5)), np.zeros(5), 2.0), beta, size, seed=3)
    assert np.abs(free.spins.mean(axis=0)).max() < 5 / np.sqrt(size)
    assert len(np.unique(free.spins, axis=0)) == 32
    np.testing.assert_array_equal(free.energies, 2.0)


@pytest.mark.long
@pytest.mark.parametrize(
    "sampler",
    [
        DWaveAnnealing(),
        DWaveAnnealing(schedule="linear", beta_range=(0, 1)),
        pytest.param(OpenJijAnnealing(), marks=pytest.mark.slow),
    ],
    ids=lambda s: f"{s.name}-{s.parameters.get('beta_schedule_type')}",
)
def test_slow_annealing_ends_near_the_distribution(sampler):
    """1,000 sweeps to the target temperature of a mild machine: within the sampling error.

    4,000 reads: a moment's standard error is below 0.016, and the largest of 8 means and 28 pair
    moments is below 3.5 of those; 4.5 leave room for the anneal's own error. The distribution at
    1.5 times the inverse temperature is further off than that.
    """
    model = peaked_ising(8, 6, sd=0.3)
    states = all_states(8).astype(float)

    def distance(spins, distribution):
        s = spins.astype(float)
        pairs = np.abs(s.T @ s / len(s) - states.T @ (states * distribution[:, None])).max()
        return max(np.abs(s.mean(axis=0) - distribution @ states).max(), pairs)

    spins = sampler.sample(model, n_samples=4000, seed=0).spins
    assert distance(spins, boltzmann_distribution(model)) < 4.5 / np.sqrt(4000)
    assert distance(spins, boltzmann_distribution(model, 1.5)) > 4.5 / np.sqrt(4000)
    gap, floor = total_variation(spins, boltzmann_distribution(model))
    assert gap < 1.3 * floor
    warmer = sampler.sample(model, 0.5, 4000, seed=0).spins
    assert distance(warmer, boltzmann_distribution(model, 0.5)) < 4.5 / np.sqrt(4000)


@pytest.mark.parametrize("fault", ["sign", "nan", "order"])
def test_wrong_energies_are_caught(fault):
    with pytest.raises(RuntimeError, match="sign of the energies or the order"):
        Dimod(Fake(fault=fault)).sample(peaked_ising(6, 0), n_samples=20, seed=0)


def test_sampler_that_returns_nothing_or_other_variables():
    with pytest.raises(RuntimeError, match="no reads"):
        Dimod(Fake(fault="empty")).sample(peaked_ising(6, 0))
    with pytest.raises(RuntimeError, match="other variables"):
        Dimod(Fake(fault="labels")).sample(peaked_ising(6, 0))


def test_columns_follow_the_labels():
    model = peaked_ising(9, 0)
    out = Dimod(Fake(fault="shuffled")).sample(model, n_samples=40, seed=0)
    np.testing.assert_allclose(out.energies, model.energy(out.spins))


def test_reads_repeated_by_a_seed():
    """The trap of openjij 0.12 on a fake: under a seed, one read num_reads times."""
    model = peaked_ising(20, 0, sd=0.1)
    fake = Fake(fault="repeats")
    answer = fake.sample(Dimod(fake)._build(model), num_reads=20, seed=1)
    assert len(np.unique(answer.record.sample, axis=0)) == 1
    with pytest.warns(RuntimeWarning, match="one_read_per_call"):
        out = Dimod(fake).sample(model, n_samples=30, seed=5)
    assert out.info["n_distinct"] == 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*they are much too hot, or random")
        out = Dimod(fake, one_read_per_call=True).sample(model, n_samples=30, seed=5)
    assert out.info["n_distinct"] == 30 and out.info["n_calls"] == 30


def test_openjij_repeats_reads_under_a_seed():
    """When this fails, openjij has changed: one_read_per_call can go."""
    openjij = pytest.importorskip("openjij")
    model = peaked_ising(20, 0, sd=0.1)
    with pytest.warns(RuntimeWarning, match="SASampler repeats"):
        out = Dimod(
            openjij.SASampler(), parameters={"num_sweeps": 50, "beta_min": 0.1, "beta_max": 1.0}
        ).sample(model, n_samples=20, seed=0)
    assert out.info["n_distinct"] > 15


def test_frozen_model_is_not_taken_for_the_trap():
    """A model so cold that one state is all there is; a frozen machine is told from it."""
    model = Ising(np.zeros((6, 6)), 2.0 * Fake(frozen=True).sample_state(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = Dimod(Fake(frozen=True)).sample(model, 10.0, n_samples=20, seed=0)
    assert out.info["n_distinct"] == 1 and out.info["n_calls"] == 4  # three probes
    with pytest.warns(RuntimeWarning, match="all 20 reads are the same state"):
        Dimod(Fake(frozen=True)).sample(model, 0.1, n_samples=20, seed=0)


def test_reads_that_follow_no_distribution():
    """The audit that `solve` and Kaiwu have: sign, de-duplication, spins that never turn."""
    model = peaked_ising(10, 0)
    exact = get_sampler("exact")

    class Machine(dimod.Sampler):
        properties, parameters = {}, {"num_reads": []}
        sign, change = 1.0, staticmethod(lambda spins: spins)

        def sample(self, bqm, num_reads=1):
            drawn = exact.sample(model, self.sign, num_reads, 3).spins
            return dimod.SampleSet.from_samples_bqm((self.change(drawn), range(10)), bqm)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = Dimod(Machine()).sample(model, n_samples=500, seed=0).info
    assert abs(info["effective_beta"] - 1) < 4 * info["effective_beta_se"] < 0.4

    def inverted(spins):
        return exact.sample(Ising(-model.J, -model.b), 1.0, len(spins), 3).spins

    def frozen(spins):
        spins[:, 4] = 1
        return spins

    def unique(spins):
        return np.unique(spins, axis=0)

    for change, message in (
        (inverted, r"effective beta -\d"),
        (frozen, r"spins \[4\] never turn"),
        (unique, "de-duplicated"),
    ):
        machine = Machine()
        machine.change = change
        with pytest.warns(RuntimeWarning, match=message):
            Dimod(machine).sample(model, n_samples=500, seed=0)


def test_numpys_global_generator_stays():
    np.random.seed(4)
    expected = np.random.random()
    np.random.seed(4)
    OpenJijAnnealing(n_sweeps=10).sample(peaked_ising(5, 0), n_samples=3, seed=0)
    assert np.random.random() == expected


def test_arguments_follow_what_the_child_takes():
    model = peaked_ising(6, 0)
    plain = Fake(parameters=())
    out = Dimod(plain, parameters={"label": "x"}).sample(model, n_samples=5, seed=0)
    assert plain.calls == [{"label": "x"}] * 5 and out.info["seeded"] is False
    assert out.info["n_calls"] == 5
    full = Fake()
    seeds = set()
    out = Dimod(full, one_read_per_call=True).sample(model, n_samples=50, seed=0)
    seeds = {call["seed"] for call in full.calls}
    assert len(seeds) == 50 and max(seeds) < 2**31 and out.info["seeded"] is True


def test_too_many_reads_are_thinned_at_random():
    model = peaked_ising(6, 0)
    sampler = Dimod(Fake(reads=400))
    out = sampler.sample(model, n_samples=30, seed=1)
    again = sampler.sample(model, n_samples=30, seed=1)
    np.testing.assert_array_equal(out.spins, again.spins)
    assert out.info["n_calls"] == 1 and len(out) == 30
    few = Dimod(Fake(reads=7)).sample(model, n_samples=30, seed=1)
    assert few.info["n_calls"] == 5


def test_occurrences_and_binary_answers():
    class Counted(Fake):
        def sample(self, bqm, **arguments):
            return super().sample(bqm, **arguments).aggregate().change_vartype("BINARY")

    model = peaked_ising(3, 0)
    out = Dimod(Counted()).sample(model, n_samples=100, seed=0)
    assert set(np.unique(out.spins)) == {-1, 1} and out.info["n_calls"] == 1
    assert out.info["n_distinct"] == 8


def test_scale_beta():
    class Recorder(Fake):
        def sample(self, bqm, **arguments):
            self.bqm = bqm
            return super().sample(bqm, **arguments)

    model = peaked_ising(4, 0)
    for scale, factor in ((True, 2.5), (False, 1.0)):
        recorder = Recorder()
        Dimod(recorder, scale_beta=scale).sample(model, 2.5, 10, seed=0)
        assert recorder.bqm.offset == pytest.approx(factor * model.offset)
        assert recorder.bqm.linear[2] == pytest.approx(-factor * model.b[2])
        assert recorder.bqm.quadratic[0, 3] == pytest.approx(-factor * model.J[0, 3])


def test_fast_model_equals_the_slow_one():
    n = 300
    model = peaked_ising(n, 0)
    couplings = np.array(model.J)
    couplings[np.random.default_rng(0).random((n, n)) < 0.3] = 0
    model = Ising(np.triu(couplings, 1) + np.triu(couplings, 1).T, model.b, model.offset)
    slow = dimod.BinaryQuadraticModel(
        {i: -model.b[i] for i in range(n)},
        {(i, j): -model.J[i, j] for i in range(n) for j in range(i) if model.J[i, j]},
        model.offset,
        "SPIN",
    )
    assert Dimod(Fake())._build(model) == slow
    spins = 2 * np.random.default_rng(1).integers(0, 2, (9, n)) - 1
    np.testing.assert_allclose(slow.energies(spins), model.energy(spins))


@pytest.mark.parametrize("name", ["dimod", "dwave.samplers", "openjij"])
def test_missing_package(name, monkeypatch):
    maker = {
        "dimod": lambda: Dimod("dimod:ExactSolver"),
        "dwave.samplers": DWaveAnnealing,
        "openjij": OpenJijAnnealing,
    }[name]
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"scvi-qbm\[dimod\]"):
        maker()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dimod(3), TypeError, "dimod.Sampler"),
        (lambda: Dimod(dimod.ExactSolver), TypeError, "instance"),
        (lambda: Dimod("dimod"), ValueError, "module:Class"),
        (lambda: Dimod("dimod:NoSuch"), ValueError, "no 'NoSuch'"),
        (lambda: Dimod(Fake(), parameters={"seed": 3}), ValueError, "seed"),
        (lambda: DWaveAnnealing(n_sweeps=0), ValueError, "n_sweeps"),
        (lambda: DWaveAnnealing(beta_range=(0, 1)), ValueError, "beta_range"),
        (lambda: DWaveAnnealing(beta_range=(2, 1)), ValueError, "beta_range"),
        (lambda: DWaveAnnealing(schedule="custom"), ValueError, "schedule"),
        (lambda: DWaveAnnealing(proposal="gibbs"), ValueError, "proposal"),
        (lambda: OpenJijAnnealing(beta_range=(0.1, np.inf)), ValueError, "beta_range"),
    ],
)
def test_bad_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Ours in dimod's world.


def factory():
    return to_dimod("gibbs", n_chains=4, n_burn_in=20)


@dimod.testing.load_sampler_bqm_tests(factory)
class TestOursByDimodsTests(unittest.TestCase):
    def test_api(self):
        dimod.testing.assert_sampler_api(factory())


@pytest.mark.parametrize("vartype", ["SPIN", "BINARY"])
@pytest.mark.parametrize("bqm_class", [dimod.Float64BQM, dimod.Float32BQM, dimod.DictBQM])
def test_ours_keeps_labels_vartype_and_offset(vartype, bqm_class):
    rng = np.random.default_rng(0)
    labels = ["b", "a", ("c", 1), 7, frozenset("d")]
    bqm = bqm_class(vartype)
    for i, u in enumerate(labels):
        bqm.add_linear(u, rng.normal())
        for v in labels[:i]:
            bqm.add_quadratic(u, v, rng.normal())
    bqm.offset = -3.25
    answer = to_dimod("exact").sample(bqm, num_reads=300, seed=0)
    assert answer.vartype is bqm.vartype and set(answer.variables) == set(labels)
    assert len(answer) == 300
    dimod.testing.assert_response_energies(answer, bqm, precision=4)
    assert answer.info["sampler"] == "exact" and answer.info["guarantee"] == "exact"
    assert answer.first.energy == pytest.approx(
        dimod.ExactSolver().sample(bqm).first.energy, rel=1e-5
    )


def test_ours_samples_the_distribution_of_the_model_given():
    model = peaked_ising(5, 2)
    bqm = Dimod(Fake())._build(model).change_vartype("BINARY", inplace=False)
    answer = to_dimod("exact").sample(bqm, num_reads=8000, beta=0.6, seed=1)
    spins = 2 * answer.record.sample[:, [answer.variables.index(i) for i in range(5)]] - 1
    gap, floor = total_variation(spins, boltzmann_distribution(model, 0.6))
    assert gap < 1.5 * floor
    wrong, _ = total_variation(spins, boltzmann_distribution(model, -0.6))
    assert wrong > 5 * floor


def test_there_and_back():
    model = peaked_ising(6, 0)
    sampler = Dimod(to_dimod("exact"))
    out = sampler.sample(model, 0.8, 500, seed=2)
    np.testing.assert_allclose(out.energies, model.energy(out.spins))
    assert out.info["n_calls"] == 1 and out.info["seeded"]


def test_seeds_of_ours():
    bqm = Dimod(Fake())._build(peaked_ising(8, 0))
    sampler = to_dimod("exact")
    first, again, other = (
        sampler.sample(bqm, num_reads=50, seed=seed).record.sample for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_ours_has_properties_and_warns_of_what_it_does_not_know():
    sampler = factory()
    assert (
        sampler.properties["guarantee"] == "mcmc" and sampler.properties["category"] == "software"
    )
    assert set(sampler.parameters) == {"num_reads", "beta", "seed"}
    with pytest.warns(dimod.exceptions.SamplerUnknownArgWarning, match="chain_strength"):
        sampler.sample_ising({"a": 1.0}, {}, chain_strength=2)
    with pytest.raises(ValueError, match="num_reads"):
        sampler.sample_ising({"a": 1.0}, {}, num_reads=0)


def test_ours_in_composites_files_and_other_processes():
    model = Dimod(Fake())._build(peaked_ising(5, 0))
    tracked = dimod.TrackingComposite(to_dimod("exact"))
    dimod.testing.assert_response_energies(tracked.sample(model, num_reads=10), model)
    tempered = to_dimod("parallel_tempering", n_chains=8, n_burn_in=20).sample(model, num_reads=16)
    stored = dimod.SampleSet.from_serializable(tempered.to_serializable())
    np.testing.assert_allclose(stored.record.energy, tempered.record.energy)
    assert pickle.loads(pickle.dumps(factory())).sampler.n_chains == 4


def test_instances_and_names():
    instance = get_sampler("exact")
    assert to_dimod(instance).sampler is instance
    with pytest.raises(ValueError, match="Unknown sampler"):
        to_dimod("nothing")
