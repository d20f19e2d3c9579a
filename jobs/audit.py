"""Verify a pipeline's journal and the hashes of its artifacts."""

import argparse

from ctrain.driver import verbs
from ctrain.driver.jobs import run


def main() -> int:
    parser = argparse.ArgumentParser(description="Verify the journal and every artifact's hash.")
    parser.add_argument("pipeline")
    parser.add_argument("--root", help="absolute; CTRAIN_ROOT or ~/.ctrain by default")
    a = parser.parse_args()
    return run(lambda: verbs.audit(a.pipeline, a.root))


if __name__ == "__main__":
    raise SystemExit(main())
