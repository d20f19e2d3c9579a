"""Doors to rooms whose work is one Ray task a request: ingest, evaluation, monitoring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import ray

from ctrain.records import Failure


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
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Q], A],
        environment: Callable[[Q], dict[str, Any]],
        cpus: float = 0.5,
    ) -> None:
        self._name, self._environment = name, environment
        self._task = ray.remote(num_cpus=cpus, max_retries=1)(work)
        self._running: dict[str, ray.ObjectRef[A]] = {}

    def start(self, request: Q) -> None:
        """Begin, unless work with this key is under way."""
        if request.key in self._running:
            return
        task = self._task.options(
            name=f"{self._name}:{request.pipeline}:{request.key}",
            runtime_env=self._environment(request),
        )
        self._running[request.key] = task.remote(request)

    def poll(self) -> list[tuple[str, A] | Failure]:
        """Outcomes since the last poll; a task that raised gives a Failure with its first line."""
        outcomes: list[tuple[str, A] | Failure] = []
        for key, reference in list(self._running.items()):
            ready, _ = ray.wait([reference], timeout=0)
            if not ready:
                continue
            del self._running[key]
            try:
                outcomes.append((key, ray.get(reference)))
            except ray.exceptions.RayTaskError as error:
                outcomes.append(Failure(key, f"{type(error.cause).__name__}: {error.cause}"))
            except ray.exceptions.RayError as error:
                outcomes.append(Failure(key, str(error).splitlines()[0]))
        return outcomes
