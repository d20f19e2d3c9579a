"""The Serve application of a pipeline: `ctrain.serving.app:build`, as Serve's config files name it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

from ctrain.serving.predictor import Limits, Predictor
from ctrain.storage import Root


@serve.deployment(
    name="predictor",
    # load is limited by the replica's own counter: broadcasts queue behind requests in this one
    max_ongoing_requests=1000,
    graceful_shutdown_timeout_s=20,
    health_check_period_s=5,
    health_check_timeout_s=20,
)
class PredictorDeployment(Predictor):
    """The replica, wrapped for Serve."""

    def __init__(self, pipeline: str, root: str, store: str, limits: dict[str, Any]) -> None:
        super().__init__(pipeline, Root(Path(root), store), Limits(**limits))
        # What is here now stays: a full collection that walks all of it stops the replica for 0.1 s.
        gc.collect()
        gc.freeze()

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        return await super().__call__(request)

    def __del__(self) -> None:
        """Called by Serve when the replica stops: the log is flushed."""
        if hasattr(self, "_puller"):
            self.close()


def build(args: dict[str, Any]) -> Application:
    """Build the application.

    Args:
        args: `pipeline`, `root` (absolute), `store` (may be empty), and any field of `Limits`.
    """
    limits = {name: value for name, value in args.items() if name not in ("pipeline", "root", "store")}
    deployment: Any = PredictorDeployment
    application: Application = deployment.bind(args["pipeline"], args["root"], args.get("store", ""), limits)
    return application
