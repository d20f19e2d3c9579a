"""Score a version on its judged blocks and decide the gate again; nothing changes by it."""

import argparse

from ctrain.driver import verbs
from ctrain.driver.jobs import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Judge a version once more; nothing changes by it.")
    parser.add_argument("pipeline")
    parser.add_argument("--version", default="", help="id or label; the newest by default")
    parser.add_argument("--against", help="id or label; the champion by default, '' for nobody")
    parser.add_argument("--root", help="absolute; CTRAIN_ROOT or ~/.ctrain by default")
    a = parser.parse_args()
    return run(lambda: verbs.evaluate(a.pipeline, a.version, a.against, a.root))


if __name__ == "__main__":
    raise SystemExit(main())
