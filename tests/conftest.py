"""Fixtures of all tests. The environment is set here, before any test imports numpy, torch or ray."""

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# One thread per process: results depend on it, and the machine has few cores for many processes.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
# No tokens, no statistics and short waits in the clusters that tests start; see the design notes on Ray.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_METRICS_ENABLED="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
)
# A test must neither join a cluster of the machine's user nor read the user's credentials.
for name in ("RAY_ADDRESS", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
    os.environ.pop(name, None)

# A shell that starts the tests in the background has them ignore it, and all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real clips and golden values that stands beside the checkout on the developers' machines."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "clips").is_dir():
        pytest.skip(f"the real clips are not here: there is no folder 'shared/clips' beside {REPOSITORY.name}")
    return folder


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same random numbers in every test, whichever ran before."""
    random.seed(0)
    # Where a module is not loaded yet, nobody has drawn from it, and a test that loads it seeds what it draws from.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One private Ray of 2 CPUs for all tests of this process; `connect` inside a test uses it."""
    from cluster.session import connect

    with connect(num_cpus=2):
        yield
