import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

NAMESPACE = "ctrain-test"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One small Ray cluster for all tests that need one."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    os.environ["CTRAIN_HTTP_PORT"] = str(_free_port())
    os.environ["CTRAIN_NAMESPACE"] = NAMESPACE
    import ray

    folder = tempfile.mkdtemp(prefix="ct", dir="/tmp")
    ray.init(
        num_cpus=8,
        include_dashboard=False,
        namespace=NAMESPACE,
        object_store_memory=200_000_000,
        log_to_driver=False,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    """A port of our own: another Serve may run on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
