"""Print where a pipeline stands, as JSON."""

import argparse

from ctrain.controller import driver
from ctrain.controller.jobs import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Print where a pipeline stands, as JSON.")
    parser.add_argument("pipeline")
    a = parser.parse_args()
    return run(lambda: print(driver.as_json(driver.status(a.pipeline))))


if __name__ == "__main__":
    raise SystemExit(main())
