"""Ports and files of a Serve of our own: another one may run on this machine."""

from __future__ import annotations

import random
import socket
from pathlib import Path

SIZE = 60
"""Ports of one Serve: HTTP, HAProxy's, the fallback's, and 25 each for the replicas' HTTP and gRPC."""


def own_serve(folder: Path) -> dict[str, str]:
    """Environment of a Serve that shares nothing with any other.

    Args:
        folder: Exists; HAProxy keeps its files below it.
    """
    first = _free_block()
    ports = {
        "CTRAIN_HTTP_PORT": first,
        "RAY_SERVE_HAPROXY_METRICS_PORT": first + 1,
        "RAY_SERVE_HAPROXY_STATS_PORT": first + 2,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": first + 3,
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": first + 4,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": first + 10,
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": first + 34,
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": first + 35,
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": first + 59,
    }
    files = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": folder / "haproxy" / "haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": folder / "haproxy" / "admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": folder / "haproxy" / "metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder / "haproxy",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": folder / "haproxy" / "server-state",
    }
    (folder / "haproxy").mkdir()
    return {name: str(value) for name, value in (ports | files).items()}


def _free_block() -> int:
    """First of `SIZE` free ports below the ephemeral ones, where no other cluster's replicas stand."""
    while True:
        first = random.randrange(12_000, 29_000)
        if all(_is_free(first + at) for at in range(SIZE)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
