"""Checks of request bodies, built from a feature view's columns; a problem names a field, never its value.

Takes bytes, gives rows as plain Python values. JSON that is broken (or not Unicode) is 400, a wrong
field is 422. Everything is strict: no text becomes a number, NaN and infinity are refused, also as 1e999.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

MOST_ROWS = 10_000
"""Rows of one request."""
MOST_PROBLEMS = 20
"""Problems that one answer lists."""
_LONGEST_TEXT = 4_096

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Problem(NamedTuple):
    """One field and what is wrong with it."""

    field: str
    problem: str


class RefusedRequest(Exception):
    """A request that is answered 4xx, with its problems."""

    def __init__(self, status: int, error: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(status, error, problems)
        self.status, self.error, self.problems = status, error, problems

    def body(self) -> dict[str, Any]:
        """What the client is told."""
        return {"error": self.error, "problems": [problem._asdict() for problem in self.problems]}


class PredictRequest(NamedTuple):
    """A request that may be answered."""

    key: str | None
    rows: list[dict[str, Any]]
    many: bool
    """Whether it came as `rows` and is answered so."""


def _naive(value: datetime) -> datetime:
    try:
        return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999 in UTC") from None


def _one_of(allowed: Iterable[str]) -> AfterValidator:
    known = frozenset(allowed)

    def check(value: str) -> str:
        if value not in known:
            raise ValueError("is not an allowed value")
        return value

    return AfterValidator(check)


def _binary(value: float) -> float:
    if value not in (0.0, 1.0):
        raise ValueError("expected 0 or 1")
    return value


def _flag(value: bool | int) -> bool:
    if value not in (0, 1):
        raise ValueError("expected true or false")
    return bool(value)


def _column_type(column: Mapping[str, Any]) -> Any:
    """Type of one column's values, from its JSON."""
    kind = column["kind"]
    result: Any
    if kind == "category":
        # no text is a missing value, as in the contract and in feature views
        least = 0 if column.get("nullable") else 1
        result = Annotated[str, Field(min_length=least, max_length=_LONGEST_TEXT)]
        if column.get("allowed") is not None:
            missing = ("",) if column.get("nullable") else ()
            result = Annotated[result, _one_of((*column["allowed"], *missing))]
    elif kind == "number":
        result = Annotated[float, Field(ge=column.get("minimum"), le=column.get("maximum"))]
    elif kind == "timestamp":
        result = Annotated[datetime, AfterValidator(_naive)]
    elif kind == "flag":
        result = Annotated[bool | Annotated[int, Strict()], AfterValidator(_flag)]
    else:
        raise ValueError(f"unknown kind of column {kind!r}")
    return result | None if column.get("nullable") else result


def _typed_dict(name: str, fields: dict[str, Any]) -> Any:
    """A strict TypedDict that is made at run time."""
    make: Any = TypedDict
    result = make(name, fields)
    result.__pydantic_config__ = _STRICT
    return result


class RequestSchema:
    """Body of `/predict`, for one set of columns.

    Args:
        columns: Columns of the champion's view, as JSON: what a request must hold.
        also: Columns of other resident versions: allowed, not required, so that clients may send
            the old and the new field while a rollout that changes the view is under way.
    """

    def __init__(self, columns: Mapping[str, Any], also: Mapping[str, Any] | None = None) -> None:
        fields: dict[str, Any] = {}
        for name, column in columns.items():
            kind = _column_type(column)
            fields[name] = NotRequired[kind] if column.get("nullable") else kind
        for name, column in (also or {}).items():
            fields.setdefault(name, NotRequired[_column_type(column)])
        row = _typed_dict("Features", fields)
        envelope = _typed_dict(
            "Predict",
            {
                "key": NotRequired[Annotated[str, Field(max_length=1024)] | None],
                "features": NotRequired[row],
                "rows": NotRequired[Annotated[list[row], Field(min_length=1, max_length=MOST_ROWS)]],  # type: ignore[valid-type]
            },
        )
        self._adapter: TypeAdapter[Any] = TypeAdapter(envelope)

    def read(self, body: bytes) -> PredictRequest:
        """Check a body.

        Raises:
            RefusedRequest: 400 for JSON that cannot be read, 422 for wrong fields.
        """
        data = _validate(self._adapter, body)
        if ("features" in data) == ("rows" in data):
            problem = Problem("features", "expected exactly one of features, rows")
            raise RefusedRequest(422, "the request has wrong fields", (problem,))
        many = "rows" in data
        return PredictRequest(data.get("key"), data["rows"] if many else [data["features"]], many)

    def json_schema(self) -> dict[str, Any]:
        """JSON schema of the body, for `/openapi.json`."""
        return self._adapter.json_schema()


