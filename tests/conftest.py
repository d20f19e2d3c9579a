import os

# Before numpy is imported: small matrices, and several processes at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ports import own_serve

from ctrain.demo.child import SWITCHES

NAMESPACE = "ctrain-test"
FOLDER = Path(tempfile.mkdtemp(prefix="ct", dir="/tmp"))  # short: a socket's path has 107 characters at most

# Serve reads its switches when it is imported, which the first test may do: HAProxy in front, as users have
# it, and its fallback, Serve's Python proxy, beside it.
os.environ.update(
    SWITCHES
    | own_serve(FOLDER)
    | {"CTRAIN_NAMESPACE": NAMESPACE, "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One small Ray cluster for all tests that need one."""
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        namespace=NAMESPACE,
        object_store_memory=200_000_000,
        log_to_driver=False,
        _temp_dir=str(FOLDER / "ray"),
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def _folder() -> Iterator[None]:
    yield
    shutil.rmtree(FOLDER, ignore_errors=True)
