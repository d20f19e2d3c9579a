"""What the benchmarks share: a private Ray as `make demo` starts it, versions, load, CPU, figures.

Import it first: Serve reads its switches when it is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from ports import own_serve  # noqa: E402

from ctrain.demo.story import ENVIRONMENT  # noqa: E402

os.environ.update(ENVIRONMENT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import psutil  # noqa: E402

PIPELINE = "bench"
NAMESPACE = f"ctrain-bench-{os.getpid()}"
os.environ["CTRAIN_NAMESPACE"] = NAMESPACE

MODEL = {"type": "module", "factory": "network:mlp"}


@contextmanager
def cluster() -> Iterator[tuple[Any, int]]:
    """A private Ray; gives (root, HTTP port) and takes everything down at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ctb", dir="/tmp"))
    os.environ.update(own_serve(folder))
    port = int(os.environ["CTRAIN_HTTP_PORT"])
    import ray

    from ctrain.storage import Root

    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        namespace=NAMESPACE,
        object_store_memory=300_000_000,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=str(folder / "ray"),
    )
    try:
        yield Root(folder / "root"), port
    finally:
        ours = psutil.Process().children(recursive=True)
        ray.shutdown()
        for process in psutil.wait_procs(ours, timeout=5)[1]:
            with suppress(psutil.Error):
                process.kill()
        if not os.environ.get("CTRAIN_BENCH_KEEP"):
            shutil.rmtree(folder, ignore_errors=True)


def register(
    root: Any, count: int, hidden: int = 128, models: list[dict[str, Any]] | None = None
) -> list[Any]:
    """Write `count` versions whose weights differ a little, without training; gives their slots.

    `models` are their networks' specs, of one architecture; by default plain ones with `hidden` units.
    """
    import safetensors.torch
    import torch
    from network import NAMES, view

    from ctrain.features.statistics import PartitionStatistics
    from ctrain.features.view import columns_to_json
    from ctrain.models.build import build_module
    from ctrain.models.encoder import Encoder
    from ctrain.records import Slot
    from ctrain.registry.versions import TrainedSet, write_version

    seen = np.random.default_rng(0).standard_normal((1000, len(NAMES)))
    arrays = {name: seen[:, at] for at, name in enumerate(NAMES)}
    encoder = Encoder.fit(PartitionStatistics.of(arrays), 8, 1)
    torch.manual_seed(0)
    plain = {**MODEL, "arguments": {"hidden": hidden}}
    base = build_module(plain, encoder.inputs).state_dict()
    slots = []
    for number in range(1, count + 1):
        model = models[number - 1] if models else plain
        tensors = {name: value + 1e-3 * torch.randn_like(value) for name, value in base.items()}
        weights = [TrainedSet("served", safetensors.torch.save(tensors), encoder.to_json())]
        fields = {
            "pipeline": PIPELINE, "run_id": f"r{number}", "code": "", "features": "network:view",
            "view_hash": view.hash, "columns": columns_to_json(view.columns), "model": model, "label": "y",
            "threshold": 0.5, "dataset_version": 0, "partitions": ("day-3",), "blocks": (), "seed": number,
            "workers": 1, "parent": "", "rows": 100, "spec_sha256": "", "environment": {}, "metrics": {},
        }  # fmt: skip
        version = write_version(root, fields, weights)
        slots.append(Slot(version.id, f"v{number}", version.served.sha256))
    (root.path / "versions.json").write_text(json.dumps([slot.version for slot in slots]))
    return slots


def spec(replicas: int = 2) -> dict[str, Any]:
    """A pipeline whose rollouts wait for the benchmark's own word in their first canary step."""
    return {
        "pipeline": PIPELINE,
        "owner": "benchmarks",
        "source": {"type": "files", "path": "/landing", "event_time": "t", "poll": 3600},
        "features": "network:view",
        "label": {"name": "y"},
        "model": MODEL,
        "evaluation": {"blocks": 2},
        "rollout": {
            "type": "canary", "shadow": 0, "steps": [0.5], "hold": "1h",
            "error_margin": 0.9, "slow_margin": 1e6, "disagreement": 1.0, "shift": 1.0,
        },
        "serving": {"replicas": replicas},
        "monitoring": {"window": "1h"},
        "triggers": [{"type": "new_data", "partitions": 3}],
    }  # fmt: skip


