"""Land one day and wait until it is committed or refused."""

import argparse

from ctrain.driver import verbs
from ctrain.driver.jobs import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Land one day, or wait for what has landed.")
    parser.add_argument("spec", help="the pipeline's YAML file")
    parser.add_argument("folder", nargs="?", help="folder named by its day; copied and sealed")
    parser.add_argument("--root", help="absolute; CTRAIN_ROOT or ~/.ctrain by default")
    parser.add_argument("--wait", type=float, default=300.0, help="seconds")
    a = parser.parse_args()
    return run(lambda: verbs.ingest(a.spec, a.folder, a.root, a.wait))


if __name__ == "__main__":
    raise SystemExit(main())