class _Label(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    prediction_id: Annotated[str, Field(min_length=1, max_length=256)]
    value: Annotated[float, AfterValidator(_binary), Field(json_schema_extra={"enum": [0, 1]})]


class _Labels(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    labels: Annotated[list[_Label], Field(min_length=1, max_length=MOST_ROWS)]


class _Admin(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]
    reason: Annotated[str, Field(min_length=1, max_length=2000)]
    by: NotRequired[Annotated[str, Field(max_length=200)]]
    version: NotRequired[Annotated[str, Field(max_length=64)]]
    overrides: NotRequired[dict[str, Any]]


_ONE_LABEL: TypeAdapter[Any] = TypeAdapter(_Label)
_MANY_LABELS: TypeAdapter[Any] = TypeAdapter(_Labels)
_ADMIN: TypeAdapter[Any] = TypeAdapter(_Admin)


def read_label_request(body: bytes) -> list[tuple[str, float]]:
    """(prediction id, truth) pairs of a body of `/labels`."""
    decoded = _decode(body)
    if isinstance(decoded, dict) and "labels" in decoded:
        labels = _validate(_MANY_LABELS, body)["labels"]
    else:
        labels = [_validate(_ONE_LABEL, body)]
    return [(label["prediction_id"], label["value"]) for label in labels]


def read_admin_request(body: bytes) -> dict[str, Any]:
    """Body of an operator's verb; `reason` is required."""
    data: dict[str, Any] = _validate(_ADMIN, body)
    problems = [Problem(field, "is not a finite number") for field in _not_finite("overrides", data)]
    if not data["reason"].strip():
        problems.append(Problem("reason", "is empty"))
    if problems:
        raise RefusedRequest(422, "the request has wrong fields", tuple(problems[:MOST_PROBLEMS]))
    return data


def _not_finite(name: str, inside: Mapping[str, Any]) -> Iterator[str]:
    """Paths of the numbers below a field that are not finite."""
    waiting = [(name, inside.get(name))]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{path}.{key[:100]}", part) for key, part in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}.{at}", part) for at, part in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            yield path


def admin_schema() -> dict[str, Any]:
    """JSON schema of an operator's verb."""
    return _ADMIN.json_schema()


def labels_schema() -> dict[str, Any]:
    """JSON schema of a body with many labels."""
    return _MANY_LABELS.json_schema()


def _decode(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedRequest(400, "the body is not JSON", (Problem("", "expected a JSON object"),)) from None


def _validate(adapter: TypeAdapter[Any], body: bytes) -> Any:
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> RefusedRequest:
    details = error.errors(include_url=False, include_input=False, include_context=False)
    if any(detail["type"] == "json_invalid" for detail in details):
        return RefusedRequest(400, "the body is not JSON", (Problem("", "is not JSON in UTF-8"),))
    problems: dict[Problem, None] = {}
    for detail in details:
        field = ".".join(str(part)[:100] for part in detail["loc"] if part not in _UNION_BRANCHES)
        problems[Problem(field, _PLAIN.get(detail["type"], _sentence(detail["msg"])))] = None
        if len(problems) >= MOST_PROBLEMS:
            break
    return RefusedRequest(422, "the request has wrong fields", tuple(problems))


_UNION_BRANCHES = ("bool", "int", "function-after[_flag(), union[bool,int]]")
_PLAIN = {
    "extra_forbidden": "unknown field",
    "missing": "is required",
    "finite_number": "is not a finite number",
    "dict_type": "expected an object",
    "string_too_short": "is empty",
}


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ")
