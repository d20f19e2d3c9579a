"""The frame of a job: call one function, tell what went wrong, end with an exit code that means something.

0 done, 1 refused or failed, with the reason on stderr; argparse itself ends with 2 on wrong usage.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

from ctrain.errors import CtrainError


def run(verb: Callable[[], Any]) -> int:
    """Run a verb; gives the job's exit code."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a job's log is read as it grows
    try:
        verb()
    except CtrainError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was asked for goes on", file=sys.stderr)
        return 1
    except Exception:  # noqa: BLE001  # the last place that can record it
        traceback.print_exc()
        return 1
    return 0
