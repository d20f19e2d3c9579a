"""The Ray cluster as a driver sees it: joining it, and asking the namespace's controller actor.

Ray is loaded when the cluster is first needed. Mutating calls carry an idempotency key, so a call that is
repeated while the actor restarts does its work once.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import urllib.error
import urllib.request
from typing import Any

from ctrain.errors import CtrainError, ServingError
from ctrain.records import Json

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Ours serves on this machine or cluster: proxies of the environment do not know it."""


def attach() -> None:
    """Join the Ray cluster of this machine, or of the job this runs in.

    Raises:
        CtrainError: if none answers.
    """
    import ray
    from ray.exceptions import RayError

    from ctrain.controller.actor import namespace

    if ray.is_initialized():
        return
    try:
        _reach(os.environ.get("RAY_ADDRESS", ""))
        ray.init(address="auto", namespace=namespace(), log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, RayError) as error:
        raise CtrainError(
            f"no Ray cluster answers ({error}). Start one with cluster/local.sh start and export what it "
            "prints, or run this with `ray job submit`"
        ) from None


def _reach(address: str) -> None:
    """Raises OSError at once where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def http_url() -> str:
    """Address of Serve: CTRAIN_URL, or host and port that ctrain starts it with."""
    host = os.environ.get("CTRAIN_HTTP_HOST", "127.0.0.1")
    shown = "127.0.0.1" if host == "0.0.0.0" else host
    return os.environ.get("CTRAIN_URL") or f"http://{shown}:{os.environ.get('CTRAIN_HTTP_PORT', '8000')}"


def ingress() -> str:
    """Which proxy stands before the replicas: Serve's switches count only where Ray was started."""
    from ray.exceptions import RayError
    from ray.util.state import list_actors

    try:
        found = list_actors(
            filters=[("class_name", "=", "HAProxyManager"), ("state", "=", "ALIVE")], timeout=5
        )
    except (RayError, OSError, RuntimeError, ValueError):
        return "a proxy that could not be told"
    if found:
        return "HAProxy"
    return (
        "Serve's Python proxy, which is slower and does not retry. For HAProxy, set "
        "RAY_SERVE_ENABLE_HA_PROXY=1 before Ray starts, as cluster/local.sh does"
    )


def controller() -> Any:
    """The namespace's controller actor.

    Raises:
        CtrainError: if there is no cluster, or no controller in it.
    """
    attach()
    from ctrain.controller.actor import find_controller, namespace

    try:
        return find_controller()
    except ValueError:
        raise CtrainError(
            f"no controller runs in namespace {namespace()}. Start a pipeline: ctrain start pipeline.yaml"
        ) from None


def ask(actor: Any, method: str, *arguments: Any) -> Json:
    """Call a mutating method; an answer that is a refusal raises."""
    answer: Json = ask_json(actor, method, *arguments)
    if not answer.get("ok"):
        raise CtrainError(f"refused with {answer.get('status')}: {answer.get('error')}")
    return answer


def ask_json(actor: Any, method: str, *arguments: Any) -> Any:
    """Call the actor, again while it restarts: mutating calls carry a key."""
    import ray
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayTaskError

    end = time.monotonic() + 60.0
    while True:
        try:
            return ray.get(getattr(actor, method).remote(*arguments), timeout=30)
        except RayTaskError as error:
            if isinstance(error.cause, CtrainError):
                raise error.cause from None  # without Ray's text around it
            raise
        except (ActorUnavailableError, GetTimeoutError) as error:
            if time.monotonic() > end:
                raise ServingError(f"the controller does not answer: {error}") from None
            time.sleep(0.5)


def wait_for_health(route: str, seconds: float) -> None:
    """Wait until an application answers.

    Raises:
        ServingError: with what it said last, once the time is over.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            with _DIRECT.open(f"{route}/health", timeout=5) as response:
                if response.status == 200:
                    return
                problem = f"answered {response.status}"
        except (urllib.error.URLError, OSError) as error:
            problem = str(error)
        if time.monotonic() > end:
            raise ServingError(
                f"{route}/health: {problem} after {seconds:g} s. The pipeline is hosted; see "
                "`ctrain status --attach`, and Serve's logs in the Ray dashboard"
            )
        time.sleep(0.25)
