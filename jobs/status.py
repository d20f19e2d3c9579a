"""Print where a pipeline stands, as JSON."""

import argparse

from ctrain.driver import verbs
from ctrain.driver.jobs import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Print where a pipeline stands, as JSON.")
    parser.add_argument("pipeline")
    a = parser.parse_args()
    return run(lambda: print(verbs.as_json(verbs.status(a.pipeline))))


if __name__ == "__main__":
    raise SystemExit(main())
