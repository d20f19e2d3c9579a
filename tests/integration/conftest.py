import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One small Ray cluster for all integration tests."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
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
