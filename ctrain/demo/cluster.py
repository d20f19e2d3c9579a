"""The demo's Ray side, a process of its own: it starts Ray and the pipeline, then obeys lines on stdin.

Takes one command a line (`controller`, `kill-controller`, `stop`), prints one JSON object for each but the
last. The table is drawn by the parent, which is no Ray driver, so that Ray's own warnings do not tear it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path

import ray

from ctrain.controller.actor import find_controller, get_or_create_controller
from ctrain.records import Json
from ctrain.spec import PipelineSpec, load_spec
from ctrain.storage import Root

LOGICAL_CPUS = 8
"""More than a laptop has: actors ask for fractions, and Serve, Train and Data must fit beside each other."""


def main() -> None:
    """Serve the demo until `stop`."""
    folder, spec_path = Path(sys.argv[1]), Path(sys.argv[2])
    ray.init(
        num_cpus=LOGICAL_CPUS,
        namespace="ctrain",
        object_store_memory=1_000_000_000,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    root = Root(folder / "root")
    say(_start(load_spec(spec_path), root, folder))
    for line in sys.stdin:
        command = line.strip()
        if command in ("controller", "kill-controller"):
            pid = ray.get(find_controller().ping.remote(), timeout=60)["pid"]
            if command == "kill-controller":
                os.kill(pid, signal.SIGKILL)
            say({"pid": pid})
        elif command == "stop":
            break
    ray.shutdown()


def say(answer: Json) -> None:
    """Print one answer."""
    print(json.dumps(answer), flush=True)


def _start(spec: PipelineSpec, root: Root, folder: Path) -> Json:
    source = spec.source.model_copy(update={"path": str(folder / "landing")})
    spec = spec.model_copy(update={"source": source})
    actor = get_or_create_controller(root)
    answer: Json = ray.get(
        actor.add.remote(spec.to_json(), str(root.path), "", "demo", "demo", "make demo"), timeout=120
    )
    return {**answer, "token": root.token()}


if __name__ == "__main__":
    main()
