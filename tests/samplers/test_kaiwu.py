import ast
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.machines import peaked_ising

from scvi_qbm.diagnostics import total_variation
from scvi_qbm.ising import Ising
from scvi_qbm.samplers import get_sampler, registry
from scvi_qbm.samplers.adapters.kaiwu import jobs as _kaiwu_jobs
from scvi_qbm.samplers.adapters.kaiwu import worker
from scvi_qbm.samplers.adapters.kaiwu.adapter import Kaiwu
from scvi_qbm.samplers.adapters.quantise import quantise
from scvi_qbm.samplers.adapters.reads import machine_matrix, unfold
from scvi_qbm.samplers.adapters.solve import SolveAdapter
from scvi_qbm.samplers.exact import all_energies, all_states, boltzmann_distribution

TOKENS = {"KAIWU_USER_ID": "user-4711", "KAIWU_SDK_CODE": "sdk-s3cret"}

# What the SDK documents, at a fixed temperature. $STUB is its log; $STUB_DO plants faults.
STUB = {
    "__init__.py": "__version__ = '0'",
    "_stub.py": """
        import hashlib, json, os, numpy as np
        def log(**line):
            with open(os.environ["STUB"], "a") as handle:
                handle.write(json.dumps(line) + chr(10))
        def do():
            return os.environ.get("STUB_DO", "").split(",")
        def draw(matrix, temperature, n_reads, seed):
            n = len(matrix)
            states = 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1) - 1
            energy = -np.einsum("ri,ri->r", states @ matrix, states)
            distribution = np.exp((energy.min() - energy) / temperature)
            return states[np.random.default_rng(seed).choice(2**n, n_reads, p=distribution /
            distribution.sum())]
    """,
    "license.py": """
        import os, sys
        from ._stub import do, log
        def init(user_id, sdk_code):
            log(license=user_id == "user-4711" and sdk_code == "sdk-s3cret")
            if "refuse" in do():
                raise ConnectionError("no licence for " + user_id + " with code " + sdk_code)
            if "crash" in do():
                print("segfault, code", sdk_code, file=sys.stderr, flush=True)
                os._exit(11)
    """,
    "common.py": """
        class CheckpointManager:
            save_dir = None
            _class_name_counter = {}
    """,
    "cim.py": """
        import enum, hashlib, os, time, numpy as np
        from ._stub import do, draw, log
        from .common import CheckpointManager
        class TaskMode(enum.Enum):
            SAMPLING = "sampling"
        class CIMOptimizer:
            def __init__(self, task_name, wait=True, interval=1, project_no=None,
                         task_mode=None, sample_number=10):
                if CheckpointManager.save_dir is None:
                    raise ValueError("save_dir must be set")
                assert not wait and os.path.isdir(CheckpointManager.save_dir)
                self.name, self.n, self.asked = task_name, sample_number, 0
                count = CheckpointManager._class_name_counter
                count["CIM"] = count.get("CIM", 0) + 1
                log(task=task_name, reads=sample_number, mode=task_mode.name, project=project_no,
                    folder=CheckpointManager.save_dir, object=count["CIM"])
            def solve(self, matrix):
                assert matrix.dtype == np.float64
                if "float" not in do():
                    assert (matrix == np.rint(matrix)).all() and abs(matrix).max() == 127
                if "second" in do() and not self.name.endswith("000"):
                    raise RuntimeError("the cloud lost task two")
                self.asked += 1
                if self.asked < 3 or "never" in do():
                    return None
                name = "" if "cached" in do() else self.name
                seed = int(hashlib.md5(name.encode() + matrix.tobytes()).hexdigest()[:12], 16)
                reads = draw(matrix, 200.0, self.n, seed)
                if "same" in do():
                    reads = np.ones_like(reads)
                    reads[:, int(self.name[-3:])] = -1
                return reads[:, 1:] if "narrow" in do() else reads
    """,
    "sampler.py": """
        from ._stub import draw, log
        class SimulatedAnnealingSampler:
            def __init__(self, initial_temperature=100, alpha=0.99, cutoff_temperature=0.001,
                         iterations_per_t=10, size_limit=100, rand_seed=None):
                log(sa=[initial_temperature, cutoff_temperature, size_limit, rand_seed, alpha])
                self.args = cutoff_temperature, size_limit, rand_seed
            def solve(self, matrix):
                return draw(matrix, *self.args)
    """,
    "preprocess.py": """
        from ._stub import log
        class PrecisionReducer:
            def __init__(self, component, precision=8, target_bits=None):
                log(reducer=precision)
                self.component = component
            def solve(self, matrix):
                return self.component.solve(matrix)
    """,
}


