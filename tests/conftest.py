import hashlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

# The processes of pytest-xdist share the cores among them; before numpy and numba read it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import pytest

# Numba's cache of a kernel does not notice that code it inlines has changed in another file: tests
# of stale code prove nothing.
_kernels = Path(__file__).parents[1] / "src" / "scvi_qbm" / "samplers" / "engine"
_sources = b"".join((_kernels / f"{name}.py").read_bytes() for name in ("kernels", "rng", "simd"))
os.environ.setdefault(
    "NUMBA_CACHE_DIR",
    str(Path(tempfile.gettempdir()) / f"scvi-qbm-{hashlib.sha256(_sources).hexdigest()[:16]}"),
)

SHARED = Path(__file__).parents[2] / "shared" / "data"


# A shell starts what it puts in the background with Ctrl-C ignored, and so do we then; the tests
# that interrupt need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean_pictures():
    """No figures and no settings of matplotlib from one test to the next."""
    if "matplotlib" not in sys.modules:
        yield
    else:
        import matplotlib

        with matplotlib.rc_context():
            # Importing scib and others changes the resolution.
            matplotlib.rcdefaults()
            matplotlib.use("Agg")
            yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session", autouse=True)
def _quiet():
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.|scvi\.")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def shared_data():
    if not SHARED.is_dir():
        pytest.skip(f"the real data sets are not here ({SHARED})")
    return SHARED


@pytest.fixture(scope="session")
def pbmc():
    from scvi_qbm.data import pbmc68k

    adata = pbmc68k()
    rng = np.random.default_rng(0)
    adata.obs["batch"] = rng.choice(["a", "b", "c"], size=adata.n_obs)
    adata.obs["percent"] = rng.random(adata.n_obs)
    return adata


# With pytest-xdist, `make test` hands out files in this order: a long one must not come last.
LONGEST = (
    "test_tutorials.py", "test_run.py", "test_samplers.py", "test_readme.py",
    "test_recovery.py", "test_distributed.py", "test_sampling.py", "test_anchors.py",
)  # fmt: skip

# Where nearly all tests train, or need UMAP compiled.
LONG = ("model", "benchmark")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name in LONG:
            item.add_marker("long")
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_addoption(parser):
    parser.addoption(
        "--fast",
        action="store_true",
        help="nothing long, no training, no processes",
    )


def pytest_configure(config):
    if config.option.fast:
        config.option.markexpr = "not slow and not long"
        config.pluginmanager.register(Fast())


class Fast:
    """Skips a test as soon as it trains a model or starts a process with Python."""

    popen = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self):
        if self.popen is None:
            self.popen = subprocess.Popen.__init__
            subprocess.Popen.__init__ = lambda *a, **k: self.without_python(*a, **k)
            multiprocessing.process.BaseProcess.start = skip
        if "lightning.pytorch" in sys.modules:
            sys.modules["lightning.pytorch"].Trainer.fit = skip

    def without_python(self, process, args, *more, **kwargs):
        """Other programs are run by imports."""
        program = args if isinstance(args, str | os.PathLike) else args[0]
        if Path(program).parent == Path(sys.executable).parent:
            skip()
        self.popen(process, args, *more, **kwargs)


def skip(*_, **__):
    pytest.skip("trains a model or starts a process")
