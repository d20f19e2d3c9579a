"""What all spec modules share: a frozen base that refuses unknown keys, durations, import paths."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*(ms|s|min|m|h|d|w)\s*$")
_IMPORT_PATH = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


class Spec(BaseModel):
    """Base of every part of a spec: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def seconds(value: Any) -> float:
    """Read a duration: a number of seconds, or text such as `50ms`, `30s`, `5min`, `12h`, `60d`.

    Raises:
        ValueError: if the text has no unit that is known, or is negative.
    """
    if isinstance(value, bool):
        raise ValueError("expected a duration such as 30s, 5min, 12h or 60d")
    if isinstance(value, int | float):
        return float(value)
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration; expected e.g. 50ms, 30s, 5min, 12h, 60d")
    return float(match[1]) * _UNITS[match[2]]


def _import_path(value: Any) -> Any:
    if isinstance(value, str) and not _IMPORT_PATH.match(value):
        raise ValueError(f"{value!r} is not an import path; expected module:attribute")
    return value


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0)]
"""Seconds, written as a number or as text with a unit."""

PositiveDuration = Annotated[float, BeforeValidator(seconds), Field(gt=0)]

ImportPath = Annotated[str, BeforeValidator(_import_path)]
"""`module:attribute` of user code."""

Share = Annotated[float, Field(ge=0, le=1)]
