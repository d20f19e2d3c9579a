"""Start a pipeline: `ray job submit --working-dir . -- python jobs/start.py pipeline.yaml`."""

import argparse

from ctrain.driver import verbs
from ctrain.driver.jobs import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Host a pipeline and wait until it answers.")
    parser.add_argument("spec", help="the pipeline's YAML file")
    parser.add_argument("--root", help="absolute; CTRAIN_ROOT or ~/.ctrain by default")
    parser.add_argument("--source", help="absolute path or URL in place of the spec's source.path")
    parser.add_argument("--reason", default="started by job")
    parser.add_argument("--key", default="", help="idempotency key")
    parser.add_argument("--wait", type=float, default=120.0, help="seconds to wait for /health; 0: none")
    a = parser.parse_args()
    return run(lambda: verbs.start(a.spec, a.root, a.reason, a.source, a.wait, a.key))


if __name__ == "__main__":
    raise SystemExit(main())
