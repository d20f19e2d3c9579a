"""Load generator, a process of its own: one thread, one `select`, raw sockets, no retry.

Open loop (`--rate`): request i is due at start + i / rate whatever came back so far, and its latency
counts from then. Closed loop (`--rate 0`): each of `--connections` sends its next request when it has
the last answer. It ends after `--seconds` or when its stdin is closed, and writes one row a request:
when it was due (CLOCK_MONOTONIC), latency, HTTP status (0: no answer), number of the version in the
answer (-1: none). Its first line on stdout says when it began.
"""

from __future__ import annotations

import argparse
import re
import select
import socket
import sys
import time
from collections import deque

import numpy as np
from network import bodies

MOST_CONNECTIONS = 500
TIMEOUT = 30.0
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_VERSION = re.compile(rb'"version":"v(\d+)"')


class Connection:
    """One kept-alive connection; at most one request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = self.sent = 0.0
        self.busy = False
        self.received = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, request: tuple[bytes, ...], due: float) -> None:
        self.due, self.sent, self.busy, self.received = due, time.monotonic(), True, b""
        for part in request:
            self.socket.sendall(part)

    def answered(self) -> tuple[int, int, bool] | None:
        """(status, version, still open) once the answer is whole. Raises OSError if it never will be."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH.search(self.received, 0, end)
        if length is None or len(self.received) < end + 4 + int(length[1]):
            return None
        self.busy = False
        version = _VERSION.search(self.received, end)
        kept = b"connection: close" not in self.received[:end].lower()
        return int(self.received[9:12]), int(version[1]) if version else -1, kept


class Generator:
    """Sends until told to stop; `rows` holds what came of each request."""

    def __init__(
        self, port: int, path: str, rate: float, connections: int, apart: bool, keys: bool = True
    ) -> None:
        self.port, self.rate, self.wanted = port, rate, connections
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        parts = [(f"{head}Content-Length: {len(b)}\r\n\r\n".encode(), b) for b in bodies(keys=keys)]
        self.requests = parts if apart else [(b"".join(both),) for both in parts]
        self.rows: list[tuple[float, float, int, int]] = []
        self.open: set[Connection] = set()
        self.idle: list[Connection] = []
        self.number = 0

    def run(self, seconds: float) -> None:
        start = time.monotonic()
        print(start, flush=True)
        end, sent, waiting = start + seconds, 0, deque[float]()
        if not self.rate:
            for _ in range(self.wanted):
                self._send(time.monotonic())
        stopping, checked = False, start
        while True:
            now = time.monotonic()
            stopping = stopping or now >= end
            if not stopping and self.rate:
                while (due := start + sent / self.rate) <= now:
                    waiting.append(due)
                    sent += 1
            while waiting and (self.idle or len(self.open) < MOST_CONNECTIONS):
                self._send(waiting.popleft())
            if now - checked > 1:
                checked = now
                for late in [one for one in self.open if one.busy and now - one.sent > TIMEOUT]:
                    self._lost(late)
            if stopping and not waiting and not any(one.busy for one in self.open):
                return
            pause = start + sent / self.rate - now if self.rate and not stopping else 0.1
            readable = select.select([*self.open, sys.stdin], [], [], min(max(pause, 0), 0.1))[0]
            for one in readable:
                if one is sys.stdin:
                    stopping = True
                elif one in self.open:
                    self._read(one, again=not self.rate and not stopping)
            if stopping and sys.stdin in readable:
                time.sleep(0.001)

    def _send(self, due: float) -> None:
        request = self.requests[self.number % len(self.requests)]
        self.number += 1
        one: Connection | None = None
        try:
            one = self.idle.pop() if self.idle else Connection(self.port)
            self.open.add(one)
            one.send(request, due)
        except OSError:
            self.rows.append((due, time.monotonic() - due, 0, -1))
            self._drop(one)

    def _read(self, one: Connection, again: bool) -> None:
        try:
            answer = one.answered()
        except OSError:
            self._lost(one)
            if again:
                self._send(time.monotonic())
            return
        if answer is None:
            return
        now = time.monotonic()
        status, version, kept = answer
        self.rows.append((one.due, now - one.due, status, version))
        if kept:
            self.idle.append(one)
        else:
            self._drop(one)
        if again:
            self._send(now)

    def _lost(self, one: Connection) -> None:
        """A connection that the other side closed: a failure only if it owed an answer."""
        if one.busy:
            self.rows.append((one.due, time.monotonic() - one.due, 0, -1))
        self._drop(one)

    def _drop(self, one: Connection | None) -> None:
        if one is not None:
            self.open.discard(one)
            if one in self.idle:
                self.idle.remove(one)
            one.socket.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--apart", action="store_true", help="head and body in packets of their own")
    parser.add_argument("--keyless", action="store_true", help="requests without a key")
    parser.add_argument("--out", required=True)
    asked = parser.parse_args()
    generator = Generator(
        asked.port, asked.path, asked.rate, asked.connections, asked.apart, not asked.keyless
    )
    generator.run(asked.seconds)
    np.save(asked.out, np.array(generator.rows))


if __name__ == "__main__":
    main()
