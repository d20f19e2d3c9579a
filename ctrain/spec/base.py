"""What all spec modules share: a frozen base that refuses unknown keys, faults, durations, import paths."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*(ms|s|min|m|h|d|w)\s*$")
_IMPORT_PATH = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


class Spec(BaseModel):
    """Base of every part of a spec: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def fault(message: str, hint: str = "") -> PydanticCustomError:
    """What a validator raises: the problem and, apart from it, a hint at what is right.

    Args:
        message: What is wrong; names what was found.
        hint: What would be right, e.g. `e.g. 30s`.
    """
    return faults([("", message, hint)])


def faults(found: Sequence[tuple[str, str, str]]) -> PydanticCustomError:
    """Several faults at once, as (place, message, hint); a place below the field, "" for the field itself."""
    return PydanticCustomError("faults", "{faults}", {"faults": list(found)})


def seconds(value: Any) -> float:
    """Read a duration: a number of seconds, or text such as `50ms`, `30s`, `5min`, `12h`, `60d`.

    Raises:
        PydanticCustomError: if the text is negative or has no unit that is known.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match is None:
        raise fault(f"{value!r} is not a duration", "e.g. 50ms, 30s, 5min, 12h, 60d")
    return float(match[1]) * _UNITS[match[2]]


def _import_path(value: Any) -> Any:
    if isinstance(value, str) and not _IMPORT_PATH.match(value):
        raise fault(f"{value!r} is not an import path", "module:attribute")
    return value


def _filled(name: str) -> str:
    if not name.strip():
        raise fault("is empty", "a column of the source")
    return name


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0)]
"""Seconds, written as a number or as text with a unit."""

PositiveDuration = Annotated[float, BeforeValidator(seconds), Field(gt=0)]

ImportPath = Annotated[str, BeforeValidator(_import_path)]
"""`module:attribute` of user code."""

ColumnName = Annotated[str, AfterValidator(_filled)]

Share = Annotated[float, Field(ge=0, le=1)]

Metric = Literal["auc", "average_precision", "f1", "log_loss", "brier", "ece", "value"]
"""Metrics of a binary classifier that gates, goals and triggers may name."""

LOWER_IS_BETTER: frozenset[str] = frozenset(
    {
        *("log_loss", "brier", "ece", "capped_log_loss", "adjusted_log_loss"),
        *("rmse", "mae", "quantile_loss", "root_squared_error", "absolute_error", "squared_error"),
    }
)
"""Metrics and statistics of blocks that are losses. All others are better when higher, a user's own too."""


def outside(metric: Metric, bound: float) -> str:
    """Why a bound on a metric can never decide anything; empty if it can."""
    if metric == "value" or (bound >= 0 and (bound <= 1 or metric == "log_loss")):
        return ""
    return f"{bound:g} is no value of {metric}"


def values_of(metric: Metric) -> str:
    """Words for the values that a metric can take."""
    if metric == "value":
        return "any number"
    return "0 and above" if metric == "log_loss" else "0 to 1"


def did_you_mean(found: Any, known: Sequence[str]) -> str:
    """A hint at the name that was meant, or at all that there are."""
    close = difflib.get_close_matches(str(found), known, n=1)
    return f"did you mean {close[0]!r}?" if close else one_of(known)


def one_of(known: Sequence[str]) -> str:
    """All names that there are."""
    return f"one of {', '.join(known)}" if len(known) > 1 else "".join(known)
