"""Land every day below a folder, oldest first."""

import argparse

from ctrain.driver import verbs
from ctrain.driver.jobs import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Land every day below a folder and wait for all.")
    parser.add_argument("spec", help="the pipeline's YAML file")
    parser.add_argument("folder", help="folder of folders that are named by their days")
    parser.add_argument("--root", help="absolute; CTRAIN_ROOT or ~/.ctrain by default")
    parser.add_argument("--wait", type=float, default=3600.0, help="seconds")
    a = parser.parse_args()
    return run(lambda: verbs.backfill(a.spec, a.folder, a.root, a.wait))


if __name__ == "__main__":
    raise SystemExit(main())