def until(what: str, done: Callable[[], Any], seconds: float = 90.0, every: float = 0.02) -> Any:
    """Wait for something true and give it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := done():
            return found
        time.sleep(every)
    raise TimeoutError(f"{what}: not within {seconds:.0f} s")


def answers(port: int, path: str) -> bool:
    """Whether one prediction is answered 200."""
    import httpx2
    from network import bodies

    try:
        return httpx2.post(f"http://127.0.0.1:{port}{path}", content=bodies(1)[0], timeout=5).is_success
    except httpx2.HTTPError:
        return False


class Load:
    """The load generator's process; `result` ends it and gives its rows."""

    def __init__(
        self,
        port: int,
        path: str,
        rate: float,
        connections: int = 16,
        seconds: float = 1e9,
        apart: bool = False,
        keyless: bool = False,
    ) -> None:
        file, self._out = tempfile.mkstemp(suffix=".npy")
        os.close(file)
        command = [sys.executable, str(HERE / "load.py"), "--port", str(port), "--path", path]
        command += ["--rate", str(rate), "--connections", str(connections)]
        command += ["--seconds", str(seconds), "--out", self._out, *(["--apart"] if apart else [])]
        command += ["--keyless"] if keyless else []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.began = float(self.process.stdout.readline())

    def result(self, stop: bool = True) -> npt.NDArray[np.float64]:
        """Columns: due, latency, status, version."""
        assert self.process.stdin is not None
        if stop:
            self.process.stdin.close()
        self.process.wait(timeout=700)
        rows: npt.NDArray[np.float64] = np.load(self._out)
        Path(self._out).unlink()
        return rows.reshape(-1, 4)[np.argsort(rows.reshape(-1, 4)[:, 0])]


def failed(rows: npt.NDArray[np.float64]) -> int:
    """Requests without a 200."""
    return int((rows[:, 2] != 200).sum())


def quantile(rows: npt.NDArray[np.float64], share: float) -> float:
    """Latency in milliseconds; NaN without rows."""
    return float(np.quantile(rows[:, 1], share)) * 1000 if len(rows) else float("nan")


def within(rows: npt.NDArray[np.float64], start: float, end: float) -> npt.NDArray[np.float64]:
    """Requests that were due in [start, end)."""
    return rows[(rows[:, 0] >= start) & (rows[:, 0] < end)]


class Cpu:
    """CPU seconds of all processes below this one, the load generator's apart."""

    def __init__(self) -> None:
        self._before = self._read()

    @staticmethod
    def _read() -> dict[tuple[int, float], tuple[str, float]]:
        found = {}
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                words = process.cmdline() or [process.name()]
                role = words[0].split()[0].rsplit("/", 1)[-1]
                if role.startswith("python"):
                    role = next((w.rsplit("/", 1)[-1] for w in words[1:] if w.endswith(".py")), role)
                times = process.cpu_times()
                found[process.pid, process.create_time()] = (role, times.user + times.system)
        return found

    def since(self) -> dict[str, float]:
        """Seconds by role since this was made; what ended in between is lost."""
        used: dict[str, float] = defaultdict(float)
        for key, (role, seconds) in self._read().items():
            used[role] += seconds - self._before.get(key, (role, 0.0))[1]
        return dict(used)


def micros(used: dict[str, float], requests: int) -> tuple[float, dict[str, float]]:
    """Microseconds a request: all but the load generator, and the largest roles."""
    by_role = {role: round(s * 1e6 / requests, 1) for role, s in used.items() if role != "load.py"}
    largest = dict(sorted(by_role.items(), key=lambda item: -item[1])[:6])
    return round(sum(by_role.values()), 1), largest


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def report(figures: dict[str, Any]) -> None:
    """The last line: one JSON object."""
    loaded = [round(value, 2) for value in os.getloadavg()]
    print(json.dumps({**figures, "machine": {"cpus": os.cpu_count(), "load_average": loaded}}), flush=True)
