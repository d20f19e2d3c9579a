"""The demo's Ray process seen from outside: an environment of its own, questions, and how it died."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ctrain.errors import CtrainError
from ctrain.records import Json

SWITCHES = {
    "RAY_worker_niceness": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # The line after it is an option of HAProxy's own, for which Serve has no switch: wait for the body. One
    # that was under way in packets when its replica died could not be repeated.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response\n    option http-buffer-request",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
}
"""Ray reads these at its start: its own workers at normal priority, HAProxy in front, retries."""

_OF_ANOTHER_CLUSTER = (
    *("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS", "RAY_JOB_ID", "RAY_NAMESPACE"),
    *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
    *("CTRAIN_ROOT", "CTRAIN_STORE", "CTRAIN_NAMESPACE", "CTRAIN_JOURNAL", "CTRAIN_URL", "CTRAIN_TOKEN"),
)
"""What `cluster/local.sh env` exports, and what a job has: the demo starts a Ray of its own beside it."""

_PORTS = {
    "CTRAIN_HTTP_PORT": 8000,
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": 9500,
}
_RANGES = ("RAY_SERVE_DIRECT_INGRESS_{}_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_{}_GRPC_PORT")
_RANGE = 100
TAIL = 15
"""Lines of its log that are shown when it died."""


def environment(outer: Mapping[str, str]) -> dict[str, str]:
    """The environment of the demo's Ray: no other cluster's address, ports that are free.

    Args:
        outer: Environment of this process.
    """
    kept = {name: value for name, value in outer.items() if name not in _OF_ANOTHER_CLUSTER}
    ports = {name: usual if _is_free(usual) else _some_port() for name, usual in _PORTS.items()}
    first = 30_000
    for template in _RANGES:
        while not all(_is_free(port) for port in range(first, first + _RANGE)):
            first += _RANGE
        ports |= {template.format("MIN"): first, template.format("MAX"): first + _RANGE - 1}
        first += _RANGE
    return {**kept, **SWITCHES, **{name: str(port) for name, port in ports.items()}}


class Child:
    """The process, which takes one line at a time and answers each with one JSON object.

    Args:
        command: What to run.
        environment: Its whole environment.
        log: File that takes everything else it says.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("a") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=dict(environment),
            )

    def answer(self) -> Json:
        """The next answer; what else is printed, Ray's own warnings among it, goes into the log.

        Raises:
            CtrainError: if the process ended instead, with the end of its log.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict):
                    return answer
            with self._log.open("a") as log:
                log.write(line)
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(f"  {text}" for text in lines[-TAIL:]) or "  (its log is empty)"
        raise CtrainError(f"the demo's Ray process ended. The whole log is {self._log}; its end:\n{tail}")

    def ask(self, line: str) -> Json:
        """Send a line and wait for its answer. Raises as `answer`."""
        self._tell(line)
        return self.answer()

    def end(self, seconds: float = 60.0) -> None:
        """Ask it to stop; kill it if it does not."""
        self._tell("stop")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)
        self._process.kill()
        self._process.wait()

    def _tell(self, line: str) -> None:
        if self._process.stdin is not None and self._process.poll() is None:
            with suppress(BrokenPipeError):
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()


def ray_side(folder: Path, spec: Path) -> tuple[Child, str]:
    """Start the demo's Ray and its pipeline; gives the process and the address of Serve."""
    variables = environment(os.environ)
    command = [sys.executable, "-m", "ctrain.demo.cluster", str(folder), str(spec)]
    child = Child(command, variables, folder / "ray.log")
    return child, f"http://127.0.0.1:{variables['CTRAIN_HTTP_PORT']}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def _some_port() -> int:
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port: int = probe.getsockname()[1]
        return port