def machine_energies(matrix, states):
    return -np.einsum("ri,ri->r", states @ matrix, states)


class Enumerating:
    """Draws from exp(-beta H), H = -s'Ms, over all states, the ancilla's two values included."""

    def __init__(self, n_reads=2000, beta=1.0, sign=1, seed=0):
        self.n_reads, self.beta, self.sign = n_reads, beta, sign
        self.rng = np.random.default_rng(seed)
        self.matrices = []

    def solve(self, matrix):
        self.matrices.append(matrix.copy())
        states = all_states(len(matrix))
        energy = self.sign * machine_energies(matrix, states)
        distribution = np.exp(self.beta * (energy.min() - energy))
        matrix[:] = np.nan  # a solver may spoil what it is given
        return states[
            self.rng.choice(len(states), self.n_reads, p=distribution / distribution.sum())
        ]


class Seeded(Enumerating):
    def solve(self, matrix, rand_seed=None):
        self.rng = np.random.default_rng(rand_seed)
        return super().solve(matrix)


class Ground(Enumerating):
    def solve(self, matrix):
        states = all_states(len(matrix))
        return states[[np.argmin(self.sign * machine_energies(matrix, states))]]


class Returning:
    def __init__(self, reads):
        self.reads = reads

    def solve(self, matrix):
        return self.reads


# --- the mapping -------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_machine_energies_are_those_of_the_model(beta):
    model = peaked_ising(6, 3)
    folded = all_states(7)
    spins = folded[:, :6] * folded[:, 6:]
    np.testing.assert_allclose(
        machine_energies(machine_matrix(model, beta), folded),
        beta * (model.energy(spins) - model.offset),
        atol=1e-12,
    )


