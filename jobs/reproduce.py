"""Repeat the run of a version and compare the weights bit for bit: 0 if they are the same, 1 if not."""

import argparse

from ctrain.driver import verbs
from ctrain.driver.jobs import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Repeat a version's run and compare its weights.")
    parser.add_argument("pipeline")
    parser.add_argument("--version", default="", help="id or label; the champion by default")
    parser.add_argument("--root", help="absolute; CTRAIN_ROOT or ~/.ctrain by default")
    a = parser.parse_args()
    return run(lambda: verbs.reproduce(a.pipeline, a.version, a.root))


if __name__ == "__main__":
    raise SystemExit(main())
