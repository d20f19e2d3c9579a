"""The main job on real data: the whole loop on flights out of New York in 2013, under live traffic.

Ends with 0 only if every event of the story happened and not one request failed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from ctrain.demo.screen import Screen
from ctrain.demo.story import Story
from ctrain.errors import CtrainError


def main() -> int:
    """Parse, tell the story, say where to look next."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo-output"), help="made anew at each run")
    folder = parser.parse_args().folder.absolute()
    if folder.exists():
        if not (folder / "landing").exists():
            print(f"{folder} exists and is no earlier demo's folder; give another --folder", file=sys.stderr)
            return 2
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    with Screen() as screen:
        try:
            happened = Story(folder, screen).tell()
        except (TimeoutError, CtrainError) as error:
            screen.say(f"gave up: {error}")
            return 1
    print(f"look next: {folder}/demo.png, {folder}/root/flights-late/journal.db (every decision),")
    print(f"  {folder}/root/models (weights and manifests), README.md (your own pipeline)")
    return 0 if happened else 1


if __name__ == "__main__":
    sys.exit(main())