def test_energies_by_the_vendors_own_function():
    common = pytest.importorskip("kaiwu.common", reason="kaiwu-community is not installed")
    model, folded = peaked_ising(5, 1), all_states(6)
    spins = folded[:, :5] * folded[:, 5:]
    np.testing.assert_allclose(
        common.hamiltonian(machine_matrix(model), folded), model.energy(spins) - model.offset
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_ground_state_of_the_machine_is_that_of_the_model(seed):
    model = peaked_ising(8, seed)
    ground = all_states(8)[np.argmin(all_energies(model))]
    out = SolveAdapter(Ground()).sample(model, n_samples=1)
    np.testing.assert_array_equal(out.spins, [ground])
    # A solver of the other sign lands elsewhere, and that is noticed.
    with pytest.warns(RuntimeWarning, match="higher energies than random"):
        wrong = SolveAdapter(Enumerating(sign=-1)).sample(model, beta=2.0, n_samples=500)
    assert wrong.energies.mean() > all_energies(model).mean()


@pytest.mark.parametrize("spoil", [lambda m: -m, lambda m: 2 * m, lambda m: np.triu(m)])
def test_a_wrong_matrix_is_refused(spoil):
    model = peaked_ising(6, 0)
    reads, matrix = all_states(7), machine_matrix(model)
    assert unfold(reads, matrix, model, 1.0, "it", set()).shape == (128, 6)
    with pytest.raises(RuntimeError, match="Energies of it differ"):
        unfold(reads, spoil(matrix), model, 1.0, "it", set())


# --- solvers in this process -------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "n_bits"), [(1.0, None), (0.5, None), (1.0, 8)])
def test_distribution(beta, n_bits):
    model = peaked_ising(6, 2)
    solver = Enumerating()
    if n_bits:  # the temperature of the integers is gain times that of the matrix
        gain = quantise(machine_matrix(model)).gain
        solver.beta = 1 / gain
    out = SolveAdapter(solver, n_bits=n_bits).sample(model, beta, 6000, seed=0)
    distance, floor = total_variation(out.spins, boltzmann_distribution(model, beta))
    assert distance < 1.3 * floor
    np.testing.assert_allclose(out.energies, model.energy(out.spins))
    assert out.info["n_solves"] == 3 and out.info["guarantee"] == "heuristic"
    if n_bits:
        assert out.info["quantisation"]["gain"] == gain
        assert np.abs(solver.matrices[0]).max() == 127
    else:
        assert out.info["quantisation"] is None


def test_beta_may_be_left_to_the_solver():
    model = peaked_ising(6, 2)
    out = SolveAdapter(Enumerating(beta=0.5), scale_beta=False).sample(model, 7.0, 6000)
    distance, floor = total_variation(out.spins, boltzmann_distribution(model, 0.5))
    assert distance < 1.3 * floor and out.info["scale_beta"] is False


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_a_rounded_machine_is_told_its_temperature(beta):
    """The integers use the whole range whatever beta is: without the gain they are blind to it."""

    class Tunable(Enumerating):
        def solve(self, matrix, temperature=1.0):
            self.beta = 1 / temperature
            return super().solve(matrix)

    model = peaked_ising(6, 2)
    out = SolveAdapter(Tunable(), n_bits=14).sample(model, beta, 6000, seed=0)
    distance, floor = total_variation(out.spins, boltzmann_distribution(model, beta))
    assert distance < 1.3 * floor and out.info["scale_beta"] is True
    assert abs(out.info["effective_beta"] - 1) < 4 * out.info["effective_beta_se"]
    deaf = SolveAdapter(Enumerating(beta=0.01), n_bits=14).sample(model, beta, 2000, seed=0)
    assert deaf.info["scale_beta"] is False


def test_beta_zero():
    out = SolveAdapter(Enumerating(), n_bits=8).sample(peaked_ising(4, 0), 0.0, 4000)
    assert np.abs(out.spins.mean(axis=0)).max() < 5 / np.sqrt(4000)


def test_real_ising_solver():
    """A Gibbs sampler as kaiwu.core.IsingSolver gives the exact moments of a peaked machine."""
    core = pytest.importorskip("kaiwu.core", reason="kaiwu-community is not installed")

    class Gibbs(core.IsingSolver):
        def _solve(self, ising_matrix=None):
            return worker.heat_bath(ising_matrix, 1.0, 4000, 60, seed=5)

    model, beta = peaked_ising(6, 4), 0.8
    out = SolveAdapter(Gibbs()).sample(model, beta, 4000)
    distribution, states = boltzmann_distribution(model, beta), all_states(6).astype(float)
    np.testing.assert_allclose(out.spins.mean(axis=0), distribution @ states, atol=0.06)
    pairs = out.spins.T.astype(float) @ out.spins / len(out)
    np.testing.assert_allclose(pairs, (states * distribution[:, None]).T @ states, atol=0.06)
    assert not out.info["deduplicated"] and not out.info["seeded"]


def test_reads_left_out_of_a_sorted_pool_are_random():
    class Sorted(Enumerating):
        def solve(self, matrix):
            mine = matrix.copy()
            states = super().solve(matrix)
            return states[np.argsort(machine_energies(mine, states))]

    model = peaked_ising(6, 0)
    out = SolveAdapter(Sorted(n_reads=8000)).sample(model, n_samples=2000, seed=0)
    distribution, energies = boltzmann_distribution(model), all_energies(model)
    mean = distribution @ energies
    sd = np.sqrt(distribution @ (energies - mean) ** 2)
    assert abs(out.energies.mean() - mean) < 5 * sd / np.sqrt(2000)


def test_a_deduplicated_pool_is_flagged():
    class Unique(Enumerating):
        def solve(self, matrix):
            return np.unique(super().solve(matrix), axis=0)

    model = peaked_ising(6, 0)
    with pytest.warns(RuntimeWarning, match="de-duplicated"):
        out = SolveAdapter(Unique(n_reads=100)).sample(model, n_samples=300)
    assert out.info["deduplicated"] and out.info["n_distinct"] <= 64 < len(out)
    # One call that holds every state once: by the number of states alone.
    with pytest.warns(RuntimeWarning, match="de-duplicated"):
        SolveAdapter(Returning(all_states(7))).sample(model, n_samples=100)


def test_a_repeated_pool_is_flagged():
    model = peaked_ising(6, 0)
    pool = Enumerating(n_reads=200).solve(machine_matrix(model))
    with pytest.warns(RuntimeWarning, match="two calls returned the same reads"):
        out = SolveAdapter(Returning(pool)).sample(model, n_samples=400)
    assert out.info["repeated"] and out.info["n_solves"] == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_reads", [1, 5, 500])
def test_honest_reads_are_not_flagged(n_reads):
    for seed in range(3):
        model = peaked_ising(6, seed)
        info = SolveAdapter(Enumerating(n_reads, seed=seed)).sample(model, n_samples=1000).info
        assert not info["deduplicated"] and not info["repeated"] and info["n_distinct"] > 10
    frozen = Ising(np.zeros((1, 1)), np.array([40.0]))
    SolveAdapter(Enumerating(n_reads)).sample(frozen, n_samples=1000)


def test_one_state_only_is_said():
    with pytest.warns(RuntimeWarning, match="all 50 reads are the same"):
        SolveAdapter(Ground()).sample(peaked_ising(6, 0), n_samples=50)


def test_a_function_will_do():
    """As an object with that function for its method, with its seed and its name in messages."""

    def machine(matrix, seed=None):
        return Seeded(30).solve(matrix, rand_seed=seed)

    model = peaked_ising(6, 0)
    a, b = (SolveAdapter(x).sample(model, n_samples=90, seed=1) for x in (machine, Seeded(30)))
    np.testing.assert_array_equal(a.spins, b.spins)
    assert a.info["seeded"]
    with pytest.raises(RuntimeError, match="solver broken returned"):
        SolveAdapter(broken).sample(model)


def broken(matrix):
    return matrix


def test_a_solver_by_name_is_called_by_its_own_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_machine", SimpleNamespace(Bad=lambda: Returning("no")))
    with pytest.raises(RuntimeError, match="solver Returning returned"):
        SolveAdapter("my_machine:Bad").sample(peaked_ising(6, 0))


def test_seeds():
    model = peaked_ising(10, 0)
    first, again, other = (
        SolveAdapter(Seeded(30)).sample(model, n_samples=90, seed=s) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.spins, again.spins)
    assert (first.spins != other.spins).any() and first.info["seeded"]
    assert len(np.unique(first.spins, axis=0)) > 30  # each call has its own seed
    assert not SolveAdapter(Enumerating()).sample(model, seed=1).info["seeded"]


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        (None, "None"),
        (np.ones((4, 6)), r"shape \(4, 6\)"),
        (np.ones(7), r"shape \(7,\)"),
        (np.ones((0, 7)), "no states"),
        (np.zeros((4, 7)), "entries such as 0"),
        (np.full((4, 7), np.nan), "entries such as nan"),
        (({"s": 1}, -3.0), "tuple"),
        ([[1, -1], [1]], "list"),
        (np.full((4, 7), "1"), "ndarray"),
    ],
)
def test_what_is_no_read_is_refused(reads, message):
    with pytest.raises(RuntimeError, match=f"solver Returning returned .*{message}"):
        SolveAdapter(Returning(reads)).sample(peaked_ising(6, 0), n_samples=4)


