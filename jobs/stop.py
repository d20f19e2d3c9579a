"""Stop a pipeline; its root stays."""

import argparse

from ctrain.driver import verbs
from ctrain.driver.jobs import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Stop a pipeline; its root stays.")
    parser.add_argument("pipeline")
    parser.add_argument("--reason", required=True, help="why; it stands in the journal")
    parser.add_argument("--key", default="", help="idempotency key")
    a = parser.parse_args()
    return run(lambda: verbs.stop(a.pipeline, a.reason, a.key))


if __name__ == "__main__":
    raise SystemExit(main())
