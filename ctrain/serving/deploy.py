"""The replicas of one pipeline as the controller steers them: a declarative app, documents, reports.

Takes live documents and replicas' reports; gives what is observed. Apps are written by Serve's own
declarative client (`deploy_apps`, 0.04 s; a `serve.run` would restart every replica), which replaces the
whole list of apps: one lock of the process guards each read-modify-write, and only the namespace's
controller writes. Serve is imported at the top: two threads that import it at once, as after a restart,
leave it half imported for good. Broadcasts and look-ups run in threads, so that a replica that hangs holds
up nobody.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.api import serve_start
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeDeploySchema

from ctrain.errors import DeployError, StorageError
from ctrain.records import LiveDocument, Observed, ReplicaReport, from_json, to_json
from ctrain.spec import PipelineSpec
from ctrain.storage import Root
from ctrain.telemetry.log import logger

_log = logger("serving")
_APPS = threading.Lock()
"""Guards Serve's list of apps: a PUT has no compare-and-swap and deletes what it does not name."""

DEPLOYMENT = "predictor"
IMPORT_PATH = "ctrain.serving.app:build"
_HEARD_FOR = 10.0
_LOOK_EVERY = 5.0
_GOING = ("STOPPING",)
_PASSED_ON = ("CTRAIN_STORE", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_worker_niceness")


class RayServing:
    """Door `Serving` of one pipeline, over Ray Serve.

    Args:
        pipeline: Name of the pipeline: the app's name and route.
        root: Where the live document goes.
        spec: The pipeline's spec.
        namespace: Namespace of the controller that replicas pull from.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        pipeline: str,
        root: Root,
        spec: PipelineSpec,
        namespace: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # sync calls of a handle need a router of its own loop under the throughput flags
        os.environ.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "1")
        self._pipeline, self._root, self._spec, self._namespace = pipeline, root, spec, namespace
        self._clock = clock
        self._lock = threading.Lock()
        self._reports: dict[str, tuple[float, ReplicaReport]] = {}
        self._handle: Any = None
        self._sending: LiveDocument | None = None
        self._sender: threading.Thread | None = None
        self._looker: threading.Thread | None = None
        self._looked = float("-inf")
        self._expected: tuple[str, ...] | None = None
        self._deployed = True
        self._configured: int | None = None
        self._writes = 0
        """Counts our own writes of the configuration: a look that began before one is out of date."""

    def deploy(self, document: LiveDocument) -> None:
        """Create the application, or bring what the spec owns of it up to date; other options stay.

        Raises:
            DeployError: if Serve refuses it.
        """
        wanted = self.app_config(document)
        with _APPS:
            apps = self._apps()
            found = apps.get(self._pipeline)
            config = wanted if found is None else with_spec(found, wanted)
            if config != found:
                apps[self._pipeline] = config
                self._put(apps)
        self._wrote(None)

    def apply(self, document: LiveDocument) -> None:
        """Broadcast the document from a thread, the newest one wins, and write it to storage.

        Storage that is away holds up no broadcast: what is resident can be rolled back without it.

        Raises:
            OSError, StorageError: if it could not be written at a second try either; it is under way to the
                replicas all the same.
        """
        with self._lock:
            if self._sending is None or document.order >= self._sending.order:
                self._sending = document
            if self._sender is None or not self._sender.is_alive():
                self._sender = threading.Thread(target=self._send, name="broadcast", daemon=True)
                self._sender.start()
        try:
            self._root.write_live(document)
        except (OSError, StorageError) as error:
            _log.warning(
                "live document not written, tried again: %s", error, extra={"pipeline": self._pipeline}
            )
            self._root.write_live(document)

    def settle(self, document: LiveDocument) -> None:
        """Put the document into the app's `user_config`; options that an operator set stay.

        Raises:
            DeployError: if Serve refuses it.
        """
        with _APPS:
            apps = self._apps()
            config = apps.get(self._pipeline)
            if config is None:
                config = self.app_config(document)
            ours = _deployment(config)
            if ours.get("user_config") != to_json(document) or self._pipeline not in apps:
                ours["user_config"] = to_json(document)
                apps[self._pipeline] = config
                self._put(apps)
        self._wrote(document.generation)

    def heard(self, report: ReplicaReport) -> None:
        """Note what a replica says of itself."""
        now = self._clock()
        with self._lock:
            known = self._reports.get(report.replica)
            if known is None or known[1].at <= report.at:
                self._reports[report.replica] = (now, report)
            old = [name for name, (at, _) in self._reports.items() if now - at > _HEARD_FOR]
            for name in old:
                del self._reports[name]

    def observe(self) -> Observed:
        """Reports of the last ten seconds, and the replicas that Serve means to run; never waits."""
        now = self._clock()
        with self._lock:
            if now - self._looked > _LOOK_EVERY and (self._looker is None or not self._looker.is_alive()):
                self._looked = now
                self._looker = threading.Thread(target=self._look, name="serve-status", daemon=True)
                self._looker.start()
            reports = tuple(report for at, report in self._reports.values() if now - at <= _HEARD_FOR)
            return Observed(reports, self._expected, self._deployed, self._configured)

    def remove(self) -> None:
        """Delete the application."""
        with _APPS:
            apps = self._apps()
            if apps.pop(self._pipeline, None) is not None:
                self._put(apps)
        self._handle = None

    def app_config(self, document: LiveDocument | None = None) -> dict[str, Any]:
        """The application as Serve's config schema has it."""
        serving = self._spec.serving
        variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        variables["CTRAIN_NAMESPACE"] = self._namespace
        deployment: dict[str, Any] = {
            "name": DEPLOYMENT,
            "num_replicas": serving.replicas,
            "max_ongoing_requests": 1000,
            "ray_actor_options": {
                "num_cpus": serving.cpus_per_replica,
                "runtime_env": {"env_vars": variables},
            },
        }
        if document is not None:
            deployment["user_config"] = to_json(document)
        return {
            "name": self._pipeline,
            "route_prefix": f"/{self._pipeline}",
            "import_path": IMPORT_PATH,
            # explicit, or the app would inherit the environment of whoever started Serve
            "runtime_env": {"env_vars": variables},
            "args": {
                "pipeline": self._pipeline,
                "root": str(self._root.path),
                "store": self._root.store,
                "max_in_flight": serving.max_in_flight,
                "body_limit": serving.body_limit,
                "flush": serving.flush,
                "start_timeout": serving.start_timeout,
                "horizon": self._spec.label.horizon,
            },
            "deployments": [deployment],
        }

    def _wrote(self, generation: int | None) -> None:
        with self._lock:
            self._writes += 1
            self._configured, self._deployed = generation, True
            self._looked = float("-inf")

    # --- Serve -------------------------------------------------------------------------------

    def _apps(self) -> dict[str, dict[str, Any]]:
        """Declarative apps by name, as they were configured. Lock held."""
        details = _client().get_serve_details()
        return {
            name: app["deployed_app_config"]
            for name, app in details.get("applications", {}).items()
            if app.get("deployed_app_config") and app.get("status") != "DELETING"
        }

    def _put(self, apps: dict[str, dict[str, Any]]) -> None:
        try:
            _client().deploy_apps(ServeDeploySchema.model_validate({"applications": list(apps.values())}))
        except (RayError, ValidationError, ValueError) as error:
            raise DeployError(self._pipeline, f"Serve refused it: {error}") from error

    def _send(self) -> None:
        while True:
            with self._lock:
                document, self._sending = self._sending, None
                if document is None:
                    self._sender = None
                    return
            self._broadcast(document)

    def _broadcast(self, document: LiveDocument) -> None:
        """Send to all routed replicas; those that miss it pull it within a second."""
        try:
            if self._handle is None:
                self._handle = serve.get_deployment_handle(DEPLOYMENT, self._pipeline)
            response = self._handle.broadcast("reconfigure", to_json(document))
            results = response.results(timeout_s=5.0, return_exceptions=True)
        except (RayError, RayServeException, KeyError, RuntimeError, TimeoutError, ValueError) as error:
            self._handle = None
            _log.info("broadcast missed: %s", error, extra={"pipeline": self._pipeline})
            return
        for result in results:
            if not isinstance(result, dict):
                continue
            try:
                self.heard(from_json(ReplicaReport, result))
            except ValidationError:
                _log.warning("unreadable report", extra={"pipeline": self._pipeline})

    def _look(self) -> None:
        with self._lock:
            writes = self._writes
        try:
            app = _client().get_serve_details().get("applications", {}).get(self._pipeline)
        except (RayError, RayServeException, DeployError, RuntimeError, TimeoutError, ValueError):
            with self._lock:
                self._expected = None
            return
        expected: list[str] = []
        for replica in ((app or {}).get("deployments", {}).get(DEPLOYMENT) or {}).get("replicas", []):
            if str(replica["state"]) not in _GOING:
                expected.append(replica["replica_id"])
        with self._lock:
            self._expected = tuple(sorted(expected))
            if writes == self._writes:
                self._deployed = app is not None
                self._configured = _generation(app)


def with_spec(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """An app's config with what the spec owns in it: arguments, replicas and their processors.

    Replicas are an operator's where the deployment scales by itself.

    Args:
        found: The app as it is configured; stays as it is.
        wanted: As the spec has it.
    """
    config = copy.deepcopy(found)
    config["args"] = wanted["args"]
    ours, own = _deployment(config), _deployment(wanted)
    if not ours.get("autoscaling_config") and ours.get("num_replicas") != "auto":
        ours["num_replicas"] = own["num_replicas"]
    options = ours["ray_actor_options"] = ours.get("ray_actor_options") or {}
    options["num_cpus"] = own["ray_actor_options"]["num_cpus"]
    return config


def _deployment(config: dict[str, Any]) -> dict[str, Any]:
    """The predictor's part of an app's config; added if it is not there."""
    deployments = config.setdefault("deployments", [])
    ours: dict[str, Any] | None = next((one for one in deployments if one["name"] == DEPLOYMENT), None)
    if ours is None:
        ours = {"name": DEPLOYMENT}
        deployments.append(ours)
    return ours


def _generation(app: dict[str, Any] | None) -> int | None:
    """Generation of the `user_config` that the app was configured with; 0 without one of ours."""
    if app is None or not app.get("deployed_app_config"):
        return None
    for deployment in app["deployed_app_config"].get("deployments", []):
        if deployment["name"] == DEPLOYMENT:
            return int((deployment.get("user_config") or {}).get("generation", 0))
    return 0


def _client() -> Any:
    """Serve's declarative client; starts Serve where it does not run."""

    host = os.environ.get("CTRAIN_HTTP_HOST", "127.0.0.1")
    port = int(os.environ.get("CTRAIN_HTTP_PORT", "8000"))
    try:
        return serve_start(http_options={"host": host, "port": port}, proxy_location="EveryNode")
    except (RayError, RuntimeError, TimeoutError) as error:
        raise DeployError("serve", f"Serve cannot be reached: {error}") from error