def test_solver_option():
    model = peaked_ising(5, 0)
    with pytest.raises(ValueError, match="solver="):
        SolveAdapter().sample(model)
    with pytest.raises(TypeError, match="solve"):
        SolveAdapter(3)
    with pytest.raises(TypeError, match="solve"):
        SolveAdapter(Ground)  # a class, not an object
    with pytest.raises(ValueError, match="module:attribute"):
        SolveAdapter("numpy")
    with pytest.raises(ValueError, match="n_bits"):
        SolveAdapter(Ground(), n_bits=1)
    with pytest.raises(RuntimeError, match="3 of 10 reads in 3 calls"):
        SolveAdapter(Ground(), max_solves=3).sample(model, n_samples=10)


def test_solver_by_name(monkeypatch, tmp_path):
    (tmp_path / "lab_machine.py").write_text(
        "class Up:\n    def solve(self, matrix):\n"
        "        import numpy\n        return numpy.ones((9, len(matrix)))\n"
        "ready = Up()\ndef make():\n    return ready\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = Ising(np.zeros((2, 2)), np.ones(2))
    for attribute in ("Up", "ready", "make"):
        with pytest.warns(RuntimeWarning, match="same state"):
            out = SolveAdapter(f"lab_machine:{attribute}").sample(model, n_samples=5)
        assert (out.spins == 1).all()


# --- the worker process ------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path):
    """Options of a sampler whose worker needs no SDK."""
    return {"optimizer": "fake", "directory": tmp_path / "jobs", "poll_interval": 0.05}


@pytest.fixture
def sdk(tmp_path, monkeypatch):
    """Options of a sampler whose worker finds the stub SDK, and a reader of the stub's log."""
    package = tmp_path / "path" / "kaiwu"
    package.mkdir(parents=True)
    for name, source in STUB.items():
        lines = source.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        (package / name).write_text("\n".join(line[indent:] for line in lines) + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("STUB", str(tmp_path / "log"))
    for name, value in TOKENS.items():
        monkeypatch.setenv(name, value)
    # The stub seeds its reads with the task's name: names that repeat make tests that repeat.
    nonces = (f"{k:012x}" for k in itertools.count())
    monkeypatch.setattr(_kaiwu_jobs.secrets, "token_hex", lambda n: next(nonces))

    def log(key):
        text = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
        return [line for line in map(json.loads, text.splitlines()) if key in line]

    options = {
        "python": sys.executable,
        "directory": tmp_path / "jobs",
        "poll_interval": 0.01,
        "sample_number": 500,
    }
    return options, log


def jobs(options):
    return sorted(Path(options["directory"]).glob("job-*"))


def state(folder):
    return worker.read_json(folder / "job.json")


def assert_no_secrets(folder, *texts):
    for text in (*texts, *(p.read_bytes() for p in folder.rglob("*") if p.is_file())):
        for token in TOKENS.values():
            assert (token.encode() if isinstance(text, bytes) else token) not in text


@pytest.mark.parametrize(("n_bits", "beta"), [(8, 1.0), (None, 0.5)])
def test_reads_come_back_from_another_process(fake, n_bits, beta):
    model = peaked_ising(6, 2)
    out = Kaiwu(**fake, n_bits=n_bits).sample(model, beta, n_samples=3000, seed=1)
    distance, floor = total_variation(out.spins, boltzmann_distribution(model, beta))
    assert distance < 1.3 * floor
    np.testing.assert_allclose(out.energies, model.energy(out.spins))
    (folder,) = jobs(fake)
    assert out.info["job"] == str(folder) and len(out.info["tasks"]) == 3
    assert state(folder)["state"] == "done" and state(folder)["pid"] != os.getpid()
    assert out.info["seeded"] and not out.info["resumed"] and not out.info["replayed"]
    if n_bits:
        gain = out.info["quantisation"]["gain"]
        assert out.info["machine_beta"] == pytest.approx(beta / gain)
        assert np.abs(worker.read_array(folder / "request.npz", "matrix")).max() == 127
    else:
        assert out.info["quantisation"] is None and out.info["machine_beta"] == beta


def test_seeds_of_the_worker(fake):
    model = peaked_ising(10, 0)
    first, again, other, fresh, fresher = (
        Kaiwu(**fake).sample(model, n_samples=20, seed=s).spins for s in (1, 1, 2, None, None)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (fresh != fresher).any()
    assert len(jobs(fake)) == 4  # the same seed again is the same job


def test_the_machine_in_the_cloud(sdk):
    options, log = sdk
    model = peaked_ising(6, 1)
    sampler = Kaiwu(**options, project="p7", task_name="lab")
    one, two = (sampler.sample(model, n_samples=900) for _ in range(2))
    assert log("license") == [{"license": True}] * 2
    tasks = log("task")
    assert [t["task"] for t in tasks] == one.info["tasks"] + two.info["tasks"]
    assert len({t["task"] for t in tasks}) == 4  # no name twice: the cloud would repeat itself
    hashes = {t["task"].split("-")[1] for t in tasks}
    assert len(hashes) == 1 and all(t["task"].startswith("lab-") for t in tasks)
    assert {t["reads"] for t in tasks} == {450} and {t["mode"] for t in tasks} == {"SAMPLING"}
    assert {t["project"] for t in tasks} == {"p7"}
    # Its own checkpoints for each task, under the name that a resumed job would look for.
    assert len({t["folder"] for t in tasks}) == 4 and {t["object"] for t in tasks} == {1}
    assert all(t["folder"].startswith(str(options["directory"])) for t in tasks)
    assert (one.spins != two.spins).any() and not one.info["seeded"]
    assert one.info["machine_beta"] is None
    # The stub's distribution is that of the model at gain / 200.
    beta = one.info["quantisation"]["gain"] / 200
    distance, floor = total_variation(
        np.concatenate([one.spins, two.spins]), boltzmann_distribution(model, beta)
    )
    assert distance < 1.4 * floor
    assert_no_secrets(options["directory"], str(one.info))


def test_licence_is_refreshed(sdk, monkeypatch):
    options, log = sdk
    monkeypatch.setattr(Kaiwu, "refresh", 0.0)
    Kaiwu(**options).sample(peaked_ising(4, 0), n_samples=20)
    assert len(log("license")) >= 3


def test_annealer_cools_to_the_temperature_of_the_integers(sdk):
    options, log = sdk
    model = peaked_ising(6, 3)
    sampler = Kaiwu(
        **{**options, "sample_number": 2000},
        optimizer="sa_sampler",
        optimizer_options={"alpha": 0.9},
    )
    out = sampler.sample(model, 0.7, n_samples=2000, seed=3)
    ((hottest, coldest, size, seed, alpha),) = (line["sa"] for line in log("sa"))
    assert coldest == pytest.approx(out.info["quantisation"]["gain"] / 0.7)
    assert hottest >= 9.99 * coldest and size == 2000 and seed is not None and alpha == 0.9
    distance, floor = total_variation(out.spins, boltzmann_distribution(model, 0.7))
    assert distance < 1.3 * floor
    again = sampler.sample(model, 0.7, n_samples=2000, seed=3)
    np.testing.assert_array_equal(out.spins, again.spins)
    with pytest.raises(ValueError, match="beta"):
        sampler.sample(model, 0.0)


def test_unrounded_couplings_go_through_the_vendors_reducer(sdk, monkeypatch):
    options, log = sdk
    monkeypatch.setenv("STUB_DO", "float")
    out = Kaiwu(**options, n_bits=None).sample(peaked_ising(4, 0), n_samples=20)
    assert log("reducer") == [{"reducer": 8}] and out.info["quantisation"] is None


def test_time_out_then_resume(sdk, monkeypatch):
    options, log = sdk
    model = peaked_ising(6, 0)
    monkeypatch.setenv("STUB_DO", "never")
    with pytest.raises(TimeoutError, match=r"within 1 s.*job-"):
        Kaiwu(**options, timeout=1).sample(model, n_samples=100)
    (folder,) = jobs(options)
    assert state(folder)["state"] == "waiting" and not alive(state(folder)["pid"])
    assert_no_secrets(folder)
    monkeypatch.setenv("STUB_DO", "")
    # Another matrix, or another request, is another job; so is a call that will not resume.
    Kaiwu(**options).sample(peaked_ising(6, 1), n_samples=100)
    Kaiwu(**options).sample(model, n_samples=101)
    assert not Kaiwu(**options, resume=False).sample(model, n_samples=100).info["resumed"]
    assert state(folder)["state"] == "waiting"
    out = Kaiwu(**options).sample(model, n_samples=100)
    names = [line["task"] for line in log("task")]
    assert out.info["resumed"] and out.info["job"] == str(folder)
    assert names[0] == names[-1] == out.info["tasks"][0] and len(set(names)) == 4
    # Handed out once: the next call asks for new reads.
    later = Kaiwu(**options).sample(model, n_samples=100)
    assert not later.info["resumed"] and (later.spins != out.spins).any()


def test_finished_but_never_handed_out(fake):
    """A parent that was killed while its worker finished finds the reads, without a worker."""
    model = peaked_ising(6, 0)
    first = Kaiwu(**fake).sample(model, n_samples=30)
    (folder,) = jobs(fake)
    (folder / "consumed").unlink()
    again = Kaiwu(**{**fake, "python": "/no/such/python"}).sample(model, n_samples=30)
    assert again.info["resumed"]
    np.testing.assert_array_equal(first.spins, again.spins)


def test_without_a_directory_nothing_is_kept(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(_kaiwu_jobs.tempfile, "tempdir", str(tmp_path))
    options = {**fake, "directory": None}
    out = Kaiwu(**options).sample(peaked_ising(6, 0), n_samples=30)
    assert out.info["job"] is None and not list(tmp_path.iterdir())
    with pytest.raises(TimeoutError, match="lost"):
        Kaiwu(**options, timeout=0.3, optimizer_options={"delay": 9}).sample(peaked_ising(6, 0))
    assert not list(tmp_path.iterdir())


def test_a_job_with_another_seed_is_not_taken_up(fake):
    model = peaked_ising(6, 0)
    Kaiwu(**fake).sample(model, n_samples=30, seed=1)
    (jobs(fake)[0] / "consumed").unlink()
    resumed = [
        Kaiwu(**fake).sample(model, n_samples=30, seed=s).info["resumed"] for s in (2, None, 1)
    ]
    assert resumed == [False, False, True]


def test_reads_survive_a_task_that_fails(sdk, monkeypatch):
    options, log = sdk
    model = peaked_ising(6, 0)
    monkeypatch.setenv("STUB_DO", "second")
    with pytest.raises(RuntimeError, match="lost task two.*kept in"):
        Kaiwu(**options).sample(model, n_samples=1000)
    (folder,) = jobs(options)
    kept = worker.read_array(folder / "reads_000.npz", "spins")
    assert state(folder)["state"] == "failed" and kept.shape == (500, 7)
    monkeypatch.setenv("STUB_DO", "")
    out = Kaiwu(**options).sample(model, n_samples=1000)
    assert out.info["resumed"] and [t["task"][-3:] for t in log("task")] == ["000", "001", "001"]
    np.testing.assert_array_equal(out.spins[:500], kept[:, :6] * kept[:, 6:])


def test_a_job_at_work_elsewhere_is_left_alone(fake):
    model = peaked_ising(6, 0)
    Kaiwu(**fake).sample(model, n_samples=30)
    (folder,) = jobs(fake)
    (folder / "consumed").unlink()
    with _kaiwu_jobs.lock(folder) as ours:
        assert ours
        assert not Kaiwu(**fake).sample(model, n_samples=30).info["resumed"]
    assert Kaiwu(**fake).sample(model, n_samples=30).info["resumed"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("refuse", "ConnectionError: no licence for <KAIWU_USER_ID> with code <KAIWU_SDK_CODE>"),
        ("crash", r"died with exit status 11(.|\n)*segfault, code <KAIWU_SDK_CODE>"),
        ("narrow", r"returned an array of shape \(30, 6\)"),
    ],
)
def test_faults_are_reported_without_credentials(sdk, monkeypatch, fault, message):
    options, _ = sdk
    monkeypatch.setenv("STUB_DO", fault)
    with pytest.raises(RuntimeError, match=message) as caught:
        Kaiwu(**options).sample(peaked_ising(6, 0), n_samples=30)
    assert_no_secrets(options["directory"], str(caught.value))
    assert not list(options["directory"].rglob("reads_*"))


@pytest.mark.filterwarnings("ignore:.*higher energies")
@pytest.mark.parametrize(
    ("fault", "n_samples", "message"),
    [
        ("same", 400, "all 400 reads are the same"),
        ("same", 2000, "each call returned one state only"),
        ("cached", 900, "two calls returned the same reads"),
    ],
)
def test_reads_that_repeat_are_reported(sdk, monkeypatch, fault, n_samples, message):
    options, _ = sdk
    monkeypatch.setenv("STUB_DO", fault)
    model = Ising(0.1 * peaked_ising(6, 0).J, np.full(6, 0.02))
    with pytest.warns(RuntimeWarning, match=message):
        Kaiwu(**options).sample(model, n_samples=n_samples)


PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from support.machines import peaked_ising
from scvi_qbm.samplers.adapters.kaiwu.adapter import Kaiwu
Kaiwu(optimizer="fake", directory=sys.argv[2], poll_interval=0.05, timeout=60,
      optimizer_options={"delay": 3.0}).sample(peaked_ising(6, 0), n_samples=30)
"""


def alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_worker_does_not_outlive_its_parent(fake, how):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(Path(__file__).parents[1]), str(fake["directory"])],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 20
        while not (jobs(fake) and list(jobs(fake)[0].glob("fake_*.json"))):
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
        (folder,) = jobs(fake)
        child = state(folder)["pid"]
        assert alive(child)
        parent.send_signal(how)
        said = parent.communicate(timeout=10)[1]
    finally:
        parent.kill()
        parent.wait()
    assert ("KeyboardInterrupt" in said) is (how == signal.SIGINT)
    deadline = time.monotonic() + 5
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert state(folder)["state"] == "waiting"
    if how == signal.SIGINT:
        options = {**fake, "optimizer_options": {"delay": 3.0}}
        assert Kaiwu(**options).sample(peaked_ising(6, 0), n_samples=30).info["resumed"]


# --- set-up ------------------------------------------------------------------------------------


def test_without_an_sdk(tmp_path, monkeypatch):
    monkeypatch.delenv("SCVI_QBM_KAIWU_PYTHON", raising=False)
    for name in TOKENS:
        monkeypatch.delenv(name, raising=False)
    model, directory = peaked_ising(3, 0), tmp_path / "jobs"
    with pytest.raises(RuntimeError, match=r"3\.10.*SCVI_QBM_KAIWU_PYTHON"):
        Kaiwu(directory=directory).sample(model)
    with pytest.raises(FileNotFoundError, match="/no/python"):
        Kaiwu(python="/no/python", directory=directory).sample(model)
    monkeypatch.setenv("SCVI_QBM_KAIWU_PYTHON", sys.executable)
    with pytest.raises(RuntimeError, match="KAIWU_USER_ID and KAIWU_SDK_CODE"):
        Kaiwu(directory=directory).sample(model)
    assert not directory.exists()
    for name, value in TOKENS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=r"no kaiwu\.license"):
        Kaiwu(directory=directory).sample(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "quantum"}, "optimizer"),
        ({"sample_number": 9}, "sample_number"),
        ({"sample_number": 2001}, "sample_number"),
        ({"max_tasks": 0}, "max_tasks"),
        ({"timeout": 0}, "timeout"),
        ({"poll_interval": -1}, "poll_interval"),
        ({"n_bits": 1}, "n_bits"),
        ({"record": "a", "replay": "b"}, "not both"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Kaiwu(**options)


def test_limits(fake):
    with pytest.raises(ValueError, match="550 spins.*one more.*`max_spins` = 550"):
        Kaiwu().sample(Ising(np.zeros((550, 550)), np.ones(550)))
    with pytest.raises(ValueError, match="3 tasks.*`max_tasks` is 2"):
        Kaiwu(**fake, max_tasks=2, sample_number=10).sample(peaked_ising(3, 0), n_samples=21)
    with pytest.raises(RuntimeError, match=r"no option \['sweeps'\]"):
        Kaiwu(**fake, optimizer_options={"sweeps": 3}).sample(peaked_ising(3, 0))


def test_options_by_name(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    for name, cls in (("kaiwu", Kaiwu), ("solve", SolveAdapter)):
        registry.register_sampler(name, cls, overwrite=True)
        sampler = get_sampler(name)
        assert sampler.name == name and sampler.guarantee == "heuristic"
        with pytest.raises(TypeError, match="has no option 'bits'"):
            get_sampler(name, bits=8)


def test_the_adapter_imports_no_sdk():
    code = (
        "import sys; from scvi_qbm.samplers.adapters.solve import SolveAdapter as S; S();"
        "from scvi_qbm.samplers.adapters.kaiwu.adapter import Kaiwu; Kaiwu();"
        "print([m for m in ('kaiwu', 'torch', 'scvi') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_worker_stands_alone():
    source = Path(worker.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


def test_constructors_of_other_versions():
    ours = [(("task_name", "task_name_prefix"), "t"), (("wait",), False), (("new",), 1)]

    def of_prefix(task_name_prefix, wait=True, alpha=1):
        return task_name_prefix, wait, alpha

    assert worker.construct(of_prefix, (), ours, {"alpha": 2}) == ("t", False, 2)
    assert worker.construct(lambda **k: k, (), ours, {}) == {
        "task_name": "t",
        "wait": False,
        "new": 1,
    }
    with pytest.raises(TypeError, match="no option.*beta"):
        worker.construct(of_prefix, (), ours, {"beta": 2})
    with pytest.raises(TypeError, match="takes no task name"):
        worker.construct(lambda wait: wait, (), ours, {})


# --- recordings --------------------------------------------------------------------------------


def test_record_and_replay(fake, tmp_path, monkeypatch):
    tape, model, other = tmp_path / "deep" / "tape.npz", peaked_ising(6, 0), peaked_ising(5, 1)
    recorder = Kaiwu(**fake, record=tape)
    originals = [recorder.sample(m, n_samples=40) for m in (model, other, model)]

    def refuse(*args, **kwargs):
        raise AssertionError("a replay starts no process")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    player = Kaiwu(optimizer="fake", directory=tmp_path / "none", replay=tape)
    for m, original in zip((model, other, model), originals, strict=True):
        again = player.sample(m, n_samples=40)
        np.testing.assert_array_equal(again.spins, original.spins)
        np.testing.assert_allclose(again.energies, original.energies)
        assert again.info["replayed"] and again.info["tasks"] == original.info["tasks"]
        assert again.info["quantisation"] == original.info["quantisation"]
    assert not (tmp_path / "none").exists()
    with pytest.raises(RuntimeError, match="is there 2 times and was drawn as often"):
        player.sample(model, n_samples=40)
    with pytest.raises(RuntimeError, match="is not in .*tape.npz.*40 samples of 5 spins"):
        player.sample(model, n_samples=41)
    with pytest.raises(RuntimeError, match="is not in"):
        player.sample(peaked_ising(6, 9), n_samples=40)
    with pytest.raises(RuntimeError, match="is not in"):
        player.sample(other, 0.5, n_samples=40)
    with pytest.raises(FileNotFoundError, match="nowhere.npz"):
        Kaiwu(replay=tmp_path / "nowhere.npz").sample(model)


def test_a_rewind_is_a_new_sampler(fake, tmp_path):
    tape, model = tmp_path / "tape.npz", peaked_ising(6, 0)
    Kaiwu(**fake, record=tape).sample(model, n_samples=20)
    one, two = (Kaiwu(optimizer="fake", replay=tape).sample(model, n_samples=20) for _ in "ab")
    np.testing.assert_array_equal(one.spins, two.spins)
