"""A replica's line to the controller: a pull a second in a thread of its own, and operators' calls.

Every wait has a time-out; the handle is looked up again after a failure, with a back-off. Nothing here
runs on the event loop.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from ctrain.errors import CtrainError

ACTOR = "ctrain-controller"


class ControllerAwayError(CtrainError, ConnectionError):
    """The controller did not answer in time."""


class ControllerLink:
    """Calls of the namespace's controller actor; methods block up to their time-out."""

    def __init__(self, namespace: str | None = None) -> None:
        self._namespace = namespace or os.environ.get("CTRAIN_NAMESPACE", "ctrain")
        self._handle: Any = None
        self._lock = threading.Lock()

    def call(self, method: str, *arguments: Any, timeout: float = 2.0) -> Any:
        """Call a method of the actor.

        Raises:
            ControllerAwayError: if there is no actor, it failed, or the time is over.
        """
        import ray
        from ray.exceptions import RayError

        try:
            handle = self._handle
            if handle is None:
                with self._lock:
                    handle = self._handle = ray.get_actor(ACTOR, namespace=self._namespace)
            return ray.get(getattr(handle, method).remote(*arguments), timeout=timeout)
        except (RayError, ValueError, AttributeError, TypeError, RuntimeError) as error:
            self._handle = None
            raise ControllerAwayError(f"{type(error).__name__}: {str(error)[:200]}") from None


class Puller:
    """Reports to the controller and takes its live document, once a second.

    Args:
        exchange: Sends a report and gives the document's JSON or None; may raise ControllerAwayError.
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
            except (
                CtrainError,
                LookupError,
                RuntimeError,
                TypeError,
                ValueError,
            ):  # the line must outlive them
                self.connected, pause = False, min(pause * 1.5, self._longest)
            if self._stop.wait(pause):
                return
