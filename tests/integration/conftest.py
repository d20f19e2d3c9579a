import os
import shutil
import socket
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One small Ray cluster for all integration tests."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    os.environ["CTRAIN_HTTP_PORT"] = str(_free_port())
    import ray

    folder = tempfile.mkdtemp(prefix="ct", dir="/tmp")
    ray.init(
        num_cpus=8,
        include_dashboard=False,
        namespace="ctrain-test",
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
