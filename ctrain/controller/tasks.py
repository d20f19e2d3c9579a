"""Doors to rooms whose work is one Ray task a request (ingest, evaluation, monitoring), or a thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import ray

from ctrain.records import Failure, Sighting

log = logging.getLogger("ctrain.controller")


class _Request(Protocol):
    """What every request to a room carries."""

    @property
    def key(self) -> str: ...

    @property
    def pipeline(self) -> str: ...


Q = TypeVar("Q", bound=_Request)
A = TypeVar("A")


class TaskRoom(Generic[Q, A]):
    """Runs `work(request)` as a Ray task for each key, and hands its outcome out once.

    Args:
        name: Name of the room, which the Ray dashboard shows.
        work: Function in an importable module; it must do its work once however often it is called.
        environment: Ray runtime environment for a request: the pipeline's user code.
        cpus: Logical CPUs of a task.
        timeout: Seconds after which a task is ended: one that hangs must not hold up the loop for ever.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Q], A],
        environment: Callable[[Q], dict[str, Any]],
        cpus: float = 0.5,
        timeout: float = 3600.0,
    ) -> None:
        self._name, self._environment, self._timeout = name, environment, timeout
        self._task = ray.remote(num_cpus=cpus, max_retries=1)(work)
        self._running: dict[str, tuple[ray.ObjectRef[A], float]] = {}

    def start(self, request: Q) -> None:
        """Begin, unless work with this key is under way."""
        if request.key in self._running:
            return
        task = self._task.options(
            name=f"{self._name}:{request.pipeline}:{request.key}",
            runtime_env=self._environment(request),
        )
        self._running[request.key] = (task.remote(request), time.monotonic())

    def poll(self) -> list[tuple[str, A] | Failure]:
        """Outcomes since the last poll; a task that raised gives a Failure with its first line."""
        outcomes: list[tuple[str, A] | Failure] = []
        for key, (reference, began) in list(self._running.items()):
            ready, _ = ray.wait([reference], timeout=0)
            late = time.monotonic() - began > self._timeout
            if not ready and not late:
                continue
            del self._running[key]
            if not ready:
                ray.cancel(reference, force=True)
                outcomes.append(Failure(key, f"no result within {self._timeout:.0f} s"))
                continue
            try:
                outcomes.append((key, ray.get(reference)))
            except ray.exceptions.RayTaskError as error:
                outcomes.append(Failure(key, f"{type(error.cause).__name__}: {error.cause}"))
            except ray.exceptions.RayError as error:
                outcomes.append(Failure(key, str(error).splitlines()[0]))
        return outcomes


class LookRoom:
    """Door `Source`: looks from a thread, since listing a store takes seconds that a rollout may not wait.

    Args:
        look: As `FileSource.look`.
    """

    def __init__(self, look: Callable[[dict[str, str]], Sequence[Sighting]]) -> None:
        self._look = look
        self._thread: threading.Thread | None = None
        self._found: Sequence[Sighting] | Failure | None = None

    def start(self, known: dict[str, str]) -> None:
        """Begin to look, unless a look is under way."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, args=(known,), name="source-look", daemon=True)
            self._thread.start()

    def poll(self) -> Sequence[Sighting] | Failure | None:
        """What the look found, once."""
        found, self._found = self._found, None
        return found

    def _run(self, known: dict[str, str]) -> None:
        try:
            self._found = self._look(known)
        except Exception as error:
            log.exception("the source cannot be looked at")
            self._found = Failure("look", f"{type(error).__name__}: {error}")
