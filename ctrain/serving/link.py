"""A replica's line to the controller: a pull a second in a thread of its own, and operators' calls.

Every wait has a time-out: also the look-up of the actor, which hangs while Ray's head is away, and is made
again after a failure, by one thread however many callers wait. Nothing here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from ctrain.errors import CtrainError
from ctrain.serving.weights import FAILURES
from ctrain.telemetry.log import logger

_log = logger("serving")

ACTOR = "ctrain-controller"


class ControllerAwayError(CtrainError, ConnectionError):
    """The controller did not answer in time."""


class ControllerBusyError(ControllerAwayError):
    """As many calls as this replica makes at once are under way."""


class ControllerLink:
    """Calls of the namespace's controller actor; methods block up to their time-out."""

    def __init__(self, namespace: str | None = None) -> None:
        self._namespace = namespace or os.environ.get("CTRAIN_NAMESPACE", "ctrain")
        self._found: Future[Any] | None = None
        self._lock = threading.Lock()

    def call(self, method: str, *arguments: Any, timeout: float = 2.0) -> Any:
        """Call a method of the actor.

        Raises:
            ControllerAwayError: if there is no actor, it failed, or the time is over.
        """
        import ray
        from ray.exceptions import RayError

        end = time.monotonic() + timeout
        found = self._look_up()
        try:
            handle = found.result(timeout)
            return ray.get(
                getattr(handle, method).remote(*arguments), timeout=max(0.0, end - time.monotonic())
            )
        except (RayError, ValueError, AttributeError, TypeError, RuntimeError, TimeoutError) as error:
            with self._lock:
                if self._found is found and found.done():
                    self._found = None
            raise ControllerAwayError(f"{type(error).__name__}: {str(error)[:200]}") from None

    def _look_up(self) -> Future[Any]:
        """The handle, or the look-up under way."""
        with self._lock:
            if self._found is None:
                self._found = found = Future[Any]()
                threading.Thread(
                    target=self._get_actor, args=(found,), name="controller-look-up", daemon=True
                ).start()
            return self._found

    def _get_actor(self, found: Future[Any]) -> None:
        import ray

        try:
            found.set_result(ray.get_actor(ACTOR, namespace=self._namespace))
        except FAILURES as error:  # handed to those who wait
            found.set_exception(error)


class Calls:
    """Calls of the event loop over a link: a few threads of their own, so that a controller that hangs
    keeps no thread from scoring and labels.

    Args:
        link: As `ControllerLink`.
        most: Calls at once; beyond them `ControllerBusyError` is raised at once.
    """

    def __init__(self, link: Any, most: int = 8) -> None:
        self._link = link
        self._free = threading.BoundedSemaphore(most)
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="controller-call")

    async def call(self, method: str, *arguments: Any, timeout: float) -> Any:
        """Call a method of the controller; goes on where the caller is cancelled.

        Raises:
            ControllerAwayError: as the link does.
        """
        if not self._free.acquire(blocking=False):
            raise ControllerBusyError("too many calls at once")
        work = self._pool.submit(partial(self._link.call, method, *arguments, timeout=timeout))
        work.add_done_callback(lambda _: self._free.release())
        return await asyncio.shield(asyncio.wrap_future(work))

    def close(self) -> None:
        """Make no more calls."""
        self._pool.shutdown(wait=False)


class Puller:
    """Reports to the controller and takes its live document, once a second.

    Args:
        exchange: Sends a report and gives the document's JSON or None; may raise.
        take: Called with each document that came.
    """

    def __init__(
        self,
        exchange: Callable[[], Any],
        take: Callable[[Any], None],
        period: float = 1.0,
        longest: float = 4.0,
    ) -> None:
        self._exchange, self._take = exchange, take
        self._period, self._longest = period, longest
        self._stop = threading.Event()
        self.connected = False
        self._thread = threading.Thread(target=self._run, name="controller-pull", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()

    def _run(self) -> None:
        pause = self._period
        while True:
            try:
                document = self._exchange()
                self.connected, pause = True, self._period
                if document is not None:
                    self._take(document)
            except ControllerAwayError:
                self.connected, pause = False, min(pause * 1.5, self._longest)
            except FAILURES as error:  # the line outlives everything
                _log.warning("pull failed: %s", error)
                self.connected, pause = False, min(pause * 1.5, self._longest)
            if self._stop.wait(pause):
                return
