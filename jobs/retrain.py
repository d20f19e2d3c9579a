"""Start a run now, and follow it to its end with --wait."""

import argparse
import json

from ctrain.driver import verbs
from ctrain.driver.jobs import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Retrain a pipeline's model.")
    parser.add_argument("pipeline")
    parser.add_argument("--reason", required=True, help="why; it stands in the journal")
    parser.add_argument("--overrides", type=json.loads, help='e.g. \'{"training": {"epochs": 3}}\'')
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to follow it; fails unless promoted")
    parser.add_argument("--key", default="", help="idempotency key")
    a = parser.parse_args()
    return run(lambda: verbs.retrain(a.pipeline, a.reason, a.overrides, a.wait, a.key))


if __name__ == "__main__":
    raise SystemExit(main())
