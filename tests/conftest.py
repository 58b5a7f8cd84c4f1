import hashlib
import logging
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

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


def pytest_collection_modifyitems(items):
    """Longest file first: with two processes the other one would wait for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_tutorials.py")
