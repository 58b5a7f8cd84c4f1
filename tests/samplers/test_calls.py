"""Answers of machines are kept and not asked for twice; calls that hang or fail, and budgets."""

import pickle
import threading
import time
import warnings

import numpy as np
import pytest
from support.machines import peaked_ising

from scvi_qbm.samplers import get_sampler
from scvi_qbm.samplers.adapters import calls
from scvi_qbm.samplers.adapters.dimod import Dimod
from scvi_qbm.samplers.adapters.solve import SolveAdapter

MODEL = peaked_ising(6, 2)
pytestmark = pytest.mark.filterwarnings(
    "ignore:Reads of:RuntimeWarning", "ignore:.*is asked again:RuntimeWarning"
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(calls.tenacity, "wait_exponential", lambda **_: lambda state: 0)


class Machine:
    """Reads that no seed repeats; the calls of ``broken`` fail, those of ``slow`` hang."""

    def __init__(self, n_reads=20, broken=(), slow=(), delay=0.5):
        self.n_reads, self.broken, self.slow, self.delay = n_reads, broken, slow, delay
        self.rng, self.n_calls = np.random.default_rng(), 0

    def solve(self, matrix):
        self.n_calls += 1
        call = self.n_calls
        if call in self.slow:
            time.sleep(self.delay)
        if call in self.broken:
            raise ConnectionError(f"call {call}")
        return self.rng.choice([-1, 1], (self.n_reads, len(matrix)))


class Queue:
    """A machine with a queue: a task is ready at its third look."""

    def __init__(self, looks=3):
        self.tasks, self.looks, self.needed = {}, {}, looks

    def submit(self, matrix):
        name = f"task-{len(self.tasks)}"
        self.tasks[name] = np.random.default_rng().choice([-1, 1], (50, len(matrix)))
        return name

    def fetch(self, task):
        self.looks[task] = self.looks.get(task, 0) + 1
        return self.tasks[task] if self.looks[task] >= self.needed else None


def test_an_equal_call_is_answered_from_the_folder(tmp_path):
    machine = Machine()

    def draw(seed, n=50, model=MODEL, **options):
        sampler = SolveAdapter(machine, directory=tmp_path, **options)
        return sampler.sample(model, n_samples=n, seed=seed)

    first, again = draw(1), draw(1)
    np.testing.assert_array_equal(first.spins, again.spins)
    assert machine.n_calls == 3 == first.info["n_solves"]
    assert (first.info["n_kept"], again.info["n_kept"]) == (0, 3)
    for k, other in enumerate([(2,), (1, 40), (1, 50, MODEL.scaled(2.0)), (None,), (None,)]):
        before = machine.n_calls
        assert (draw(*other).info["n_kept"], machine.n_calls > before) == (0, True), k
    assert draw(1, n_bits=8).info["n_kept"] == 0
    kept = np.load(next(tmp_path.glob("*.npz")))
    assert kept["reads"].shape == (20, 7) and kept["matrix"].shape == (7, 7)


def test_other_machines_do_not_get_its_answers(tmp_path):
    class Another(Machine):
        pass

    SolveAdapter(Machine(), directory=tmp_path).sample(MODEL, n_samples=20, seed=0)
    out = SolveAdapter(Another(), directory=tmp_path).sample(MODEL, n_samples=20, seed=0)
    assert out.info["n_kept"] == 0


def test_reads_of_earlier_calls_survive_a_later_failure(tmp_path):
    machine = Machine(broken={3})
    sampler = SolveAdapter(machine, directory=tmp_path)
    with pytest.raises(ConnectionError, match="call 3"):
        sampler.sample(MODEL, n_samples=60, seed=0)
    assert sampler.sample(MODEL, n_samples=60, seed=0).info["n_kept"] == 2
    assert machine.n_calls == 4


class Seeded(Machine):
    def solve(self, matrix, seed):
        return super().solve(matrix)


@pytest.mark.parametrize("machine", [Machine, Seeded])
def test_replay_needs_no_machine(tmp_path, machine):
    first = SolveAdapter(machine(), directory=tmp_path).sample(MODEL, n_samples=50, seed=3)
    player = SolveAdapter(directory=tmp_path, replay=True)
    np.testing.assert_array_equal(player.sample(MODEL, n_samples=50, seed=3).spins, first.spins)
    with pytest.raises(RuntimeError, match="replayed are not in"):
        player.sample(MODEL, n_samples=50, seed=4)
    with pytest.raises(ValueError, match="needs the `directory`"):
        SolveAdapter(replay=True)


def test_failures_are_repeated_and_told():
    machine = Machine(broken={1, 2}, n_reads=50)
    with pytest.warns(RuntimeWarning, match="ConnectionError: call 2.*again, 2 times"):
        SolveAdapter(machine, retries=3).sample(MODEL, n_samples=50)
    assert machine.n_calls == 3
    with pytest.raises(ConnectionError, match="call 2"):
        SolveAdapter(Machine(broken={1, 2}), retries=1).sample(MODEL, n_samples=50)


def test_what_comes_late_is_kept(tmp_path):
    machine = Machine(slow={1})
    sampler = SolveAdapter(machine, timeout=0.1, directory=tmp_path)
    with pytest.raises(TimeoutError, match=r"solver Machine has not answered within 0.1 s"):
        sampler.sample(MODEL, n_samples=20, seed=0)
    deadline = time.monotonic() + 10
    while not list(tmp_path.glob("*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sampler.sample(MODEL, n_samples=20, seed=0).info["n_kept"] == 1
    assert machine.n_calls == 1
    assert SolveAdapter(Machine(slow={1}), timeout=0.1, retries=1).sample(MODEL, n_samples=20)


def test_a_budget_counts_calls_of_all_processes(tmp_path):
    machine = Machine(broken={2})
    sampler = SolveAdapter(machine, budget=3, directory=tmp_path)
    sampler.sample(MODEL, n_samples=20, seed=0)
    with pytest.raises(ConnectionError):
        sampler.sample(MODEL, n_samples=20, seed=1)
    later = SolveAdapter(machine, budget=3, retries=5, directory=tmp_path)
    with pytest.raises(RuntimeError, match="called 3 times, and `budget` is 3. Raise it"):
        later.sample(MODEL, n_samples=40, seed=1)
    assert machine.n_calls == 3
    later.sample(MODEL, n_samples=20, seed=0)  # kept
    assert SolveAdapter(machine, budget=4, directory=tmp_path).sample(
        MODEL, n_samples=40, seed=1
    ).info["n_kept"] == 1  # fmt: skip
    bad = Machine()
    bad.solve = lambda matrix: [
        bad.__dict__.update(n_calls=bad.n_calls + 1),
        np.ones((2, 7)) * 1.9,
    ][1]
    with pytest.raises(RuntimeError, match="called 2 times"):
        SolveAdapter(bad, budget=2, retries=5).sample(MODEL, n_samples=20)
    assert bad.n_calls == 2


def test_processes_with_one_folder_pay_once(tmp_path):
    """Two at once: the second waits, and finds the answer of the first."""
    machine = Machine(slow={1, 2}, n_reads=20)
    out = []

    def work():
        sampler = SolveAdapter(machine, directory=tmp_path, budget=1)
        out.append(sampler.sample(MODEL, n_samples=20, seed=0).spins)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert machine.n_calls == 1
    np.testing.assert_array_equal(*out)


def test_an_answer_after_that_of_a_repetition_is_kept_too(tmp_path):
    machine = Machine(slow={1}, delay=0.6)
    sampler = SolveAdapter(machine, timeout=0.2, retries=2, directory=tmp_path)
    sampler.sample(MODEL, n_samples=20, seed=0)
    deadline = time.monotonic() + 10
    while not list(tmp_path.glob("*-late0.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert machine.n_calls == 2 == len(list(tmp_path.glob("*.npz")))
    assert sampler.sample(MODEL, n_samples=20, seed=0).info["n_kept"] == 1


def test_a_task_in_a_queue_is_submitted_once(tmp_path):
    queue = Queue()
    sampler = SolveAdapter(queue, poll_interval=0.01, directory=tmp_path)
    sampler.sample(MODEL, n_samples=50, seed=0)
    assert len(queue.tasks) == 1 and not list(tmp_path.glob("*.task"))
    queue.needed = 10**9
    for _ in range(2):  # as after a crash
        hurried = SolveAdapter(
            queue, poll_interval=0.01, timeout=0.05, retries=1, directory=tmp_path
        )
        with pytest.raises(TimeoutError, match="task-1 within 0.05 s.*waits for it again"):
            hurried.sample(MODEL, n_samples=50, seed=1)
    assert len(queue.tasks) == 2
    queue.needed = 0
    out = SolveAdapter(queue, directory=tmp_path).sample(MODEL, n_samples=50, seed=1)
    assert len(queue.tasks) == 2 and not list(tmp_path.glob("*.task"))
    there = {s.tobytes() for s in (queue.tasks["task-1"][:, :-1] * queue.tasks["task-1"][:, -1:])}
    assert {s.astype(int).tobytes() for s in out.spins} == there
    SolveAdapter(Queue(), poll_interval=0.01, retries=1).sample(MODEL, n_samples=50)


@pytest.mark.parametrize("machine", [Machine(slow={1}, delay=30), Queue(looks=10**9)])
def test_waiting_can_be_cancelled(machine):
    sampler = SolveAdapter(machine, timeout=60, retries=5)
    threading.Timer(0.3, sampler.cancel).start()
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="cancelled"):
        sampler.sample(MODEL, n_samples=20)
    assert time.monotonic() - start < 10


def test_a_machine_of_another_thread_can_be_cancelled_without_a_timeout():
    sampler, raised = SolveAdapter(Machine(slow={1}, delay=30)), []

    def work():
        try:
            sampler.sample(MODEL, n_samples=20)
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    sampler.cancel()
    thread.join(10)
    assert len(raised) == 1 and "cancelled" in raised[0]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """Nothing is asked for; what was drawn before the disk was full is used."""
    (tmp_path / "file").write_text("")
    machine = Machine()
    with pytest.raises(OSError, match="name another `directory`"):
        SolveAdapter(machine, directory=tmp_path / "file").sample(MODEL, n_samples=20)
    assert machine.n_calls == 0

    def full(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(calls.np, "savez_compressed", full)
    sampler = SolveAdapter(machine, directory=tmp_path / "reads", retries=3)
    with pytest.warns(RuntimeWarning, match="cannot be kept .*disk full"):
        assert len(sampler.sample(MODEL, n_samples=20, seed=0)) == 20
    assert machine.n_calls == 1 and not list((tmp_path / "reads").glob("*.npz"))


def test_damaged_files_and_wrong_options(tmp_path):
    sampler = SolveAdapter(Machine(), directory=tmp_path)
    sampler.sample(MODEL, n_samples=20, seed=0)
    next(tmp_path.glob("*.npz")).write_bytes(b"PK nothing")
    with pytest.raises(RuntimeError, match="cannot be read .* or remove the file"):
        sampler.sample(MODEL, n_samples=20, seed=0)
    for options, match in [
        ({"timeout": 0}, "`timeout` must be finite and > 0"),
        ({"retries": -1}, "`retries` must be at least 0"),
        ({"budget": -1}, "`budget` must be at least 0"),
        ({"poll_interval": 0}, "`poll_interval`"),
        ({"timeout": "60"}, "`timeout` must be a number"),
        ({"n_bits": 8.0}, "`n_bits` must be a whole number"),
    ]:
        with pytest.raises((TypeError, ValueError), match=match):
            SolveAdapter(Machine(), **options)
    nameless = Queue()
    nameless.submit = lambda matrix: None
    with pytest.raises(TypeError, match="must return the name of a task, a str, got None"):
        SolveAdapter(nameless).sample(MODEL, n_samples=20)
    with pytest.raises(ImportError, match="no_such_module:X cannot be imported.*PYTHONPATH"):
        SolveAdapter("no_such_module:X")
    with pytest.raises(TypeError, match="submit.matrix. and fetch.task."):
        SolveAdapter(type("Half", (), {"submit": lambda self, matrix: "x"})())
    copy = pickle.loads(pickle.dumps(SolveAdapter(HeatBathLike(), budget=2, directory=tmp_path)))
    assert copy.calls.budget == 2
    copy.cancel()


class HeatBathLike:
    def solve(self, matrix):
        return np.ones((1, len(matrix)), int)


def test_dimod_keeps_replays_and_counts(tmp_path):
    dimod = pytest.importorskip("dimod")
    asked = []

    class Counting(dimod.RandomSampler):
        def sample(self, bqm, **kwargs):
            asked.append(kwargs)
            return super().sample(bqm, **kwargs)

    options = {"directory": tmp_path, "budget": 1, "timeout": 60}
    first = Dimod(Counting(), **options).sample(MODEL, n_samples=30, seed=5)
    again = Dimod(Counting(), **options).sample(MODEL, n_samples=30, seed=5)
    np.testing.assert_array_equal(first.spins, again.spins)
    assert len(asked) == 1 and (first.info["n_kept"], again.info["n_kept"]) == (0, 1)
    with pytest.raises(RuntimeError, match="`budget` is 1"):
        Dimod(Counting(), **options).sample(MODEL, n_samples=30, seed=6)
    other = Dimod(Counting(), directory=tmp_path, parameters={"time_limit": 0.01})
    assert other.sample(MODEL, n_samples=30, seed=5).info["n_kept"] == 0
    with pytest.raises(RuntimeError, match="replayed"):
        Dimod(Counting(), directory=tmp_path, replay=True).sample(MODEL, n_samples=30, seed=6)


def test_an_embedded_model_reports_its_broken_chains():
    """A Chimera graph in the place of a machine; strong chains hold, weak ones are told."""
    system = pytest.importorskip("dwave.system")
    import dimod
    from dwave.graphs import chimera_graph
    from dwave.samplers import SimulatedAnnealingSampler

    graph = chimera_graph(4)
    machine = dimod.StructureComposite(
        SimulatedAnnealingSampler(), list(graph.nodes), list(graph.edges)
    )
    embedded = system.EmbeddingComposite(machine, embedding_parameters={"random_seed": 1})
    parameters = {"beta_range": (0.1, 1.0), "proposal_acceptance_criteria": "Gibbs"}

    def draw(strength):
        given = parameters | {"chain_strength": strength}
        return Dimod(embedded, parameters=given).sample(MODEL, n_samples=300, seed=0).info

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strong = draw(4.0)
    assert strong["chain_break_fraction"] < 0.05
    with pytest.warns(RuntimeWarning, match="of the chains are broken.*chain_strength"):
        weak = draw(0.05)
    assert weak["chain_break_fraction"] > 0.25


def test_gauges_average_a_bias_out():
    """A machine with an offset field of its own: each spin prefers up."""
    fields = np.full(6, 0.4)

    class Biased(type(get_sampler("exact"))):
        name, guarantee = "biased", "heuristic"

        def _sample(self, ising, beta, n_samples, entropy):
            tilted = type(ising)(ising.J, ising.b + fields, offset=ising.offset)
            return super()._sample(tilted, beta, n_samples, entropy)

    exact = get_sampler("exact").sample(MODEL, n_samples=40_000, seed=0).spins.mean(0)
    plain = Biased().sample(MODEL, n_samples=4000, seed=1).spins.mean(0)
    gauged = get_sampler("gauged", sampler=Biased(), n_gauges=100)
    turned = gauged.sample(MODEL, n_samples=4000, seed=1)
    assert np.abs(turned.spins.mean(0) - exact).max() < 0.5 * np.abs(plain - exact).max()
    assert gauged.guarantee == "heuristic" and len(turned.info["gauges"]) == 100
    assert get_sampler("gauged", sampler="gibbs").guarantee == "mcmc"
